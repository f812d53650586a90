"""Metrics: one JSON row per log step, and tensorboard files where asked for."""

import json
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.storage import write_atomic


class MetricWriter:
    """Appends rows to ``metrics.jsonl``; writes nothing where ``active`` is false.

    A continued run first drops the rows after its checkpoint, so that each step
    stands once in the file.
    """

    def __init__(self, workdir: epath.Path, *, active: bool, tensorboard: bool = False):
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._active = active
        self._tensorboard = None
        if active and tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise InputError(
                    "config.tensorboard=True needs tensorboardX; "
                    "pip install 'imagen_booth[tensorboard]', or set it to False"
                ) from error
            self._tensorboard = SummaryWriter(str(self._path.parent / "tensorboard"))

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one row: the stage, the step, and named finite or NaN numbers."""
        if not self._active:
            return
        row: dict[str, Any] = {"stage": stage, "step": step, "wall": time.time()}
        row |= {name: float(f"{value:.6g}") for name, value in scalars.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(row).replace("NaN", "null") + "\n")
        if self._tensorboard is not None:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(f"{stage}/{name}", value, step)

    def rewind(self, stage: str, step: int) -> None:
        """Drops rows of ``stage`` after ``step``."""
        if not self._active or not self._path.exists():
            return
        rows = self._path.read_text().splitlines()
        kept = [row for row in rows if not _after(row, stage, step)]
        if len(kept) < len(rows):
            write_atomic(self._path, "".join(row + "\n" for row in kept).encode())

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()


def _after(row: str, stage: str, step: int) -> bool:
    """Whether a row is later than ``step``; a row cut short by a kill counts so."""
    try:
        content = json.loads(row)
    except json.JSONDecodeError:
        return True
    return content["stage"] == stage and content["step"] > step
