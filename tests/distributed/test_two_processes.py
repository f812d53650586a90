"""Two processes over loopback train as one process does, by the real command."""

import json
import signal
import time

import numpy as np
import pytest
from train_jobs import (
    ALONE,
    LIMIT,
    TRAIN,
    losses,
    make_photos,
    running,
    settings,
    train,
)

from imagen_booth.distributed.processes import SILENCE

pytestmark = pytest.mark.long

# Sums over devices may be taken in another order across processes.
TOLERANCE = 1e-5

# Runs the command, fails as soon as process 1 writes a file of the run, and prints
# which rows of each batch of images its devices sampled.
WRITES_NOTHING = """
import json, runpy, sys
import numpy as np
from imagen_booth import storage

def refuse(path, data):
    raise AssertionError(f"process 1 writes {path}")

if "--process_id=0" not in sys.argv:
    storage.write_atomic = refuse
    # Another run fills the shared cache after process 0 has looked and before
    # this process looks.
    import os, shutil, time
    from imagen_booth.sampling import text_embeddings
    from imagen_booth.training import class_images

    def fill_before(look):
        def looking(*arguments):
            time.sleep(2)
            full = os.environ["FULL_CACHE"]
            shutil.copytree(full, os.environ["CACHE"], dirs_exist_ok=True)
            return look(*arguments)
        return looking

    text_embeddings._cache_files = fill_before(text_embeddings._cache_files)
    class_images.class_image_folder = fill_before(class_images.class_image_folder)
from imagen_booth.sampling import cascade_sampler

real = cascade_sampler.sampler_program
def sampler_program(stage, apply, config):
    sample = real(stage, apply, config)
    def printing(params, *, seeds, **more):
        shards = [np.asarray(shard.data) for shard in seeds.addressable_shards]
        local = np.concatenate(shards).tolist()
        print("sampled", json.dumps([seeds.shape[0], local]))
        return sample(params, seeds=seeds, **more)
    return printing
cascade_sampler.sampler_program = sampler_program
runpy.run_module("imagen_booth.train", run_name="__main__", alter_sys=True)
"""
SHORT = ("--config.base.steps=2", "--config.base.log_every=1")


def rows_sampled(out: str) -> list[tuple[int, list[int]]]:
    """Per batch of images: its rows on all hosts, and the seeds sampled on this one."""
    return [
        tuple(json.loads(line.removeprefix("sampled ")))
        for line in out.splitlines()
        if line.startswith("sampled ")
    ]


def check_as_one(tmp_path, processes: int, per_process: int) -> None:
    """Several processes train as one with as many devices, to ``TOLERANCE``.

    Meanwhile another run writes to the cache, between the looks of two hosts.
    """
    photos = make_photos(tmp_path / "photos", 0)
    one, many = tmp_path / "one" / "run", tmp_path / "many" / "run"
    [alone] = train(
        (*TRAIN, *settings(photos, one, *SHORT)), devices=processes * per_process
    )
    assert alone.code == 0, alone.said
    flags = settings(photos, many, *SHORT)
    caches = {
        "FULL_CACHE": str(one.parent / "cache"),
        "CACHE": str(many.parent / "cache"),
    }
    ended = train(
        *[("-c", WRITES_NOTHING, *flags)] * processes,
        devices=per_process,
        environ=[caches] * processes,
    )
    assert {each.code for each in ended} == {0}, [each.said for each in ended]

    expected, got = losses(one), losses(many)
    assert expected.keys() == got.keys() == {("base", 1), ("base", 2)}
    for step, values in expected.items():
        np.testing.assert_allclose(got[step], values, rtol=TOLERANCE)
    made = [
        {path.relative_to(work) for path in work.rglob("*.png")} for work in (one, many)
    ]
    assert made[0] == made[1]
    classes = tmp_path / "many" / "cache" / "class_images"
    assert len(list(classes.rglob("*.png"))) == 2
    assert not list(many.glob(".*"))  # neither marks nor half-written files

    # The class images come first; every host samples rows of its own.
    (rows, first), *others = [rows_sampled(each.out)[0] for each in ended]
    shares = [first, *(mine for _, mine in others)]
    assert [len(share) for share in shares] == [rows // processes] * processes
    if rows == 2:  # else the batch is filled up with copies
        assert sorted(sum(shares, [])) == [0, 1]


def test_two_processes_train_as_one(tmp_path):
    check_as_one(tmp_path, 2, 1)


@pytest.mark.slow
def test_four_processes_train_as_one(tmp_path):
    check_as_one(tmp_path, 4, 1)


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


LONG = (
    "--config.base.steps=5",
    "--config.base.log_every=1",
    "--config.base.save_every=2",
)
MARGIN = 60  # seconds to notice and to end, on a machine that is busy


def killed(tmp_path, victim: int) -> float:
    """Kills one of two hosts after step 3 and starts both again.

    Returns:
        Seconds until the other host ended.
    """
    photos, work = make_photos(tmp_path / "photos", 0), tmp_path / "run"
    command = (*ALONE, *settings(photos, work, *LONG))
    kill = [{}, {}]
    kill[victim] = {"SIGNAL_AT": "3", "SIGNAL": "SIGKILL"}
    with running(command, command, devices=1, environ=kill) as started:
        _, err = started[victim].communicate(timeout=LIMIT)
        since = time.monotonic()
        _, said = started[1 - victim].communicate(timeout=SILENCE + MARGIN)
        took = time.monotonic() - since
        assert started[victim].returncode == 128 + signal.SIGKILL, err
        assert started[1 - victim].returncode == 75, said
        assert said.splitlines()[-1].startswith("another host was lost; run the same")

    again = train(command, command, devices=1)
    assert [each.code for each in again] == [0, 0], [each.said for each in again]
    found = losses(work)
    assert sorted(found) == [("base", step) for step in range(1, 6)]
    straight = tmp_path / "straight"
    [alone] = train((*ALONE, *settings(photos, straight, *LONG)), devices=2)
    assert alone.code == 0, alone.said
    for step, values in losses(straight).items():
        np.testing.assert_allclose(found[step], values, rtol=1e-3)
    return took


def test_a_killed_host_ends_the_other_and_both_go_on(tmp_path):
    """Over this transport a broken connection is noticed at once."""
    assert killed(tmp_path, 1) < SILENCE + MARGIN


@pytest.mark.slow
def test_a_killed_first_host_ends_the_other_and_both_go_on(tmp_path):
    """It runs the coordination service; without it the others are aborted."""
    assert killed(tmp_path, 0) < SILENCE + MARGIN
