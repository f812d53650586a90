"""Classifier-free guidance, and thresholding of the guided picture.

Source: Imagen, arXiv 2205.11487, sections 2.2 and 2.3.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_booth.errors import InputError


def combine(
    cond: Float[Array, " B *dims"], uncond: Float[Array, " B *dims"], w: float
) -> Float[Array, " B *dims"]:
    """w cond + (1 - w) uncond. At w = 1 this is exactly the conditional prediction.

    The same rule serves eps, x0 and v, which are linear in each other at one z_t.
    Learned variances are not guided: the sampler takes the conditional one.
    """
    return w * cond + (1.0 - w) * uncond


def threshold(
    x0: Float[Array, " B *dims"],
    kind: str,
    ratio: float,
    cap: float | None = None,
) -> Float[Array, " B *dims"]:
    """x0 without threshold, clipped, or dynamically thresholded.

    Args:
      x0: Predicted pictures.
      kind: 'none', 'static' or 'dynamic'.
      ratio, cap: Arguments of `dynamic_threshold`; the other kinds ignore them.

    Raises:
      InputError: The kind is not one of these.
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
    """Clips each sample to [-s, s] and divides by s, a quantile of its own |x0|.

    Args:
      x0: f32 pictures (the quantile needs more digits than bf16 has).
      ratio: The quantile of |x0| that s is, in [0, 1], with linear interpolation; s is
        at least 1.
      cap: Upper bound of s. DeepFloyd IF has 1.5 in its first stage and 1 in its
        second, which is a static threshold.

    Returns:
      x0 within [-1, 1].
    """
    flat = jnp.abs(x0).reshape(x0.shape[0], -1)
    s = jnp.clip(jnp.quantile(flat, ratio, axis=1), 1.0, cap)
    s = s.reshape(s.shape + (1,) * (x0.ndim - 1))
    return jnp.clip(x0, -s, s) / s
