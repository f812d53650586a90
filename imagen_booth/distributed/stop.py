"""A flag that SIGINT and SIGTERM set, and long work checks between steps."""

import signal
from typing import Any

from imagen_booth.distributed import processes
from imagen_booth.errors import Stopped


class StopRequest:
    """Turns SIGINT and SIGTERM into a flag that the work checks between steps.

    A second signal of the same kind has its usual effect. Inside the context of
    another request, a signal sets the flags of both.

    Attributes:
        requested: Whether this process got a signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.requested = True
        before = self._before[number]
        signal.signal(number, before)
        if isinstance(getattr(before, "__self__", None), StopRequest):
            before(number, frame)

    def check(self) -> None:
        """Raises Stopped on every process if one of them got a signal.

        For work that has nothing to save.
        """
        if processes.any_host(self.requested):
            raise Stopped("stopped by a signal; run the same command again to resume")
