"""Layers and the ADM U-Net: closed forms, counts, invariances, layouts of params."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from imagen_booth import models
from imagen_booth.models import UNetConfig, layers
from imagen_booth.models.hint import hint
from imagen_booth.weights.load import Forward

SMALL = UNetConfig(
    widths=(8, 16),
    blocks=(1, 1),
    attention=(False, True),
    text_width=16,
    cross_width=16,
    time_width=16,
    head_width=8,
    pool_heads=2,
    norm_groups=4,
)
# Two blocks alike going down, three going up.
LONG = dataclasses.replace(SMALL, widths=(8,), blocks=(2,), attention=(True,))


def draw_inputs(config: UNetConfig, key, batch=3, side=8, length=5):
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (batch, side, side, config.in_channels))
    time = 1000 * jax.random.uniform(keys[1], (batch,))
    text = jax.random.normal(keys[2], (batch, length, config.text_width))
    mask = jnp.arange(length)[None, :] < jnp.array([[5], [3], [1]])[:batch]
    level = 1000 * jax.random.uniform(keys[3], (batch,)) if config.level_input else None
    return x, time, text, mask, level


def draw_params(network, inputs, key):
    """Random params without a zero, of a size that keeps signals near 1."""
    shapes = jax.eval_shape(network.init, key, *inputs)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    values = [
        0.5 + 0.2 * rng.normal(size=p.shape)
        if p.ndim < 2
        else rng.normal(size=p.shape) / math.prod(p.shape[:-1]) ** 0.5
        for p in leaves
    ]
    return jax.tree.unflatten(tree, [jnp.asarray(v, jnp.float32) for v in values])


@pytest.fixture(scope="module")
def small():
    """The small network jitted, its params and one batch."""
    network = models.build(SMALL)
    inputs = draw_inputs(SMALL, jax.random.key(1))
    params = draw_params(network, inputs, jax.random.key(2))
    return jax.jit(lambda *args: network.apply({"params": params}, *args)), inputs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("if_i_m", 371_605_830),
        ("if_i_l", 935_365_830),
        ("if_i_xl", 4_304_695_110),
        ("if_ii_m", 461_064_198),
        ("if_ii_l", 1_243_277_190),
        ("imagen_base", 2_305_382_403),
    ],
)
def test_parameter_count(name, expected):
    config = models.SIZES[name]
    assert isinstance(config, UNetConfig)
    side = 2 ** (len(config.widths) - 1)
    x, time, text, _, level = jax.eval_shape(
        lambda key: draw_inputs(config, key, 1, side, 77), jax.random.key(0)
    )
    init = models.build(config).init
    params = jax.eval_shape(init, jax.random.key(0), x, time, text, None, level)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == expected
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["imagen_base", "if_i_xl", "toybox_base", "tiny_base"])
def test_output_shape_at_real_size(name):
    config = models.SIZES[name]
    assert isinstance(config, UNetConfig)
    network = models.build(config, jnp.bfloat16)

    def run(key):
        x, time, text, mask, level = draw_inputs(config, key, 2, 64, 77)
        mask = None if config.text_norm == "group" else mask
        return network.init_with_output(key, x, time, text, mask, level)[0]

    out = jax.eval_shape(run, jax.random.key(0))
    assert out.shape == (2, 64, 64, config.out_channels)
    assert out.dtype == jnp.float32


def test_sinusoid_is_cosines_then_sines():
    value = layers.sinusoid(jnp.array([0.0, 3.0]), 8)
    angles = 3 * 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(value[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(
        value[1], np.concatenate([np.cos(angles), np.sin(angles)]), rtol=1e-5
    )


def test_patches_hold_neighbouring_pixels(key):
    x = jnp.arange(4 * 6 * 2, dtype=jnp.float32).reshape(1, 4, 6, 2)
    folded = layers.space_to_depth(x, 2)
    assert folded.shape == (1, 2, 3, 8)
    np.testing.assert_array_equal(folded[0, 1, 2], x[0, 2:, 4:].reshape(-1))
    np.testing.assert_array_equal(layers.depth_to_space(folded, 2), x)


HIDDEN = np.array([[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]], bool)


def draw_attention(key):
    """Queries, keys and values of two rows with three heads of width 4."""
    shapes = (2, 5, 3, 4), (2, 6, 3, 4), (2, 6, 3, 4)
    keys = jax.random.split(key, 3)
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def exact_attention(q, k, v, mask):
    weights = np.exp(np.einsum("BQNK,BMNK->BNQM", q, k) / 2) * mask[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("BNQM,BMNK->BQNK", weights, v)


@pytest.mark.parametrize("heads", [1, 2, 5, 6, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_some_heads_at_a_time(heads, masked, key, monkeypatch):
    """Of the six heads of both rows, as many as fit: 1, 2, 3, 6 and 6."""
    monkeypatch.setattr(layers, "CACHED", heads * 4 * 5 * 6 + 3)
    mask = HIDDEN if masked else np.ones_like(HIDDEN)
    inputs = draw_attention(key)
    q, k, v = (np.asarray(x, np.float64) for x in inputs)
    exact = exact_attention(q, k, v, mask)
    given = jnp.asarray(mask) if masked else None
    out = jax.jit(lambda *qkv: layers.attend(*qkv, given))(*inputs)
    np.testing.assert_allclose(out, exact, atol=1e-6)


def test_gradient_of_attention(key):
    """Against differences of the closed form in float64, with keys that are hidden."""
    inputs, mask = draw_attention(key), HIDDEN

    def exact(q, k, v):
        return np.sin(exact_attention(q, k, v, mask)).sum()

    grads = jax.grad(lambda qkv: jnp.sin(layers.attend(*qkv, jnp.asarray(mask))).sum())(
        inputs
    )
    rng = np.random.default_rng(0)
    for place, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        way = rng.normal(size=x.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [np.asarray(each, np.float64) for each in inputs]
            moved[place] = moved[place] + step * way
            ends.append(exact(*moved))
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((np.asarray(grad) * way).sum(), slope, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scale_and_shift_are_the_halves_of_a_dense_layer(dtype):
    emb = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)
    dense = nn.Dense(10, dtype=dtype)
    ours = layers.ScaleAndShift(5, dtype)
    params, same = (each.init(jax.random.key(0), emb) for each in (dense, ours))
    jax.tree.map(np.testing.assert_array_equal, params, same)
    params["params"]["bias"] = jnp.arange(10, dtype=jnp.float32) / 3
    halves = jnp.concatenate(jax.tree.leaves(ours.apply(params, emb)), axis=-1)
    np.testing.assert_array_equal(halves, dense.apply(params, emb))


def test_group_norm_far_from_zero(key):
    """Against float64, on values whose mean is a thousand deviations."""
    x = 1000 + jax.random.normal(key, (2, 4, 3, 6))
    scale, shift = jax.random.normal(jax.random.key(1), (2, 2, 6))
    norm = layers.GroupNorm(3)
    params = {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}
    out = jnp.asarray(norm.apply({"params": params}, x, scale, shift))

    groups = np.asarray(x, np.float64).reshape(2, 12, 3, 2)
    mean = groups.mean((1, 3), keepdims=True)
    variance = groups.var((1, 3), keepdims=True)
    normed = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(2, 4, 3, 6)
    normed = normed * np.arange(1, 7) + np.arange(6)
    modulate = np.asarray(scale)[:, None, None], np.asarray(shift)[:, None, None]
    np.testing.assert_allclose(
        out, normed * (1 + modulate[0]) + modulate[1], rtol=1e-3, atol=1e-3
    )


def test_starts_as_a_sum_of_shortcuts(key):
    """The last layer of every residual, and of the network, starts at zero."""
    inputs = draw_inputs(SMALL, key)

    @jax.jit
    def last_layers(key):
        params = models.build(SMALL).init(key, *inputs)["params"]
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): p
            for path, p in jax.tree.leaves_with_path(params)
            if {"conv2", "to_out", "conv_out"} & {k.key for k in path}
        }

    params = last_layers(key)
    assert len(params) == 2 * (2 + 4 + 1 + 1 + 2 + 4 + 1)
    assert not any(jnp.any(p) for p in params.values())


def test_masked_text_is_not_seen(small):
    run, (x, time, text, mask, _) = small
    out = run(x, time, text, mask)
    hidden = text + jnp.where(mask[:, :, None], 0.0, 100.0)
    np.testing.assert_allclose(run(x, time, hidden, mask), out, atol=1e-6)
    seen = run(x, time, text.at[:, 0].add(1.0), mask)
    assert (jnp.abs(seen - out).max((1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("group", [False, True])
def test_the_text_is_read_once(group, key):
    """Later calls do not see it: with NaN in its place the output is the same."""
    kind = {"text_norm": "group", "activation": "gelu", "level_input": True}
    config = dataclasses.replace(SMALL, **kind) if group else SMALL
    x, time, text, mask, level = inputs = draw_inputs(config, key)
    if group:
        inputs = (x, time, text, None, level)
    network = models.build(config)
    params = draw_params(network, inputs, key)
    forward = Forward(network, masked=not group)
    others = [jnp.zeros_like(each) for each in (x, time, time)]
    read_text = jax.jit(forward.read_text)
    of_text = read_text(params, *others[:2], text, mask, others[2] if group else None)
    blind = x, time, jnp.full_like(text, jnp.nan), mask, level
    found = forward(params, *blind, of_text=of_text)
    np.testing.assert_allclose(found, forward(params, *inputs), atol=1e-5)


def test_without_a_mask_all_text_is_seen(small):
    run, (x, time, text, mask, _) = small
    whole = run(x, time, text, jnp.ones_like(mask))
    np.testing.assert_allclose(run(x, time, text, None), whole, atol=1e-5)


def test_rows_do_not_mix(small):
    run, (x, time, text, mask, _) = small
    out = run(x, time, text, mask)
    order = jnp.array([2, 0, 1])
    moved = run(x[order], time[order], text[order], mask[order])
    np.testing.assert_allclose(moved, out[order], atol=1e-5)


def test_every_parameter_learns(key):
    config = dataclasses.replace(SMALL, in_channels=6, level_input=True)
    network = models.build(config)
    inputs = draw_inputs(config, key)
    params = draw_params(network, inputs, key)

    @jax.jit
    @jax.grad
    def grads(params):
        return jnp.sum(jnp.asarray(network.apply({"params": params}, *inputs)) ** 2)

    still = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, g in jax.tree.leaves_with_path(grads(params))
        if jnp.abs(g).max() < 1e-4
    }
    # A shift of all keys alike moves no softmax.
    assert still == {"add_embedding/pool/k_proj/bias"}


def test_group_normed_text_takes_no_mask(key):
    config = dataclasses.replace(SMALL, text_norm="group")
    inputs = draw_inputs(config, key)
    with pytest.raises(AssertionError, match="masked positions"):
        jax.eval_shape(models.build(config).init, key, *inputs)


def test_half_precision_stays_near(key):
    inputs = draw_inputs(SMALL, key)
    params = draw_params(models.build(SMALL), inputs, key)

    def run(dtype):
        return jax.jit(models.build(SMALL, dtype).apply)({"params": params}, *inputs)

    exact, half = run(jnp.float32), run(jnp.bfloat16)
    assert half.dtype == jnp.float32
    error = jnp.abs(half - exact).max() / jnp.abs(exact).max()
    assert 1e-5 < error < 0.05


@pytest.fixture(scope="module")
def long():
    """Inputs, params, and the value and gradients of a loss of the plain network."""
    network = models.build(LONG)
    inputs = draw_inputs(LONG, jax.random.key(3))
    params = draw_params(network, inputs, jax.random.key(4))
    return inputs, params, value_and_grad(network, params, inputs)


def value_and_grad(network, params, inputs):
    def loss(params):
        return jnp.mean(jnp.asarray(network.apply({"params": params}, *inputs)) ** 2)

    return jax.jit(jax.value_and_grad(loss))(params)


def test_recomputing_changes_nothing(long):
    """Neither parameters nor the output nor the gradients."""
    inputs, params, (expected, expected_grads) = long
    network = models.build(dataclasses.replace(LONG, remat=True))
    like = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(like)

    value, grads = value_and_grad(network, params, inputs)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        grads,
        expected_grads,
    )


def test_remat_stores_less(key):
    def stored(config):
        inputs = draw_inputs(config, key)
        network = models.build(config)
        params = jax.eval_shape(network.init, key, *inputs)["params"]

        def backward(params):
            return jax.vjp(lambda p: network.apply({"params": p}, *inputs), params)[1]

        residuals = jax.tree.leaves(jax.eval_shape(backward, params))
        return sum(math.prod(x.shape) for x in residuals)

    assert stored(dataclasses.replace(LONG, remat=True)) < 0.5 * stored(LONG)


def test_hint_splits_the_batch_over_the_mesh():
    x = jnp.ones((8, 2, 2, 3))
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    assert hint(x) is x
    with jax.set_mesh(mesh):
        assert jax.jit(hint)(x).sharding.spec == P(("data", "fsdp"))
        assert jax.jit(hint)(x[:3]).shape == (3, 2, 2, 3)
