"""The queue of the web page: commands that run one at a time, each in its own process.

    ROOT/.booth/jobs/ID.json   one job: its command, run, state, process and exit code
    ROOT/.booth/jobs/ID.log    what the command printed
    ROOT/.booth/lock           locked while a job runs

A worker process (``python -m imagen_booth.web.jobs ROOT``) runs the waiting jobs and
ends when there are none. Neither it nor a job depends on the page's server: both go on
when the server ends, and a new server reads their state from these files.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from imagen_booth.errors import InputError, Stopped
from imagen_booth.storage import open_log, write_atomic

FOLDER = ".booth"
QUEUED, RUNNING, DONE, STOPPED, FAILED = (
    "waiting",
    "running",
    "done",
    "stopped",
    "failed",
)
_PATIENCE = 5.0  # seconds a new worker waits for one that is just ending
_LOG_TAIL = 20_000  # bytes of a log that are read
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclasses.dataclass(frozen=True)
class JobRecord:
    """One job of the queue.

    Attributes:
        id: Name of its files; ids sort by time of submission.
        command: The module and its arguments.
        run: Name of the run that it works on.
        state: ``waiting``, ``running``, ``done``, ``stopped`` or ``failed``.
        created, started, ended: UTC times, or "".
        pid: Process id of the command; 0 before it starts.
        code: Exit code; None before it ends, and if nothing recorded it.
    """

    id: str
    command: tuple[str, ...]
    run: str
    state: str = QUEUED
    created: str = ""
    started: str = ""
    ended: str = ""
    pid: int = 0
    code: int | None = None

    @property
    def kind(self) -> str:
        """Name of the command: ``train``, ``sample``, ``convert``."""
        return self.command[0].rpartition(".")[2]

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (QUEUED, RUNNING)


def shown(command: Sequence[str]) -> str:
    """A command as a shell reads it, to copy."""
    return f"python -m {shlex.join(command)}"


class Queue:
    """The jobs of a root folder.

    Args:
        root: Folder of the runs, on a local disk.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root
        self._folder = root / FOLDER / "jobs"
        self._lock = root / FOLDER / "lock"
        self._workers: list[subprocess.Popen] = []

    def submit(self, command: Sequence[str], run: str) -> JobRecord:
        """Adds a job and starts a worker if none is at work.

        Raises:
            InputError: The same job is waiting or running.
            StorageError: The job cannot be recorded.
        """
        for other in self.records():
            if other.is_open and other.command == tuple(command):
                raise InputError(
                    f"this {other.kind} job of {run} is already {other.state}; wait "
                    "for it, or stop it first"
                )
        record = JobRecord(
            f"{time.time_ns():020d}", tuple(command), run, created=_now()
        )
        self._write(record)
        self.start_worker()
        return record

    def start_worker(self) -> None:
        """Starts a worker if a job waits and none is at work."""
        self._workers = [each for each in self._workers if each.poll() is None]
        if all(each.state != QUEUED for each in self.records()):
            return
        with open_log(self.root / FOLDER / "worker.log") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._workers.append(worker)

    def records(self) -> list[JobRecord]:
        """All jobs, in the order of submission."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # withdrawn in this moment
                found.append(self._read(path))
        return found

    def latest(self, run: str, kind: str = "") -> JobRecord | None:
        """The newest job of a run, of one kind or of any."""
        jobs = [each for each in self.records() if each.run == run]
        jobs = [each for each in jobs if kind in ("", each.kind)]
        return jobs[-1] if jobs else None

    def is_busy(self) -> bool:
        """Whether a job runs, whichever server began it."""
        with self._try_lock() as held:
            return held is None

    def stop(self, record: JobRecord) -> None:
        """Takes a waiting job out of the queue, or stops a running one.

        A running job gets one SIGTERM: It saves its state and ends, and the same
        command resumes it. A second signal would end it without saving, so a job that
        is stopping is left alone.
        """
        try:
            record = self._read(self._path(record.id))
        except FileNotFoundError:
            return  # another tab has withdrawn it
        if record.state == QUEUED:
            self._path(record.id).unlink(missing_ok=True)
        elif record.state == RUNNING and record.pid and self._mark_stopping(record):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGTERM)

    def is_stopping(self, record: JobRecord) -> bool:
        """Whether a running job was stopped and is still saving."""
        marker = self._path(record.id).with_suffix(".stop")
        return record.state == RUNNING and marker.exists()

    def forget(self, run: str) -> None:
        """Deletes the records of a run.

        Raises:
            InputError: One of its jobs is waiting or running.
        """
        records = [each for each in self.records() if each.run == run]
        if opened := next((each for each in records if each.is_open), None):
            raise InputError(
                f"a {opened.kind} job of {run} is {opened.state}; stop it first"
            )
        for record in records:
            for file in self._folder.glob(f"{record.id}.*"):
                file.unlink(missing_ok=True)

    def log(self, record: JobRecord) -> list[str]:
        """The last lines that a job printed; of a progress bar, its last form."""
        path = self._path(record.id).with_suffix(".log")
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            text = file.read().decode("utf-8", "replace")
        lines = [each.rstrip("\r").rpartition("\r")[2] for each in text.split("\n")]
        return [_ESCAPES.sub("", line) for line in lines if line.strip()]

    def work(self) -> None:
        """Runs the waiting jobs, one after the other, until there are none."""
        with self._wait_for_lock() as held:
            if held is None:
                return  # the worker that holds the lock will run them
            for path in self._folder.glob("*.json"):
                record = _parse(path)
                if record.state == RUNNING:  # its worker was killed
                    self._write(dataclasses.replace(record, state=FAILED))
            while waiting := [each for each in self.records() if each.state == QUEUED]:
                self._run(waiting[0], held)

    def _run(self, record: JobRecord, lock: int) -> None:
        record = dataclasses.replace(record, state=RUNNING, started=_now())
        self._write(record)
        with open_log(self._path(record.id).with_suffix(".log")) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *record.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The job holds the lock too, in case that this worker is killed.
                pass_fds=(lock,),
                start_new_session=True,
            )
        self._write(dataclasses.replace(record, pid=process.pid))
        code = process.wait()
        state = DONE if code == 0 else FAILED
        if code in (Stopped.exit_code, -signal.SIGTERM, 128 + signal.SIGTERM):
            state = STOPPED
        self._write(
            dataclasses.replace(
                record, state=state, pid=process.pid, code=code, ended=_now()
            )
        )

    def _mark_stopping(self, record: JobRecord) -> bool:
        """Whether this call is the first to stop a job."""
        marker = self._path(record.id).with_suffix(".stop")
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _path(self, job: str) -> pathlib.Path:
        return self._folder / f"{job}.json"

    def _write(self, record: JobRecord) -> None:
        text = json.dumps(dataclasses.asdict(record), indent=1)
        write_atomic(self._path(record.id), text.encode())

    def _read(self, path: pathlib.Path) -> JobRecord:
        record = _parse(path)
        if record.state == RUNNING and not self.is_busy():
            record = _parse(path)  # it may have ended in this moment
            if record.state == RUNNING:  # its worker was killed
                return dataclasses.replace(record, state=FAILED)
        return record

    @contextlib.contextmanager
    def _try_lock(self) -> Iterator[int | None]:
        """Descriptor of the lock, held; None if another process holds it."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _wait_for_lock(self) -> Iterator[int | None]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self._try_lock() as held:
                if held is not None or time.monotonic() > deadline:
                    yield held
                    return
            time.sleep(0.1)


def _parse(path: pathlib.Path) -> JobRecord:
    fields = json.loads(path.read_text())
    return JobRecord(**fields | {"command": tuple(fields["command"])})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    Queue(pathlib.Path(sys.argv[1])).work()
