"""One owner a folder: a lock with a heartbeat, on a local disk and in an object store.

The lock is a folder ``lock`` with one numbered file, which names its owner. A folder
is taken by creating the file of the next number, which only one process can; the
highest number counts. The owner rewrites its file every ``BEAT`` seconds. No file is
renamed or appended to, and no clocks are compared: who wants a folder that another
host owns watches whether the file changes.

    with lock.held(workdir):
        ...  # nobody else does this at the same time
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from imagen_booth.distributed import processes, supervisor
from imagen_booth.errors import InUse, StorageError
from imagen_booth.rundir.layout import utc_now
from imagen_booth.storage import SharedFolder

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between two writes of the owner
STALE = 60.0  # seconds without a write after which a folder can be taken over
PAUSE = 1.0  # seconds between two looks at another host's lock


@contextlib.contextmanager
def held(
    folder: epath.PathLike, on_loss: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Owns a folder inside the context; process 0 does, for all processes of a job.

    A folder whose owner has ended is free: at once if it released the folder or ran on
    this machine, after ``STALE`` seconds of silence if it ran on another.

    Args:
        folder: Local or ``gs://``.
        on_loss: Called with one sentence in another thread if another process has
            taken the folder over, which it can after this one was silent for
            ``STALE`` seconds; by default this process ends at once, because it must
            not write any more.

    Raises:
        InUse: Another process owns the folder; raised on every process.
        StorageError: The lock cannot be written; raised on every process.
    """
    lock = FolderLock(folder, on_loss)
    while not processes.decide(lock.try_to_take):
        time.sleep(PAUSE)
    try:
        yield
    finally:
        lock.release()


def owner(folder: epath.PathLike) -> str | None:
    """Who owns a folder, in words; None if it is free, or its owner may be gone."""
    record = FolderLock(folder).latest()[1]
    if not record or record.get("released") or _on_this_machine(record) is not True:
        return None
    return _words(record)


class FolderLock:
    """The lock of one folder, in a process that wants it.

    Args:
        folder, on_loss: As for ``held``.
    """

    def __init__(
        self, folder: epath.PathLike, on_loss: Callable[[str], None] | None = None
    ):
        self._folder = epath.Path(folder)
        self._on_loss = on_loss or _end_process
        self._files = SharedFolder(self._folder / "lock")
        self._mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": utc_now(),
            "machine": _machine(),
            "started": _start_time(os.getpid()),
        }
        self._number, self._beats = 0, 0
        self._seen: tuple[bytes | None, float] | None = None
        self._done = threading.Event()
        self._heart: threading.Thread | None = None

    def latest(self) -> tuple[int, dict[str, Any], bytes | None]:
        """The highest number, its record and its bytes; 0 if there is none."""
        numbers = [
            int(name[:-5]) for name in self._files.names() if name[:-5].isdigit()
        ]
        number = max(numbers, default=0)
        data = self._files.read(_name(number)) if number else None
        try:
            record = json.loads(data or b"{}")
        except ValueError:
            record = {}  # cut short by a power cut
        return number, record if isinstance(record, dict) else {}, data

    def try_to_take(self) -> bool:
        """Takes the folder if it is free; False to try again later.

        Raises:
            InUse: Its owner is at work. Another try may succeed later.
        """
        number, record, data = self.latest()
        if number and not self._is_free(record, data):
            return False
        self._number = number + 1
        mine = _name(self._number)
        if not self._files.create(mine, self._record()):
            return False
        names = self._files.names()
        if max(names, default=mine) > mine:  # others came and went since the look
            self._files.delete(mine)
            return False
        for name in names:
            if name < mine:
                self._files.delete(name)
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return True

    def _is_free(self, record: dict[str, Any], data: bytes | None) -> bool:
        alive = _on_this_machine(record)
        if record.get("released") or alive is False:
            return True
        if self._seen is None:
            self._seen = data, time.monotonic()
            if alive is None:
                log.info(
                    "%s is owned by %s; waiting up to %d s to see whether it is alive",
                    self._folder,
                    _words(record),
                    STALE,
                )
        seen, since = self._seen
        if alive or data != seen:
            self._seen = data, time.monotonic()  # for a later try
            raise InUse(
                f"{self._folder} is in use: {_words(record)}. Wait until it has ended, "
                "or give another folder; if it was killed, the folder is free "
                f"{STALE:g} s later"
            )
        return time.monotonic() - since > STALE

    def _record(self, **more: Any) -> bytes:
        return json.dumps(self._mine | {"beat": self._beats} | more).encode()

    def _beat(self) -> None:
        """Rewrites the record at intervals, until the folder is lost or released."""
        while not self._done.wait(BEAT):
            try:
                number, record, _ = self.latest()
                if number > self._number:
                    self._on_loss(
                        f"{self._folder} was taken over by another process, after "
                        f"this one was silent for {STALE:g} s: {_words(record)}"
                    )
                    return
                self._beats += 1
                self._files.write(_name(self._number), self._record())
            except Exception as error:  # the next one may be written
                log.warning(
                    "%s: the heartbeat could not be written: %s", self._folder, error
                )

    def release(self) -> None:
        """Marks the folder as free in the record."""
        if self._heart is None:
            return
        self._done.set()
        self._heart.join()
        try:
            if self.latest()[0] == self._number:
                self._files.write(_name(self._number), self._record(released=True))
        except (StorageError, OSError) as error:
            log.warning("%s could not be released: %s", self._folder, error)


def _end_process(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
    supervisor.record_exit(StorageError.exit_code)
    os._exit(StorageError.exit_code)


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _words(record: dict[str, Any]) -> str:
    host, pid, since = (record.get(key, "?") for key in ("host", "pid", "since"))
    return f"process {pid} of host {host}, since {since}"


def _machine() -> str:
    """Identifies a boot of a machine and a container: one space of process ids."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """When a process started, in ticks since the boot; "" if it does not run."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *rest = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def _on_this_machine(record: dict[str, Any]) -> bool | None:
    """Whether the owner runs here; None if it ran on another machine."""
    if not _machine() or record.get("machine") != _machine():
        return None
    return _start_time(record.get("pid", 0)) == record.get("started")
