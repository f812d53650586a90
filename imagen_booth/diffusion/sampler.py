"""Samplers of one stage: from noise to a picture in T steps.

Each step goes from time t to the next time s, and every method here is one linear
rule, with numbers that the schedule alone fixes:

    z_s = a z_t + b x0(z_t) + c x0(previous z) + std noise

With lambda the log-SNR, d = lambda_t - lambda_s < 0 and h = -d / 2:

    ancestral  a = e^d alpha_s / alpha_t,  b = (1 - e^d) alpha_s,  c = 0,
               std^2 = [(1 - e^d) sigma_s^2]^(1 - g) [(1 - e^d) sigma_t^2]^g
    ddim       a = sigma_s / sigma_t,  b = (1 - e^-h) alpha_s,  c = 0,  std = 0
    dpmpp_2m   a as ddim,  b = (1 + r) (1 - e^-h) alpha_s,  c = -r (1 - e^-h) alpha_s,
               r = h / (2 h of the step before),  std = 0

g is the stochasticity: 0 gives the posterior variance, 1 the forward variance; a
network with learned variance chooses it per pixel. ddim's b is
alpha_s - alpha_t sigma_s / sigma_t, written without cancellation. ddim is the
first-order rule of the same family; dpmpp_2m uses it in its first and its last step.

The last step of every schedule ends at a picture without noise (alpha_s = 1,
sigma_s = 0). There all methods agree: a = c = std = 0, b = 1, and the result is x0.

Source: Imagen, arXiv 2205.11487, section 2 and appendix A; DPM-Solver++, arXiv
2211.01095, algorithm 2.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import Array, Float, Key

from imagen_booth.diffusion.schedule import UNITS, Schedule
from imagen_booth.errors import InputError

Denoise = Callable[..., tuple[Array, Array | None]]


NoiseLevel = Annotated[float, Ge(0)]  # sigma, noise over picture


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample a stage.

    Attributes:
      method: 'ancestral', 'ddim' or 'dpmpp_2m'.
      steps: Number of network calls; the name of a list in `schedule.SECTIONS` or
        `schedule.STEP_LISTS`; the path of a file with a list; or a list, noisiest step
        first, in the unit that `spacing` names.
      spacing: Spacing of the times: 'linspace', 'leading' or 'trailing', see the
        schedule's `times`. For a list, its unit: 'time', 'logsnr' or 'sigma' (noise
        over picture). On IF's table, use 'trailing' with dpmpp_2m: grids that include
        index 0 reach it by a step so long in log-SNR that the extrapolation loses more
        than it gains.
      variance: Variance of the ancestral noise. 'learned' takes the network's; a number
        g interpolates from DDPM's fixed_small (0) to its fixed_large (1).
      guidance: Weight of classifier-free guidance; 1 is off.
      guidance_interval: Least and greatest noise level (sigma, noise over picture) of
        the steps with guidance; other steps take the conditional prediction alone, at
        half the cost. None guides all steps. Source: arXiv 2404.07724.
      threshold: Threshold of x0 at every step: 'none', 'static' or 'dynamic'.
      ratio: Quantile of |x0| at which the dynamic threshold clips.
      cap: Upper bound of the dynamic threshold; None for no bound.

    Raises:
      InputError: A field has a value that is not allowed.
    """

    method: str = "ancestral"
    steps: Annotated[int, Ge(1)] | str | tuple[float, ...] = 256
    spacing: str = "linspace"
    variance: str | Annotated[float, Interval(ge=0, le=1)] = 0.0
    guidance: Annotated[float, Ge(0)] = 1.0
    threshold: str = "dynamic"
    ratio: Annotated[float, Interval(gt=0, le=1)] = 0.995
    cap: Annotated[float, Ge(1)] | None = None
    guidance_interval: tuple[NoiseLevel, NoiseLevel] | None = None

    def __post_init__(self):
        listed = isinstance(self.steps, tuple)
        spacings = UNITS if listed else ("linspace", "leading", "trailing")
        for field, choices in (
            ("method", ("ancestral", "ddim", "dpmpp_2m")),
            ("spacing", spacings),
            ("threshold", ("none", "static", "dynamic")),
        ):
            value = getattr(self, field)
            if value not in choices:
                raise InputError(
                    f"sampler.{field} is '{value}'. Use one of {', '.join(choices)}"
                    f"{' for a list of steps' if choices == UNITS else ''}."
                )
        if isinstance(self.variance, str) and self.variance != "learned":
            raise InputError(
                f"sampler.variance is {self.variance!r}. Use 'learned' or a number "
                "from 0 to 1."
            )
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high:
                raise InputError(
                    f"sampler.guidance_interval is {self.guidance_interval}. Use two "
                    "noise levels from 0 up, the lower one first, such as (0.2, 5.0)."
                )


