"""Runs of the train command in processes of their own, one or several as one job."""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from paths import ROOT
from photo_files import blurred

LIMIT = 600  # seconds; a hang is a failure
QUICK = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
TRAIN = ("-m", "imagen_booth.train")
# The command, less the pictures at the end, which take most of its time; where asked,
# its process gets a signal once the metrics of a step are written.
TRAIN_ALONE = """
import os, runpy, signal
from imagen_booth import dreambooth
from imagen_booth.rundir import metrics

at, number = int(os.environ.get("SIGNAL_AT", -1)), os.environ.get("SIGNAL", "SIGTERM")
write = metrics.MetricWriter.write

def write_then_signal(self, stage, step, scalars):
    write(self, stage, step, scalars)
    if step == at:
        os.kill(os.getpid(), getattr(signal, number))

metrics.MetricWriter.write = write_then_signal
dreambooth._sample_pictures = lambda *_: None
runpy.run_module("imagen_booth.train", run_name="__main__", alter_sys=True)
"""
ALONE = ("-c", TRAIN_ALONE)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that came to its end."""

    code: int
    out: str
    said: list[str]  # lines of standard error, less those of the transport


def make_photos(folder: pathlib.Path, seed: int) -> pathlib.Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(2):
        blurred(rng, 6, (300, 320)).save(folder / f"{index}.png")
    return folder


def settings(photos: pathlib.Path, work: pathlib.Path, *more: str) -> tuple[str, ...]:
    """Flags of a run of the base stage on two photos with five rows a batch."""
    return (
        "--config=configs/subject.py:tiny",
        f"--config.subject.photos={photos}",
        "--config.subject.class_noun=dog",
        f"--workdir={work}",
        "--config.sr256.steps=0",
        "--config.sr1024.steps=0",
        "--config.class_images.count=2",
        "--config.base.subject_rows=3",
        *more,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(
    *processes: tuple[str, ...], devices: int, environ: list[dict[str, str]]
) -> Iterator[list[subprocess.Popen]]:
    """One command per entry, each the arguments of python, started as one job."""
    together: list[list[str]] = [[] for _ in processes]
    if len(processes) > 1:
        coordinator = f"--coordinator=127.0.0.1:{free_port()}"
        together = [
            [coordinator, f"--processes={len(processes)}", f"--process_id={index}"]
            for index in range(len(processes))
        ]
    started = [
        subprocess.Popen(
            [sys.executable, *arguments, *flags],
            cwd=ROOT,
            env=os.environ | QUICK | {"JAX_NUM_CPU_DEVICES": str(devices)} | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments, flags, extra in zip(processes, together, environ, strict=True)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()


def train(
    *processes: tuple[str, ...],
    devices: int,
    environ: list[dict[str, str]] | None = None,
) -> list[Ended]:
    """Runs a job to its end; ``environ`` adds variables to those of each process."""
    environ = environ or [{} for _ in processes]
    ended = []
    with running(*processes, devices=devices, environ=environ) as started:
        for process in started:
            out, err = process.communicate(timeout=LIMIT)
            lines = [line for line in err.splitlines() if "[Gloo]" not in line]
            ended.append(Ended(process.returncode, out, lines))
    return ended


def losses(work: pathlib.Path) -> dict[tuple[str, int], list[float]]:
    """Loss of subject, class and both at every step that was logged."""
    found = {}
    for line in (work / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        key = row["stage"], row["step"]
        assert key not in found, "a step stands twice in the metrics"
        names = ("train/loss", "train/loss_subject", "train/loss_class")
        found[key] = [row[name] for name in names]
    return found
