"""Writing files, on a local disk and in an object store alike.

An object store (``gs://``) has no append, no rename and no partial overwrite: an object
is written whole or not at all. Everything that writes goes through this module.
"""

import os
import threading
import time
from collections.abc import Iterable, Sequence

from etils import epath

from imagen_booth.errors import StorageError

# Cloud Storage accepts about one write a second to the same object.
REWRITE_SECONDS = 2.0


def is_object_store(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store, such as ``gs://bucket/run``."""
    return "://" in os.fspath(path)


def write_atomic(path: epath.PathLike, data: bytes) -> None:
    """Writes a file that is either whole or absent, whenever the process dies.

    On a local disk the bytes go to a hidden file beside ``path``, which is then renamed
    over it; parent folders are made. In an object store one upload does both.

    Raises:
        StorageError: The bytes cannot be written; the message names the path.
    """
    path = epath.Path(path)
    try:
        if is_object_store(path):
            path.write_bytes(data)
        else:
            _write_and_rename(path, data)
    except OSError as error:
        raise StorageError(f"could not write {path}: {error}") from error


def _write_and_rename(path: epath.Path, data: bytes) -> None:
    beside = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class LineLog:
    """A text file that grows by lines; one process writes it.

    A local file is appended to. An object is written anew with all its lines, at most
    once in ``REWRITE_SECONDS``; ``flush`` writes what is still waiting.

    Args:
        path: Local or ``gs://``; read if it exists.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        text = self._path.read_text() if self._path.exists() else ""
        self._lines = text.splitlines()
        self._cut_short = bool(text) and not text.endswith("\n")
        self._waiting, self._written = False, 0.0

    @property
    def lines(self) -> Sequence[str]:
        """All lines, without line ends; the last may be cut short by a kill."""
        return self._lines

    def append(self, lines: Iterable[str]) -> None:
        """Adds lines at the end.

        Raises:
            StorageError: They cannot be written.
        """
        new = list(lines)
        self._lines += new
        if is_object_store(self._path):
            self._waiting = True
            if time.monotonic() - self._written >= REWRITE_SECONDS:
                self.flush()
        elif self._cut_short:
            self._rewrite()
        else:
            self._append_to_file(new)

    def replace(self, lines: Iterable[str]) -> None:
        """Puts other lines in place of all.

        Raises:
            StorageError: They cannot be written.
        """
        self._lines = list(lines)
        self._rewrite()

    def flush(self) -> None:
        """Writes the lines that an object store has not been given yet.

        Raises:
            StorageError: They cannot be written.
        """
        if self._waiting:
            self._rewrite()

    def _rewrite(self) -> None:
        write_atomic(self._path, "".join(f"{line}\n" for line in self._lines).encode())
        self._cut_short = self._waiting = False
        self._written = time.monotonic()

    def _append_to_file(self, lines: Sequence[str]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise StorageError(f"could not write {self._path}: {error}") from error
