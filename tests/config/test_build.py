"""Settings within their declared ranges, of their types, and paths with a tilde."""

import copy
import dataclasses
import math
import typing
from collections.abc import Iterator

import annotated_types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_booth.config import build, schema
from imagen_booth.config.presets import dreambooth
from imagen_booth.errors import InputError

JOB = dataclasses.asdict(build.to_job(dreambooth("tiny")))


def leaves(kind: type, where: str = "") -> Iterator[tuple[str, typing.Any]]:
    """Every setting of a dataclass by its dotted name, with its declared type."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        inner, name = hints[field.name], f"{where}{field.name}"
        if dataclasses.is_dataclass(inner):
            yield from leaves(typing.cast(type, inner), f"{name}.")
        else:
            yield name, inner


def parts(kind: typing.Any) -> list[typing.Any]:
    """A type, or the parts of a union or tuple, that declare a range of numbers."""
    if build.limits(kind):
        found = [kind]
    else:
        is_tuple = typing.get_origin(kind) is tuple
        found = typing.get_args(kind) if is_tuple else members(kind)
    return [each for each in found if typing.get_args(each)[:1] in ((int,), (float,))]


def members(kind: typing.Any) -> list[typing.Any]:
    """The types in a union, with those in its tuples."""
    found = []
    for each in typing.get_args(kind):
        is_tuple = typing.get_origin(each) is tuple
        found += typing.get_args(each) if is_tuple else [each]
    return found


def length(kind: typing.Any) -> int:
    """How many numbers a tuple holds, or a tuple in a union; 0 where there is none."""
    for each in (kind, *typing.get_args(kind)):
        if typing.get_origin(each) is tuple and parts(each):
            return len(typing.get_args(each))
    return 0


SETTINGS = dict(leaves(schema.Job))
NUMBERS = {name: parts(kind)[0] for name, kind in SETTINGS.items() if parts(kind)}


def changed(name: str, value: typing.Any) -> dict[str, typing.Any]:
    """The tiny job as JSON with one value replaced."""
    job = copy.deepcopy(JOB)
    *parents, last = name.split(".")
    inner = job
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return job


def is_within(kind: typing.Any, value: float) -> bool:
    """The declared range, read independently of ``build``."""
    inside = math.isfinite(value)
    for limit in build.limits(kind):
        for name, holds in (
            ("ge", lambda a, b: a >= b),
            ("gt", lambda a, b: a > b),
            ("le", lambda a, b: a <= b),
            ("lt", lambda a, b: a < b),
        ):
            if hasattr(limit, name):
                inside &= holds(value, getattr(limit, name))
    return inside


def test_every_number_of_a_job_has_a_range():
    plain = {
        name
        for name, kind in SETTINGS.items()
        if name not in NUMBERS and ("int" in str(kind) or "float" in str(kind))
    }
    assert plain == set()
    assert len(NUMBERS) > 50


@pytest.mark.parametrize("name", NUMBERS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_number_is_refused_exactly_where_it_is_out_of_range(name, data):
    kind = NUMBERS[name]
    whole = typing.get_args(kind)[0] is int
    wide = st.integers() if whole else st.floats()
    value = data.draw(st.from_type(kind) | wide)
    if is_within(kind, value):
        assert build.build(kind, value, f"config.{name}") == value
        return
    several = length(SETTINGS[name])
    given_value = (value,) * several if several else value
    with pytest.raises(InputError) as caught:
        build.build(schema.Job, changed(name, given_value), "config")
    assert str(caught.value).startswith(f"config.{name}")
    assert repr(value) in str(caught.value)
    reason = build.range_text(build.limits(kind))
    assert reason in str(caught.value) or "finite" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite_even_without_a_range(value):
    with pytest.raises(InputError, match="x=.* should be a finite number"):
        build.build(float, value, "x")
    with pytest.raises(InputError, match=r"x\[1\]=.* should be a finite number"):
        build.build(tuple[float, ...], (0.0, value), "x")


def test_a_range_in_words():
    def words(*limits):
        return build.range_text(build.limits(typing.Annotated[int, *limits]))

    assert words(annotated_types.Interval(gt=0, le=1)) == "above 0, at most 1"
    assert words(annotated_types.Interval(ge=0, lt=1)) == "0 or more, below 1"
    assert words(annotated_types.Ge(8), annotated_types.MultipleOf(8)) == (
        "8 or more, a multiple of 8"
    )
    assert build.range_text([]) == ""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("pictures.prompts", (), r"pictures.prompts=\(\) should be 1 or more entries"),
        ("text.templates", (), "text.templates=.* 1 or more entries"),
        ("class_images.count", 0, "class_images.count=0, but config.base.class_rows=2"),
        ("class_images", 3, "config.class_images=3 should hold settings"),
        ("cache", "~nobody_of_this_name/x", "config.cache=~nobody.*not the home"),
    ],
)
def test_other_settings_that_cannot_be(name, value, words):
    with pytest.raises(InputError, match=words):
        build.build(schema.Job, changed(name, value), "config")


PATHS = [
    name for name, kind in SETTINGS.items() if schema.IS_PATH in build.limits(kind)
]


@pytest.mark.parametrize("name", PATHS)
def test_a_tilde_is_the_home_folder(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text, meant in (
        ("~", "/home/me"),
        ("~/a", "/home/me/a"),
        ("a/~", "a/~"),
        ("gs://bucket/~/a", "gs://bucket/~/a"),
    ):
        job = build.build(schema.Job, changed(name, text), "config")
        for part in name.split("."):
            job = getattr(job, part)
        assert job == meant


def test_every_place_of_a_job_is_a_path():
    weights = {f"weights.{f.name}" for f in dataclasses.fields(schema.Weights)}
    adapters = {f"{part}.adapter.start" for part in ("text", "base", "sr256", "sr1024")}
    photos = {"subject.photos", "second.photos"}
    assert set(PATHS) == weights | adapters | photos | {"cache"}
