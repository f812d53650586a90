"""Checkpoints: what is saved comes back, the newest whole one is found."""

import grain
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from imagen_booth import checkpoint, state

PARAMS = {"unet": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)}}


def start(scale=1.0):
    params = {"unet": {name: leaf * scale for name, leaf in PARAMS["unet"].items()}}
    return state.create(params, ("unet/.*",), optax.adam(1e-3), ema=True)


def numbers():
    return iter(grain.MapDataset.range(100).to_iter_dataset())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A relative path, as the default work directory is."""
    monkeypatch.chdir(tmp_path)
    return epath.Path("runs/base")


def test_state_and_data_come_back(folder):
    data = numbers()
    drawn = [next(data) for _ in range(5)]
    with checkpoint.Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(5, start(2.0), data, wait=True)
    other = numbers()
    with checkpoint.Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 5
        found = checkpoints.restore(start(0.0), other)
    np.testing.assert_array_equal(found.trainable["unet"]["w"], 2 * PARAMS["unet"]["w"])
    assert next(other) == drawn[-1] + 1


def test_the_newest_two_are_kept_and_params_are_found(folder):
    with checkpoint.Checkpoints(folder) as checkpoints:
        for step in range(4):
            params = PARAMS if step == 2 else None
            checkpoints.save(step, start(), numbers(), params, wait=True)
    assert sorted(int(path.name) for path in folder.iterdir()) == [2, 3]
    params, step = checkpoint.read_params(folder)
    assert step == 2
    np.testing.assert_array_equal(params["unet"]["w"], PARAMS["unet"]["w"])


def test_reading_params_is_silent(folder, caplog):
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(0, start(), numbers(), PARAMS, wait=True)
    with caplog.at_level("WARNING"):
        checkpoint.read_params(folder)
    assert caplog.messages == []


def test_without_params_there_is_nothing_to_draw_with(folder):
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(0, start(), numbers(), wait=True)
    with pytest.raises(FileNotFoundError):
        checkpoint.read_params(folder)
