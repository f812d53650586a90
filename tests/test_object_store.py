"""Runs and sampling jobs on a bucket, where nothing can be appended or renamed."""

import json
import sys

import gcs
import numpy as np
import pytest
from etils import epath
from train_jobs import ALONE, TRAIN, make_photos, settings, train

from imagen_booth import storage, train_state
from imagen_booth.rundir import checkpoints
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.sampling.batch_progress import ImageIndex
from imagen_booth.storage import LineLog, write_atomic

pytest.importorskip("gcp_storage_emulator")

# Samples, and is killed once this many pictures are stored.
SAMPLE_AND_DIE = """
import os, runpy, signal
from imagen_booth.data import image_files

save, left = image_files.save_png, [int(os.environ["PICTURES"])]

def save_then_die(*arguments, **named):
    save(*arguments, **named)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

image_files.save_png = save_then_die
runpy.run_module("imagen_booth.sample", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def bucket():
    with gcs.emulator():
        yield epath.Path(f"gs://{gcs.BUCKET}")


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    """A folder on the disk, and one in the bucket."""
    if request.param == "local":
        return epath.Path(tmp_path) / "new"
    return request.getfixturevalue("bucket") / tmp_path.name


def test_a_file_is_written_whole_and_written_over(folder):
    for data in (b"first", b"second, longer", b""):
        write_atomic(folder / "inner" / "file", data)
        assert (folder / "inner" / "file").read_bytes() == data
    assert [path.name for path in (folder / "inner").iterdir()] == ["file"]


def test_a_log_keeps_the_lines_of_those_before(folder):
    path = folder / "log.jsonl"
    for writer in range(3):
        log = LineLog(path)
        log.append([f"{writer} a", f"{writer} b"])
        log.append([f"{writer} c"])
        log.flush()
    expected = [f"{writer} {letter}" for writer in range(3) for letter in "abc"]
    assert path.read_text() == "".join(f"{line}\n" for line in expected)
    assert LineLog(path).lines == expected


def test_an_object_is_not_rewritten_at_every_line(bucket, monkeypatch):
    written = []
    monkeypatch.setattr(
        storage, "write_atomic", lambda path, data: written.append(data)
    )
    log = LineLog(bucket / "busy")
    for number in range(100):
        log.append([str(number)])
    log.flush()
    assert len(written) < 10
    assert written[-1].split() == [str(n).encode() for n in range(100)]


def test_a_line_cut_short_does_not_run_into_the_next(folder):
    write_atomic(folder / "log", b"whole\ncut sh")
    log = LineLog(folder / "log")
    log.append(["next"])
    log.flush()
    assert (folder / "log").read_text().splitlines() == ["whole", "cut sh", "next"]


def test_metrics_of_a_resumed_run(folder):
    for steps in ((1, 2, 3), (3, 4)):
        with MetricWriter(folder, active=True) as metrics:
            metrics.rewind("base", steps[0] - 1)
            for step in steps:
                metrics.write("base", step, {"train/loss": 0.5})
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]


def test_an_index_that_a_kill_cut_short(folder):
    write_atomic(folder / "index.jsonl", b'{"file": "a"}\n{"fi')
    for _ in range(2):
        index = ImageIndex(folder / "index.jsonl")
        index.add({"file": name} for name in "ab")
        index.flush()
    lines = (folder / "index.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["a", "b"]


@pytest.fixture(scope="module")
def runs(bucket, tmp_path_factory):
    """One job: undisturbed on the disk, and on the bucket killed and resumed."""
    here = tmp_path_factory.mktemp("runs")
    photos, there = make_photos(here / "photos", 0), bucket / "photos"
    for photo in photos.iterdir():
        write_atomic(there / photo.name, photo.read_bytes())
    local, remote = here / "run", bucket / "runs" / "dog"
    [straight] = train((*TRAIN, *settings(photos, local)), devices=1)
    assert straight.code == 0, straight.said
    flags = settings(there, remote, f"--config.cache={bucket / 'cache'}")
    [killed] = train(
        (*ALONE, *flags), devices=1, environ=[{"SIGNAL_AT": "3", "SIGNAL": "SIGKILL"}]
    )
    assert killed.code == -9, killed.said
    [resumed] = train((*TRAIN, *flags), devices=1)
    assert resumed.code == 0, resumed.said
    return epath.Path(local), remote


def parameters(run: epath.Path) -> dict[str, np.ndarray]:
    return train_state.flatten(checkpoints.read_params(run / "base")[0])


@pytest.mark.long
def test_a_run_on_a_bucket_killed_and_resumed_ends_bit_for_bit(runs):
    local, remote = (parameters(run) for run in runs)
    assert local.keys() == remote.keys()
    for name, leaf in local.items():
        np.testing.assert_array_equal(leaf, remote[name], err_msg=name)


@pytest.mark.long
def test_a_run_on_a_bucket_leaves_all_that_one_on_a_disk_leaves(runs):
    local, remote = runs
    for name in ("config.json", "manifest.json", "metrics.jsonl", "report.html"):
        assert (local / name).exists(), name
        assert (remote / name).exists(), name
    rows = [
        [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    ]
    assert [(row["stage"], row["step"], row["train/loss"]) for row in rows[0]] == [
        (row["stage"], row["step"], row["train/loss"]) for row in rows[1]
    ]
    pictures = [
        sorted(str(path.relative_to(run)) for path in run.glob("samples/final/*/*.png"))
        for run in runs
    ]
    assert pictures[0] == pictures[1]
    assert pictures[0]


@pytest.mark.long
def test_a_sampling_job_on_a_bucket_killed_and_resumed_keeps_its_index(runs, tmp_path):
    _, remote = runs
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a [V] dog\na [V] dog in the snow\na [N]\n")
    flags = (
        f"--run={remote}",
        f"--prompts={prompts}",
        "--seeds=2",
        "--resolution=64",
        "--batch=2",
    )
    [killed] = train(
        ("-c", SAMPLE_AND_DIE, *flags), devices=1, environ=[{"PICTURES": "3"}]
    )
    assert killed.code == -9, killed.said
    [resumed] = train(("-m", "imagen_booth.sample", *flags), devices=1)
    assert resumed.code == 0, resumed.said
    folder = remote / "samples" / "prompts"
    entries = [
        json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()
    ]
    assert len(entries) == len({entry["file"] for entry in entries}) == 6
    assert {entry["file"] for entry in entries} == {
        f"64/{path.name}" for path in (folder / "64").iterdir()
    }


@pytest.mark.long
def test_a_run_on_a_bucket_is_exported_to_one(runs, bucket):
    local, remote = runs
    for run, to in ((local, bucket / "local"), (remote, bucket / "remote")):
        [ended] = train(
            ("-m", "imagen_booth.convert", "export", f"--run={run}", f"--to={to}"),
            devices=1,
        )
        assert ended.code == 0, ended.said
    first, second = (bucket / "local", bucket / "remote")
    assert (first / "base.safetensors").read_bytes() == (
        second / "base.safetensors"
    ).read_bytes()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="processes as on Linux")
def test_two_processes_share_a_bucket(bucket, tmp_path):
    photos = make_photos(tmp_path / "photos", 1)
    work = bucket / "runs" / "two"
    flags = (*TRAIN, *settings(photos, work, f"--config.cache={bucket / 'cache2'}"))
    both = train(flags, flags, devices=1)
    assert [each.code for each in both] == [0, 0], both
    assert (work / "report.html").exists()
