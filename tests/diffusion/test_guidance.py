"""Guidance and thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.diffusion import guidance, process
from imagen_booth.errors import InputError


@pytest.fixture
def pair(key):
    return jax.random.normal(key, (2, 3, 8, 8, 3))


def test_weight_one_is_off_to_the_bit(pair):
    cond, uncond = pair
    np.testing.assert_array_equal(guidance.combine(cond, uncond, 1.0), cond)
    np.testing.assert_array_equal(guidance.combine(cond, uncond, 0.0), uncond)


def test_weight_extrapolates_from_unconditional(pair):
    cond, uncond = pair
    got = guidance.combine(cond, uncond, 7.0)
    np.testing.assert_allclose(got, uncond + 7 * (cond - uncond), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_guiding_eps_or_the_picture_is_the_same(kind, pair, key):
    xt = jax.random.normal(jax.random.fold_in(key, 1), pair.shape[1:])
    alpha, sigma = jnp.asarray(0.6), jnp.asarray(0.8)
    cond, uncond = pair

    def picture(said):
        return process.convert(said, kind, xt, alpha, sigma)[0]

    np.testing.assert_allclose(
        picture(guidance.combine(cond, uncond, 4.0)),
        guidance.combine(picture(cond), picture(uncond), 4.0),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("ratio", [0.5, 0.95, 0.995, 1.0])
@pytest.mark.parametrize("cap", [None, 1.5, 1.0])
def test_dynamic_threshold_by_hand(ratio, cap, pair):
    x0 = 2.0 * pair[0]
    got = np.asarray(guidance.dynamic_threshold(x0, ratio, cap))
    for row, picture in zip(got, np.asarray(x0, np.float64), strict=True):
        s = max(1.0, np.quantile(np.abs(picture), ratio))
        s = s if cap is None else min(s, cap)
        np.testing.assert_allclose(row, np.clip(picture, -s, s) / s, rtol=1e-5)


def test_dynamic_threshold_leaves_a_picture_in_range_alone(pair):
    x0 = jnp.tanh(pair[0])
    np.testing.assert_array_equal(guidance.dynamic_threshold(x0, 0.95), x0)


def test_dynamic_threshold_is_per_sample(pair):
    x0 = pair[0] * jnp.asarray([0.1, 1.0, 10.0]).reshape(3, 1, 1, 1)
    whole = guidance.dynamic_threshold(x0, 0.9)
    alone = guidance.dynamic_threshold(x0[1:2], 0.9)
    np.testing.assert_array_equal(whole[1:2], alone)


def test_threshold_by_name(pair):
    x0 = 3.0 * pair[0]
    np.testing.assert_array_equal(guidance.threshold(x0, "none", 0.95), x0)
    clipped = np.clip(np.asarray(x0), -1, 1)
    np.testing.assert_array_equal(guidance.threshold(x0, "static", 0.95), clipped)
    np.testing.assert_array_equal(guidance.threshold(x0, "dynamic", 0.95, 1.0), clipped)
    with pytest.raises(InputError, match="'clip'"):
        guidance.threshold(x0, "clip", 0.95)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.95, 0.995, 1.0])
def test_quantile_is_that_of_a_sort_to_the_bit(ratio):
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=(6, 1001))).astype(np.float32)
    values[1] = np.round(values[1], 1)  # ties
    values[2] = 0.0
    values[3, 7] = np.inf
    values[4] *= 1e-42  # subnormal
    values[5, 3] = np.nan
    found = jax.jit(guidance.quantile, static_argnums=1)(values, ratio)
    wanted = jax.jit(lambda v: jnp.quantile(v, ratio, axis=1))(values)
    np.testing.assert_array_equal(found, wanted)


def test_a_cap_of_one_is_a_static_threshold(pair):
    x0 = 2.0 * pair[0]
    np.testing.assert_array_equal(
        guidance.dynamic_threshold(x0, 0.9, 1.0), guidance.static_threshold(x0)
    )
