"""Compiled programs are kept by default, by every command that compiles any."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from imagen_booth import dreambooth
from imagen_booth.config import build, presets, schema
from imagen_booth.config.schema import JudgeTraining
from imagen_booth.distributed import sharding
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.sampling import batch_job
from imagen_booth.training import pretrain_judge, pretrain_stage


class Begun(Exception):
    """The work has come to its devices; nothing was compiled before."""


@pytest.fixture
def unset(monkeypatch):
    """As outside of the tests: no folder is named, and work ends at its mesh."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)

    def make_mesh(*_, **__):
        raise Begun

    monkeypatch.setattr(sharding, "make_mesh", make_mesh)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def tuning(tmp_path) -> schema.Job:
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(photos / "0.png")
    settings = build.to_job(presets.dreambooth("tiny"))
    subject = dataclasses.replace(
        settings.subject, photos=str(photos), class_noun="dog"
    )
    return dataclasses.replace(settings, subject=subject)


def finished(run, settings):
    """What a finished run says of itself."""
    work = dreambooth.RunDirectory(run)
    work.write_json("config.json", dataclasses.asdict(settings))
    subject = {"identifier": "zaj", "class_noun": "dog"}
    work.record(status="done", subject=subject)


def pretrain(arg, run):
    kind = JudgeTraining if arg == "toybox_judge" else schema.Pretraining
    settings = build.from_config(kind, presets.pretraining(arg))
    (pretrain_judge if arg == "toybox_judge" else pretrain_stage).run(settings, run)


def check(run):
    wanted = str(run.parent / "cache" / "xla")
    assert jax.config.values["jax_compilation_cache_dir"] == wanted


def test_training_keeps_them_beside_the_run(tmp_path, unset, tuning):
    run = epath.Path(tmp_path) / "run"
    with pytest.raises(Begun):
        dreambooth.run(tuning, run, frozenset())
    check(run)


def test_drawing_prompts_keeps_them_where_training_did(tmp_path, unset, tuning):
    run = epath.Path(tmp_path) / "run"
    finished(run, tuning)
    with pytest.raises(Begun):
        batch_job.sample_prompts(run, ["a [V] [N]"], "more", seeds=1)
    check(run)


def test_drawing_a_file_keeps_them_where_training_did(tmp_path, unset, tuning):
    run = epath.Path(tmp_path) / "run"
    finished(run, tuning)
    (tmp_path / "prompts.txt").write_text("a [V] [N]\n")
    with pytest.raises(Begun):
        batch_job.run_batch(run, str(tmp_path / "prompts.txt"), "more", seeds=1)
    check(run)


@pytest.mark.parametrize("stage", ["tiny_base", "toybox_judge"])
def test_pretraining_keeps_them_beside_the_run(tmp_path, unset, stage):
    run = epath.Path(tmp_path) / "run"
    with pytest.raises(Begun):
        pretrain(stage, run)
    check(run)


def test_the_studies_keep_them_in_their_folder(tmp_path, unset, tuning):
    folder = epath.Path(tmp_path) / "studies"
    with pytest.raises(Begun):
        ImageStore(tuning, folder)
    wanted = str(folder / "cache" / "xla")
    assert jax.config.values["jax_compilation_cache_dir"] == wanted


@pytest.mark.parametrize("given", [False, True])
def test_small_programs_are_kept_unless_the_user_said_which(
    tmp_path, unset, tuning, monkeypatch, given
):
    least = "jax_persistent_cache_min_compile_time_secs"
    jax.config.update(least, 7.0)
    monkeypatch.setenv(least.upper(), "7")
    if not given:
        monkeypatch.delenv(least.upper())
    with pytest.raises(Begun):
        dreambooth.run(tuning, epath.Path(tmp_path) / "run", frozenset())
    assert jax.config.values[least] == (7.0 if given else 0.1)


def test_the_users_own_folder_is_left_alone(tmp_path, unset, tuning):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with pytest.raises(Begun):
        dreambooth.run(tuning, epath.Path(tmp_path) / "run", frozenset())
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
