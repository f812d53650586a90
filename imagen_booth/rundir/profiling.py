"""A profiler's trace of a few early steps, for TensorBoard or Perfetto to show."""

import tempfile

import jax
from etils import epath

from imagen_booth.storage import write_atomic

SETTLED = 2  # steps after the first program ran before the trace begins
TRACED = 3  # steps in it


class Trace:
    """Traces ``TRACED`` steps of a loop; a context manager that ends it in any case.

    The trace is in ``folder/plugins/profile/TIME``, as TensorBoard's profile plugin
    looks for it; ``perfetto_trace.json.gz`` there opens in Perfetto too.

    Args:
        folder: Local or ``gs://``; None for no trace.
        start, end: First step of the loop, and the one it ends before. A loop too
            short for steps to settle is traced from as late as it can be.
    """

    def __init__(self, folder: epath.Path | None, start: int, end: int):
        self._folder = folder
        self._first = max(start, min(start + SETTLED, end - TRACED))
        self._last = min(self._first + TRACED, end) - 1
        self._local: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call before the host's work for ``step`` begins."""
        if self._folder is not None and step == self._first:
            # Written here and copied: the profiler knows local folders alone.
            self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name, create_perfetto_trace=True)

    def ends_after(self, step: int) -> bool:
        """Whether the trace ends when the device is done with ``step``."""
        return self._local is not None and step == self._last

    def after(self, step: int) -> None:
        """Call when the device is done with ``step``."""
        if step == self._last:
            self._stop()

    def _stop(self) -> None:
        if self._local is None or self._folder is None:
            return
        with self._local as local:
            self._local = None
            jax.profiler.stop_trace()
            for path in epath.Path(local).glob("plugins/profile/*/*"):
                to = self._folder / path.relative_to(local)
                write_atomic(to, path.read_bytes())
