"""What a batch job keeps of itself: the list of what is finished, and its time."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from imagen_booth import storage
from imagen_booth.errors import StorageError

NETWORKS, LOADING = "networks", "loading"  # of a job's time


class ImageIndex:
    """``index.jsonl``: one line per finished picture.

    A line that a kill cut short is dropped here, and added again with its picture.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        self._known: set[str] = set()
        if not path.exists():
            return
        text = path.read_text()
        good = [line for line in text.splitlines() if self._learn(line)]
        whole = "".join(f"{line}\n" for line in good)
        if whole != text:
            storage.write_atomic(path, whole.encode())

    def _learn(self, line: str) -> bool:
        try:
            self._known.add(json.loads(line)["file"])
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Appends what is not there yet.

        Raises:
            StorageError: it cannot be written.
        """
        new = [each for each in entries if each["file"] not in self._known]
        if not new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write("".join(json.dumps(each) + "\n" for each in new))
        except OSError as error:
            raise StorageError(f"could not write {self._path}: {error}") from error
        self._known.update(each["file"] for each in new)


class TimeLog:
    """Where the seconds of a job go."""

    def __init__(self) -> None:
        self.spent = {NETWORKS: 0.0, LOADING: 0.0}
        self._begun = time.perf_counter()

    @contextlib.contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Adds the seconds spent inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] += time.perf_counter() - start

    def total(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._begun
