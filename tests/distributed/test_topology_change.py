"""A run stopped by a signal and continued on the same devices, or on others.

Eight, four and one fake device, for two photos and five rows a batch, through the
real command.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath
from train_jobs import ALONE, losses, make_photos, settings, train

from imagen_booth import train_state
from imagen_booth.rundir import checkpoints

pytestmark = pytest.mark.long

# Sums are taken in another order on other devices, and a step amplifies that.
TOLERANCE = 1e-3
STEPS = 6
FLAGS = (
    f"--config.base.steps={STEPS}",
    "--config.base.log_every=1",
    "--config.base.save_every=100",
    "--config.base.preview_every=0",
)


class Runs:
    """Runs in one folder, which share class images and compiled programs."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.photos = make_photos(folder / "photos", 0)

    def go(self, name: str, devices: int, *more: str, stop: int = 0) -> str:
        """Starts or resumes a run, up to step ``stop``; returns its last message."""
        command = (*ALONE, *settings(self.photos, self.folder / name, *FLAGS, *more))
        environ = {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache" / "xla")}
        if stop:
            environ["SIGNAL_AT"] = str(stop)
        [ended] = train(command, devices=devices, environ=[environ])
        assert ended.code == (75 if stop else 0), ended.said
        return ended.said[-1]

    def copy(self, name: str, to: str) -> None:
        shutil.copytree(self.folder / name, self.folder / to)

    def trained(self, name: str) -> dict[str, np.ndarray]:
        params, step = checkpoints.read_params(epath.Path(self.folder) / name / "base")
        assert step == STEPS
        return train_state.flatten(params)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """A full run on eight devices, and another one stopped there after two steps."""
    runs = Runs(tmp_path_factory.mktemp("topologies"))
    runs.go("straight", 8, "--config.mesh.fsdp=2", "--profile")
    message = runs.go("stopped", 8, "--config.mesh.fsdp=2", stop=2)
    assert f"saved at step 2 of {STEPS} and stopped" in message
    return runs


def test_resumed_on_the_same_devices_it_is_bit_identical(runs):
    runs.copy("stopped", "same")
    runs.go("same", 8, "--config.mesh.fsdp=2")
    assert losses(runs.folder / "same") == losses(runs.folder / "straight")
    expected = runs.trained("straight")
    for name, leaf in runs.trained("same").items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_resumed_on_fewer_devices_its_losses_agree(runs):
    runs.copy("stopped", "fewer")
    message = runs.go("fewer", 4, "--config.mesh.fsdp=4", stop=4)
    assert f"saved at step 4 of {STEPS} and stopped" in message
    runs.go("fewer", 1)
    expected, got = (losses(runs.folder / name) for name in ("straight", "fewer"))
    assert expected.keys() == got.keys()
    for step, values in expected.items():
        np.testing.assert_allclose(got[step], values, rtol=TOLERANCE)


def test_metrics_hold_the_times_of_host_and_device(runs):
    lines = (runs.folder / "straight" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == STEPS
    for row in rows:
        assert 0 < row["time/host_ms"] < 1e6
        assert 0 < row["time/device_ms"] < 1e6
        # One step a row: the two are no more than the whole of it.
        whole = 1e3 * 8 / row["time/images_per_sec"]  # five rows, filled up to eight
        assert row["time/host_ms"] + row["time/device_ms"] <= whole * 1.01


def test_profile_writes_a_trace_of_early_steps(runs):
    traces = runs.folder / "straight" / "profile" / "base" / "plugins" / "profile"
    [folder] = traces.iterdir()
    kinds = {path.name.split(".", 1)[-1] for path in folder.iterdir()}
    assert {"xplane.pb", "trace.json.gz"} <= kinds
    assert not (runs.folder / "stopped" / "profile").exists()
