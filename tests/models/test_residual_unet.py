"""The photo stage's network: its start, its schedule, crops, text, sizes."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagen_booth import models
from imagen_booth.cascade import PHOTO_STAGE
from imagen_booth.diffusion import augment
from imagen_booth.diffusion.schedule import CosineSchedule
from imagen_booth.models import ResidualUNetConfig, residual_unet
from imagen_booth.weights.load import Forward

SMALL = ResidualUNetConfig(
    widths=(8, 12),
    blocks_down=(1, 1),
    blocks_up=(1, 0),
    patch=2,
    time_width=8,
    residual_std=0.1,
    shift=4.6,
    text_width=6,
    pool_heads=2,
)
PHOTO = residual_unet.SIZES["photo_sr1024"]


def draw_inputs(key, t, level, size=16, batch=2):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (batch, size, size, 6))
    text = jax.random.normal(keys[1], (batch, 3, 6))
    seen = jnp.full((batch,), 1000 * augment.level_to_time(jnp.float32(level)))
    return x, jnp.full((batch,), 1000 * t, jnp.float32), text, None, seen


def draw_params(network, inputs):
    """Random parameters without zeros, so that every path counts."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(
            rng.normal(size=p.shape) / math.prod(p.shape[:-1]) ** 0.5, jnp.float32
        ),
        shapes,
    )


class Network(NamedTuple):
    """A module and its compiled forward function."""

    module: nn.Module
    apply: Callable


@pytest.fixture(scope="module")
def network():
    module = models.build(SMALL)
    return Network(module, jax.jit(module.apply))


@pytest.mark.parametrize("t", [0.0, 1e-3, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("level", [1e-5, 1e-2])
def test_untrained_it_is_the_best_linear_estimate(key, network, t, level):
    """x0 = base + r, r ~ N(0, d^2): the mean of r given x_t, in float64."""
    inputs = draw_inputs(key, t, level)
    params = {"params": draw_params(network.module, inputs)}
    for name in ("kernel", "bias"):  # as at the start of training
        leaf = params["params"]["conv_out"][name]
        params["params"]["conv_out"][name] = jnp.zeros_like(leaf)
    out = np.asarray(network.apply(params, *inputs))
    xt, low = np.split(np.asarray(inputs[0], np.float64), 2, axis=-1)
    base = low / math.sqrt(1 - level)
    logsnr = PHOTO_STAGE.schedule.logsnr64(np.array(t, np.float32))
    alpha, sigma = (
        1 / math.sqrt(1 + math.exp(-logsnr)),
        1 / math.sqrt(1 + math.exp(logsnr)),
    )
    # Precisions add: of the observation x_t / alpha - base, and of the prior.
    of_data, of_prior = alpha**2 / sigma**2, 1 / (0.1**2 + level)
    mean = (xt / alpha - base) * of_data / (of_data + of_prior)
    np.testing.assert_allclose(out, base + mean, atol=2e-5 * max(1, np.abs(out).max()))


def test_the_stage_has_the_schedule_of_its_network():
    assert PHOTO_STAGE.schedule == CosineSchedule(shift=PHOTO.shift)
    middle = np.array(0.5)  # noise is as strong as the residual there
    ratio = np.exp(-0.5 * PHOTO_STAGE.schedule.logsnr64(middle))
    assert ratio == pytest.approx(PHOTO.residual_std, rel=0.01)


def test_a_crop_gives_what_the_whole_picture_gives(key, network):
    """No statistics over positions: far from borders the outputs are equal."""
    inputs = draw_inputs(key, 0.4, 1e-3, size=96, batch=1)
    params = {"params": draw_params(network.module, inputs)}
    whole = network.apply(params, *inputs)
    crop = network.apply(params, inputs[0][:, 16:80, 16:80], *inputs[1:])
    inner = whole[:, 40:56, 40:56]
    assert float(jnp.std(inner)) > 0.01
    np.testing.assert_allclose(crop[:, 24:40, 24:40], inner, atol=1e-5)


def test_every_input_counts(key, network):
    inputs = draw_inputs(key, 0.4, 1e-3)
    params = {"params": draw_params(network.module, inputs)}
    first = network.apply(params, *inputs)
    for index, changed in ((0, inputs[0] + 0.1), (1, inputs[1] + 50.0)):
        others = [*inputs]
        others[index] = changed
        assert float(jnp.abs(network.apply(params, *others) - first).max()) > 1e-4
    others = [*inputs[:2], inputs[2] + 1.0, *inputs[3:]]
    np.testing.assert_array_equal(network.apply(params, *others), first)


def test_text_counts_where_it_is_read(key):
    reads = models.build(dataclasses.replace(SMALL, reads_text=True))
    inputs = draw_inputs(key, 0.4, 1e-3)
    params = {"params": draw_params(reads, inputs)}
    others = [*inputs[:2], inputs[2][:, ::-1] ** 2, *inputs[3:]]
    apply = jax.jit(reads.apply)
    gap = apply(params, *others) - apply(params, *inputs)
    assert float(jnp.abs(gap).max()) > 1e-4


@pytest.mark.parametrize("reads_text", [False, True])
def test_a_sampler_reads_the_text_once_if_at_all(key, reads_text):
    """With NaN in its place later calls give the same; there may be none to keep."""
    module = models.build(dataclasses.replace(SMALL, reads_text=reads_text))
    x, time, text, _, level = inputs = draw_inputs(key, 0.4, 1e-3)
    params = draw_params(module, inputs)
    forward = Forward(module, masked=False)
    of_text = jax.jit(forward.read_text)(params, *inputs)
    assert bool(of_text) == reads_text
    blind = x, time, jnp.full_like(text, jnp.nan), None, level
    found = forward(params, *blind, of_text=of_text)
    np.testing.assert_allclose(found, forward(params, *inputs), atol=1e-5)


def test_recomputing_blocks_changes_no_gradient(key, network):
    inputs = draw_inputs(key, 0.4, 1e-3, size=4, batch=1)
    params = {"params": draw_params(network.module, inputs)}
    again = models.build(dataclasses.replace(SMALL, remat=True))

    def gradient(apply):
        loss = jax.jit(jax.grad(lambda p: jnp.square(apply(p, *inputs)).mean()))
        return loss(params)

    for one, other in zip(
        jax.tree.leaves(gradient(network.apply)),
        jax.tree.leaves(gradient(again.apply)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_shipped_size_is_small():
    network = models.build(PHOTO)
    inputs = (
        jnp.zeros((1, 64, 64, 6)),
        jnp.zeros((1,)),
        jnp.zeros((1, 77, 4096)),
        None,
        jnp.zeros((1,)),
    )
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(shapes))
    assert count == 7_807_328  # at most 10 M
