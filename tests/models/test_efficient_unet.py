"""Imagen's super-resolution network: counts, structure, invariances, layouts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth import models
from imagen_booth.models import EfficientUNetConfig

SMALL = EfficientUNetConfig(
    widths=(8, 12),
    blocks=(1, 2),
    attention=(False, True),
    self_attention=True,
    heads=2,
    text_width=8,
    cross_width=8,
    time_width=8,
    pool_heads=2,
    norm_groups=4,
)


def draw_inputs(config: EfficientUNetConfig, key, batch=2, height=8, width=12):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (batch, height, width, config.in_channels))
    time, level = 1000 * jax.random.uniform(keys[1], (2, batch))
    text = jax.random.normal(keys[2], (batch, 4, config.text_width))
    mask = jnp.arange(4)[None, :] < jnp.arange(batch, 0, -1)[:, None]
    return x, time, text, mask, level


def draw_params(network, inputs):
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    values = [
        0.5 + 0.2 * rng.normal(size=p.shape)
        if p.ndim < 2
        else rng.normal(size=p.shape) / math.prod(p.shape[:-1]) ** 0.5
        for p in leaves
    ]
    return jax.tree.unflatten(tree, [jnp.asarray(v, jnp.float32) for v in values])


def count(tree):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def small():
    """Inputs, params, and a jitted (output, gradients of its mean square)."""
    network = models.build(SMALL)
    inputs = draw_inputs(SMALL, jax.random.key(1))
    params = draw_params(network, inputs)
    return inputs, params, output_and_grads(network)


def output_and_grads(network):
    def loss(params, *inputs):
        out = network.apply({"params": params}, *inputs)
        return jnp.mean(jnp.square(out)), out

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize(
    ("name", "stated", "built"),
    [("imagen_sr256", 600e6, 511_304_579), ("imagen_sr1024", 400e6, 502_907_779)],
)
def test_parameter_count(name, stated, built):
    """The paper's figures are round and its description leaves freedom."""
    config = models.SIZES[name]
    assert isinstance(config, EfficientUNetConfig)

    def init(key):
        inputs = draw_inputs(config, key, 1, 64, 64)
        return models.build(config).init_with_output(key, *inputs)

    out, variables = jax.eval_shape(init, jax.random.key(0))
    assert out.shape == (1, 64, 64, 3)
    assert count(variables) == built
    assert 0.8 < built / stated < 1.3


def test_most_parameters_sit_where_the_picture_is_small():
    config = models.SIZES["imagen_sr256"]
    assert isinstance(config, EfficientUNetConfig)

    def init(key):
        inputs = draw_inputs(config, key, 1, 16, 16)
        return models.build(config).init(key, *inputs)["params"]

    params = jax.eval_shape(init, jax.random.key(0))
    sizes = [count(params[f"down_blocks_{i}"]) for i in range(4)]
    assert sizes == sorted(sizes)
    assert sizes[3] > 3 * sum(sizes[:3])
    blocks = [
        len([k for k in params[f"up_blocks_{i}"] if "res" in k]) for i in range(4)
    ]
    assert blocks == [2, 4, 8, 8]
    attention = params["down_blocks_3"]["attentions_0"]
    assert attention["to_k"]["kernel"].shape == (1024, 2048)
    assert attention["to_out"]["kernel"].shape == (2048, 1024)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("tiny_sr256", 64),
        ("tiny_sr1024", 64),
        ("toybox_sr256", 256),
        ("toybox_sr1024", 1024),
    ],
)
def test_output_shape_at_real_size(name, side):
    config = models.SIZES[name]
    assert isinstance(config, EfficientUNetConfig)

    def run(key):
        inputs = draw_inputs(config, key, 2, side, side)
        return models.build(config, jnp.bfloat16).init_with_output(key, *inputs)[0]

    out = jax.eval_shape(run, jax.random.key(0))
    assert out.shape == (2, side, side, 3)
    assert out.dtype == jnp.float32


def test_every_input_and_parameter_matters(small):
    (x, time, text, mask, level), params, run = small
    grads, out = run(params, x, time, text, mask, level)
    still = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, g in jax.tree.leaves_with_path(grads)
        if jnp.abs(g).max() < 1e-6
    }
    # A shift of all keys alike moves no softmax.
    assert still == {"add_embedding/pool/k_proj/bias"}
    for changed in [
        (x.at[..., 3:].add(0.1), time, text, mask, level),
        (x, time + 50, text, mask, level),
        (x, time, text.at[:, 0].add(1.0), mask, level),
        (x, time, text, mask, level + 50),
    ]:
        moved = jnp.abs(run(params, *changed)[1] - out).max((1, 2, 3))
        assert (moved > 1e-4).all()


def test_masked_text_is_not_seen(small):
    (x, time, text, mask, level), params, run = small
    hidden = text + jnp.where(mask[:, :, None], 0.0, 100.0)
    out = run(params, x, time, text, mask, level)[1]
    same = run(params, x, time, hidden, mask, level)[1]
    np.testing.assert_allclose(same, out, atol=1e-5)


def test_recomputing_changes_nothing(small):
    inputs, params, run = small
    network = models.build(dataclasses.replace(SMALL, remat=True))
    like = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(like)

    expected_grads, expected = run(params, *inputs)
    grads, out = output_and_grads(network)(params, *inputs)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        grads,
        expected_grads,
    )


def test_without_level_input(small):
    (x, time, text, mask, level), params, _ = small
    network = models.build(dataclasses.replace(SMALL, level_input=False))
    with pytest.raises(AssertionError, match="level"):
        jax.eval_shape(network.apply, {"params": params}, x, time, text, mask, level)
