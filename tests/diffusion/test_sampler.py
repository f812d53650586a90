"""Samplers against distributions whose denoiser is known exactly, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.diffusion import process, sampler
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.diffusion.schedule import (
    Continuous,
    CosineSchedule,
    LinearSchedule,
    TableSchedule,
)
from imagen_booth.errors import InputError

METHODS = ("ancestral", "ddim", "dpmpp_2m")
SCHEDULES = [CosineSchedule(), LinearSchedule(), TableSchedule()]

# A mixture of three Gaussians in the plane.
WEIGHTS = np.asarray([0.5, 0.3, 0.2])
MEANS = np.asarray([[0.7, 0.1], [-0.4, 0.8], [-0.3, -0.9]])
WIDTHS = np.asarray([0.3, 0.2, 0.4])


def mixture_denoiser(schedule):
    """E[x0 | z_t] for the mixture."""

    def denoise(xt, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        means, widths = jnp.asarray(MEANS), jnp.asarray(WIDTHS)
        spread = alpha**2 * widths**2 + sigma**2  # [K]
        off = xt[:, None] - alpha * means[None]  # [B, K, 2]
        log_share = jnp.log(jnp.asarray(WEIGHTS)) - jnp.log(spread)
        log_share = log_share[None] - 0.5 * jnp.sum(off**2, -1) / spread[None]
        share = jax.nn.softmax(log_share, axis=-1)
        pull = (alpha * widths**2 / spread)[None, :, None]
        x0 = jnp.sum(share[..., None] * (means[None] + pull * off), axis=1)
        return x0, None

    return denoise


def draw(schedule, config, rows, denoise=None):
    """Samples in float64 from `rows` keys, shape [rows, 2]."""
    with jax.enable_x64(True):
        plan = sampler.plan(schedule, config)
        keys = jax.random.split(jax.random.key(3), rows)
        denoise = denoise or mixture_denoiser(schedule)

        @jax.jit
        def run(keys):
            return sampler.sample(denoise, keys, (2,), plan, config)

        samples = run(keys)
        assert samples.dtype == jnp.float64
        return np.asarray(samples)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", METHODS)
def test_mixture_gets_its_mean_and_covariance(method, schedule):
    steps = 40 if method == "dpmpp_2m" else 200
    config = SamplerConfig(method=method, steps=steps, spacing="trailing", variance=0.5)
    samples = draw(schedule, config, rows=20000)
    mean = WEIGHTS @ MEANS
    off = MEANS - mean
    covariance = (WEIGHTS * off.T) @ off + np.eye(2) * (WEIGHTS @ WIDTHS**2)
    # the standard errors of 20000 draws are near 0.005
    np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.02)


class EvenSchedule(Continuous):
    """Log-SNR falling linearly: all steps are equally long, as theory has them.

    On an even grid of the cosine schedule the log-SNR steps at both ends do not
    shrink with their number, and the second order is only reached up to a logarithm.
    """

    def law(self, t, xp):
        return 20.0 - 40.0 * t


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_error_falls_at_the_methods_order(method, order):
    def samples(method, steps):
        config = SamplerConfig(method=method, steps=steps)
        return draw(EvenSchedule(), config, rows=64)

    fine = samples("dpmpp_2m", 4096)
    counts = [64, 128, 256, 512]
    errors = [np.sqrt(np.mean((samples(method, n) - fine) ** 2)) for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15)


def test_second_order_pays_on_the_cosine_schedule():
    def samples(method, steps):
        config = SamplerConfig(method=method, steps=steps)
        return draw(CosineSchedule(), config, rows=64)

    fine = samples("dpmpp_2m", 4096)
    first, second = (
        np.sqrt(np.mean((samples(method, 32) - fine) ** 2))
        for method in ("ddim", "dpmpp_2m")
    )
    assert second < first / 3


@pytest.mark.parametrize("method", METHODS)
def test_clipped_times_make_idle_steps(method):
    schedule = CosineSchedule(logsnr_min=-3.0, logsnr_max=3.0)
    plan = sampler.plan(schedule, SamplerConfig(method=method, steps=40))
    idle = plan.alpha_t == plan.alpha_s
    assert idle.sum() > 4
    np.testing.assert_array_equal(plan.on_xt[idle], 1.0)
    np.testing.assert_array_equal(plan.on_x0[idle] + plan.on_previous[idle], 0.0)
    assert (plan.logvar[idle] == -np.inf).all()
    samples = draw(schedule, SamplerConfig(method=method, steps=40), rows=8)
    assert np.isfinite(samples).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_forward_variance_is_exact_for_white_noise(schedule, steps):
    """x0 ~ N(0, 1) has E[x0|z_t] = alpha z_t, and with g = 1 every step keeps the
    variance of z at one, however long the step."""
    plan = sampler.plan(schedule, SamplerConfig(steps=steps, variance=1.0))
    factor = plan.on_xt + plan.on_x0 * plan.alpha_t
    variance = factor**2 + np.exp(plan.logvar + plan.logvar_range)
    np.testing.assert_allclose(variance[:-1], 1.0, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_posterior_variance_is_exact_for_a_point(schedule, steps):
    """With x0 known, g = 0 draws from the true law of z_s given z_t."""
    plan = sampler.plan(schedule, SamplerConfig(steps=steps, variance=0.0))
    mean = plan.on_xt * plan.alpha_t + plan.on_x0
    variance = plan.on_xt**2 * plan.sigma_t**2 + np.exp(plan.logvar)
    np.testing.assert_allclose(mean, plan.alpha_s, rtol=1e-9)
    np.testing.assert_allclose(variance, plan.sigma_s**2, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
def test_deterministic_methods_keep_the_noise_of_a_point(method, schedule):
    """With x0 known, z_s = alpha_s x0 + sigma_s eps with the same eps as z_t."""
    plan = sampler.plan(schedule, SamplerConfig(method=method, steps=9))
    on_picture = plan.on_xt * plan.alpha_t + plan.on_x0 + plan.on_previous
    np.testing.assert_allclose(on_picture, plan.alpha_s, rtol=1e-9)
    np.testing.assert_allclose(plan.on_xt * plan.sigma_t, plan.sigma_s, rtol=1e-9)
    assert (plan.logvar == -np.inf).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_the_last_step_returns_the_picture(method, schedule, steps):
    plan = sampler.plan(schedule, SamplerConfig(method=method, steps=steps))
    last = sampler.Plan(*(column[-1] for column in plan))
    assert (last.on_xt, last.on_x0, last.on_previous) == (0, 1, 0)
    assert (last.logvar, last.logvar_range) == (-np.inf, 0)
    assert (last.alpha_s, last.sigma_s) == (1, 0)
    assert all(len(column) == steps for column in plan)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", METHODS)
def test_a_perfect_network_recovers_its_picture(method, schedule):
    """The network predicts eps; the picture is only implied."""
    picture = np.asarray([0.3, -0.9])

    def denoise(xt, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = jnp.broadcast_to(jnp.asarray(picture), xt.shape)
        _, eps = process.convert(x0, "x0", xt, alpha, sigma)
        return process.convert(eps, "eps", xt, alpha, sigma)[0], None

    samples = draw(schedule, SamplerConfig(method=method, steps=6), 3, denoise)
    np.testing.assert_allclose(samples, np.tile(picture, (3, 1)), rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_does_not_depend_on_its_batch(method, key):
    config = SamplerConfig(method=method, steps=5, variance=0.3)
    plan = sampler.plan(CosineSchedule(), config)

    def denoise(xt, t):
        return jnp.tanh(xt * (1.0 + t)), None

    keys = jax.random.split(key, 5)
    whole = sampler.sample(denoise, keys, (4, 4, 3), plan, config)
    part = sampler.sample(denoise, keys[3:], (4, 4, 3), plan, config)
    assert whole.shape == (5, 4, 4, 3)
    assert whole.dtype == jnp.float32
    np.testing.assert_array_equal(whole[3:], part)


def test_the_start_is_the_same_for_any_number_of_steps(key):
    starts = []

    def denoise(xt, t):
        jax.debug.callback(lambda x: starts.append(np.asarray(x)), xt, ordered=True)
        return xt, None

    keys = jax.random.split(key, 2)
    for steps in (2, 5):
        config = SamplerConfig(steps=steps)
        plan = sampler.plan(CosineSchedule(), config)
        sampler.sample(denoise, keys, (2, 2, 3), plan, config).block_until_ready()
    jax.effects_barrier()
    assert len(starts) == 7
    np.testing.assert_array_equal(starts[0], starts[2])
    assert abs(starts[0] - starts[1]).max() > 0


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.2, 3.0), [0, 0, 1, 1, 0]), ((0.0, 1.0), [0, 0, 0, 1, 1]), (None, [1] * 5)],
)
def test_guidance_on_an_interval(interval, expected, key):
    """The same as a loop that guides the steps inside, and no more network calls."""
    sigmas = (100.0, 5.0, 2.0, 0.5, 0.1)
    config = SamplerConfig(
        "ancestral", sigmas, "sigma", guidance=3.0, guidance_interval=interval
    )
    schedule = CosineSchedule()
    plan = sampler.plan(schedule, config)
    assert sampler.guided_steps(plan, config).tolist() == expected
    assert sampler.network_calls(schedule, config) == 5 + sum(expected)

    def denoise(xt, t, guided=True):
        return jnp.tanh(xt * t) * (0.9 if guided else 0.4), None

    keys = jax.random.split(key, 2)
    found = sampler.sample(denoise, keys, (2, 2, 3), plan, config)
    noises = [
        jax.vmap(lambda k, i=i: jax.random.normal(jax.random.fold_in(k, i), (2, 2, 3)))(
            keys
        )
        for i in range(6)
    ]
    xt = noises[0]
    rows = jax.tree.map(jnp.asarray, plan)
    for i, guided in enumerate(expected):
        row = sampler.Plan(*(column[i] for column in rows))
        x0, _ = denoise(xt, row.t, bool(guided))
        xt = sampler.advance(row, config, xt, x0, x0, None, noises[i + 1])
    np.testing.assert_allclose(found, x0, rtol=1e-5, atol=1e-6)


def test_a_bad_interval_is_named():
    for interval in ((5.0, 0.2), (1.0, 1.0), (-1.0, 2.0)):
        with pytest.raises(InputError, match="guidance_interval is .*lower one first"):
            SamplerConfig(guidance=2.0, guidance_interval=interval)
    config = SamplerConfig("ddim", 4, guidance=2.0, guidance_interval=(3e4, 4e4))
    with pytest.raises(InputError, match="have none inside"):
        sampler.network_calls(CosineSchedule(), config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": (1.0, 0.5)}, "spacing is 'linspace'.*time, logsnr, sigma for a"),
        ({"steps": 5, "spacing": "sigma"}, "spacing is 'sigma'.*linspace"),
    ],
)
def test_a_list_of_steps_says_what_it_is(settings, words):
    with pytest.raises(InputError, match=words):
        SamplerConfig(**settings)


@pytest.mark.parametrize("g", [0.0, 0.4, 1.0])
def test_a_constant_learned_variance_is_the_fixed_one(g, key):
    def run(variance, frac):
        config = SamplerConfig(steps=4, variance=variance, spacing="leading")
        plan = sampler.plan(TableSchedule(), config)

        def denoise(xt, t):
            return jnp.tanh(xt), jnp.full_like(xt, frac) if frac is not None else None

        keys = jax.random.split(key, 2)
        return sampler.sample(denoise, keys, (2, 2, 3), plan, config)

    np.testing.assert_allclose(run("learned", g), run(g, None), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="learned"):
        run("learned", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "euler"),
        ("spacing", "karras"),
        ("threshold", "clip"),
        ("variance", "fixed_small"),
    ],
)
def test_a_bad_field_is_named_with_its_value(field, value):
    with pytest.raises(InputError, match=rf"sampler\.{field} is .*{value}"):
        SamplerConfig(**{field: value})
