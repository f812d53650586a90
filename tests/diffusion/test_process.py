"""Conversions between what a network may predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.diffusion import process
from imagen_booth.errors import InputError

KINDS = ("eps", "x0", "v")


@pytest.fixture
def pieces(key):
    """x0, eps, xt, alpha and sigma of three rows, from clean to noisy."""
    x0, eps = jax.random.normal(key, (2, 3, 4, 4, 3))
    angle = jnp.asarray([0.1, 0.8, 1.5])
    alpha, sigma = jnp.cos(angle), jnp.sin(angle)
    return x0, eps, process.add_noise(x0, eps, alpha, sigma), alpha, sigma


def test_noise_is_added_row_by_row(pieces):
    x0, eps, xt, alpha, sigma = map(np.asarray, pieces)
    for row in range(3):
        np.testing.assert_allclose(
            xt[row], alpha[row] * x0[row] + sigma[row] * eps[row], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_prediction_gives_back_both(kind, pieces):
    x0, eps, xt, alpha, sigma = pieces
    truth = process.target(kind, x0, eps, alpha, sigma)
    got_x0, got_eps = process.convert(truth, kind, xt, alpha, sigma)
    np.testing.assert_allclose(got_x0, x0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got_eps, eps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", KINDS)
@pytest.mark.parametrize("via", KINDS)
def test_round_trip(start, via, pieces, key):
    """Any prediction, also a wrong one, survives being said in other words."""
    _, _, xt, alpha, sigma = pieces
    said = jax.random.normal(jax.random.fold_in(key, 1), xt.shape)
    x0, eps = process.convert(said, start, xt, alpha, sigma)
    np.testing.assert_allclose(
        process.add_noise(x0, eps, alpha, sigma), xt, rtol=1e-4, atol=1e-4
    )
    other = process.target(via, x0, eps, alpha, sigma)
    x0, eps = process.convert(other, via, xt, alpha, sigma)
    back = process.target(start, x0, eps, alpha, sigma)
    np.testing.assert_allclose(back, said, rtol=1e-3, atol=1e-4)


def test_v_is_the_velocity_along_the_angle(pieces):
    """v = d z_t / d angle for alpha = cos, sigma = sin of the angle."""
    x0, eps, _, _, _ = pieces
    angle = jnp.asarray(0.7)

    def z(angle):
        return process.add_noise(x0, eps, jnp.cos(angle), jnp.sin(angle))

    _, velocity = jax.jvp(z, (angle,), (jnp.ones(()),))
    v = process.target("v", x0, eps, jnp.cos(angle), jnp.sin(angle))
    np.testing.assert_allclose(v, velocity, rtol=1e-5, atol=1e-6)


def test_scalar_scales_serve_all_rows(pieces):
    x0, eps, _, alpha, sigma = pieces
    one = process.add_noise(x0, eps, alpha[1], sigma[1])
    rows = process.add_noise(x0, eps, alpha[1] * jnp.ones(3), sigma[1] * jnp.ones(3))
    np.testing.assert_array_equal(one, rows)


def test_unknown_kind_is_named(pieces):
    x0, eps, xt, alpha, sigma = pieces
    with pytest.raises(InputError, match="'noise'"):
        process.convert(eps, "noise", xt, alpha, sigma)
    with pytest.raises(InputError, match="'noise'"):
        process.target("noise", x0, eps, alpha, sigma)
