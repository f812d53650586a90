"""The progress of a batch job: the list of finished images, and where time went."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from imagen_booth.storage import LineLog

NETWORKS, LOADING = "networks", "loading"  # of a job's time


class ImageIndex:
    """``index.jsonl``: one line per finished image.

    A line that a kill cut short is dropped, and added again with its image.

    Args:
        path: Local or ``gs://``.
    """

    def __init__(self, path: epath.Path):
        self._log = LineLog(path)
        files = [_file_of(line) for line in self._log.lines]
        self._known = {file for file in files if file}
        if self._log.is_cut_short or not all(files):
            whole = zip(self._log.lines, files, strict=True)
            self._log.replace([line for line, file in whole if file])

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Appends the entries that are not there yet.

        Raises:
            StorageError: They cannot be written.
        """
        new = {each["file"]: each for each in entries}
        new = {file: each for file, each in new.items() if file not in self._known}
        if new:
            self._log.append(json.dumps(each) for each in new.values())
            self._known.update(new)

    def flush(self) -> None:
        """Writes entries that an object store has not been given yet."""
        self._log.flush()


def _file_of(line: str) -> str:
    """The file that a line lists; empty if the line is damaged."""
    try:
        return str(json.loads(line)["file"])
    except (ValueError, KeyError, TypeError):
        return ""


class TimeLog:
    """Adds up the seconds that each kind of work takes."""

    def __init__(self) -> None:
        self.spent = {NETWORKS: 0.0, LOADING: 0.0}
        self._begun = time.perf_counter()

    @contextlib.contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Adds the seconds spent inside the context to one kind of work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] += time.perf_counter() - start

    def total(self) -> float:
        """Seconds since the log was created."""
        return time.perf_counter() - self._begun