class Plan(NamedTuple):
    """All numbers of a sampling run, in the order of its steps.

    `plan` returns them as numpy float64 arrays [T]; a single step has scalars.

    Attributes:
      t: The schedule's time of the network call.
      alpha_t, sigma_t, alpha_s, sigma_s: Scales of picture and noise in z_t and z_s.
      on_xt, on_x0, on_previous: a, b and c of the module's rule.
      logvar: log std^2 at g = 0; -inf where no noise is added.
      logvar_range: Increase of log std^2 from g = 0 to g = 1.
    """

    t: Any
    alpha_t: Any
    sigma_t: Any
    alpha_s: Any
    sigma_s: Any
    on_xt: Any
    on_x0: Any
    on_previous: Any
    logvar: Any
    logvar_range: Any


def plan(schedule: Schedule, config: SamplerConfig) -> Plan:
    """The numbers of every step, in float64 on the host.

    Raises:
      InputError: The schedule does not have these steps.
    """
    t = schedule.times(config.steps, config.spacing)
    logsnr_t = schedule.logsnr64(t)
    logsnr_s = np.append(logsnr_t[1:], np.inf)
    alpha_t, sigma_t = _scales(logsnr_t)
    alpha_s, sigma_s = _scales(logsnr_s)

    logvar = np.full_like(t, -np.inf)
    logvar_range = np.zeros_like(t)
    on_previous = np.zeros_like(t)
    if config.method == "ancestral":
        d = logsnr_t - logsnr_s
        on_xt = np.exp(d) * alpha_s / alpha_t
        on_x0 = -np.expm1(d) * alpha_s
        with np.errstate(divide="ignore"):
            logvar = np.log(-np.expm1(d) * sigma_s**2)
        logvar_range[:-1] = 2.0 * np.log(sigma_t[:-1] / sigma_s[:-1])
    else:
        h = 0.5 * (logsnr_s - logsnr_t)
        on_xt = sigma_s / sigma_t
        on_x0 = -np.expm1(-h) * alpha_s
        if config.method == "dpmpp_2m":
            # A step between two clipped times has h = 0 and cannot extrapolate.
            moved = np.flatnonzero(h[:-2] > 0) + 1
            r = 0.5 * h[moved] / h[moved - 1]
            on_previous[moved] = -r * on_x0[moved]
            on_x0 = on_x0 - on_previous
    return Plan(
        t=t,
        alpha_t=alpha_t,
        sigma_t=sigma_t,
        alpha_s=alpha_s,
        sigma_s=sigma_s,
        on_xt=on_xt,
        on_x0=on_x0,
        on_previous=on_previous,
        logvar=logvar,
        logvar_range=logvar_range,
    )


def guided_steps(plan: Plan, config: SamplerConfig) -> np.ndarray:
    """Which steps of a plan have guidance, bool [T].

    Raises:
      InputError: The guidance interval contains no step.
    """
    if config.guidance == 1.0:
        return np.zeros(len(plan.t), bool)
    if config.guidance_interval is None:
        return np.ones(len(plan.t), bool)
    low, high = config.guidance_interval
    level = plan.sigma_t / plan.alpha_t
    inside = (low <= level) & (level <= high)
    if not inside.any():
        raise InputError(
            f"sampler.guidance_interval is {config.guidance_interval}, but the steps' "
            f"noise levels, {level[-1]:.3g} to {level[0]:.3g}, have none inside. Widen "
            "it, or use guidance=1.0."
        )
    return inside


