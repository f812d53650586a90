"""One DreamBooth step of the whole IF-I-M: it runs, and in how much memory."""

import concurrent.futures
import math
import multiprocessing
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth import train_state
from imagen_booth.cascade import by_name
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth
from imagen_booth.data import pipeline
from imagen_booth.distributed import sharding
from imagen_booth.training import finetune, optimizers, train_step
from imagen_booth.weights.load import network, place

LIMIT = 24  # GiB
SAMPLE = 1000
# A softmax does not see what is added to all its logits.
NO_GRADIENT = {"unet/add_embedding/pool/k_proj/bias"}


def batch_of(cascade, stage, tuning, mesh):
    """One subject row and one class row, of noise, as training makes them."""
    rng = np.random.default_rng(0)

    def group(rows_weight, label):
        example = {
            "image": rng.integers(0, 256, (stage.resolution,) * 2 + (3,), np.uint8),
            "text": rng.normal(
                size=(cascade.text.length, stage.model.text_width)
            ).astype(np.float32),
            "text_mask": np.ones(cascade.text.length, bool),
        }
        return pipeline.Group([example], 1, rows_weight, label)

    groups = [
        group(1.0, train_step.SUBJECT),
        group(tuning.prior_weight, train_step.CLASS),
    ]
    rows = pipeline.batches(groups, seed=0, multiple=mesh.size)[0]
    return sharding.put_rows(rows, mesh)


def random_params(shapes, mesh):
    """Weights with no zeros in them, which would leave most gradients zero."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim > 1:
            return noise / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))
        return np.float32(path[-1].key == "scale") + np.float32(0.1) * noise

    return place(jax.tree.map_with_path(draw, shapes), mesh)


@jax.jit
def samples(params):
    """The first numbers of each array; a copy of all would count as memory."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[:SAMPLE], params)


def one_step():
    """What came of the step, what moved, and what it took."""
    start = time.perf_counter()
    cascade, tuning = by_name("if_m"), to_job(dreambooth("if_m")).base
    stage = cascade.stage("base")
    assert tuning.hybrid
    assert tuning.optim.name == "adamw"
    mesh = sharding.make_mesh()
    init, apply = network(cascade, "base", jnp.float32)
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = {"unet": random_params(shapes, mesh)}
    config = train_step.LossConfig(tuning.weighting, tuning.hybrid)

    def loss(params, batch, key):
        return train_step.batch_loss(stage, apply, None, config, params, batch, key)

    optimizer = optimizers.build(tuning.optim, tuning.steps)
    step = jax.jit(train_step.make_step(loss, optimizer, seed=0), donate_argnums=0)
    now = finetune.initial_state(params, optimizer, tuning.optim.ema > 0, mesh).make()
    before = train_state.flatten(jax.device_get(samples(now.trainable)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(now.trainable))
    batch = batch_of(cascade, stage, tuning, mesh)
    program = step.lower(now, batch).compile()
    ready = time.perf_counter()
    now, metrics = program(now, batch)
    metrics = {name: float(value) for name, value in metrics.items()}
    done = time.perf_counter()
    after = train_state.flatten(jax.device_get(samples(now.trainable)))
    return {
        "metrics": metrics,
        "step": int(now.step),
        "still": [path for path in before if np.array_equal(before[path], after[path])],
        "arrays": len(before),
        "size": size / 2**30,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "seconds": (ready - start, done - ready),
    }


@pytest.mark.slow
def test_a_dreambooth_step_of_if_i_m(monkeypatch):
    # In a process of its own, whose peak is that of the step, with one device.
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        found = pool.submit(one_step).result()
    ready, spent = found["seconds"]
    print(
        f"IF-I-M, {found['size']:.2f} GiB of parameters, rows 1 + 1: peak memory "
        f"{found['peak']:.1f} GiB; {ready:.0f} s to be ready, {spent:.0f} s the step"
    )
    metrics = found["metrics"]
    assert found["step"] == 1
    assert metrics["finite"]
    for name in ("loss", "loss_subject", "loss_class", "grad_norm"):
        assert math.isfinite(metrics[name]), name
        assert metrics[name] > 0, name
    # Both rows weigh 1.
    assert metrics["loss"] == pytest.approx(
        metrics["loss_subject"] + metrics["loss_class"], rel=1e-5
    )
    assert found["arrays"] > 400
    assert set(found["still"]) <= NO_GRADIENT
    assert found["peak"] < LIMIT
