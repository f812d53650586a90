"""All stages on one device in a given time: to the end, cut off and resumed."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from imagen_booth.cascade import by_name
from imagen_booth.toybox import renderer
from imagen_booth.train_state import flatten
from imagen_booth.training import pretrain_on_device
from imagen_booth.training.pretrain_on_device import Pool, StagePlan
from imagen_booth.weights import load, native, tensor_files

QUICK = (
    StagePlan(
        stage="base", seconds=0.1, pictures=8, chunk=4, rows=4, lr=1e-3, held_out=4
    ),
    StagePlan(
        stage="sr256",
        seconds=0.1,
        pictures=4,
        chunk=2,
        rows=2,
        lr=1e-3,
        crop=64,
        held_out=2,
    ),
)


@pytest.fixture
def flat_pictures(monkeypatch):
    """Pictures of one colour each in place of rendered ones."""

    def draw(arrays, size, *, rays):
        colour = (arrays["seed"][:, :, None, None] * 7.0).astype(jnp.uint8)
        return jnp.broadcast_to(colour, (len(colour), size, size, 3))

    monkeypatch.setattr(renderer, "draw", draw)


def train(folder, plans=QUICK):
    pretrain_on_device.run(
        epath.Path(folder),
        plans,
        cascade="tiny",
        init="random",
        text="random",
        workers=1,
    )


@pytest.mark.long
@pytest.mark.usefixtures("flat_pictures")
def test_stages_are_trained_and_load(tmp_path):
    train(tmp_path)
    manifest = native.read_manifest(epath.Path(tmp_path))
    for plan in QUICK:
        part = manifest["parts"][plan.stage]
        assert part["dtype"] == "bfloat16"
        assert part["steps"] >= 1
        assert part["prior"]["images"] == part["steps"] * plan.rows
        assert np.isfinite(part["prior"]["held_out"]["loss"])
        found = load.find(by_name("tiny"), plan.stage, str(tmp_path))
        assert found is not None
        assert found.matched(load.shapes(by_name("tiny"), plan.stage))


@pytest.mark.long
@pytest.mark.usefixtures("flat_pictures")
def test_a_finished_stage_stays_and_an_unfinished_one_resumes(tmp_path, monkeypatch):
    # So short a time is over before the first step, at whose end the rate is 0.
    monkeypatch.setattr(StagePlan, "rate", lambda *_: 1e-3)
    train(tmp_path, QUICK[:1])
    before = (tmp_path / "base.safetensors").read_bytes()
    train(tmp_path, QUICK[:1])
    assert (tmp_path / "base.safetensors").read_bytes() == before
    first = json.loads((tmp_path / "progress.json").read_text())["base"]
    longer = dataclasses.replace(QUICK[0], seconds=first["seconds"] + 0.1)
    train(tmp_path, (longer,))
    second = json.loads((tmp_path / "progress.json").read_text())["base"]
    assert second["steps"] > first["steps"]
    assert second["seconds"] >= longer.seconds
    assert (tmp_path / "base.safetensors").read_bytes() != before


def test_a_stage_has_the_network_of_its_weights(tmp_path, monkeypatch):
    seen = []

    class Trained:
        def __init__(self, model, plan, folder, source, text):
            seen.append((model.stage(plan.stage).model.widths, source))

        def train(self, makers, spent):
            pass

    monkeypatch.setattr(pretrain_on_device, "_StageTraining", Trained)
    cascade, own = by_name("toybox"), epath.Path(tmp_path / "own")
    shipped = cascade.stage("base")
    narrow = dataclasses.replace(
        shipped, model=dataclasses.replace(shipped.model, widths=(16, 32, 64))
    )
    shapes = flatten(load.shapes(cascade.having(narrow), "base"))
    zeros = {
        path: tensor_files.held(np.zeros(leaf.shape, leaf.dtype))
        for path, leaf in shapes.items()
    }
    native.write(own, "base", zeros, narrow, {})
    native.record(own, cascade="toybox", licence="CC0")
    for init, model in (("shipped", shipped.model), (str(own), narrow.model)):
        seen.clear()
        pretrain_on_device.run(epath.Path(tmp_path / "run"), init=init, workers=1)
        assert seen[0] == (model.widths, init)
        assert [source for _, source in seen[1:]] == ["shipped", "shipped"]


def test_rate_rises_by_steps_and_falls_by_time():
    plan = dataclasses.replace(QUICK[0], seconds=100.0, lr=1.0, decay=0.5)
    rates = [plan.rate(1000, at) for at in (0, 50, 75, 100, 120)]
    np.testing.assert_allclose(rates, [1.0, 1.0, 0.5, 0.0, 0.0])
    assert plan.rate(0, 0.0) == pytest.approx(0.01)


def test_crops_of_the_two_sizes_are_of_one_place():
    stage = dataclasses.replace(by_name("tiny").stage("sr256"), crop=64)
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    image = low.repeat(4, 1).repeat(4, 2)
    pool = Pool(jnp.asarray(image), jnp.asarray(low), jnp.zeros((3, 48), jnp.int32), 3)
    batch = pool.take(stage, 2, 0)
    assert batch["image"].shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(batch["image"][:, ::4, ::4], batch["low"])
