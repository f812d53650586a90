"""The run directory: what was made with what, and what has become stale."""

import dataclasses
import json

import pytest

from imagen_booth.errors import InputError
from imagen_booth.rundir.layout import RunDirectory, recipe

RECIPE = {"base": {"steps": 4, "optim": {"lr": 1e-3}}, "photos": {"a.png": "12"}}


def claim(path, recipe=RECIPE, part="base", overwrite=()):
    return RunDirectory(path, frozenset(overwrite)).claim(part, recipe)


def make(path, part="base"):
    """A part that was claimed and holds something."""
    folder = claim(path, part=part)
    (folder / "made").write_text("something")
    return folder


def test_the_same_settings_go_on(tmp_path):
    folder = make(tmp_path)
    assert folder == tmp_path / "base"
    assert (claim(tmp_path) / "made").exists()


def test_settings_compare_as_json_has_them(tmp_path):
    """A tuple is stored as a list and a path as text; neither is a change."""
    recipe = {"shift": (0.5, 0.0), "where": tmp_path}
    claim(tmp_path, recipe)
    claim(tmp_path, recipe)
    with pytest.raises(InputError, match="shift"):
        claim(tmp_path, recipe | {"shift": (0.5, 0.1)})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"base": {"steps": 5, "optim": {"lr": 1e-3}}}, "base.steps: 4 -> 5"),
        ({"base": {"steps": 4, "optim": {"lr": 0.1}}}, "base.optim.lr: 0.001 -> 0.1"),
        ({"photos": {}}, "photos.a.png: 12 -> None"),
        ({"photos": {"a.png": "12", "b.png": "7"}}, "photos.b.png: None -> 7"),
        ({"seed": 1}, "seed: None -> 1"),
    ],
)
def test_a_changed_setting_is_named_and_refused(tmp_path, changed, words):
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        claim(tmp_path, RECIPE | changed)
    assert words in str(caught.value)
    assert "--overwrite=base" in str(caught.value)
    # nothing of it was touched, and the old settings still hold
    assert (claim(tmp_path) / "made").exists()


def test_overwriting_redoes_one_part_once(tmp_path):
    make(tmp_path)
    make(tmp_path, "sr256")
    work = RunDirectory(tmp_path, frozenset({"base"}))
    folder = work.claim("base", RECIPE | {"seed": 1})
    assert not (folder / "made").exists()
    assert (work.claim("sr256", RECIPE) / "made").exists()
    # later in the same run it is claimed again, to go on
    (folder / "made").write_text("anew")
    assert (work.claim("base", RECIPE | {"seed": 1}) / "made").exists()
    assert json.loads((folder / "recipe.json").read_text())["seed"] == 1


@pytest.mark.parametrize("part", ["base", "sr256", "sr1024", "all"])
def test_samples_go_with_the_stages_that_drew_them(tmp_path, part):
    make(tmp_path, "samples")
    work = RunDirectory(tmp_path, frozenset({part}))
    assert not (work.claim("samples", RECIPE) / "made").exists()


def test_samples_alone_can_be_redone(tmp_path):
    make(tmp_path)
    make(tmp_path, "samples")
    work = RunDirectory(tmp_path, frozenset({"samples"}))
    assert (work.claim("base", RECIPE) / "made").exists()
    assert not (work.claim("samples", RECIPE) / "made").exists()


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(InputError, match="overwrite=bsae is not a part.*sr256"):
        RunDirectory(tmp_path, frozenset({"bsae", "base"}))


def test_the_manifest_merges_and_is_kept(tmp_path):
    work = RunDirectory(tmp_path)
    work.record(seed=1, cascade={"name": "tiny", "parts": {"text": {"sha256": "1"}}})
    work.record(cascade={"parts": {"base": {"sha256": "2"}}}, warnings=["a"])
    again = RunDirectory(tmp_path)
    again.record(warnings=["b"], seed={"root": 2})
    expected = {
        "seed": {"root": 2},
        "cascade": {
            "name": "tiny",
            "parts": {"text": {"sha256": "1"}, "base": {"sha256": "2"}},
        },
        "warnings": ["b"],
    }
    assert again.manifest == expected
    assert json.loads((tmp_path / "manifest.json").read_text()) == expected
    # written beside and renamed: no other file is left
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_recipe_leaves_out_what_is_free():
    @dataclasses.dataclass(frozen=True)
    class Setting:
        steps: int
        log_every: int

    assert recipe(Setting(3, 5), "log_every") == {"steps": 3}
