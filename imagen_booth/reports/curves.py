"""Line charts for the pages: the geometry of an inline SVG."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

WIDTH, HEIGHT = 400, 220  # of the SVG's view box
LEFT, BOTTOM, TOP = 44, 26, 6  # margins; the tick labels are in the first two


@dataclasses.dataclass(frozen=True)
class Line:
    """One series: the SVG points of its values and of their running mean."""

    name: str
    values: str
    mean: str


@dataclasses.dataclass(frozen=True)
class Curve:
    """A chart over steps.

    Attributes:
        last: Last step, at the right end.
        ticks: Heights in the view box, each with its label.
        lines: The series.
    """

    last: float
    ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]


def curve(series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Curve:
    """Lays out series of values over steps.

    Args:
        series: (steps, values) by name; finite, in order of steps, at least one point.
    """
    shown = {name: thin(*points) for name, points in series.items()}
    last = max(float(x[-1]) for x, _ in series.values()) or 1.0
    # The scale ignores the highest 2 % of the values: one outlier would flatten the
    # rest. The SVG clips what is above the highest tick.
    highest = 1.1 * max(float(np.quantile(y, 0.98)) for _, y in shown.values())
    numbers = ticks(highest if highest > 0 else 1.0)

    def height(value):
        return TOP + (1 - value / numbers[-1]) * (HEIGHT - BOTTOM - TOP)

    def points(x: np.ndarray, y: np.ndarray) -> str:
        across = LEFT + x / last * (WIDTH - LEFT)
        pairs = zip(across, height(y), strict=True)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)

    return Curve(
        last=last,
        ticks=tuple((round(height(number), 1), f"{number:g}") for number in numbers),
        lines=tuple(
            Line(name=name, values=points(x, y), mean=points(x, running_mean(y)))
            for name, (x, y) in shown.items()
        ),
    )


@dataclasses.dataclass(frozen=True)
class Scatter:
    """A chart of points.

    Attributes:
        across, up: Ticks of the two axes: places in the view box, each with its label.
        groups: By name, the points of a group: (x, y, label).
    """

    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    groups: Mapping[str, tuple[tuple[float, float, str], ...]]


def scatter(groups: Mapping[str, Mapping[str, tuple[float, float]]]) -> Scatter:
    """Lays out points of several groups on axes from 0.

    Args:
        groups: By name, the points of a group by label: (x, y), finite, 0 or more; at
            least one of all.
    """
    every = [point for points in groups.values() for point in points.values()]
    wide, high = (
        ticks(1.05 * max(max(axis), 1e-3)) for axis in zip(*every, strict=True)
    )

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / wide[-1] * (WIDTH - LEFT)
        return round(across, 1), round(
            TOP + (1 - y / high[-1]) * (HEIGHT - BOTTOM - TOP), 1
        )

    return Scatter(
        across=tuple((place(x, 0)[0], f"{x:g}") for x in wide),
        up=tuple((place(0, y)[1], f"{y:g}") for y in high),
        groups={
            name: tuple((*place(*point), label) for label, point in points.items())
            for name, points in groups.items()
        },
    )


def thin(
    x: np.ndarray, y: np.ndarray, limit: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points, each the mean of neighbouring points."""
    groups = min(limit, len(x))
    parts = zip(np.array_split(x, groups), np.array_split(y, groups), strict=True)
    means = np.array([(of_x.mean(), of_y.mean()) for of_x, of_y in parts])
    return means[:, 0], means[:, 1]


def running_mean(y: np.ndarray) -> np.ndarray:
    """Mean over a window of a tenth of the points, cut off at both ends."""
    window = np.ones(2 * (len(y) // 20) + 1)
    count = np.convolve(np.ones(len(y)), window, "same")
    return np.convolve(y, window, "same") / count


def ticks(highest: float) -> list[float]:
    """Three to six round numbers, from 0 to just above `highest`."""
    scale = 10.0 ** math.floor(math.log10(highest))
    step = next(s for s in (0.2, 0.5, 1, 2) if highest / (s * scale) <= 5) * scale
    return [i * step for i in range(math.ceil(highest / step) + 1)]
