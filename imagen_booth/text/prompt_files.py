"""Files of prompts, read row by row: plain lines, CSV or JSONL.

Nothing is refused here: a row that cannot be used says what is wrong with it, so that
all of them can be named together.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.text.prompt_suites import DREAMBENCH, SUITES

FIELDS = ("prompt", "seed", "negative_prompt", "guidance")


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt and what is set for it alone.

    Attributes:
        where: says where the row stands, for errors.
        prompt, negative_prompt: on one line; [V] stands for the identifier and [N]
            for the class noun.
        seed: of its first picture; None for the job's.
        guidance: weight in the base stage; None for the run's.
        family: what it tries, where a suite says so.
        problem: why the row cannot be used; empty if it can.
    """

    where: str
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    guidance: float | None = None
    family: str = ""
    problem: str = ""


def read(path: epath.PathLike) -> Iterator[Row]:
    """The rows of a file, one at a time; empty lines are left out.

    ``.csv`` has a header that names columns of ``FIELDS``, and ``.jsonl`` an object
    with such entries in each line; ``prompt`` is the only one that has to be there.
    In any other file each line is a prompt.

    Args:
        path: local or ``gs://``, in UTF-8.

    Raises:
        OSError: it cannot be read.
    """
    path = epath.Path(path)
    rows = {".csv": _csv, ".jsonl": _jsonl}.get(path.suffix.lower(), _lines)
    with (
        path.open("rb") as raw,
        # Bytes that are not UTF-8 come through as lone surrogates.
        io.TextIOWrapper(
            raw, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file,
    ):
        yield from rows(file)


def _lines(file: io.TextIOBase) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _row(f"line {number}", {"prompt": line})


def _csv(file: io.TextIOBase) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            where = f"line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                problem = _unknown(header)
                if "prompt" not in header:
                    problem = problem or "the header names no column 'prompt'"
                if problem:
                    yield Row(where, problem=problem)
                    return
            elif len(cells) > len(header):
                said = f"{len(cells)} cells, but the header has {len(header)}"
                yield Row(where, problem=said)
            else:
                filled = zip(header, cells, strict=False)
                yield _row(
                    where,
                    {
                        name: _number(cell) if name in ("seed", "guidance") else cell
                        for name, cell in filled
                        if cell.strip()
                    },
                )
    except csv.Error as error:
        yield Row(f"line {reader.line_num}", problem=f"not CSV ({error})")


def _number(cell: str) -> Any:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def _jsonl(file: io.TextIOBase) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        where = f"line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(where, problem=f"not JSON ({error})")
            continue
        if isinstance(values, dict):
            given = {name: each for name, each in values.items() if each is not None}
            yield _row(where, given)
        else:
            yield Row(where, problem='not an object such as {"prompt": "a [V] [N]"}')


def _row(where: str, values: Mapping[str, Any]) -> Row:
    """A row from its entries, of which those without a value are left out."""
    texts = {name: values.get(name, "") for name in ("prompt", "negative_prompt")}
    seed, guidance = values.get("seed"), values.get("guidance")
    problem = _unknown(values)
    for name, value in texts.items():
        if not isinstance(value, str):
            problem = f"{name}={value!r} should be a text"
    if seed is not None and (not _is(seed, int) or seed < 0):
        problem = f"seed={seed!r} should be a whole number from 0 on"
    if guidance is not None and (
        not _is(guidance, int | float) or not math.isfinite(guidance) or guidance < 0
    ):
        problem = f"guidance={guidance!r} should be a number from 0 on"
    if problem:
        return Row(where, problem=problem)
    return Row(
        where,
        **{name: " ".join(value.split()) for name, value in texts.items()},
        seed=seed,
        guidance=None if guidance is None else float(guidance),
    )


def _unknown(names: Iterable[str]) -> str:
    unknown = [name for name in names if name not in FIELDS]
    return f"{unknown[0]!r} is no field; use {', '.join(FIELDS)}" if unknown else ""


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def read_source(source: str) -> Callable[[], Iterator[Row]]:
    """What reads the rows of a suite or of a file, from the start at each call.

    Args:
        source: name of a suite, or a path as ``prompt_files.read`` takes it.

    Raises:
        InputError: it is neither.
    """
    if source in SUITES:
        return lambda: (
            Row(f"prompt {number}", prompt, family=family)
            for number, (family, prompt) in enumerate(SUITES[source], 1)
        )
    file = epath.Path(source)
    if not file.exists() or file.is_dir():
        raise InputError(
            f"--prompts={source} is no file, and no suite; give a file of prompts or "
            f"one of {', '.join((*SUITES, DREAMBENCH))}"
        )
    return lambda: read(file)
