"""The subjects of a job of many: a folder of folders, or a table with a row for each.

No subject is refused here: one that cannot be trained carries the reasons, so that one
error can list all of them.
"""

import ast
import csv
import dataclasses
import difflib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from imagen_booth.config.build import build
from imagen_booth.config.schema import SECOND, Job, Subjects
from imagen_booth.errors import BoothError, InputError
from imagen_booth.storage import is_object_store

CLASSES = "prompts_and_classes.txt"  # DreamBench's file, beside its folders
RESERVED = ("cache", "costs", "evaluation")  # folders beside the run directories
# Short names of columns; every other one is a setting such as base.steps.
SHORT = {
    "photos": "subject.photos",
    "class_noun": "subject.class_noun",
    "prompts": "pictures.prompts",
}
COLUMNS = ("name", *SHORT)
# Of a whole job: a cascade brings settings of its own.
NOT_ONE_SUBJECTS = ("cascade", "cache")


@dataclasses.dataclass(frozen=True)
class SubjectRow:
    """One subject as it is listed.

    Attributes:
        where: Position in the list, for errors.
        name: Name of the subject and of its run directory.
        job: Its settings; None where they cannot be read.
        problems: Why the subject cannot be trained; empty if nothing is known yet.
    """

    where: str
    name: str
    job: Job | None
    problems: tuple[str, ...] = ()


def read(settings: Subjects, job: Job) -> list[SubjectRow]:
    """Reads the subjects of a job.

    A folder holds a folder of photos for each subject, whose name is the subject's.
    Their classes stand in ``prompts_and_classes.txt`` beside them, in DreamBench's
    form, or all have the job's ``subject.class_noun``.

    A ``.csv`` table has a header; a ``.jsonl`` table has an object in each line. The
    columns are ``name``, ``photos`` (a folder, or ``toybox:CLASS/SEED``; a relative
    path starts at the table's folder), ``class_noun``, ``prompts`` of the final
    pictures (a list in JSON; in CSV separated by ``|``), and any setting, such as
    ``base.steps``. Only ``name`` and ``photos`` are required.

    Args:
        settings: Names the folder or table.
        job: The settings of all subjects, where a row has none of its own.

    Raises:
        InputError: There is no such folder or table, it cannot be read, or it lists no
            subject.
    """
    if job.second.photos:
        raise InputError(
            f"config.second.photos={job.second.photos!r}, but a job of many subjects "
            "fine-tunes each by itself; leave it empty, or train two subjects together "
            "with configs/two_subjects.py"
        )
    path = epath.Path(settings.subjects)
    if not settings.subjects or not path.exists():
        raise InputError(
            f"config.subjects={settings.subjects} does not exist; give a folder with "
            "a folder of photos for each subject, or a .csv or .jsonl table"
        )
    entries = _folders(path, job) if path.is_dir() else _table(path)
    rows = [_row(where, values, job) for where, values in entries]
    if not rows:
        raise InputError(
            f"config.subjects={settings.subjects} lists no subject; give a folder for "
            "each in a folder, or a row for each in a table"
        )
    counts = Counter(row.name for row in rows if row.name)
    return [
        row
        if counts[row.name] < 2
        else dataclasses.replace(
            row, problems=(*row.problems, _duplicate(row, rows)), job=None
        )
        for row in rows
    ]


def _duplicate(row: SubjectRow, rows: Sequence[SubjectRow]) -> str:
    others = [one.where for one in rows if one.name == row.name and one is not row]
    return (
        f"name={row.name!r} is the name of {', '.join(others)} too; give each subject "
        "a name of its own"
    )