def network_calls(schedule: Schedule, config: SamplerConfig) -> int:
    """Calls of the network per picture; a step with guidance takes two."""
    steps = plan(schedule, config)
    return len(steps.t) + int(guided_steps(steps, config).sum())


def advance(
    row: Plan,
    config: SamplerConfig,
    xt: Float[Array, " B *dims"],
    x0: Float[Array, " B *dims"],
    x0_previous: Float[Array, " B *dims"],
    frac: Float[Array, " B *dims"] | None,
    noise: Float[Array, " B *dims"] | None,
) -> Float[Array, " B *dims"]:
    """One step of the module's rule, from z_t to z_s.

    Args:
      row: One step of a plan, scalars.
      config: The sampler's settings.
      xt: z_t.
      x0, x0_previous: The network's pictures at this step and at the one before.
      frac: g per pixel, used if the variance is 'learned'.
      noise: Standard normal noise, used by the ancestral method.

    Raises:
      InputError: The variance is 'learned' and `frac` is None.
    """
    mean = row.on_xt * xt + row.on_x0 * x0 + row.on_previous * x0_previous
    if config.method != "ancestral":
        return mean
    assert noise is not None
    g = frac if config.variance == "learned" else config.variance
    if g is None:
        raise InputError(
            "sampler.variance is 'learned', but this network predicts no variance. "
            "Use 0.0."
        )
    return mean + jnp.exp(0.5 * (row.logvar + g * row.logvar_range)) * noise


def sample(
    denoise: Denoise,
    keys: Key[Array, " B"],
    image_shape: tuple[int, ...],
    plan: Plan,
    config: SamplerConfig,
) -> Float[Array, " B *image_shape"]:
    """Samples one picture per key.

    The noise of a row depends on its key alone, so a picture does not depend on its
    batch. The start comes from fold_in(key, 0), the noise of the i-th step, counted
    from 1, from fold_in(key, i). The start is therefore the same for any number of
    steps. Arithmetic is f32, or float64 if jax has x64 enabled.

    Args:
      denoise: (z_t [B, *image_shape], t []) -> (x0, frac): the picture, guided and
        thresholded, and the position of the learned variance in its range, in [0, 1],
        or None. With a guidance interval it takes `guided=False` as well.
      keys: Typed PRNG keys.
      image_shape: H, W, C.
      plan: The plan of `config`.
      config: The sampler's settings.

    Returns:
      Pictures x0; with a threshold they are in [-1, 1].

    Raises:
      InputError: The variance is 'learned' and `denoise` returns none.
    """
    steps = jax.tree.map(jnp.asarray, plan)  # from float64, the only cast

    def noise(i: Array | int) -> Array:
        def row(key: Array) -> Array:
            key = jax.random.fold_in(key, i)
            return jax.random.normal(key, image_shape, steps.t.dtype)

        return jax.vmap(row)(keys)

    def step(options, carry, scanned):
        xt, x0_previous = carry
        i, row = scanned
        x0, frac = denoise(xt, row.t, **options)
        eps = noise(i) if config.method == "ancestral" else None
        return (advance(row, config, xt, x0, x0_previous, frac, eps), x0), None

    start = noise(0)
    count = jnp.arange(1, len(plan.t) + 1)
    carry, scanned = (start, jnp.zeros_like(start)), (count, steps)
    if config.guidance == 1.0 or config.guidance_interval is None:
        (x0, _), _ = jax.lax.scan(functools.partial(step, {}), carry, scanned)
        return x0
    guided = guided_steps(plan, config)
    ends = [0, *(np.flatnonzero(np.diff(guided)) + 1), len(guided)]
    for first, last in itertools.pairwise(ends):
        options = {"guided": bool(guided[first])}
        some = jax.tree.map(lambda leaf: leaf[first:last], scanned)  # noqa: B023
        carry, _ = jax.lax.scan(functools.partial(step, options), carry, some)
    return carry[0]


def _scales(logsnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma of a log-SNR."""
    return 1.0 / np.sqrt(1.0 + np.exp(-logsnr)), 1.0 / np.sqrt(1.0 + np.exp(logsnr))
