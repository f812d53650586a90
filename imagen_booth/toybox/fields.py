"""Cheap, deterministic patterns in space, and the vector operations of tracing.

All are elementwise over arrays of any one shape; vectors are three such arrays.
"""

import jax
import jax.numpy as jnp


def dot(a, b):
    """Inner product of two vectors."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def normalise(vector):
    """The vector scaled to length 1."""
    inverse = jax.lax.rsqrt(jnp.maximum(dot(vector, vector), 1e-12))
    return [c * inverse for c in vector]


def step(x, softness: float):
    """0 below -softness, 1 above +softness, smooth between."""
    t = jnp.clip(x * (0.5 / softness) + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def centred(x):
    """Distance from the middle of x's unit cell, in [-0.5, 0.5]."""
    return x - jnp.floor(x) - 0.5


def seen(texel, frequency: float):
    """The visible share of a pattern of `frequency` radians per unit at a pixel size.

    Detail finer than a pixel fades to its mean, so that a small picture equals a large
    one scaled down.
    """
    blur = jnp.square(texel * frequency * 0.45)
    return 1.0 / (1.0 + blur * blur)


def sine(x):
    """A parabolic sine, within 0.06 of the exact one, which is slow on a CPU."""
    turns = x * 0.15915494
    turns = turns - jnp.floor(turns + 0.5)
    return turns * (8.0 - 16.0 * jnp.abs(turns))


def chance(x, y):
    """A pseudorandom value in [0, 1) for a pair of whole numbers."""
    a, b = x * 0.1031, y * 0.1031
    a, b = a - jnp.floor(a), b - jnp.floor(b)
    mixed = a * (b + 33.33) + b * (a + 33.33) + a * (a + 33.33)
    a, b = a + mixed, b + mixed
    value = (a + b) * a
    return value - jnp.floor(value)


def noise(x, y):
    """Smooth value noise in [0, 1], one feature per unit."""
    i, j = jnp.floor(x), jnp.floor(y)
    a, b = x - i, y - j
    a, b = a * a * (3.0 - 2.0 * a), b * b * (3.0 - 2.0 * b)
    low = chance(i, j) + a * (chance(i + 1.0, j) - chance(i, j))
    high = chance(i, j + 1.0) + a * (chance(i + 1.0, j + 1.0) - chance(i, j + 1.0))
    return low + b * (high - low)


def lumps(x, y, z):
    """Smooth solid blotches, roughly in [-1, 1]."""
    return 0.5 * (
        sine(x + 1.7 * sine(y * 0.9))
        + sine(y * 1.1 + 1.3 * sine(z * 1.2))
        + sine(z * 0.9 + 1.5 * sine(x * 1.1))
    )


def spots(x, y, z):
    """1 inside round spots, one per unit cell at a pseudorandom position."""
    i, j, k = jnp.floor(x), jnp.floor(y), jnp.floor(z)
    a = chance(i + 7.0 * k, j)
    b = chance(j + 5.0 * i, k)
    c = chance(k + 3.0 * j, i)
    square = (
        jnp.square(x - i - 0.5 - 0.3 * (a - 0.5))
        + jnp.square(y - j - 0.5 - 0.3 * (b - 0.5))
        + jnp.square(z - k - 0.5 - 0.3 * (c - 0.5))
    )
    return step(0.33 + 0.1 * (a - 0.5) - jnp.sqrt(square), 0.03)
