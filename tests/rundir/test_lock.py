"""One owner a folder: taken, refused, taken over, released and lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from gcs import BUCKET, emulator

from imagen_booth.errors import InputError
from imagen_booth.rundir import lock

OWNER = """
import sys, time
from imagen_booth.rundir import lock

with lock.held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def bucket():
    with emulator():
        yield epath.Path(f"gs://{BUCKET}")


@pytest.fixture(params=["local", "gs"])
def folder(request, tmp_path):
    if request.param == "local":
        return epath.Path(tmp_path / "run")
    return request.getfixturevalue("bucket") / tmp_path.name


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("BEAT", 0.1), ("STALE", 1.0), ("PAUSE", 0.05)):
        monkeypatch.setattr(lock, name, seconds)


@contextlib.contextmanager
def another_process(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def record(folder):
    """The newest file of a lock, and what is in it."""
    files = (each for each in (folder / "lock").iterdir() if each.suffix == ".json")
    file = max(files, key=lambda each: each.name)
    return file, json.loads(file.read_text())


def test_the_folder_of_another_process_is_refused_until_it_ends(folder):
    with another_process(folder) as owner:
        with (
            pytest.raises(InputError, match=f"in use: process {owner.pid} of host"),
            lock.held(folder),
        ):
            pytest.fail("held twice")
        assert f"process {owner.pid} of host" in (lock.owner(folder) or "")
        owner.communicate("\n")  # an ordinary end releases it
        with lock.held(folder):
            assert f"process {os.getpid()} " in (lock.owner(folder) or "")
    assert lock.owner(folder) is None


def test_a_killed_process_of_this_machine_leaves_its_folder_free_at_once(folder):
    with another_process(folder) as owner:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        start = time.monotonic()
        with lock.held(folder):
            assert time.monotonic() - start < lock.STALE


def claim_by_another_host(folder, beat=0, number=1):
    about = {"host": "elsewhere", "pid": 7, "since": "noon", "machine": "x"}
    file = folder / "lock" / f"{number:08d}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about | {"beat": beat}))


def test_a_silent_host_loses_its_folder_after_the_stated_time(folder):
    claim_by_another_host(folder)
    start = time.monotonic()
    with lock.held(folder):
        assert time.monotonic() - start >= lock.STALE
        assert record(folder)[1]["pid"] == os.getpid()


def test_a_living_host_does_not(folder):
    claim_by_another_host(folder)
    done = threading.Event()

    def beat():
        for number in range(1, 1000):
            if done.wait(0.2):
                return
            claim_by_another_host(folder, number)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with (
            pytest.raises(InputError, match="in use: process 7 of host elsewhere"),
            lock.held(folder),
        ):
            pytest.fail("held twice")
    finally:
        done.set()
        heart.join()


def test_an_owner_that_was_silent_learns_that_it_lost_the_folder(folder):
    lost = []
    with lock.held(folder, on_loss=lost.append):
        claim_by_another_host(folder, number=2)
        end = time.monotonic() + 30
        while not lost and time.monotonic() < end:
            time.sleep(0.02)
    assert "taken over by another process" in lost[0]
    assert "of host elsewhere" in lost[0]
    assert not record(folder)[1].get("released")  # that of the new owner stays


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x"}'])
def test_a_damaged_lock_is_taken_over(tmp_path, text):
    claim_by_another_host(tmp_path)
    record(tmp_path)[0].write_text(text)
    with lock.held(tmp_path):
        assert record(tmp_path)[1]["pid"] == os.getpid()


def test_of_many_that_try_at_once_one_succeeds(tmp_path):
    claim_by_another_host(tmp_path)
    start, held, refused = threading.Barrier(8), [], []

    def try_it():
        one = lock.FolderLock(tmp_path, held.append)
        one._seen = record_bytes, time.monotonic() - 2 * lock.STALE
        start.wait()
        try:
            while not one.try_to_take():
                pass
            held.append(one)
        except InputError:
            refused.append(one)

    record_bytes = record(tmp_path)[0].read_bytes()
    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (len(held), len(refused)) == (1, 7)
    held[0].release()


def test_who_looked_long_ago_takes_nothing(tmp_path, monkeypatch):
    """Its number is free again, because a later owner deleted the files before."""
    claim_by_another_host(tmp_path, number=3)
    late = lock.FolderLock(tmp_path)
    monkeypatch.setattr(late, "latest", lambda: (1, {"released": True}, b"{}"))
    assert not late.try_to_take()
    assert [each.name for each in (tmp_path / "lock").iterdir()] == ["00000003.json"]
