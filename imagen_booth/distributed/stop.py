"""SIGINT and SIGTERM as a flag that long work checks between steps."""

import signal
from typing import Any

from imagen_booth.distributed import processes
from imagen_booth.errors import Stopped


class StopRequest:
    """Turns SIGINT and SIGTERM into a flag that the work looks at between steps.

    A second signal of the same kind acts as it always did.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        self.asked = True
        signal.signal(number, self._before[number])

    def check(self) -> None:
        """Raises Stopped if a signal came; used where there is nothing to save."""
        if processes.any_host(self.asked):
            raise Stopped("stopped as asked; run the same command again to go on")
