"""Writing files, on a local disk and in an object store alike.

An object store (``gs://``) has no append, no rename and no partial overwrite: an object
is written whole or not at all. Everything that writes goes through this module.
"""

import contextlib
import io
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np
from etils import epath

from imagen_booth.errors import StorageError

# Cloud Storage accepts about one write a second to the same object.
REWRITE_SECONDS = 2.0


def is_object_store(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store, such as ``gs://bucket/run``."""
    return "://" in os.fspath(path)


def write_atomic(path: epath.PathLike, data: bytes) -> None:
    """Writes a file that is either whole or absent, whenever the process dies.

    Raises:
        StorageError: The bytes cannot be written; the message names the path.
    """
    with open_atomic(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomic(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file for writing that appears whole when the context ends.

    On a local disk the bytes go to a hidden file beside ``path``, which is then renamed
    over it; parent folders are made. For an object store they go to a temporary file,
    which is then uploaded.

    Raises:
        StorageError: The bytes cannot be written; the message names the path.
    """
    path = epath.Path(path)
    opened = _uploaded(path) if is_object_store(path) else _renamed(path)
    try:
        with opened as file:
            yield file
    except OSError as error:
        raise StorageError(f"could not write {path}: {error}") from error


@contextlib.contextmanager
def _uploaded(path: epath.Path) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with path.open("wb") as upload:
            shutil.copyfileobj(file, upload)


@contextlib.contextmanager
def _renamed(path: epath.Path) -> Iterator[IO[bytes]]:
    beside = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_array(path: epath.PathLike, array: np.ndarray) -> None:
    """Writes an array as a ``.npy`` file.

    Raises:
        StorageError: As ``write_atomic``.
    """
    data = io.BytesIO()
    np.save(data, array)
    write_atomic(path, data.getvalue())


def read_array(path: epath.PathLike) -> np.ndarray:
    """The array in a ``.npy`` file."""
    return np.load(io.BytesIO(epath.Path(path).read_bytes()))


@contextlib.contextmanager
def open_log(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """Opens a local file, at its end, for what a process prints.

    Raises:
        StorageError: It cannot be opened; the message names the path.
    """
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise StorageError(f"could not write {path}: {error}") from error
    with file:
        yield file


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

    @property
    def is_cut_short(self) -> bool:
        """Whether the file ends within a line, or before its line end."""
        return self._cut_short

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
