"""Two processes over loopback, through the real command, against one process."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
from etils import epath
from PIL import Image

from imagen_booth import config
from imagen_booth.cascade import by_name
from imagen_booth.state import flatten
from imagen_booth.weights import own, tensors
from imagen_booth.weights.load import random_params

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 600  # seconds; a hang is a failure
# Sums over devices may be taken in another order across processes.
TOLERANCE = 1e-5

# The command, in a process that fails as soon as it writes a file of the run.
WRITES_NOTHING = """
import runpy
from imagen_booth.data import pictures

def refuse(path, data):
    raise AssertionError(f"process 1 writes {path}")

pictures.write_atomic = refuse
runpy.run_module("imagen_booth.train", run_name="__main__", alter_sys=True)
"""
# The sampling command, in a process that notes which pictures it writes.
NOTES_PICTURES = """
import runpy, sys
from imagen_booth.data import pictures

save, log = pictures.save_png, sys.argv.pop(1)

def saving(path, *rest):
    save(path, *rest)
    with open(log, "a") as file:
        file.write(f"{path.name}\\n")

pictures.save_png = saving
runpy.run_module("imagen_booth.sample", run_name="__main__", alter_sys=True)
"""
TRAIN = ("-m", "imagen_booth.train")
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # most of the time is compiling
ONE_STAGE = (
    "--config.base.steps=2",
    "--config.sr256.steps=0",
    "--config.sr1024.steps=0",
    "--config.class_images.count=2",
)


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
        pixels = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((300, 320), Image.Resampling.BICUBIC)
        image.save(folder / f"{index}.png")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(*processes: tuple[str, ...], devices: int) -> list[Ended]:
    """Runs one command per entry, each the arguments of python, as one job."""
    together: list[list[str]] = [[] for _ in processes]
    if len(processes) > 1:
        coordinator = f"--coordinator=127.0.0.1:{free_port()}"
        together = [
            [coordinator, f"--processes={len(processes)}", f"--process_id={index}"]
            for index in range(len(processes))
        ]
    running = [
        subprocess.Popen(
            [sys.executable, *arguments, *flags],
            cwd=ROOT,
            env=os.environ | QUICK | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments, flags in zip(processes, together, strict=True)
    ]
    try:
        ended = []
        for process in running:
            out, err = process.communicate(timeout=LIMIT)
            lines = [line for line in err.splitlines() if "[Gloo]" not in line]
            ended.append(Ended(process.returncode, out, lines))
        return ended
    finally:
        for process in running:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()


def settings(photos: pathlib.Path, work: pathlib.Path) -> tuple[str, ...]:
    return (
        "--config=configs/subject.py:tiny",
        f"--config.subject.photos={photos}",
        "--config.subject.class_noun=dog",
        f"--workdir={work}",
        *ONE_STAGE,
    )


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


def test_two_processes_train_as_one(tmp_path):
    photos = make_photos(tmp_path / "photos", 0)
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    [alone] = train((*TRAIN, *settings(photos, one)), devices=2)
    assert alone.code == 0, alone.said
    both = settings(photos, two)
    first, second = train((*TRAIN, *both), ("-c", WRITES_NOTHING, *both), devices=1)
    assert (first.code, second.code) == (0, 0), first.said + second.said

    expected, got = losses(one), losses(two)
    assert expected.keys() == got.keys() == {("base", 1), ("base", 2)}
    for step, values in expected.items():
        np.testing.assert_allclose(got[step], values, rtol=TOLERANCE)
    made = [
        {path.relative_to(work) for path in work.rglob("*.png")} for work in (one, two)
    ]
    assert made[0] == made[1]
    assert len(list((tmp_path / "two" / "cache" / "class_images").rglob("*.png"))) == 2
    assert not list(two.glob(".*"))  # neither marks nor half-written files


def test_two_work_directories_are_refused(tmp_path):
    photos = make_photos(tmp_path / "photos", 0)
    works = [tmp_path / "disk0" / "run", tmp_path / "disk1" / "run"]
    ended = train(*((*TRAIN, *settings(photos, work)) for work in works), devices=1)
    for each, work in zip(ended, works, strict=True):
        assert each.code == 2
        [sentence] = each.said
        assert sentence.startswith(f"--workdir={work} is not one folder for all hosts")
        assert "host 1 cannot see" in sentence
        assert "give a gs:// folder" in sentence
    assert not list(works[0].iterdir())
    assert not works[1].exists()


def test_other_photos_on_one_host_are_refused(tmp_path):
    photos = [make_photos(tmp_path / f"photos{seed}", seed) for seed in (0, 1)]
    work = tmp_path / "run"
    ended = train(*((*TRAIN, *settings(each, work)) for each in photos), devices=1)
    for each in ended:
        assert each.code == 2
        [sentence] = each.said
        assert sentence.startswith("config.subject.photos=")
        assert "host 1 and host 0 differ" in sentence


def test_two_processes_share_a_batch_job(tmp_path):
    """Each stores half of every batch; together the pictures of one process."""
    # Where nothing is tuned the random network draws grey; with every weight shaken,
    # each picture is its own.
    rng = np.random.default_rng(0)
    weights = {
        path: tensors.held((leaf + rng.normal(0, 0.05, leaf.shape)).astype(np.float32))
        for path, leaf in flatten(random_params(by_name("tiny"), "base")).items()
    }
    shaken = epath.Path(tmp_path) / "weights"
    own.write(shaken, "base", weights, None, {"licence": "none"})
    settings = config.booth("tiny")
    settings.weights.base = str(shaken)
    job = config.to_job(settings)
    subject = {"identifier": "zaf", "class_noun": "dog"}
    for name in ("one", "two"):
        work = tmp_path / name / "run"
        work.mkdir(parents=True)
        # Random weights, and nothing tuned.
        (work / "config.json").write_text(json.dumps(dataclasses.asdict(job)))
        (work / "manifest.json").write_text(json.dumps({"subject": subject}))
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,seed,guidance\na [V] [N],,\na cat,7,3\n")

    def command(name: str, number: int) -> tuple[str, ...]:
        flags = f"--run={tmp_path / name / 'run'}", f"--prompts={prompts}"
        more = "--name=job", "--seeds=4", "--resolution=64", "--batch=4"
        return "-c", NOTES_PICTURES, str(tmp_path / f"{name}{number}"), *flags, *more

    [alone] = train(command("one", 0), devices=2)
    assert alone.code == 0, alone.said
    both = train(command("two", 0), command("two", 1), devices=1)
    assert [each.code for each in both] == [0, 0], both[0].said + both[1].said
    wrote = [(tmp_path / f"two{n}").read_text().split() for n in (0, 1)]
    assert not set(wrote[0]) & set(wrote[1])
    assert all(len(names) == 4 for names in wrote)
    folders = [tmp_path / name / "run" / "samples" / "job" for name in ("one", "two")]
    lines = [
        sorted((folder / "index.jsonl").read_text().splitlines()) for folder in folders
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 8
    for line in lines[0]:
        file = json.loads(line)["file"]
        one, two = (np.asarray(Image.open(each / file), int) for each in folders)
        assert one.std() > 5
        assert np.abs(one - two).max() <= 1
