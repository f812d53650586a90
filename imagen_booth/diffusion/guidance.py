"""Classifier-free guidance, and keeping the guided picture in range.

Source: Imagen, arXiv 2205.11487, sections 2.2 and 2.3.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_booth.errors import InputError


def combine(
    cond: Float[Array, " B *dims"], uncond: Float[Array, " B *dims"], w: float
) -> Float[Array, " B *dims"]:
    """w cond + (1 - w) uncond: w = 1 is guidance off, exactly; above 1 strengthens.

    For eps predictions, and for x0 and v alike, as all three are linear in each other
    at the same z_t. Learned variances are not guided: take the conditional one.
    """
    return w * cond + (1.0 - w) * uncond


def threshold(
    x0: Float[Array, " B *dims"],
    kind: str,
    ratio: float,
    cap: float | None = None,
) -> Float[Array, " B *dims"]:
    """x0 as the sampler may use it: as it is, clipped, or dynamically thresholded.

    Args:
      kind: 'none', 'static' or 'dynamic'.
      ratio, cap: of `dynamic_threshold`; the other kinds ignore them.

    Raises:
      InputError: if there is no such kind.
    """
    if kind == "none":
        return x0
    if kind == "static":
        return static_threshold(x0)
    if kind == "dynamic":
        return dynamic_threshold(x0, ratio, cap)
    raise InputError(
        f"sampler.threshold is '{kind}'. Use 'none', 'static' or 'dynamic'."
    )


def static_threshold(x0: Float[Array, " B *dims"]) -> Float[Array, " B *dims"]:
    """x0 clipped to [-1, 1]."""
    return jnp.clip(x0, -1.0, 1.0)


def dynamic_threshold(
    x0: Float[Array, " B *dims"], ratio: float, cap: float | None = None
) -> Float[Array, " B *dims"]:
    """Clips each sample to [-s, s] and divides by s, its own brightest common value.

    Args:
      x0: f32 (the quantile needs more digits than bf16 has).
      ratio: s is this quantile of the sample's |x0|, in [0, 1], between two pixels
        by linear interpolation; never below 1.
      cap: s is never above this. DeepFloyd IF has 1.5 at its first stage and 1 at its
        second, which is a static threshold.

    Returns:
      x0 within [-1, 1].
    """
    flat = jnp.abs(x0).reshape(x0.shape[0], -1)
    s = jnp.clip(jnp.quantile(flat, ratio, axis=1), 1.0, cap)
    s = s.reshape(s.shape + (1,) * (x0.ndim - 1))
    return jnp.clip(x0, -s, s) / s
