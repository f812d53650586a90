"""The table schedule and its samplers against diffusers, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.diffusion import augment, guidance, process, sampler
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.diffusion.schedule import SECTIONS, TableSchedule

pytestmark = pytest.mark.parity

TABLE = TableSchedule()
IF_STAGES = {"dynamic": 1.5, "static": 1.0, "none": None}  # threshold: its cap


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def build(cls, threshold="none", **config):
    """A diffusers scheduler as DeepFloyd IF configures it.

    From its own betas its products are taken again in double: in single precision
    1 - abar has three good digits at the clean end, and steps there are off by up to
    6e-5.
    """
    if cls.__name__ != "DPMSolverMultistepScheduler":
        config["clip_sample"] = False
    if threshold != "none":
        config |= {
            "thresholding": True,
            "dynamic_thresholding_ratio": 0.95,
            "sample_max_value": IF_STAGES[threshold],
        }
    reference = cls(beta_schedule="squaredcos_cap_v2", **config)
    reference.alphas = 1.0 - reference.betas.double()
    reference.alphas_cumprod = reference.alphas.cumprod(0)
    return reference


def configure(threshold, **config):
    return SamplerConfig(
        threshold=threshold, ratio=0.95, cap=IF_STAGES[threshold], **config
    )


def network(xt, t):
    """eps and the learned variance's share, any smooth functions of z_t and t."""
    eps = 0.9 * xt + 0.3 * jnp.sin(3.0 * xt + 0.01 * t)
    return eps, 0.5 + 0.5 * jnp.cos(2.0 * xt - 0.003 * t)


def compare(config, times, reference):
    """Walks along the reference's own path and compares every step.

    Args:
      times: those of the reference.
      reference: (i, xt, eps, frac, noise) -> (z_s, x0), BHWC arrays.
    """
    plan = sampler.plan(TABLE, config)
    np.testing.assert_array_equal(plan.t, np.asarray(times, np.float64))
    rows = jax.tree.map(jnp.asarray, plan)
    xt = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    x0_previous = jnp.zeros_like(xt)
    for i in range(len(plan.t)):
        row = sampler.Plan(*(column[i] for column in rows))
        noise = jax.random.normal(jax.random.key(i + 1), xt.shape)
        eps, frac = network(xt, row.t)
        x0, _ = process.convert(eps, "eps", xt, row.alpha_t, row.sigma_t)
        x0 = guidance.threshold(x0, config.threshold, config.ratio, config.cap)
        mine = sampler.advance(row, config, xt, x0, x0_previous, frac, noise)
        theirs, their_x0 = reference(i, xt, eps, frac, noise)
        where = f"step {i}, t {plan.t[i]}"
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5, err_msg=where)
        # x0 has single precision's rounding of z_t, divided by alpha
        rough = 1e-5 + 5e-7 / plan.alpha_t[i]
        np.testing.assert_allclose(x0, their_x0, rtol=1e-5, atol=rough, err_msg=where)
        xt, x0_previous = theirs, x0


def to_torch(torch, x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())


def to_jax(x):
    return jnp.asarray(np.moveaxis(x.numpy(), 1, -1))


def test_table(diffusers):
    reference = build(diffusers.DDPMScheduler)
    np.testing.assert_allclose(TABLE.betas64, reference.betas, rtol=1e-5)
    np.testing.assert_allclose(TABLE.abar64, reference.alphas_cumprod, rtol=2e-5)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_grids(spacing, diffusers):
    reference = build(diffusers.DDPMScheduler, timestep_spacing=spacing)
    for steps in range(1, 1001):
        if (spacing, steps) == ("linspace", 1):
            continue  # there diffusers asks once, at the clean end
        reference.set_timesteps(steps)
        # its trailing range of floats is at times one too long
        theirs = reference.timesteps.numpy()[:steps]
        np.testing.assert_array_equal(TABLE.times(steps, spacing), theirs)


@pytest.mark.parametrize("name", SECTIONS)
def test_named_lists(name, diffusers):
    lists = pytest.importorskip("diffusers.pipelines.deepfloyd_if.timesteps")
    theirs = getattr(lists, f"{name}_timesteps")
    np.testing.assert_array_equal(TABLE.times(name, "leading"), theirs)


@pytest.mark.parametrize("threshold", IF_STAGES)
@pytest.mark.parametrize(
    ("variance", "variance_type"),
    [(0.0, "fixed_small"), (1.0, "fixed_large"), ("learned", "learned_range")],
)
@pytest.mark.parametrize("steps", [20, 100, "smart27"])
def test_ancestral(
    steps, variance, variance_type, threshold, diffusers, torch, monkeypatch
):
    reference = build(diffusers.DDPMScheduler, threshold, variance_type=variance_type)
    if isinstance(steps, str):
        lists = pytest.importorskip("diffusers.pipelines.deepfloyd_if.timesteps")
        reference.set_timesteps(timesteps=getattr(lists, f"{steps}_timesteps"))
    else:
        reference.set_timesteps(steps)
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")

    def step(i, xt, eps, frac, noise):
        output = to_torch(torch, eps)
        if variance == "learned":
            output = torch.cat([output, to_torch(torch, 2.0 * frac - 1.0)], dim=1)
        fixed = to_torch(torch, noise)
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: fixed[:, :3])
        got = reference.step(output, reference.timesteps[i], to_torch(torch, xt))
        return to_jax(got.prev_sample), to_jax(got.pred_original_sample)

    config = configure(threshold, steps=steps, spacing="leading", variance=variance)
    compare(config, reference.timesteps, step)


@pytest.mark.parametrize("threshold", IF_STAGES)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(spacing, threshold, diffusers, torch):
    reference = build(diffusers.DDIMScheduler, threshold, timestep_spacing=spacing)
    reference.set_timesteps(50)

    def step(i, xt, eps, frac, noise):
        got = reference.step(
            to_torch(torch, eps),
            reference.timesteps[i],
            to_torch(torch, xt),
            use_clipped_model_output=True,
        )
        return to_jax(got.prev_sample), to_jax(got.pred_original_sample)

    config = configure(threshold, method="ddim", steps=50, spacing=spacing)
    compare(config, reference.timesteps, step)


# diffusers asks torch for an array in a way numpy 2 is to drop
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("threshold", IF_STAGES)
@pytest.mark.parametrize("steps", [10, 50, "smart50"])
def test_dpmpp_2m(steps, threshold, diffusers, torch):
    reference = build(
        diffusers.DPMSolverMultistepScheduler,
        threshold,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    config = configure(threshold, method="dpmpp_2m", steps=steps, spacing="trailing")
    times = TABLE.times(config.steps, config.spacing).astype(int)
    reference.set_timesteps(timesteps=times.tolist())

    def step(i, xt, eps, frac, noise):
        output, state = to_torch(torch, eps), to_torch(torch, xt)
        got = reference.step(output, reference.timesteps[i], state)
        return to_jax(got.prev_sample), to_jax(reference.model_outputs[-1])

    compare(config, reference.timesteps, step)


def test_noise_level_of_the_second_stage(diffusers, torch):
    reference = build(diffusers.DDPMScheduler)
    low, eps = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    n = jnp.asarray([0.0, 1.0, 250.0, 500.0, 900.0])
    theirs = reference.add_noise(
        to_torch(torch, low), to_torch(torch, eps), torch.tensor(np.asarray(n)).long()
    )
    mine = augment.corrupt(low, eps, augment.if_level(n))
    np.testing.assert_allclose(mine, to_jax(theirs), rtol=1e-5, atol=1e-5)
