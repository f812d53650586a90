"""Writing files, on a local disk and in an object store alike.

An object store (``gs://``) has no append, no rename and no partial overwrite: an object
is written whole or not at all. Everything that writes goes through this module.
"""

import contextlib
import errno
import io
import json
import logging
import os
import pathlib
import re
import shutil
import stat
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, TypeVar

import fsspec
import numpy as np
from etils import epath

from imagen_booth.errors import InputError, StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Cloud Storage accepts about one write a second to the same object.
REWRITE_SECONDS = 2.0
SCHEMES = ("gs", "s3")  # object stores that a path can name


def is_object_store(path: epath.PathLike) -> bool:
    """Whether a path is in an object store, such as ``gs://bucket/run``."""
    return "://" in os.fspath(path)


def user_path(name: str, path: str) -> str:
    """A path that a user gave, with a leading ``~`` or ``~user`` expanded.

    A shell does not expand it behind the equals sign of ``--workdir=~/runs``.

    Args:
        name: Name of the flag or setting, for the error.

    Raises:
        InputError: There is no such user, or no such kind of storage.
    """
    expanded = os.path.expanduser(path)
    user = expanded.partition("/")[0]
    if user.startswith("~") and user != "~":
        raise InputError(
            f"{name}={path}: {user} is not the home folder of a user; give the whole "
            f"path, or ./{path} for a folder of that name"
        )
    scheme = re.match(r"([a-z][a-z0-9+]*):(/+)", expanded, re.IGNORECASE)
    if scheme and (scheme[1] not in SCHEMES or scheme[2] != "//"):
        raise InputError(
            f"{name}={path} is neither a local path nor one like gs://BUCKET/FOLDER"
        )
    return expanded


def free_space(path: epath.PathLike) -> str:
    """`` (the disk at /data has 0 of 120 MB free)``; empty for an object store."""
    if is_object_store(path):
        return ""
    place = os.path.abspath(path)
    while not os.path.exists(place) or not os.path.ismount(place) and place != "/":
        place = os.path.dirname(place)
    usage = shutil.disk_usage(place)
    free, total = (f"{size / 1e6:,.1f}" for size in (usage.free, usage.total))
    return f" (the disk at {place} has {free} of {total} MB free)"


def make_private(folder: pathlib.Path) -> bool:
    """Makes a local folder for this user alone; returns whether it is that.

    A folder that is there already stays as it is. It does not belong to this user alone
    if another user owns it or may write in it, or if it is a link.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return belongs_to_user(folder)
    except OSError:
        return False


def belongs_to_user(path: pathlib.Path) -> bool:
    """Whether this user owns a local file or folder, and nobody else may write it."""
    about = path.lstat()
    kind = stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode)
    open_to = stat.S_IWGRP | stat.S_IWOTH
    return kind and about.st_uid == os.getuid() and not about.st_mode & open_to


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
        space = free_space(path) if error.errno == errno.ENOSPC else ""
        raise StorageError(f"could not write {path}: {error}{space}") from error


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


def from_cache(path: epath.PathLike, read: Callable[[Any], T]) -> T | None:
    """What a cache holds in a file; None if it is absent or damaged: make it again.

    Args:
        read: Reads a file, such as ``read_array``.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, SyntaxError, zlib.error) as error:
        log.warning("%s is damaged (%s) and is made again", path, error)
        return None


def read_json(path: epath.PathLike, fix: str | None) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Args:
        fix: What to do about a damaged file, for the error; None to take it for absent,
            because it is written again.

    Raises:
        StorageError: The file is empty or damaged, as a power cut leaves it.
    """
    path = epath.Path(path)
    if not path.exists():
        return {}
    data = path.read_bytes()
    try:
        found = json.loads(data)
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    state = "damaged" if data.strip(b"\0 \n") else "empty"
    if fix is None:
        log.warning("%s is %s and is made again", path, state)
        return {}
    raise StorageError(f"{path} is {state}; {fix}")


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

    A local file is appended to. An object is written again with all its lines, at most
    once in ``REWRITE_SECONDS``; ``flush`` writes what is still waiting.

    Args:
        path: Local or ``gs://``; read if it exists.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        data = self._path.read_bytes() if self._path.exists() else b""
        text = data.decode(errors="replace")  # a power cut leaves any bytes
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
            space = free_space(self._path) if error.errno == errno.ENOSPC else ""
            raise StorageError(
                f"could not write {self._path}: {error}{space}"
            ) from error


class SharedFolder:
    """Small files that several processes write, and read as they are at the moment.

    Other readers of an object store may answer from a cache of its listings.

    Args:
        path: Local or ``gs://``; made when the first file is created.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        options = {"use_listings_cache": False} if is_object_store(path) else {}
        self._files, self._root = fsspec.core.url_to_fs(os.fspath(path), **options)

    def names(self) -> list[str]:
        """Names of the files, in order; none if the folder does not exist."""
        try:
            if is_object_store(self._path):
                found = self._files.ls(self._root, detail=False)
            else:  # fsspec looks at each file, and may miss some that come and go
                found = os.listdir(self._path)
        except FileNotFoundError:
            return []
        names = (os.path.basename(each) for each in found)
        return sorted(name for name in names if name and not name.startswith("."))

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if it does not exist."""
        try:
            return self._files.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        """Creates a file; of several processes that try, one succeeds.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            if is_object_store(self._path):
                self._files.pipe_file(f"{self._root}/{name}", data, mode="create")
            else:  # fsspec looks first and writes then, and two writers may pass
                self._path.mkdir(parents=True, exist_ok=True)
                with open(self._path / name, "xb") as file:
                    file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            raise StorageError(f"could not write {self._path}: {error}") from error
        return self.read(name) == data

    def write(self, name: str, data: bytes) -> None:
        """Writes a file whole, as ``write_atomic``."""
        write_atomic(self._path / name, data)

    def delete(self, name: str) -> None:
        """Deletes a file, if it is still there."""
        (self._path / name).unlink(missing_ok=True)
