"""The queue of the web page, with small commands in place of training."""

import contextlib
import dataclasses
import os
import signal
import time

import pytest
from web_pages import until

from imagen_booth.errors import InputError
from imagen_booth.web.jobs import (
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    STOPPED,
    Queue,
    shown,
)

QUICK = ("platform",)  # a module that prints a line and ends
LONG = ("timeit", "-n1", "-r1", "import time; time.sleep(120)")
# Ends with exit code 75 after a signal, as train does.
SAVING = (
    "timeit",
    "-n1",
    "-r1",
    "import os, signal, time; signal.signal(15, lambda *_: os._exit(75)); "
    "print('ready', flush=True); time.sleep(120)",
)


@pytest.fixture
def queue(tmp_path):
    made = Queue(tmp_path)
    yield made
    for record in made.records():
        if record.state == RUNNING and record.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)
    until(lambda: not made.is_busy(), 60)
    for worker in made._workers:
        worker.wait()


def states(queue):
    return [record.state for record in queue.records()]


def running(queue):
    return [each for each in queue.records() if each.state == RUNNING and each.pid]


def test_jobs_run_one_after_the_other(queue):
    first = queue.submit(SAVING, "dog")
    queue.submit(QUICK, "cat")
    until(lambda: "ready" in queue.log(first), 60)
    assert states(queue) == [RUNNING, QUEUED]
    queue.stop(first)
    until(lambda: states(queue) == [STOPPED, DONE], 60)
    assert [each.code for each in queue.records()] == [75, 0]
    assert not queue.is_busy()


def test_a_job_is_signalled_once(queue):
    """The second signal would end train without saving."""
    job = queue.submit(SAVING, "dog")
    until(lambda: "ready" in queue.log(job), 60)
    assert queue._mark_stopping(job)
    queue.stop(job)
    time.sleep(0.5)
    assert states(queue) == [RUNNING]
    assert queue.is_stopping(queue.records()[0])


def test_a_waiting_job_is_withdrawn(queue):
    queue.submit(LONG, "dog")
    until(lambda: running(queue), 60)
    second = queue.submit(QUICK, "dog")
    with pytest.raises(InputError, match="stop it first"):
        queue.forget("dog")
    with pytest.raises(InputError, match="already"):
        queue.submit(QUICK, "dog")
    queue.stop(second)
    queue.stop(second)  # from another tab, which has not seen it yet
    assert states(queue) == [RUNNING]


def test_a_job_that_ends_while_it_is_read_has_not_failed(queue, monkeypatch):
    """Its worker records the end and frees the lock between the two looks."""
    queue.submit(QUICK, "dog")
    (ended,) = until(lambda: [each for each in queue.records() if each.code == 0], 60)
    until(lambda: not queue.is_busy(), 60)
    queue._write(dataclasses.replace(ended, state=RUNNING))
    monkeypatch.setattr(queue, "is_busy", lambda: queue._write(ended))
    assert states(queue) == [DONE]


def test_a_job_outlives_its_worker(queue):
    """The job holds the lock, so no second job starts beside it."""
    job = queue.submit(LONG, "dog")
    (record,) = until(lambda: running(queue), 60)
    (worker,) = queue._workers
    worker.kill()
    worker.wait()
    assert states(queue) == [RUNNING]
    assert queue.is_busy()
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: states(queue) == [FAILED], 60)
    assert queue.latest("dog") == queue.records()[0]
    queue.forget("dog")
    assert queue.records() == []
    assert not list(queue._folder.glob(f"{job.id}*"))


def test_a_failed_job_shows_what_it_printed(queue):
    job = queue.submit(("imagen_booth.sample", "--run=/nowhere", "--prompt=a"), "dog")
    until(lambda: states(queue) == [FAILED], 120)
    assert queue.records()[0].code == 2
    assert queue.log(job)[-1].startswith("--run=/nowhere is not the run directory")


def test_commands_are_shown_as_a_shell_reads_them():
    command = ("imagen_booth.sample", "--prompt=a [V] dog; rm -rf /")
    assert shown(command) == (
        "python -m imagen_booth.sample '--prompt=a [V] dog; rm -rf /'"
    )
