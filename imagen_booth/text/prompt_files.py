"""Files of prompts, read row by row: plain lines, CSV, JSON or JSONL.

No row is refused here: a row that cannot be used carries the reason, so that one error
can list all of them.
"""

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.text.prompt_suites import DREAMBENCH, SUITES

FIELDS = ("prompt", "seed", "negative_prompt", "guidance")

# An option inside a prompt, as kohya's sd-scripts (--n, --w) and Midjourney (--ar)
# write it.
_OPTION = re.compile(r"(?<!\S)--[a-z]+(?!\S)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt with the settings for it alone.

    Attributes:
        where: Position of the row, for errors.
        prompt, negative_prompt: Texts on one line; [V] stands for the identifier and
            [N] for the class noun.
        seed: Seed of its first image; None for the job's.
        guidance: Guidance weight of the base stage; None for the run's.
        family: Family of the prompt, in a suite.
        problem: Why the row cannot be used; empty if it can.
    """

    where: str
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    guidance: float | None = None
    family: str = ""
    problem: str = ""


def read(path: epath.PathLike) -> Iterator[Row]:
    """The rows of a file, one at a time, without empty lines.

    A ``.csv`` file has a header that names columns of ``FIELDS``; a ``.jsonl`` file has
    an object with such entries in each line; a ``.json`` file has a list of such
    objects or of texts. Only ``prompt`` is required. In a ``.txt`` file, or one without
    a suffix, each line is a prompt, except comments, which start with ``#``.

    Args:
        path: Local or ``gs://`` file in UTF-8.

    Raises:
        OSError: The file cannot be read.
    """
    path = epath.Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        problem = (
            f"files with the suffix {suffix} are not read; use .txt with one prompt "
            "per line, .csv, .jsonl or .json"
        )
        yield Row(path.name, problem=problem)
        return
    with (
        path.open("rb") as raw,
        # Bytes that are not UTF-8 become lone surrogates.
        io.TextIOWrapper(
            raw, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file,
    ):
        yield from _READERS[suffix](file)


def _lines(file: io.TextIOBase) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _line(f"line {number}", line)


def _line(where: str, line: str) -> Row:
    """A row from one line of text, unless it is written for another format."""
    option = _OPTION.search(line)
    if option:
        problem = (
            f"holds the option {option[0]!r} of another tool; give negative_prompt, "
            "seed and guidance as columns of a .csv file"
        )
    elif _is_json(line):
        problem = "is JSON; give the file the suffix .json, or .jsonl for JSON lines"
    else:
        return _row(where, {"prompt": line})
    return Row(where, problem=problem)


def _is_json(line: str) -> bool:
    """Whether a line is a JSON value, or opens or closes one."""
    text = line.strip().rstrip(",")
    if text in ("[", "]", "{", "}"):
        return True
    try:
        return isinstance(json.loads(text), str | list | dict)
    except (ValueError, RecursionError):
        return False


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
                problem = f"{len(cells)} cells, but the header has {len(header)}"
                yield Row(where, problem=problem)
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
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(where, problem=f"not JSON ({error})")
            continue
        yield _entry(where, value)


def _json(file: io.TextIOBase) -> Iterator[Row]:
    try:
        values = json.load(file)
    except (ValueError, RecursionError) as error:
        yield Row("file", problem=f"not JSON ({error})")
        return
    if not isinstance(values, list):
        yield Row("file", problem='not a list such as ["a [V] [N] in the snow"]')
        return
    for number, value in enumerate(values, 1):
        where = f"entry {number}"
        yield _entry(where, {"prompt": value} if isinstance(value, str) else value)


def _entry(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(where, problem='not an object such as {"prompt": "a [V] [N]"}')
    return _row(where, {name: each for name, each in value.items() if each is not None})


def _row(where: str, values: Mapping[str, Any]) -> Row:
    """A row from its entries; an entry without a value is left out."""
    texts = {name: values.get(name, "") for name in ("prompt", "negative_prompt")}
    seed, guidance = values.get("seed"), values.get("guidance")
    problem = _unknown(values)
    for name, value in texts.items():
        if not isinstance(value, str):
            problem = f"{name}={value!r} should be a text"
    if seed is not None and (not _is(seed, int) or seed < 0):
        problem = f"seed={seed!r} should be a whole number, 0 or more"
    if guidance is not None and (
        not _is(guidance, int | float) or not math.isfinite(guidance) or guidance < 0
    ):
        problem = f"guidance={guidance!r} should be a finite number, 0 or more"
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
    return f"{unknown[0]!r} is not a field; use {', '.join(FIELDS)}" if unknown else ""


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


_READERS: dict[str, Callable[[io.TextIOBase], Iterator[Row]]] = {
    "": _lines,
    ".txt": _lines,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
}


def flag_rows(prompts: Sequence[str], guidance: float | None = None) -> list[Row]:
    """The rows of prompts that a command line gives.

    Args:
        guidance: Guidance weight of every row; None for the run's.
    """
    rows = (_line(f"prompt {number}", text) for number, text in enumerate(prompts, 1))
    return [dataclasses.replace(row, guidance=guidance) for row in rows]


def read_source(source: str) -> Callable[[], Iterator[Row]]:
    """A function that reads the rows of a suite or file from the start at each call.

    Args:
        source: Name of a suite, or a path as for ``read``.

    Raises:
        InputError: Neither a suite nor a file.
    """
    if source in SUITES:
        return lambda: (
            Row(where=f"prompt {number}", prompt=prompt, family=family)
            for number, (family, prompt) in enumerate(SUITES[source], 1)
        )
    file = epath.Path(source)
    if not file.exists() or file.is_dir():
        raise InputError(
            f"--prompts={source} is neither a file nor a suite; give a file of prompts "
            f"or one of {', '.join((*SUITES, DREAMBENCH))}"
        )
    return lambda: read(file)
