"""Schedules against their closed forms and DeepFloyd IF's published numbers."""

from string import ascii_lowercase

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.diffusion.schedule import (
    SECTIONS,
    STEP_LISTS,
    CosineSchedule,
    LinearSchedule,
    TableSchedule,
)
from imagen_booth.errors import InputError

SCHEDULES = [CosineSchedule(), LinearSchedule(), TableSchedule()]


def sweep(schedule):
    """Times from clean to noisy, f32."""
    if isinstance(schedule, TableSchedule):
        return jnp.arange(schedule.size, dtype=jnp.float32)
    return jnp.linspace(0.0, 1.0, 1001)


def test_cosine_is_an_angle():
    t = np.asarray([0.001, 0.1, 0.5, 0.9, 0.999], np.float32)
    schedule = CosineSchedule()
    angle = 0.5 * np.pi * t.astype(np.float64)
    np.testing.assert_allclose(schedule.alpha(jnp.asarray(t)), np.cos(angle), rtol=3e-6)
    np.testing.assert_allclose(schedule.sigma(jnp.asarray(t)), np.sin(angle), rtol=3e-6)
    direct = -2 * np.log(np.tan(angle))
    np.testing.assert_allclose(schedule.logsnr64(t), direct, atol=1e-12)


def test_cosine_is_clipped_at_both_ends():
    ends = CosineSchedule().logsnr(jnp.asarray([0.0, 1.0]))
    np.testing.assert_array_equal(ends, [20.0, -20.0])
    narrow = CosineSchedule(logsnr_min=-5.0, logsnr_max=6.0)
    np.testing.assert_array_equal(narrow.logsnr64(np.asarray([0.0, 1.0])), [6.0, -5.0])


def test_linear_follows_the_thousand_betas():
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    t = np.arange(1, 1001) / 1000
    off = np.abs(LinearSchedule().logsnr64(t) - np.log(abar / (1 - abar)))
    assert 0.6 < off.max() < 0.7
    assert t[off.argmax()] == 0.004
    assert off[t >= 0.1].max() < 0.12
    first = 1 / (1 + np.exp(LinearSchedule().logsnr64(np.zeros(1))))
    np.testing.assert_allclose(first, 1e-4, rtol=1e-4)


def test_table_has_the_published_numbers():
    table = TableSchedule()
    assert table.betas64[0] == pytest.approx(4.1284e-5, rel=1e-5)
    picks = table.abar64[[0, 250, 499, 998, 999]]
    published = [0.9999587, 0.845888, 0.493844, 2.4288e-6, 2.4288e-9]
    np.testing.assert_allclose(picks, published, rtol=2e-5)
    assert table.betas64[-1] == 0.999


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variance_is_preserved_and_signal_falls(schedule):
    t = sweep(schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
    assert (np.diff(schedule.logsnr(t)) < 0).all()
    assert alpha.dtype == sigma.dtype == jnp.float32


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_single_precision_agrees_with_the_host(schedule):
    t = sweep(schedule)
    np.testing.assert_allclose(
        schedule.logsnr(t), schedule.logsnr64(np.asarray(t)), rtol=2e-5, atol=2e-5
    )
    scalar = schedule.logsnr(t[7])
    assert scalar.shape == ()
    assert scalar == schedule.logsnr(t)[7]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_draws_cover_the_schedule(schedule, key):
    t = np.asarray(schedule.draw(key, (20000,)))
    seen = np.asarray(schedule.network_time(jnp.asarray(t)))
    assert t.dtype == seen.dtype == np.float32
    assert seen.min() >= 0
    assert seen.max() <= 1000
    # a uniform draw: mean 500, deviation 1000 / sqrt(12), ten standard errors apart
    assert seen.mean() == pytest.approx(500, abs=21)
    assert np.histogram(seen, 10, (0, 1000))[0].min() > 1700
    if isinstance(schedule, TableSchedule):
        assert (t == t.round()).all()
        assert {0.0, 999.0} <= set(t.tolist())


def test_continuous_grid_ends_one_step_before_clean():
    grid = CosineSchedule().times(4, "linspace")
    np.testing.assert_array_equal(grid, [1.0, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(grid, LinearSchedule().times(4, "trailing"))
    np.testing.assert_array_equal(CosineSchedule().times(1, "linspace"), [1.0])


@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        ("linspace", [999, 749, 500, 250, 0]),
        ("leading", [800, 600, 400, 200, 0]),
        ("trailing", [999, 799, 599, 399, 199]),
    ],
)
def test_table_grids(spacing, times):
    np.testing.assert_array_equal(TableSchedule().times(5, spacing), times)


def test_leading_starts_short_of_the_end():
    assert TableSchedule().times(100, "leading")[0] == 990
    assert TableSchedule().times(100, "linspace")[0] == 999
    np.testing.assert_array_equal(TableSchedule().times(1, "linspace"), [999])


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_table_grids_of_every_length(spacing):
    for steps in range(1, 1001):
        times = TableSchedule().times(steps, spacing)
        assert len(times) == steps
        assert (np.diff(times) < 0).all()
        assert 0 <= times[-1] <= times[0] <= 999


def test_named_lists():
    for name, counts in SECTIONS.items():
        times = TableSchedule().times(name, "leading")
        assert len(times) == sum(counts) == int(name.strip(ascii_lowercase))
        assert times[-1] == 0
        assert (np.diff(times) < 0).all()
    # two picks stand at a section's ends, one at its start
    super40 = TableSchedule().times("super40", "leading")
    np.testing.assert_array_equal(super40[-4:], [199, 100, 99, 0])
    smart27 = TableSchedule().times("smart27", "leading")
    assert 429 in smart27
    assert 571 not in smart27


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_unknown_grids_are_refused(schedule):
    with pytest.raises(InputError, match=r"steps is 0.*1 or more"):
        schedule.times(0, "linspace")
    with pytest.raises(InputError, match="smart28"):
        schedule.times("smart28", "linspace")


def test_grids_that_do_not_fit_the_schedule():
    with pytest.raises(InputError, match="1001"):
        TableSchedule().times(1001, "linspace")
    with pytest.raises(InputError, match="leading"):
        CosineSchedule().times(10, "leading")
    with pytest.raises(InputError, match="smart100"):
        TableSchedule(size=50).times("smart100", "linspace")


def test_schedules_trace_under_jit():
    for schedule in SCHEDULES:
        jax.eval_shape(schedule.alpha, jax.ShapeDtypeStruct((2, 3), jnp.float32))


AYS = STEP_LISTS["ays_if"][1]


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()])
@pytest.mark.parametrize("unit", ["time", "logsnr", "sigma"])
def test_a_list_is_the_same_in_every_unit(schedule, unit):
    """Continuous laws are inverted to the last digits."""
    t = np.asarray([0.97, 0.83, 0.4, 0.07])
    logsnr = schedule.logsnr64(t)
    values = {"time": t, "logsnr": logsnr, "sigma": np.exp(-0.5 * logsnr)}[unit]
    np.testing.assert_allclose(schedule.times(tuple(values), unit), t, rtol=1e-9)
    ends = schedule.logsnr64(np.asarray([1.0, 1e-9]))  # the ends count as inside
    assert len(schedule.times(tuple(np.exp(-0.5 * ends)), "sigma")) == 2


