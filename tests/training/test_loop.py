"""The loop: a step in flight, a batch read ahead, nothing lost when it ends early."""

import dataclasses
import threading

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from imagen_booth.distributed import sharding
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import NotFinite, Stopped
from imagen_booth.rundir.checkpoints import Checkpoints
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.training import finetune, loop, train_step

BAD = 4  # the batch that is not finite, where there is one
CONFIG = loop.LoopConfig(steps=8, log_every=100, save_every=100)


class Run:
    """A loop over numbers whose only parameter sums what it was given."""

    def __init__(self, folder, bad=None, stop_at=None, config=CONFIG):
        self.folder, self.bad, self.stop_at = epath.Path(folder), bad, stop_at
        self.config, self.diagnosed, self.stop = config, [], StopRequest()

    def loss(self, params, batch, key):
        value = -batch["image"][0, 0] * params["unet"]["w"][0]
        if self.bad is not None:
            value = jnp.where(batch["image"][0, 0] == self.bad, jnp.nan, value)
        return value, {"loss": value}

    def batch(self, step):
        # Read ahead by a step: the signal comes while the one before is in flight.
        self.stop.requested = self.stop.requested or step == self.stop_at
        return {"image": np.full((4, 1), step, np.float32)}

    def preview(self, state, step):
        pass

    def diagnose(self, state, batch):
        self.diagnosed.append((int(state.step), int(batch["image"][0, 0])))
        return ["w"]

    def train(self):
        optimizer, mesh = optax.sgd(1.0), sharding.make_mesh()
        params = {"unet": {"w": jnp.zeros(1)}}
        data = grain.MapDataset.range(1000).map(self.batch)
        hooks = loop.LoopHooks(
            learning_rate=lambda step: 0.0,
            preview=self.preview,
            inference=lambda state: state.trainable,
            diagnose=self.diagnose,
        )
        with (
            jax.set_mesh(mesh),
            Checkpoints(self.folder / "base") as checkpoints,
            MetricWriter(self.folder, active=True) as metrics,
        ):
            training = loop.Training(
                "base",
                finetune.initial_state(params, optimizer, False, mesh),
                train_step.make_step(self.loss, optimizer, seed=0),
                iter(data.to_iter_dataset(grain.ReadOptions(num_threads=0))),
                self.config,
                hooks,
            )
            context = loop.LoopContext(mesh, checkpoints, metrics, self.stop)
            return loop.train(training, context)


def test_a_step_that_is_not_finite_leaves_the_state_before_it(tmp_path):
    """Though the next step was sent already; what follows the bad batch is fine."""
    run = Run(tmp_path, BAD)
    with pytest.raises(NotFinite, match=f"step {BAD + 1} is not finite, in: w"):
        run.train()
    assert run.diagnosed == [(BAD, BAD)]
    after = Run(tmp_path, config=dataclasses.replace(CONFIG, steps=BAD + 2)).train()
    # Resumed after the bad batch: 0 to 3, then 5 and 6.
    assert after.trainable["unet"]["w"][0] == sum(range(BAD)) + 5 + 6


@pytest.mark.parametrize("stop_at", [2, 5])
def test_no_batch_is_lost_or_repeated_where_a_run_stops(tmp_path, stop_at):
    with pytest.raises(Stopped, match=f"saved at step {stop_at} of 8"):
        Run(tmp_path, stop_at=stop_at).train()
    final = Run(tmp_path).train()
    assert final.trainable["unet"]["w"][0] == sum(range(8))
    assert final.step == 8


class Flag:
    """A result whose reader waits for its step."""

    def __init__(self, events, step):
        self.events, self.step = events, step

    def __bool__(self):
        self.events.append(f"looked at {self.step}")
        return True


def test_the_host_waits_for_the_step_before(tmp_path, monkeypatch):
    """But where it needs the results: here after step 4, to save, and at the end."""
    events = []

    class Jitted:
        __wrapped__ = None

        def __init__(self, step_fn, abstract):
            pass

        def lower(self, *_, **__):
            return self

        def compile(self):
            def program(state, batch, ok):
                step = int(batch["image"][0, 0])
                events.append(f"sent {step}")
                changed = dataclasses.replace(state, step=state.step + 1)
                return changed, {"finite": Flag(events, step), "loss": 0.0}

            return program

    class Reading(Run):
        def batch(self, step):
            events.append(f"read {step}")
            return super().batch(step)

    monkeypatch.setattr(loop, "jit_step", Jitted)
    Reading(tmp_path, config=loop.LoopConfig(6, log_every=100, save_every=4)).train()
    assert events == [
        *("read 0", "sent 0", "read 1"),
        *("sent 1", "read 2", "looked at 0"),
        *("sent 2", "read 3", "looked at 1"),
        *("sent 3", "looked at 2", "looked at 3"),  # the checkpoint has the data so far
        *("read 4", "sent 4", "read 5"),
        *("sent 5", "looked at 4", "looked at 5"),
    ]


def test_the_step_is_compiled_while_the_first_preview_is_made(tmp_path, monkeypatch):
    """Each waits for the other to begin, so one after the other would not end."""
    compiling, previewing = threading.Event(), threading.Event()
    jitted, met = loop.jit_step, []

    class Lowered:
        def __init__(self, lowered):
            self.lowered = lowered

        def compile(self):
            compiling.set()
            met.append(previewing.wait(timeout=60))
            return self.lowered.compile()

    class Jitted:
        def __init__(self, *arguments):
            self.jitted = jitted(*arguments)
            self.__wrapped__ = self.jitted.__wrapped__

        def lower(self, *inputs, **named):
            return Lowered(self.jitted.lower(*inputs, **named))

    class Previewing(Run):
        def preview(self, state, step):
            if step == 0:
                previewing.set()
                met.append(compiling.wait(timeout=60))

    monkeypatch.setattr(loop, "jit_step", Jitted)
    final = Previewing(tmp_path).train()
    assert met == [True, True]
    np.testing.assert_array_equal(final.trainable["unet"]["w"], [sum(range(8))])
