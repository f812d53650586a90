"""Signals that come at chosen steps of a run."""

import signal
from collections.abc import Iterable

import pytest

from imagen_booth.rundir.metrics import MetricWriter


def signal_at(patch: pytest.MonkeyPatch, points: Iterable[tuple[str, int]]) -> set:
    """SIGTERM as soon as the metrics of each (stage, step) are written, once each.

    Returns:
        The points that no run has come to yet.
    """
    left = set(points)
    write = MetricWriter.write

    def write_then_signal(
        self: MetricWriter, stage: str, step: int, scalars: dict[str, float]
    ) -> None:
        write(self, stage, step, scalars)
        if (stage, step) in left:
            left.remove((stage, step))
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(MetricWriter, "write", write_then_signal)
    return left
