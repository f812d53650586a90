"""Adapters: runs that train them alone, and files that bring them elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from interruptions import signal_at
from photo_files import blurred

from imagen_booth import dreambooth, train_state
from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets
from imagen_booth.config.schema import Job
from imagen_booth.data import image_files
from imagen_booth.distributed import sharding
from imagen_booth.errors import Stopped
from imagen_booth.models import lora
from imagen_booth.rundir import checkpoints
from imagen_booth.sampling import finished_run
from imagen_booth.training import adapters
from imagen_booth.weights import export, load, lora_files

pytestmark = pytest.mark.long

TINY, F32 = by_name("tiny"), jnp.dtype("float32")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """The base stage alone, with a moving average and its class images."""
    folder = tmp_path_factory.mktemp("photos")
    blurred(np.random.default_rng(3), 4, (80, 80)).save(folder / "0.png")
    settings = presets.dreambooth("tiny:lora")
    settings.subject.photos = str(folder)
    settings.subject.class_noun = "dog"
    settings.cache = str(tmp_path_factory.mktemp("cache"))
    settings.base.steps = 3
    settings.base.save_every = settings.base.preview_every = 1
    settings.base.optim.ema = 0.9
    settings.class_images.count = settings.class_images.group = 2
    settings.sr256.steps = settings.sr1024.steps = 0
    settings.pictures.prompts = ("a [V] [N]",)
    return build.to_job(settings)


def run(job: Job, work: epath.Path) -> dict[str, np.ndarray]:
    """Runs a job less the pictures, whose programs take most of the time.

    Returns:
        All parameters of the base stage that the pictures would be sampled with.
    """
    found = {}

    def keep(context, prompts, stages):
        found.update(jax.tree.map(np.asarray, stages[0].params))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dreambooth, "_sample_pictures", keep)
        dreambooth.run(job, work, frozenset())
    return train_state.flatten(found)


@pytest.fixture(scope="module")
def ended(job, tmp_path_factory) -> tuple[epath.Path, dict[str, np.ndarray]]:
    work = epath.Path(tmp_path_factory.mktemp("adapter")) / "run"
    return work, run(job, work)


@pytest.fixture(scope="module")
def finished(ended) -> epath.Path:
    return ended[0]


def learned(work: epath.Path) -> dict[str, np.ndarray]:
    return train_state.flatten(checkpoints.read_params(work / "base")[0])


def loaded(work: epath.Path) -> dict[str, np.ndarray]:
    """All parameters of the base stage that a finished run is sampled with later."""
    finished = finished_run.read_run(work)
    stage, mesh = finished.stages[0], sharding.make_mesh()
    params = finished_run.load_stage(finished, stage, mesh, F32).params
    return train_state.flatten(jax.tree.map(np.asarray, params))


@pytest.fixture(scope="module")
def before() -> dict[str, np.ndarray]:
    """The frozen parameters, drawn as for sampling: the last digits are a program's."""
    mesh = sharding.make_mesh()
    part = load.load(TINY, "base", "random", mesh, F32, train=False)
    return train_state.flatten(jax.tree.map(np.asarray, part.params))


def test_the_adapter_alone_is_trained_and_stored(job, ended, before):
    finished, sampled = ended
    shapes = load.shapes(TINY, "base")
    kernels = lora.kernel_paths(shapes, "all", job.base.adapter.rank)
    names = {
        f"adapter/{path.removesuffix('kernel')}{each}"
        for path in kernels
        for each in (lora.A, lora.B)
    }
    stored = learned(finished)
    assert stored.keys() == names
    assert all(leaf.dtype == np.float32 for leaf in stored.values())
    # Random weights have zeros in the last layer, where training begins.
    trained = [name for name, leaf in stored.items() if name.endswith(lora.B)]
    trained = [name for name in trained if stored[name].any()]
    assert "adapter/conv_out/lora_B" in trained
    assert len(trained) > len(kernels) / 2
    after = loaded(finished)
    assert after.keys() == before.keys()
    changed = {path for path in after if (after[path] != before[path]).any()}
    assert {
        f"adapter/{path.removesuffix('kernel')}{lora.B}" for path in changed
    } == set(trained)
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf, sampled[path], err_msg=path)


def test_an_interrupted_run_ends_the_same(job, finished, tmp_path, monkeypatch):
    work = epath.Path(tmp_path) / "run"
    left = signal_at(monkeypatch, [("base", 1), ("base", 2)])
    while left:
        with pytest.raises(Stopped):
            run(job, work)
    run(job, work)
    one, other = learned(finished), learned(work)
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)
    last = "samples/previews/base/step_000003.png"
    one, other = (image_files.load_png(each / last) for each in (finished, work))
    np.testing.assert_array_equal(one, other)


def test_an_export_is_read_back_and_merged(job, finished, before, tmp_path):
    to = epath.Path(tmp_path)
    [part] = export.export_run(finished, [])
    [path] = export.write_native(to / "out", [part], None)
    assert path == to / "out" / "base" / lora_files.FILE
    assert "load_lora_weights" in (path.parent / "README.md").read_text()
    # Started from the export, an adapter has the same A B.
    config = dataclasses.replace(job.base.adapter, start=str(to / "out"), alpha=12.0)
    tree = adapters.started("base", config, load.shapes(TINY, "base"))
    after = loaded(finished)
    again = train_state.flatten(
        lora.add(train_state.unflatten(before), tree, config.scale)
    )
    for path, leaf in after.items():
        np.testing.assert_allclose(again[path], leaf, atol=1e-6, err_msg=path)
    export.write_native(to / "whole", export.merge_run(finished, []), None)
    whole = load.load(TINY, "base", str(to / "whole"), sharding.make_mesh(), F32).params
    for path, leaf in train_state.flatten(whole).items():
        np.testing.assert_allclose(leaf, after[path], atol=1e-7, err_msg=path)
