"""Frozen dataclasses from plain nested dicts, with errors that name the field."""

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import annotated_types as ranges
import ml_collections
from ml_collections import config_dict

from imagen_booth.cascade import by_name
from imagen_booth.config import step_files
from imagen_booth.config.schema import IS_PATH, Job, Subjects
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError
from imagen_booth.storage import user_path


def build(kind: Any, value: Any, where: str) -> Any:
    """``value`` as an instance of ``kind``, recursively.

    Args:
        kind: A frozen dataclass, or the type of one of its fields.
        value: Nested dicts and lists, as JSON has them.
        where: Name of the value, for errors.

    Raises:
        InputError: A field that is not known, or a value of another type or out of the
            range that the type declares, see ``limits``.
    """
    if kind is SamplerConfig:
        value = step_files.with_list(value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        with sampler_at(where):
            return _build_dataclass(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _within(limits(kind), build(args[0], value, where), where)
    if origin is tuple:
        return _build_tuple(kind, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise InputError(
                f"{where}={value!r} should be one of {', '.join(map(str, args))}"
            )
        return value
    if origin in (types.UnionType, typing.Union):
        for each in args:
            try:
                return build(each, value, where)
            except _OutOfRange:
                raise
            except InputError:
                continue
        raise InputError(f"{where}={value!r} should be one of {kind}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(
            f"{where}={value!r} should be of type {getattr(kind, '__name__', kind)}"
        )
    if kind is float and not math.isfinite(value):
        raise _OutOfRange(f"{where}={value!r} should be a finite number")
    return value


@contextlib.contextmanager
def sampler_at(where: str) -> Iterator[None]:
    """Gives errors of a sampler's settings their place in the config.

    Args:
        where: Name of the sampler, such as ``config.pictures.base``.
    """
    try:
        yield
    except InputError as error:
        if not str(error).startswith("sampler."):
            raise
        setting = str(error).removeprefix("sampler.")
        raise InputError(f"{where}.{setting}") from error


def _build_dataclass(kind: type, value: Any, where: str) -> Any:
    """Builds a dataclass from a dict of its fields."""
    if not isinstance(value, dict):
        raise InputError(f"{where}={value!r} should hold settings of its own")
    fields = typing.get_type_hints(kind, include_extras=True)
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {where}.{near[0]}?" if near else ""
            raise InputError(f"{where}.{name} is not a setting{hint}")
    return kind(
        **{
            name: build(fields[name], inner, f"{where}.{name}")
            for name, inner in value.items()
        }
    )


def _build_tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    """Builds a tuple of a fixed length, or of any length of one kind."""
    args = typing.get_args(kind)
    items = tuple(value) if isinstance(value, list | tuple) else None
    many = len(args) == 2 and args[1] is Ellipsis
    if items is None or (not many and len(items) != len(args)):
        raise InputError(f"{where}={value!r} should be a tuple like {kind}")
    kinds = [args[0]] * len(items) if many else args
    return tuple(
        build(each, item, f"{where}[{number}]")
        for number, (each, item) in enumerate(zip(kinds, items, strict=True))
    )


class _OutOfRange(InputError):
    """A value of the right type that is not allowed."""


def limits(kind: Any) -> list[Any]:
    """What ``Annotated`` declares of a type besides the type: ranges, or a path."""
    declared: Iterable[Any] = getattr(kind, "__metadata__", ())
    return [
        each
        for one in declared
        for each in (one if isinstance(one, ranges.GroupedMetadata) else [one])
    ]


def range_text(declared: Iterable[Any]) -> str:
    """Limits in words, such as ``0 or more, below 1``; "" for none."""
    return ", ".join(_rule(limit)[1] for limit in declared if limit != IS_PATH)


def _rule(limit: Any) -> tuple[Callable[[Any], bool], str]:
    """A limit as a test of values and in words."""
    match limit:
        case ranges.Ge(ge=bound):
            return lambda value: value >= bound, f"{bound} or more"
        case ranges.Gt(gt=bound):
            return lambda value: value > bound, f"above {bound}"
        case ranges.Le(le=bound):
            return lambda value: value <= bound, f"at most {bound}"
        case ranges.Lt(lt=bound):
            return lambda value: value < bound, f"below {bound}"
        case ranges.MultipleOf(multiple_of=bound):
            return lambda value: value % bound == 0, f"a multiple of {bound}"
        case ranges.MinLen(min_length=bound):
            return lambda value: len(value) >= bound, f"{bound} or more entries"
    raise TypeError(f"no rule for {limit!r}")


def _within(declared: Sequence[Any], value: Any, where: str) -> Any:
    """``value`` if it is within its limits; of a path, with ``~`` expanded."""
    if IS_PATH in declared:
        return user_path(where, value)
    if not all(_rule(limit)[0](value) for limit in declared):
        raise _OutOfRange(f"{where}={value!r} should be {range_text(declared)}")
    return value


def with_placeholders(part: Any) -> dict[str, Any]:
    """A dataclass as nested dicts, in which a flag can set fields of several types.

    A ConfigDict holds each field to the type of its default. A field declared as a
    union is left open here, and a flag's value read as a literal, or else as text.
    """
    kinds = typing.get_type_hints(type(part))
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            value = with_placeholders(value)
        elif typing.get_origin(kinds[field.name]) in (types.UnionType, typing.Union):
            value = config_dict.FieldReference(value, field_type=object)
        tree[field.name] = value
    return tree


def to_job(config: ml_collections.ConfigDict) -> Job:
    """A fine-tuning config as plain data.

    Raises:
        InputError: A field that is not known, of the wrong type, or out of range.
    """
    job = from_config(Job, config)
    by_name(job.cascade)
    return job


def has_many(config: ml_collections.ConfigDict) -> bool:
    """Whether a fine-tuning config is for many subjects."""
    return "subjects" in config


def to_any_job(config: ml_collections.ConfigDict) -> tuple[Subjects | None, Job]:
    """A fine-tuning config for one subject, whose first part is None, or for many.

    Raises:
        InputError: As ``to_job``.
    """
    return to_subjects(config) if has_many(config) else (None, to_job(config))


def to_subjects(config: ml_collections.ConfigDict) -> tuple[Subjects, Job]:
    """A config for many subjects as plain data: what to train, and all else.

    Raises:
        InputError: A field that is not known, of the wrong type, or out of range.
    """
    tree = config.to_dict()
    names = [field.name for field in dataclasses.fields(Subjects)]
    own = {name: tree.pop(name) for name in names}
    job = build(Job, tree, "config")
    by_name(job.cascade)
    return build(Subjects, own, "config"), job


def from_config(kind: Any, config: ml_collections.ConfigDict) -> Any:
    """A config as the frozen dataclass ``kind``.

    Raises:
        InputError: A field that is not known, of the wrong type, or out of range.
    """
    return build(kind, config.to_dict(), "config")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings by name, such as ``base.steps``."""
    found = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found
