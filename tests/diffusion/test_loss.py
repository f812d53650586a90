"""Losses against their definitions, in float64 on the host where digits matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from imagen_booth.diffusion import loss, process
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.errors import InputError

LOGSNR = jnp.asarray([-4.0, -1.0, 0.5, 2.0, 5.0])


@pytest.fixture
def guess(key):
    """x0, eps and a wrong picture x0_hat with the eps_hat that goes with it."""
    x0, eps, off = jax.random.normal(key, (3, 5, 4, 4, 3))
    alpha = jnp.sqrt(jax.nn.sigmoid(LOGSNR))
    sigma = jnp.sqrt(jax.nn.sigmoid(-LOGSNR))
    xt = process.add_noise(x0, eps, alpha, sigma)
    x0_hat, eps_hat = process.convert(x0 + 0.1 * off, "x0", xt, alpha, sigma)
    return x0, eps, x0_hat, eps_hat, alpha, sigma


def squared(a, b):
    return np.mean((np.asarray(a, np.float64) - np.asarray(b)) ** 2, axis=(1, 2, 3))


@pytest.mark.parametrize("weight", loss.WEIGHTS)
def test_the_same_guess_costs_the_same_in_every_language(weight, guess):
    x0, eps, x0_hat, eps_hat, alpha, sigma = guess
    costs = [
        loss.per_example(
            process.target(kind, x0_hat, eps_hat, alpha, sigma),
            *(kind, x0, eps, LOGSNR, weight),
        )
        for kind in ("eps", "x0", "v")
    ]
    np.testing.assert_allclose(costs[1], costs[0], rtol=1e-3)
    np.testing.assert_allclose(costs[2], costs[0], rtol=1e-3)


def test_weights_are_what_their_names_say(guess):
    x0, eps, x0_hat, eps_hat, alpha, sigma = guess
    snr = np.exp(np.asarray(LOGSNR, np.float64))
    of_x0 = squared(x0_hat, x0)
    v, v_hat = (
        process.target("v", a, b, alpha, sigma)
        for a, b in ((x0, eps), (x0_hat, eps_hat))
    )
    expected = {
        "eps": squared(eps_hat, eps),
        "x0": of_x0,
        "v": squared(v_hat, v),
        "v_max_10": np.minimum(1 + snr, 10) * of_x0,
        "residual": (snr + 100) * of_x0,
        "snr_trunc": np.maximum(snr, 1) * of_x0,
        "min_snr_5": np.minimum(snr, 5) * of_x0,
        "min_snr_5_floor": np.minimum(snr + 0.1, 5) * of_x0,
    }
    assert set(expected) == set(loss.WEIGHTS)
    for weight, value in expected.items():
        got = loss.per_example(eps_hat, "eps", x0, eps, LOGSNR, weight)
        np.testing.assert_allclose(got, value, rtol=1e-3, err_msg=weight)


def test_unknown_weight_is_named(guess):
    x0, eps, _, eps_hat, _, _ = guess
    with pytest.raises(InputError, match="'snr'"):
        loss.per_example(eps_hat, "eps", x0, eps, LOGSNR, "snr")


@pytest.mark.parametrize(("subjects", "classes"), [(1, 1), (2, 2), (1, 3), (3, 0)])
def test_weighted_sum_is_the_dreambooth_loss(subjects, classes):
    prior = 0.7
    per_row = np.asarray([0.3, 1.1, 0.4, 2.0, 0.9, 5.0], np.float32)
    padding = len(per_row) - subjects - classes
    weight = np.repeat(
        [1 / subjects, prior / max(classes, 1), 0.0], [subjects, classes, padding]
    ).astype(np.float32)
    expected = per_row[:subjects].mean()
    if classes:
        expected += prior * per_row[subjects : subjects + classes].mean()
    got = loss.weighted_sum(jnp.asarray(per_row), jnp.asarray(weight))
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def bound(key):
    """Arguments of the bound: rows at t = 0, 1, 300 and 999 of the table."""
    names = jax.random.split(key, 4)
    grey = jax.random.randint(names[0], (4, 4, 4, 3), 0, 256).at[0, 0, 0].set(0)
    grey = grey.at[0, 0, 1].set(255)
    return {
        "schedule": TableSchedule(),
        "t": jnp.asarray([0.0, 1.0, 300.0, 999.0]),
        "x0": grey.astype(jnp.float32) / 127.5 - 1.0,
        "eps": (eps := jax.random.normal(names[1], grey.shape)),
        "eps_prediction": eps + 0.05 * jax.random.normal(names[2], grey.shape),
        "frac": jax.random.uniform(names[3], grey.shape),
    }


def host_bound(schedule, t, x0, eps, eps_prediction, frac):
    """The bound by way of x0, as the papers write it, in float64."""
    betas = np.asarray(schedule.betas64)
    abar = np.cumprod(1 - betas)
    before = np.append(1.0, abar[:-1])
    rows = []
    for row, i in enumerate(np.asarray(t).astype(int)):
        picture, noise, said, share = (
            np.asarray(a[row], np.float64) for a in (x0, eps, eps_prediction, frac)
        )
        xt = np.sqrt(abar[i]) * picture + np.sqrt(1 - abar[i]) * noise
        guess = (xt - np.sqrt(1 - abar[i]) * said) / np.sqrt(abar[i])
        on_x0 = np.sqrt(before[i]) * betas[i] / (1 - abar[i])
        on_xt = np.sqrt(1 - betas[i]) * (1 - before[i]) / (1 - abar[i])
        mean, model_mean = (on_x0 * p + on_xt * xt for p in (picture, guess))
        smallest = max(i, 1)
        smallest = betas[smallest] * (1 - before[smallest]) / (1 - abar[smallest])
        variance = betas[i] ** share * smallest ** (1 - share)
        if i > 0:
            nats = 0.5 * (np.log(variance / smallest) + smallest / variance - 1)
            nats += 0.5 * (mean - model_mean) ** 2 / variance
        else:
            law = norm(model_mean, np.sqrt(variance))
            upper = np.where(picture > 0.999, 1, law.cdf(picture + 1 / 255))
            lower = np.where(picture < -0.999, 0, law.cdf(picture - 1 / 255))
            nats = -np.log(upper - lower)
        rows.append(nats.mean() / np.log(2) * schedule.size / 1000)
    return rows


def test_bound_against_the_papers_in_float64(bound):
    got = loss.variational_bound(**bound)
    np.testing.assert_allclose(got, host_bound(**bound), rtol=1e-3)


def test_bound_of_a_shorter_table(bound):
    bound |= {"schedule": TableSchedule(size=20), "t": jnp.asarray([0.0, 1, 9, 19])}
    got = loss.variational_bound(**bound)
    np.testing.assert_allclose(got, host_bound(**bound), rtol=1e-3)


def test_bound_is_zero_at_the_true_posterior(bound):
    bound |= {
        "t": jnp.asarray([1.0, 2.0, 300.0, 999.0]),
        "eps_prediction": bound["eps"],
        "frac": jnp.zeros_like(bound["frac"]),
    }
    np.testing.assert_allclose(loss.variational_bound(**bound), 0.0, atol=1e-6)


def test_bound_moves_the_variance_and_not_the_mean(bound):
    def total(eps_prediction, frac):
        moved = bound | {"eps_prediction": eps_prediction, "frac": frac}
        return jnp.sum(loss.variational_bound(**moved))

    of_mean, of_frac = jax.grad(total, (0, 1))(bound["eps_prediction"], bound["frac"])
    assert not of_mean.any()
    assert (jnp.abs(of_frac).max(axis=(1, 2, 3)) > 0).all()
    assert jnp.isfinite(of_frac).all()


def test_grey_levels_share_all_probability(bound):
    """exp(-nats) at t = 0, over the 256 values one pixel may have, adds up to one."""
    levels = jnp.arange(256, dtype=jnp.float32).reshape(256, 1) / 127.5 - 1.0
    abar, beta = TableSchedule().abar64[0], TableSchedule().betas64[0]
    # a noise error that puts every row's mean at the same value, 0.2
    scale = beta / np.sqrt((1 - abar) * (1 - beta))
    bits = loss.variational_bound(
        TableSchedule(),
        t=jnp.zeros(256),
        x0=levels,
        eps=jnp.zeros((256, 1)),
        eps_prediction=(levels - 0.2) / scale,
        frac=jnp.ones((256, 1)),
    )
    assert np.sum(2.0 ** -np.asarray(bits, np.float64)) == pytest.approx(1.0, abs=1e-5)
