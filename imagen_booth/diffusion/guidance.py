"""Classifier-free guidance, and thresholding of the guided picture.

Source: Imagen, arXiv 2205.11487, sections 2.2 and 2.3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_booth.errors import InputError


def combine(
    cond: Float[Array, " B *dims"], uncond: Float[Array, " B *dims"], w: float
) -> Float[Array, " B *dims"]:
    """Classifier-free guidance: w cond + (1 - w) uncond.

    At w = 1 this is exactly the conditional prediction; w = 0 is the unconditional one.
    The same rule holds for eps, x0 and v, which are linear in each other at one z_t.
    Learned variances are not guided: the sampler takes the conditional one.

    Source: Imagen, section 2.2.
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
      x0: Predicted pictures, whose true range is [-1, 1].
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


def quantile(values: Float[Array, "B N"], ratio: float) -> Float[Array, " B"]:
    """The quantile of each row, exactly as ``jnp.quantile`` has it, without a sort.

    The two values it lies between are found bit by bit, with one count over the row for
    each bit: floats from 0 up are in the order of their bits as integers.

    Args:
      values: 0 or more, f32 or f64; a row with a NaN gives NaN.
      ratio: In [0, 1].
    """
    count, dtype = values.shape[1], values.dtype
    place = np.asarray(ratio, dtype) * (np.asarray(count, dtype) - 1)
    low, high = int(np.floor(place)), int(np.ceil(place))
    size = 8 * dtype.itemsize
    bits = jax.lax.bitcast_convert_type(values, jnp.dtype(f"int{size}"))

    def refine(step: Array, found: Array) -> Array:
        bit = jnp.left_shift(
            jnp.ones((), bits.dtype), (size - 2 - step).astype(bits.dtype)
        )
        larger = found | bit
        below = jnp.sum(bits < larger[:, None], axis=1)
        return jnp.where(below <= low, larger, found)

    start = jnp.zeros(len(values), bits.dtype)
    at_low = jax.lax.fori_loop(0, size - 1, refine, start)
    more = bits > at_low[:, None]
    above = jnp.min(jnp.where(more, bits, jnp.iinfo(bits.dtype).max), axis=1)
    # Equal values may fill the next place too.
    at_high = jnp.where(jnp.sum(more, axis=1) < count - high, at_low, above)
    low_value, high_value = (
        jax.lax.bitcast_convert_type(each, dtype) for each in (at_low, at_high)
    )
    weight = place - low
    found = low_value * (1 - weight) + high_value * weight
    return jnp.where(jnp.isnan(values).any(axis=1), jnp.nan, found)


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

    Source: Imagen, section 2.3.
    """
    if cap == 1.0:
        return static_threshold(x0)
    flat = jnp.abs(x0).reshape(x0.shape[0], -1)
    s = jnp.clip(quantile(flat, ratio), 1.0, cap)
    s = s.reshape(s.shape + (1,) * (x0.ndim - 1))
    return jnp.clip(x0, -s, s) / s
