"""Colours of solids, the ground and the sky before lighting.

Arrays are [B, R], a row of rays for each scene; colours are linear, as three arrays.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from imagen_booth.toybox import scene as sc
from imagen_booth.toybox.fields import (
    centred,
    chance,
    dot,
    lumps,
    noise,
    seen,
    sine,
    spots,
    step,
)

_TURN = 6.2831853
# Meadow flowers are of the ground's third colour, red or white.
_RED_PETAL, _WHITE_PETAL = (0.75, 0.08, 0.12), (0.9, 0.85, 0.9)


def solid(own, local, texel):
    """Colour of the hit shapes, and their fine relief as a factor around 1.

    Args:
      own: Columns of each ray's shape, as named in `packing`.
      local: The hit point in the shape's own coordinates.
      texel: Size of a pixel at the hit point, in toy units.
    """
    x, y, z = local
    toy = (x * own["hx"], y * own["hy"], z * own["hz"])
    axis = (own["ax"], own["ay"], own["az"])
    scale, offset = own["scale"], own["offset"]
    sx, sy, sz = (c * scale + 7.0 * offset for c in toy)
    blotch = lumps(sx, sy, sz)
    along = dot(axis, toy) * scale + offset
    height = dot(axis, local)
    apart = jnp.sqrt(sum(jnp.square(c - a) for c, a in zip(local, axis, strict=True)))
    masks = {
        "stripes": step(sine(_TURN * along + 0.6 * blotch), 0.15),
        "spots": spots(sx, sy, sz),
        "patches": step(blotch - 0.35, 0.06),
        "checks": step(
            sine(0.5 * _TURN * sx) * sine(0.5 * _TURN * sy) * sine(0.5 * _TURN * sz),
            0.03,
        ),
        "wood": 0.5 + 0.5 * sine(_TURN * (sx * 0.4 + sz) + 2.0 * blotch),
        "split": step(height - offset, 0.03),
        "blob": step(offset - apart, 0.03),
        "dial": _dial(x, z),
        "windows": step(0.22 - jnp.abs(centred(sx)), 0.02)
        * step(0.28 - jnp.abs(centred(sy)), 0.02),
        "band": step(scale - jnp.abs(height - offset), 0.02),
        "fade": jnp.clip(0.5 + 0.5 * height - offset, 0.0, 1.0),
    }
    mask = jnp.zeros_like(x)
    for i, name in enumerate(sc.TEXTURES):
        if name in masks:
            mask = jnp.where(jnp.abs(own["texture"] - i) < 0.5, masks[name], mask)
    colour = [own[f"a{c}"] + mask * (own[f"b{c}"] - own[f"a{c}"]) for c in "rgb"]
    return colour, 1.0 + 0.11 * own["grain"] * _hair(toy, texel)


def _dial(x, z):
    """Twelve marks round the rim of a disc of radius 1."""
    ring = jnp.sqrt(x * x + z * z)
    # The cosine of twelve times the angle, by doubling and tripling.
    twice = 2.0 * jnp.square(z / jnp.maximum(ring, 1e-3)) - 1.0
    fourfold = 2.0 * twice * twice - 1.0
    hours = fourfold * (4.0 * fourfold * fourfold - 3.0)
    return step(hours - 0.75, 0.1) * step(0.07 - jnp.abs(ring - 0.8), 0.01)


def _hair(toy, texel):
    """Fur or cloth in three sizes, from tufts to single strands."""
    x, y, z = toy
    curl = sine(31.0 * x + 3.0 * sine(17.0 * y)) * sine(43.0 * y + 2.0 * sine(23.0 * z))
    tuft = sine(97.0 * x + 31.0 * z + 4.0 * sine(61.0 * y + 9.0 * z))
    bend = 6.0 * sine(47.0 * y + 3.0 * curl) + 2.0 * tuft
    strand = sine(330.0 * x + 190.0 * z + bend)
    return (
        0.5 * curl + 0.5 * tuft * seen(texel, 110.0) + 0.8 * strand * seen(texel, 390.0)
    )


def sky(arrays, ray):
    """Colour of the sky along each ray."""
    top, horizon, disc_colour = (arrays["sky_colours"][:, i] for i in range(3))
    clouds, stars, disc = (arrays["sky_amounts"][:, i : i + 1] for i in range(3))
    seed = arrays["seed"]
    height = jnp.clip(ray[1], 0.0, 1.0)
    rise = jnp.sqrt(height)
    # Clouds and stars lie on a low ceiling.
    flat = 1.0 / (height + 0.12)
    cx, cz = ray[0] * flat + seed, ray[2] * flat
    puff = noise(cx * 1.1, cz * 1.6) + 0.5 * noise(cx * 2.7 + 9.0, cz * 3.9)
    cover = clouds * step(puff - 0.85, 0.16)
    near = dot(ray, [arrays["sun"][:, i : i + 1] for i in range(3)])
    halo = jnp.maximum(near, 0.0) ** 24
    moon = disc * (step(near - 0.9965, 0.0006) + 0.25 * halo)
    gx, gy = ray[0] * flat * 14.0, ray[2] * flat * 14.0
    bright = chance(jnp.floor(gx), jnp.floor(gy) + seed)
    twinkle = jnp.square(centred(gx)) + jnp.square(centred(gy))
    twinkle = stars * jnp.where(bright > 0.8, step(0.03 - twinkle, 0.015), 0.0)
    colour = []
    for i in range(3):
        low, high = horizon[:, i : i + 1], top[:, i : i + 1]
        c = low + rise * (high - low)
        c = c + cover * (0.95 * jnp.maximum(low, 0.25) + 0.2 - c)
        colour.append(c + moon * disc_colour[:, i : i + 1] + twinkle)
    return colour


class _Look(NamedTuple):
    """Shares of the ground's second and third colours, brightness, and gloss."""

    second: Array | float
    third: Array | float
    bright: Array | float
    gloss: Array | float


