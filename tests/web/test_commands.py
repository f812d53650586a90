"""The command lines of the page."""

import dataclasses
import json
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags
from paths import ROOT

from imagen_booth.config.build import to_job
from imagen_booth.errors import InputError
from imagen_booth.web import commands

RUN = pathlib.Path("runs/dog")


def parsed(command, monkeypatch):
    """The job that a train command describes."""
    monkeypatch.setattr(sys, "argv", list(command))  # config_flags reads it
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(sys.argv)
    return to_job(values.config)


# ml_collections loads config files in a way that importlib deprecates.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_run_of_the_command_line_is_resumed_with_its_settings(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = {
        "subject.photos": "a folder/of photos",
        "subject.class_noun": "toy dog",
        "subject.shift": (0.25, -1.0),
        "seed": 7,
        "base.steps": 12,
        "pictures.prompts": ("a [V] [N] (old)", "it's a [V] [N]"),
    }
    job = parsed(
        commands.train(commands.subject_config("tiny:lora", settings), RUN), monkeypatch
    )
    assert job.subject.shift == (0.25, -1.0)
    assert job.pictures.prompts == settings["pictures.prompts"]
    stored = json.loads(json.dumps(dataclasses.asdict(job)))
    again = commands.resume(stored, RUN)
    assert parsed(again, monkeypatch) == job
    assert again[-1] == "--workdir=runs/dog"
    assert "--config.base.adapter.kind=lora" in again


def test_defaults_are_left_out():
    config = commands.subject_config("tiny", {"seed": 0, "subject.class_noun": "dog"})
    assert config == (
        "--config=configs/subject.py:tiny",
        "--config.subject.class_noun=dog",
    )


@pytest.mark.parametrize(
    "name", ["", "..", "../dog", "a/b", ".booth", "-x", "cache", "a b", "a" * 41, "<b>"]
)
def test_names_of_runs_are_plain(name):
    with pytest.raises(InputError, match="give 1 to 40 letters"):
        commands.run_name(name)


def test_sample_command():
    command = commands.sample(
        RUN, ["a [V] dog", " ", "x"], seeds=2, first_seed=5, guidance=3.5, resolution=64
    )
    assert command == (
        "imagen_booth.sample",
        "--run=runs/dog",
        "--prompt=a [V] dog",
        "--prompt=x",
        "--seeds=2",
        "--first_seed=5",
        "--guidance=3.5",
        "--resolution=64",
    )
    few = {"seeds": 1, "first_seed": 0, "guidance": None, "resolution": 0}
    with pytest.raises(InputError, match="0 prompts"):
        commands.sample(RUN, ["", " "], **few)
    with pytest.raises(InputError, match="101 prompts"):
        commands.sample(RUN, ["a"] * 101, **few)
    with pytest.raises(InputError, match="65 pictures"):
        commands.sample(RUN, ["a"], **few | {"seeds": 65})


def test_exports():
    whole, adapted = (
        {"cascade": "tiny", "base": {"adapter": {"kind": kind}}}
        for kind in ("none", "lora")
    )
    for kind, config, verb, layout in (
        ("full", whole, "export", "own"),
        ("diffusers", whole, "export", "diffusers"),
        ("full", adapted, "merge", "own"),
        ("diffusers", adapted, "merge", "diffusers"),
        ("adapter", adapted, "export", "own"),
    ):
        command = commands.export(RUN, kind, config)
        assert command == (
            "imagen_booth.convert",
            verb,
            "--run=runs/dog",
            f"--to=runs/dog/export/{kind}",
            f"--layout={layout}",
        )
    with pytest.raises(InputError, match="without an adapter"):
        commands.export(RUN, "adapter", whole)
    with pytest.raises(InputError, match="not known"):
        commands.export(RUN, "../other", whole)
