"""Metrics: one JSON row per log step, and tensorboard files on request."""

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.storage import LineLog


class MetricWriter:
    """Appends rows to ``metrics.jsonl``.

    A resumed run first drops the rows after its checkpoint, so that each step is in
    the file once.

    Args:
        workdir: The run directory, local or ``gs://``.
        active: Whether this process writes; one process of a job does.
        tensorboard: Also write files for TensorBoard.
    """

    def __init__(self, workdir: epath.Path, *, active: bool, tensorboard: bool = False):
        self._log = LineLog(epath.Path(workdir) / "metrics.jsonl") if active else None
        self._tensorboard = None
        if active and tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise InputError(
                    "config.tensorboard=True needs tensorboardX; "
                    "pip install 'imagen_booth[tensorboard]', or set it to False"
                ) from error
            self._tensorboard = SummaryWriter(str(epath.Path(workdir) / "tensorboard"))

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one row: the stage, the step, and named finite or NaN numbers."""
        if self._log is None:
            return
        row: dict[str, Any] = {"stage": stage, "step": step, "wall": time.time()}
        row |= {name: float(f"{value:.6g}") for name, value in scalars.items()}
        self._log.append([json.dumps(row).replace("NaN", "null")])
        if self._tensorboard is not None:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(f"{stage}/{name}", value, step)

    def rewind(self, stage: str, step: int) -> None:
        """Drops rows of ``stage`` after ``step``."""
        if self._log is None:
            return
        rows = self._log.lines
        kept = [row for row in rows if not _is_after(row, stage, step)]
        if len(kept) < len(rows):
            self._log.replace(kept)

    def flush(self) -> None:
        """Writes rows that an object store has not been given yet."""
        if self._log is not None:
            self._log.flush()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_rows(workdir: epath.PathLike) -> dict[str, list[dict[str, Any]]]:
    """The rows of a run by stage, in order of steps; of a repeated step the last row.

    A line that is being written, or was cut short by a kill, is left out.
    """
    try:
        lines = (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return {}
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            rows.setdefault(row["stage"], {})[int(row["step"])] = row
    return {
        stage: [by_step[step] for step in sorted(by_step)]
        for stage, by_step in rows.items()
    }


def _is_after(row: str, stage: str, step: int) -> bool:
    """Whether a row is later than ``step``; a row cut short by a kill counts so."""
    try:
        content = json.loads(row)
        return content["stage"] == stage and content["step"] > step
    except (ValueError, KeyError, TypeError):
        return True
