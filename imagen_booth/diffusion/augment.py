"""Noise-conditioning augmentation of the low-res input of a super-resolution stage.

The level is the *variance* a of the noise, a number in [0, 1]:

    x -> sqrt(1 - a) x + sqrt(a) eps

DreamBooth names levels 1e-3 (normal) and 1e-5 (fine-tuning) without a unit; this
reading is ours. Sigma is then 0.0316 and 0.00316: 4 and 0.4 grey levels of 255.
Networks read the level in units of their own, and the maps between them are here.

Source: Imagen, arXiv 2205.11487, section 2.4; DreamBooth, arXiv 2208.12242, supplement.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_booth.diffusion import process
from imagen_booth.diffusion.schedule import TableSchedule


def corrupt(
    low: Float[Array, " B *dims"],
    eps: Float[Array, " B *dims"],
    level: Float[Array, " B"],
) -> Float[Array, " B *dims"]:
    """The low-res picture with noise of variance `level` in each row.

    Level 0 leaves it unchanged. Sampling does this once, before the first step.

    Args:
      low: Low-res pictures in [-1, 1].
      eps: Standard normal noise.
      level: The augmentation level, in [0, 1].
    """
    return process.add_noise(low, eps, jnp.sqrt(1.0 - level), jnp.sqrt(level))


def level_to_time(level: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """Imagen's aug_level u in [0, 1] of variance a, where sin^2(pi u / 2) = a.

    It is the time at which the cosine schedule has this variance.
    """
    return jnp.arcsin(jnp.sqrt(level)) * (2.0 / np.pi)


def time_to_level(u: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """The variance a = sin^2(pi u / 2) at Imagen's aug_level u in [0, 1]."""
    return jnp.square(jnp.sin(u * (0.5 * np.pi)))


def if_level(n: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """The variance 1 - abar_n at DeepFloyd IF's noise level n.

    IF's levels are the integers 0..999. The variance is interpolated between them and
    constant outside.
    """
    variance = _if_variances(n.dtype)
    return jnp.interp(n, jnp.arange(len(variance), dtype=n.dtype), variance)


def level_to_if(level: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """The noise level that IF's networks take as input, between IF's integers.

    IF's lowest level, 0, still has variance 4.13e-5, and smaller variances map to it as
    well. `corrupt` adds the noise of the true variance, which can be less.
    """
    variance = _if_variances(level.dtype)
    return jnp.interp(level, variance, jnp.arange(len(variance), dtype=level.dtype))


def _if_variances(dtype: np.dtype) -> Array:
    return jnp.asarray(1.0 - TableSchedule().abar64, dtype)