def _folders(path: epath.Path, job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    """The folders of photos in a folder, with the class noun of each."""
    classes = path / CLASSES
    listed = dict(_classes(_text(classes))) if classes.exists() else {}
    for folder in sorted(path.iterdir(), key=lambda each: each.name):
        if folder.is_dir() and not folder.name.startswith((".", "__")):
            noun = listed.get(folder.name, job.subject.class_noun)
            yield (
                f"folder {folder.name}",
                {
                    "name": folder.name,
                    "photos": os.fspath(folder),
                    "class_noun": noun,
                },
            )


def _classes(text: str) -> Iterator[tuple[str, str]]:
    """The lines ``NAME,CLASS`` below ``subject_name,class``, up to an empty line."""
    _, _, below = text.partition("subject_name,class\n")
    for line in below.splitlines():
        name, comma, noun = line.partition(",")
        if not comma:
            return
        yield name.strip(), noun.strip()


def _text(path: epath.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; write it as text in UTF-8"
        ) from error


def _table(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    readers = {".csv": _csv, ".jsonl": _jsonl}
    if path.suffix.lower() not in readers:
        raise InputError(
            f"config.subjects={path} is neither a folder nor a table; give a .csv or "
            ".jsonl file"
        )
    for where, values in readers[path.suffix.lower()](path):
        photos = values.get("photos")
        if isinstance(photos, str) and _is_relative(photos):
            values["photos"] = os.path.join(os.fspath(path.parent), photos)
        yield where, values


def _is_relative(photos: str) -> bool:
    toy = photos.startswith("toybox:")
    return bool(photos) and not (
        toy or is_object_store(photos) or photos.startswith(("/", "~"))
    )


def _csv(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = io.StringIO(_text(path), newline="")
    reader = csv.DictReader(lines, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            where = f"line {reader.line_num}"
            if None in cells:
                raise InputError(
                    f"{path}: {where} has more cells than the header has columns; put "
                    "a cell with commas in double quotes"
                )
            filled = {name.strip(): cell for name, cell in cells.items() if cell}
            yield where, {name: _Cell(cell.strip()) for name, cell in filled.items()}
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num} is not CSV: {error}"
        ) from error


class _Cell(str):
    """The text of a CSV cell, whose type the setting decides."""


def _jsonl(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise InputError(
                f"{path}: line {number} is not an object such as "
                '{"name": "rex", "photos": "rex", "class_noun": "dog"}'
            )
        yield (
            f"line {number}",
            {name: value for name, value in values.items() if value is not None},
        )


def _row(where: str, values: Mapping[str, Any], job: Job) -> SubjectRow:
    """A subject from its entries; an entry without a value is left out."""
    name, tree = str(values.get("name", "")), dataclasses.asdict(job)
    # A folder of its own and no other subject's: that of the job is no default.
    tree["subject"]["photos"] = ""
    problems = _name_problems(name)
    for column, value in values.items():
        if column != "name" and (problem := _set(tree, column, value)):
            problems.append(problem)
    if not tree["subject"]["photos"]:
        problems.append("photos is missing; give a folder, or toybox:CLASS/SEED")
    if not str(tree["subject"]["class_noun"]).strip():
        problems.append(
            "class_noun is missing; give it in a column class_noun, in a line "
            f"{name or 'NAME'},CLASS of {CLASSES} beside the folders, or as "
            "--config.subject.class_noun for all subjects"
        )
    built = None
    if not problems:
        try:
            built = build(Job, tree, "config")
        except BoothError as error:
            problems.append(str(error))
    return SubjectRow(where, name, built, tuple(problems))


def _name_problems(name: str) -> list[str]:
    if not name:
        return ["name is missing; give a name, which its run directory gets"]
    if not re.fullmatch(r"[^\W_][\w.+-]*", name):
        return [
            f"name={name!r} cannot be a folder's name; use letters, digits, _, . and -"
        ]
    if name in RESERVED:
        return [f"name={name!r} is a folder of the job itself; give another name"]
    return []


def _set(tree: dict[str, Any], column: str, value: Any) -> str:
    """Sets a column's setting in a job's tree; returns what is wrong with it."""
    *above, last = SHORT.get(column, column).split(".")
    place: Any = tree
    for key in above:
        place = place.get(key) if isinstance(place, dict) else None
    whole = ".".join((*above, last))
    if (
        not isinstance(place, dict)
        or isinstance(place.get(last, {}), dict)
        or whole in NOT_ONE_SUBJECTS
        or above[:1] == [SECOND]
    ):
        known = [*COLUMNS, *_settings(tree)]
        near = difflib.get_close_matches(column, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return (
            f"{column!r} is not a column; use {', '.join(COLUMNS)}, or a setting of "
            f"one subject such as base.steps{hint}"
        )
    if whole == "pictures.prompts" and isinstance(value, str):
        value = [one.strip() for one in value.split("|")]
    elif isinstance(value, _Cell) and not isinstance(place[last], str):
        value = _literal(value)
    place[last] = str(value) if isinstance(value, _Cell) else value
    return ""


def _settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if key == SECOND:  # two subjects share a run only by themselves
            continue
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _literal(cell: str) -> Any:
    """The value of a cell for a setting that is no text."""
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return str(cell)