def test_align_your_steps_on_a_continuous_schedule():
    schedule = CosineSchedule()
    t = schedule.times("ays_if", "linspace")
    sigma = np.exp(-0.5 * schedule.logsnr64(t))
    np.testing.assert_allclose(sigma, AYS, rtol=1e-9)
    # The law's closed form: sigma over alpha is tan(pi t / 2).
    np.testing.assert_allclose(t, np.arctan(AYS) * 2 / np.pi, rtol=1e-9)


def test_align_your_steps_on_the_table():
    """Its sigmas are those of the table, rounded: the nearest index is theirs."""
    table = TableSchedule()
    t = table.times("ays_if", "leading")
    assert t.tolist() == [995, 920, 811, 686, 555, 418, 315, 174, 109, 12]
    sigma = np.exp(-0.5 * table.logsnr64(t))
    np.testing.assert_allclose(sigma, AYS, rtol=0.01)


@pytest.mark.parametrize(
    ("schedule", "steps", "unit", "words"),
    [
        (CosineSchedule(), (0.5, 0.8), "time", "0.5 is followed by 0.8.*decrease"),
        (CosineSchedule(), (2.0, 2.0), "sigma", "2 is followed by 2"),
        (TableSchedule(), (1.0, -1.0), "logsnr", "1 is followed by -1.*increase"),
        (CosineSchedule(), (), "time", "empty list"),
        (CosineSchedule(), (1.2, 0.5), "time", "time 1.2.*outside.*0 to 1"),
        (CosineSchedule(), (0.5, 0.0), "time", "time 0, which is outside"),
        (CosineSchedule(), (3e4, 1.0), "sigma", r"sigma 30000.*outside"),
        (CosineSchedule(), (1.0, 0.0), "sigma", "sigma 0, which is outside"),
        (CosineSchedule(), (1.0, -2.0), "sigma", "sigma -2, which is outside"),
        (TableSchedule(), (1000.0, 0.0), "time", "time 1000.*0 to 999 .whole"),
        (TableSchedule(), (500.5, 3.0), "time", "time 500.5.*whole numbers"),
        (TableSchedule(), (-10.0, float("nan")), "logsnr", "out of order"),
        (TableSchedule(), (1.0, 0.99999), "sigma", "same time"),
    ],
)
def test_bad_lists_are_named(schedule, steps, unit, words):
    with pytest.raises(InputError, match=words):
        schedule.times(steps, unit)