class _Spot(NamedTuple):
    """Points on the ground with the noise that all kinds of ground share."""

    x: Array
    z: Array
    behind: Array
    px: Array
    pz: Array
    broad: Array
    fine: Array
    tiny: Array
    calm: Array
    swell: Array
    chop: Array


def ground(arrays, point, distance, texel):
    """Tilt (two arrays), colour (three arrays) and gloss of the plane y = 0."""
    seed, kind = arrays["seed"], arrays["ground_kind"]
    edge = arrays["ground_sizes"][:, 0:1]
    at = _spot(point, distance, texel, seed, edge)
    shore = at.behind + 0.35 * sine(1.1 * at.x + seed) + 0.5 * at.broad
    petal, hue = _blossom(at)
    looks = {
        "sand": _sand(at, shore),
        "snow": _Look(
            0.5 * step(at.broad - 0.1, 0.3),
            0.0,
            0.08 * at.broad + 0.10 * at.fine + 0.12 * at.tiny,
            0.1,
        ),
        "grass": _Look(
            jnp.clip(0.5 + 1.2 * at.broad + 0.7 * at.fine, 0.0, 1.0),
            petal,
            0.35 * at.fine + 0.55 * at.tiny,
            0.0,
        ),
        "leaves": _leaves(at),
        "dunes": _dunes(at),
        "road": _road(at),
        "planks": _planks(at, edge),
        "waves": _Look(
            0.35 + 0.35 * at.swell,
            step(at.swell * at.chop - 0.72, 0.12) * at.calm,
            0.06 * at.chop,
            0.55,
        ),
    }
    look = _Look(*[jnp.zeros_like(at.x)] * 4)
    for name, other in looks.items():
        here = _is(kind, name)
        chosen = (jnp.where(here, b, a) for a, b in zip(look, other, strict=True))
        look = _Look(*chosen)
    sea = _is(kind, "waves") | (_is(kind, "sand") & (shore > 0.0))
    wet = jnp.where(sea, 1.0, 0.0)
    soft = jnp.where(_is(kind, "snow") | _is(kind, "dunes"), 0.25, 0.0)
    tilt = (
        wet * 0.10 * at.chop + soft * 2.0 * at.broad,
        wet * 0.14 * at.swell * at.calm + soft * (at.broad + at.fine),
    )
    return tilt, _colour(arrays, look, hue), look.gloss


def _is(kind, name: str):
    """Whether the ground of each scene is of the named kind."""
    return jnp.abs(kind - sc.GROUNDS.index(name)) < 0.5


def _spot(point, distance, texel, seed, edge) -> _Spot:
    """Points of the ground with their noise, for a scene's seed and edge."""
    x, _, z = point
    # Detail fades with distance, before it aliases.
    calm = 1.0 / (1.0 + 0.012 * distance * distance)
    px, pz = x + seed, z + 0.37 * seed
    broad = noise(px * 0.9, pz * 0.9) - 0.5
    fine = (noise(px * 5.0, pz * 5.0) - 0.5) * calm
    crumb = (noise(px * 24.0, pz * 24.0) - 0.5) * seen(texel, 75.0)
    grit = (noise(px * 83.0, pz * 83.0) - 0.5) * seen(texel, 260.0)
    swell = sine(2.6 * pz + 1.3 * sine(0.8 * px + 1.0) + 4.0 * broad)
    chop = sine(5.1 * pz + 2.0 * px + 5.0 * broad) * calm
    tiny = (crumb + grit) * calm * calm
    behind = -z - edge
    return _Spot(x, z, behind, px, pz, broad, fine, tiny, calm, swell, chop)


