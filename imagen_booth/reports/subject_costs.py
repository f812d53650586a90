"""What the first subject of a job of many costs, and each further one, by part.

A process that has run a subject from its start to its end writes one file for it. The
first subject of a process pays for what the others share: weights, the embedding of
all prompts, compiled programs, the class images of its class.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from etils import epath

from imagen_booth.reports.html import part_label
from imagen_booth.storage import from_cache, write_atomic

FOLDER = "costs"  # beside the run directories


@dataclasses.dataclass(frozen=True)
class SubjectCost:
    """The cost of one subject.

    Attributes:
        parts: Seconds by part of the work.
        first: Whether it was the first one that its process trained.
        chips: Devices that worked on it.
    """

    parts: dict[str, float]
    first: bool
    chips: int


def record(folder: epath.Path, name: str, cost: SubjectCost) -> None:
    """Writes the cost of a subject into a folder.

    Raises:
        StorageError: It cannot be written.
    """
    text = json.dumps(dataclasses.asdict(cost), indent=1)
    write_atomic(folder / f"{name}.json", text.encode())


def read(folder: epath.Path) -> list[SubjectCost]:
    """The costs in a folder; damaged files are left out."""
    if not folder.exists():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    found = (from_cache(path, _read) for path in files)
    return [cost for cost in found if cost is not None]


def _read(path: epath.Path) -> SubjectCost:
    try:
        return SubjectCost(**json.loads(path.read_bytes()))
    except TypeError as error:
        raise ValueError(str(error)) from error


def table(costs: Sequence[SubjectCost], price: float) -> list[tuple[str, str, str]]:
    """The table of costs; its first row is the head. Empty without costs.

    Args:
        price: Dollars for an hour of one chip; 0 to leave dollars out.
    """
    if not costs:
        return []
    kinds = [[cost for cost in costs if cost.first is first] for first in (True, False)]
    parts = list(dict.fromkeys(part for cost in costs for part in cost.parts))

    def row(name: str, form: str, values: Sequence[Sequence[float]]) -> tuple:
        return (name, *(form.format(np.mean(v)) if v else "–" for v in values))

    def hours(cost: SubjectCost) -> float:
        return sum(cost.parts.values()) * cost.chips / 3600

    rows = [
        row(
            part_label(part),
            "{:.1f}",
            [[cost.parts.get(part, 0.0) for cost in kind] for kind in kinds],
        )
        for part in parts
    ]
    whole = [[sum(cost.parts.values()) for cost in kind] for kind in kinds]
    chip_hours = [[hours(cost) for cost in kind] for kind in kinds]
    rows.append(row("total", "{:.1f}", whole))
    rows.append(row("chip-hours", "{:.4f}", chip_hours))
    if price:
        dollars = [[price * each for each in kind] for kind in chip_hours]
        rows.append(row("dollars", "{:.4f}", dollars))
    further = f"each of {len(kinds[1])} further" if kinds[1] else "each further"
    return [("seconds", "first subject", further), *rows]


def in_text(rows: Sequence[tuple[str, str, str]]) -> str:
    """The table of costs for a terminal."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{part:<{widths[0]}}  {first:>{widths[1]}}  {further:>{widths[2]}}"
        for part, first, further in rows
    )
