"""Checkpoints: what is saved comes back, the newest whole one is found."""

import pathlib

import grain
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from imagen_booth import train_state
from imagen_booth.errors import StorageError
from imagen_booth.rundir import checkpoints as checkpoint

PARAMS = {"unet": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)}}


def start(scale=1.0):
    params = {"unet": {name: leaf * scale for name, leaf in PARAMS["unet"].items()}}
    return train_state.create(params, ("unet/.*",), optax.adam(1e-3), ema=True)


def numbers():
    return iter(grain.MapDataset.range(100).to_iter_dataset())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A relative path, as the default run directory is."""
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


@pytest.fixture
def two(folder):
    """Checkpoints of the steps 1 and 2."""
    data = numbers()
    with checkpoint.Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            next(data)
            checkpoints.save(step, start(float(step)), data, wait=True)
    return folder


def continued(folder):
    """Step that would be gone on with, the weight's scale, and the next number."""
    data = numbers()
    with checkpoint.Checkpoints(folder) as checkpoints:
        if checkpoints.latest() is None:
            return None
        found = checkpoints.restore(start(0.0), data)
        return float(found.trainable["unet"]["w"][0, 1]), next(data)


def test_the_newest_is_gone_on_with(two):
    assert continued(two) == (2.0, 2)


def test_one_whose_writing_was_cut_short_is_not_seen(two):
    """As it lies there before orbax renames it."""
    (two / "2").rename(two / "2.orbax-checkpoint-tmp")
    assert continued(two) == (1.0, 1)
    # Orbax clears the rest away in a thread of its own, so it may still be there.
    assert (two / "1").exists()
    assert not (two / "2").exists()


def test_more_or_fewer_hosts_go_on_with_the_same_batch(two):
    """What two hosts leave of their places in the data; both are at the same."""
    data = two / "2" / "data"
    (data / "process_0-of-1.json").rename(data / "process_0-of-2.json")
    (data / "process_0-of-2.json").copy(data / "process_1-of-2.json")
    assert continued(two) == (2.0, 2)


def test_nothing_but_one_cut_short_is_a_fresh_start(two):
    (two / "1").rmtree()
    (two / "2").rename(two / "2.orbax-checkpoint-tmp")
    assert continued(two) is None


def truncate(folder, part):
    """Cuts the largest file below ``part`` in half."""
    files = pathlib.Path(folder / part).rglob("[!c]*")  # not commit_success.txt
    largest = max(filter(pathlib.Path.is_file, files), key=lambda x: x.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[: len(whole) // 2])


def remove(folder, part):
    (folder / part).rmtree()


@pytest.mark.parametrize("part", ["state", "data"])
@pytest.mark.parametrize("harm", [truncate, remove])
def test_a_damaged_one_gives_way_to_the_one_before(two, caplog, harm, part):
    harm(two / "2", part)
    assert continued(two) == (1.0, 1)
    assert "base/2 cannot be read" in caplog.text
    assert sorted(path.name for path in two.iterdir()) == ["1"]
    # Its step can be saved anew.
    with checkpoint.Checkpoints(two) as checkpoints:
        checkpoints.save(2, start(3.0), numbers(), wait=True)
    assert continued(two) == (3.0, 0)


def test_damaged_parameters_are_named(folder):
    with checkpoint.Checkpoints(folder) as checkpoints:
        params = {"unet": {"w": np.random.default_rng(0).random(5000)}}
        checkpoints.save(1, start(), numbers(), params, wait=True)
    truncate(folder / "1", "params")
    with pytest.raises(StorageError, match="parameters in .*1 cannot be read: .*again"):
        checkpoint.read_params(folder)


FULL = 'RESOURCE_EXHAUSTED: Failed writing: "x/d/f9": No space left on device'


@pytest.mark.parametrize("moment", ["save", "close"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError(FULL), StorageError),
        (OSError(28, "No space left on device"), StorageError),
        (ValueError("trees have different structures"), ValueError),
    ],
)
def test_a_full_disk_is_a_storage_error_whoever_reports_it(
    folder, monkeypatch, error, kind, moment
):
    def fail(*_, **__):
        raise error

    method = {"save": "save_checkpointables_async", "close": "close"}[moment]
    checkpoints = checkpoint.Checkpoints(folder)
    real = getattr(checkpoints._ocp, method)
    monkeypatch.setattr(checkpoints._ocp, method, fail)

    def save():
        with checkpoints:
            checkpoints.save(0, start(), numbers())

    with pytest.raises(kind) as caught:
        save()
    if kind is StorageError:
        assert "No space left" in str(caught.value)
        assert "MB free" in str(caught.value)
        assert caught.value.exit_code == 5
    monkeypatch.undo()
    if moment == "close":
        real()


def test_where_all_are_damaged_it_is_said(two):
    for step in ("1", "2"):
        truncate(two / step, "state")
    with pytest.raises(StorageError, match="no checkpoint in .* can be read"):
        continued(two)
    assert sorted(path.name for path in two.iterdir()) == ["1", "2"]
