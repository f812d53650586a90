"""Noise-conditioning augmentation and the maps of its level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.diffusion import augment
from imagen_booth.diffusion.schedule import CosineSchedule, TableSchedule


def test_level_is_the_variance_of_the_noise(key):
    eps = jax.random.normal(key, (3, 64, 64, 3))
    level = jnp.asarray([1e-5, 1e-3, 0.25])
    out = augment.corrupt(jnp.zeros_like(eps), eps, level)
    np.testing.assert_allclose(out.var(axis=(1, 2, 3)), level, rtol=0.05)


def test_corrupt_keeps_unit_variance(key):
    low, eps = jax.random.normal(key, (2, 2, 64, 64, 3))
    out = augment.corrupt(low, eps, jnp.asarray([0.1, 0.6]))
    np.testing.assert_allclose(out.var(axis=(1, 2, 3)), 1.0, rtol=0.05)


def test_the_ends_of_the_level(key):
    low, eps = jax.random.normal(key, (2, 2, 4, 4, 3))
    out = augment.corrupt(low, eps, jnp.asarray([0.0, 1.0]))
    np.testing.assert_array_equal(out[0], low[0])
    np.testing.assert_array_equal(out[1], eps[1])


def test_time_is_the_cosine_schedules():
    u = jnp.asarray([0.001, 0.1, 0.3, 0.7, 0.99])
    level = augment.time_to_level(u)
    np.testing.assert_allclose(level, CosineSchedule().sigma(u) ** 2, rtol=1e-5)
    np.testing.assert_allclose(augment.level_to_time(level), u, rtol=1e-4)
    ends = jnp.asarray([0.0, 1.0])
    np.testing.assert_allclose(augment.level_to_time(ends), ends, atol=1e-6)


@pytest.mark.parametrize(("level", "time"), [(1e-3, 0.02013), (1e-5, 0.002013)])
def test_dreambooth_levels_as_times(level, time):
    got = augment.level_to_time(jnp.asarray(level))
    assert got == pytest.approx(time, rel=1e-3)


def test_if_levels_on_the_grid():
    n = jnp.arange(1000, dtype=jnp.float32)
    level = augment.if_level(n)
    np.testing.assert_allclose(level, 1 - TableSchedule().abar64, rtol=1e-5)
    # near pure noise f32 cannot tell neighbouring variances apart
    np.testing.assert_allclose(augment.level_to_if(level)[:990], n[:990], atol=0.01)


def test_if_levels_between_the_grid():
    n = jnp.asarray([0.5, 250.25, 700.75])
    level = augment.if_level(n)
    low, high = augment.if_level(jnp.floor(n)), augment.if_level(jnp.ceil(n))
    assert ((low < level) & (level < high)).all()
    np.testing.assert_allclose(augment.level_to_if(level), n, rtol=1e-4)


def test_levels_cleaner_than_ifs_grid_are_told_as_zero():
    told = augment.level_to_if(jnp.asarray([0.0, 1e-5, 4.1e-5, 1e-3, 1.0]))
    np.testing.assert_array_equal(told[:3], 0.0)
    assert 0 < told[3] < 20
    assert told[4] == 999