def _colour(arrays, look: _Look, hue):
    """Mixes the ground's three colours; `hue` chooses the colour of each flower."""
    colour = []
    for i in range(3):
        first, second, third = (
            arrays["ground_colours"][:, j, i : i + 1] for j in range(3)
        )
        flower = jnp.where(hue > 0.65, _WHITE_PETAL[i], third)
        flower = jnp.where(hue > 0.82, _RED_PETAL[i], flower)
        third = jnp.where(_is(arrays["ground_kind"], "grass"), flower, third)
        mixed = first + look.second * (second - first)
        colour.append((mixed + look.third * (third - mixed)) * (1.0 + look.bright))
    return colour


def _sand(at: _Spot, shore) -> _Look:
    """Rippled sand; beyond the shore line, sea with foam and white crests."""
    sea = step(shore, 0.05)
    foam = step(0.22 - jnp.abs(shore - 0.12 + 0.25 * at.fine), 0.08)
    crest = sea * step(at.swell - 0.86, 0.1) * 0.6
    ripple = sine(9.0 * at.pz + 2.5 * sine(0.9 * at.px) + 3.0 * at.broad) * at.calm
    dry = 0.05 * ripple + 0.25 * at.fine + 0.35 * at.tiny
    bright = jnp.where(sea > 0.5, 0.10 * at.swell, dry)
    return _Look(sea, jnp.maximum(foam, crest), bright, 0.5 * sea)


def _blossom(at: _Spot):
    """Flower heads in the grass, at most one per cell, and their hues."""
    cx, cz = at.px * 2.2, at.pz * 2.2
    hue = chance(jnp.floor(cx), jnp.floor(cz))
    dx = centred(cx) - 0.5 * (hue - 0.5)
    dz = centred(cz) - 0.5 * (chance(jnp.floor(cz), jnp.floor(cx)) - 0.5)
    head = step(0.028 - jnp.square(dx) - jnp.square(dz), 0.008)
    return jnp.where(hue > 0.45, head, 0.0), hue


def _leaves(at: _Spot) -> _Look:
    """Leaves on a forest floor, some of them in the light."""
    leaf = noise(at.px * 3.0 + 2.0 * at.fine, at.pz * 7.0 + 3.0 * at.broad)
    bright = 0.5 * at.fine + 0.4 * at.tiny
    return _Look(step(leaf - 0.55, 0.12), step(leaf - 0.82, 0.08), bright, 0.1)


def _dunes(at: _Spot) -> _Look:
    """Long waves of sand with ripples on them."""
    wave = sine(3.0 * at.pz + 1.2 * sine(0.7 * at.px) + 2.0 * at.broad)
    ripple = sine(9.0 * at.pz + 2.5 * sine(0.9 * at.px) + 3.0 * at.broad) * at.calm
    bright = 0.06 * ripple + 0.12 * at.fine + 0.2 * at.tiny
    return _Look(step(wave, 0.7), 0.0, bright, 0.0)


def _road(at: _Spot) -> _Look:
    """A pavement of square stones, a kerb, and a road with a dashed line."""
    tarmac = step(at.behind, 0.02)
    kerb = step(0.13 - jnp.abs(at.behind), 0.02)
    dash = step(0.09 - jnp.abs(at.behind - 1.1), 0.02) * step(sine(1.9 * at.px), 0.1)
    sx, sz = at.px * 1.3, at.pz * 1.3
    joint = jnp.maximum(jnp.abs(centred(sx)), jnp.abs(centred(sz)))
    joint = step(joint - 0.46, 0.015) * at.calm
    stone = chance(jnp.floor(sx), jnp.floor(sz)) - 0.5
    paved = 0.12 * stone - 0.22 * joint + 0.2 * at.tiny
    bright = jnp.where(tarmac > 0.5, 0.25 * at.fine + 0.5 * at.tiny, paved)
    return _Look(tarmac, jnp.maximum(dash, 0.7 * kerb), bright, 0.05)


def _planks(at: _Spot, radius) -> _Look:
    """A plank floor under a round rug with rings."""
    column = jnp.floor(at.px * 1.6)
    board = chance(column, jnp.floor(at.pz * 0.5 + 7.0 * column))
    seam = step(jnp.abs(centred(at.px * 1.6)) - 0.475, 0.012) * at.calm
    fibre = noise(at.px * 14.0, at.pz * 1.5) - 0.5
    far = jnp.sqrt(at.x * at.x + at.z * at.z)
    rug = step(radius - far, 0.03)
    rings = step(sine(far * (15.0 / radius)), 0.2)
    bare = 0.25 * (board - 0.5) - 0.45 * seam + 0.3 * fibre
    bright = jnp.where(rug > 0.5, 0.35 * at.tiny, bare)
    return _Look(
        jnp.maximum(rug, 0.35 * board), rug * rings, bright, 0.25 * (1.0 - rug)
    )
