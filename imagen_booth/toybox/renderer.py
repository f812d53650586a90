"""Renders scenes with an analytic ray tracer, compiled once per picture size.

Every solid is the part of one quadric, x^2 + qy y^2 + z^2 + b y <= c in its own
coordinates, between three pairs of planes, so a single loop serves balls, boxes, tubes
and cones; rings are solids minus a round hole along y. Light is one shadow term
and one contact term per caster, both in closed form from the ellipsoid inscribed in
it: soft, free of noise, and the same at every resolution.

Arrays are [B, R], a row of rays for each scene; vectors and colours are three arrays.
"""

import functools
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from imagen_booth.toybox import surfaces
from imagen_booth.toybox.fields import chance, dot, noise, normalise, sine, step
from imagen_booth.toybox.packing import COLUMNS, GAMMA, MAX_RINGS, stack
from imagen_booth.toybox.scene import Scene

TILE = 256
SAMPLES = 2  # rays per pixel along each side
# Pictures of 64 px rendered together, and rays in memory at once.
GROUP = 8
RAYS = 1 << 16
# Outlines depend on one 128th of the picture to each side, the margin of a tile.
LINE_REACH = 128
_FAR = 1e9
# Outline number of lamps and highlights, which have no outline.
_UNLINED = -2
# Largest distance. Beyond it is only haze, and patterns would lose precision.
_EDGE = 80.0


def render(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """Square pictures of the scenes, uint8 [B, size, size, 3].

    Groups of small pictures and tiles of large ones are rendered on all cores at once.
    Each size compiles at most two programs, whatever B.

    Args:
      scenes: B scenes.
      size: Side in pixels, 64 to 1024.
    """
    group = max(1, GROUP * 64 * 64 // size**2)
    group = group if len(scenes) >= group else 1
    tile = min(size, TILE)
    out = np.empty((len(scenes), size, size, 3), np.uint8)
    corners = [(t, l) for t in range(0, size, tile) for l in range(0, size, tile)]

    def draw(job: tuple[int, tuple[int, int]]) -> None:
        start, (top, left) = job
        some = list(scenes[start : start + group])
        count = len(some)
        # A short last group is padded, so that it needs no other program.
        arrays = stack(some + some[-1:] * (group - count))
        part = out[start : start + count, top : top + tile, left : left + tile]
        part[:] = _draw(arrays, top, left, size, *part.shape[1:3])[:count]

    starts = range(0, len(scenes), group)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, itertools.product(starts, corners)))
    return out


def draw(arrays, size: int, *, rays: int = RAYS) -> jax.Array:
    """Pictures of packed scenes, left on the device.

    Args:
      arrays: B packed scenes, see `packing.stack`.
      size: Side in pixels, 64 to 1024.
      rays: How many rays are traced at once; an accelerator wants millions.

    Returns:
      uint8 [B, size, size, 3].
    """
    tile = min(size, TILE)
    corners = range(0, size, tile)
    rows = [
        jnp.concatenate(
            [_draw(arrays, top, left, size, tile, tile, rays) for left in corners],
            axis=2,
        )
        for top in corners
    ]
    return jnp.concatenate(rows, axis=1)


@functools.partial(jax.jit, static_argnames=("size", "height", "width", "rays"))
def _draw(arrays, top, left, size, height, width, rays=RAYS):
    """Traces one tile: uint8 [B, height, width, 3]."""
    reach = max(1, round(size * SAMPLES / LINE_REACH))
    high, wide = (n * SAMPLES + 2 * reach for n in (height, width))
    batch = arrays["eye"].shape[0]
    # Strips of rows are traced one after the other to bound the memory.
    strips = -(-high * wide * batch // rays)
    some = -(-high // strips)
    rows = jnp.arange(strips * some) - reach + top * SAMPLES
    columns = jnp.arange(wide) - reach + left * SAMPLES
    samples = float(size * SAMPLES)
    v = 1.0 - (rows.astype(jnp.float32) + 0.5) * (2.0 / samples)
    u = (columns.astype(jnp.float32) + 0.5) * (2.0 / samples) - 1.0

    def trace(strip):
        grid = (some, wide)
        across = jnp.broadcast_to(u[None, :], grid).reshape(1, -1)
        down = jnp.broadcast_to(strip[:, None], grid).reshape(1, -1)
        traced = _trace(arrays, across, down, 2.0 / size)
        return [x.reshape(batch, *grid) for x in traced]

    traced = jax.lax.map(trace, v.reshape(strips, some))
    *colour, outline = (
        x.swapaxes(0, 1).reshape(batch, -1, wide)[:, :high] for x in traced
    )
    u, v = u[None, None, :], v[None, :high, None]
    colour = _stylise(arrays, colour, outline, u, v, reach)
    inner = slice(reach, -reach)
    picture = jnp.stack(colour, -1)[:, inner, inner]
    picture = picture.reshape(batch, height, SAMPLES, width, SAMPLES, 3)
    return jnp.round(jnp.clip(picture.mean((2, 4)), 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _trace(arrays, u, v, pixel):
    """Red, green, blue (display values) and outline number of each ray, all [B, R].

    An outline is drawn where the outline number changes.
    """
    ray, tangent = _rays(arrays, u, v)
    eye = [arrays["eye"][:, i : i + 1] for i in range(3)]
    distance, index = _nearest(arrays, ray)
    down = jnp.minimum(ray[1], -1e-6)
    on_ground = (ray[1] < -1e-6) & (-eye[1] / down < distance)
    distance = jnp.where(on_ground, -eye[1] / down, distance)
    index = jnp.where(on_ground, -1, index)
    hit = index >= 0
    near = jnp.minimum(distance, _EDGE)
    point = [e + near * d for e, d in zip(eye, ray, strict=True)]

    own = _gather(arrays["table"], index)
    normal, local = _surface(own, point, ray)
    texel = near * tangent * pixel
    paint, relief = surfaces.solid(own, local, texel)
    tilt, soil, wet = surfaces.ground(arrays, point, distance, texel)
    level = normalise([tilt[0], jnp.ones_like(tilt[0]), tilt[1]])
    normal = [jnp.where(hit, n, g) for n, g in zip(normal, level, strict=True)]
    albedo = [jnp.where(hit, p, g) for p, g in zip(paint, soil, strict=True)]
    gloss = jnp.where(hit, own["gloss"], wet)
    glow = jnp.where(hit, own["glow"], 0.0)
    relief = jnp.where(hit, relief, 1.0)

    shade, contact = _occlusion(arrays, point, normal, index)
    colour = _lit(arrays, albedo, normal, ray, shade, contact, gloss, glow, relief, hit)
    # Far ground melts into the sky; a studio's floor becomes its wall.
    fade = arrays["ground_sizes"][:, 1:2]
    haze = jnp.where(on_ground, 1.0 - jnp.exp(-jnp.square(distance / fade)), 0.0)
    horizon = arrays["sky_colours"][:, 1]
    sky = surfaces.sky(arrays, ray)
    colour = [
        jnp.where(hit | on_ground, c + haze * (horizon[:, i : i + 1] - c), s)
        for i, (c, s) in enumerate(zip(colour, sky, strict=True))
    ]
    outline = jnp.where(glow > 0.5, _UNLINED, index)
    return *(_display(c) for c in colour), outline


def _rays(arrays, u, v):
    """Unit directions of the rays, and the tangent of half the field of view."""
    u, v = _brush(u, v, arrays["style"][:, 0:1], arrays["seed"])
    tangent, shift_u, shift_v = (arrays["view"][:, i : i + 1] for i in range(3))
    across, upward = (u - shift_u) * tangent, (v - shift_v) * tangent
    right, up, forward = (arrays["basis"][:, i] for i in range(3))
    return normalise(
        [
            right[:, i : i + 1] * across
            + up[:, i : i + 1] * upward
            + forward[:, i : i + 1]
            for i in range(3)
        ]
    ), tangent


def _nearest(arrays, ray):
    """Distance and index of the first shape along each ray; index -1 is none."""
    table = arrays["table"]
    rings, solids, _ = arrays["counts"]

    def meet(slot, carry, hollow):
        best, index = carry
        row = jax.lax.dynamic_index_in_dim(table, slot, 1, keepdims=False)

        def at(name):
            return row[:, COLUMNS[name], None]

        dx, dy, dz = (
            at(f"m{i}0") * ray[0] + at(f"m{i}1") * ray[1] + at(f"m{i}2") * ray[2]
            for i in range(3)
        )
        ox, oy, oz = at("ox"), at("oy"), at("oz")
        near, far, _ = _interval(at, (ox, oy, oz), (dx, dy, dz))
        if hollow:
            a = jnp.maximum(dx * dx + dz * dz, 1e-9)
            b = ox * dx + oz * dz
            c = ox * ox + oz * oz - jnp.square(at("hole"))
            root = b * b - a * c
            width = jnp.sqrt(jnp.maximum(root, 0.0))
            enter, leave = (-b - width) / a, (-b + width) / a
            inside = (root > 0.0) & (enter <= near)
            near = jnp.where(inside, jnp.maximum(near, leave), near)
        better = (near < far) & (near > 1e-3) & (near < best)
        return jnp.where(better, near, best), jnp.where(better, slot, index)

    start = (jnp.full_like(ray[0], _FAR), jnp.full(ray[0].shape, -1, jnp.int32))
    start = jax.lax.fori_loop(0, rings, lambda i, carry: meet(i, carry, True), start)
    return jax.lax.fori_loop(
        MAX_RINGS, MAX_RINGS + solids, lambda i, carry: meet(i, carry, False), start
    )


def _interval(at, origin, direction):
    """Where lines enter and leave a solid without its hole, and the planes' part.

    Returns:
      (near, far, plane) with near > far for a miss; `plane` holds the three
      distances at which the line enters the pairs of planes.
    """
    ox, oy, oz = origin
    dx, dy, dz = direction
    qy, b, c = at("qy"), at("b"), at("c")
    quadratic = dx * dx + dz * dz + qy * dy * dy
    linear = ox * dx + oz * dz + (qy * oy + 0.5 * b) * dy
    constant = ox * ox + oz * oz + (qy * oy + b) * oy - c
    root = linear * linear - quadratic * constant
    width = jnp.sqrt(jnp.maximum(root, 0.0))
    safe = jnp.where(jnp.abs(quadratic) < 1e-9, 1e-9, quadratic)
    first, last = (-linear - width) / safe, (-linear + width) / safe
    # Steep lines through a cone lie inside it beyond its tip or before it.
    closed = safe > 0.0
    beyond = b * dy < 0.0
    near = jnp.where(closed, first, jnp.where(beyond, first, -_FAR))
    far = jnp.where(closed, last, jnp.where(beyond, _FAR, last))
    near = jnp.where(root < 0.0, _FAR, near)
    wide = at("wide")
    plane = []
    for o, d, span in (
        (ox, dx, wide),
        (oy - at("mid"), dy, at("span")),
        (oz, dz, wide),
    ):
        inverse = 1.0 / jnp.where(jnp.abs(d) < 1e-9, 1e-9, d)
        middle, reach = -o * inverse, span * jnp.abs(inverse)
        plane.append(middle - reach)
        far = jnp.minimum(far, middle + reach)
    near = jnp.maximum(jnp.maximum(near, plane[0]), jnp.maximum(plane[1], plane[2]))
    return near, far, plane


def _gather(table, index):
    """The table's row of each ray's shape, as a dict of [B, R] arrays."""
    batch, places, _ = table.shape
    first = places * jnp.arange(batch, dtype=jnp.int32)[:, None]
    place = jnp.maximum(index, 0) + first
    columns = table.reshape(batch * places, -1).T
    return {name: columns[i][place] for name, i in COLUMNS.items()}


def _surface(own, point, ray):
    """World normal and own coordinates of each hit."""
    matrix = [[own[f"m{i}{j}"] for j in range(3)] for i in range(3)]
    offset = [p - own[name] for p, name in zip(point, ("cx", "cy", "cz"), strict=True)]
    x, y, z = (dot(row, offset) for row in matrix)
    dx, dy, dz = (dot(row, ray) for row in matrix)
    origin = (own["ox"], own["oy"], own["oz"])
    near, _, plane = _interval(own.__getitem__, origin, (dx, dy, dz))
    gradient = [x, own["qy"] * y + 0.5 * own["b"], z]
    for axis, d in enumerate((dx, dy, dz)):
        on_plane = plane[axis] >= near
        for i in range(3):
            face = -jnp.sign(d) if i == axis else jnp.zeros_like(d)
            gradient[i] = jnp.where(on_plane, face, gradient[i])
    radius = x * x + z * z
    inner = (own["hole"] > 0.0) & (radius < jnp.square(own["hole"]) * 1.002)
    gradient = [
        jnp.where(inner, g, n)
        for g, n in zip((-x, jnp.zeros_like(y), -z), gradient, strict=True)
    ]
    normal = [dot(gradient, column) for column in zip(*matrix, strict=True)]
    return normalise(normal), (x, y, z)


def _occlusion(arrays, point, normal, index):
    """Sunlight that arrives, and closeness to other shapes, both [B, R] in [0, 1]."""
    table = arrays["table"]
    rings, _, casters = arrays["counts"]
    sun = [arrays["sun"][:, i : i + 1] for i in range(3)]
    soft = arrays["softness"]

    def block(slot, carry):
        shade, contact = carry
        row = jax.lax.dynamic_index_in_dim(table, slot, 1, keepdims=False)

        def at(name):
            return row[:, COLUMNS[name], None]

        offset = [p - at(n) for p, n in zip(point, ("cx", "cy", "cz"), strict=True)]
        rows = [[at(f"m{i}{j}") for j in range(3)] for i in range(3)]
        x, y, z = (dot(r, offset) for r in rows)
        lx, ly, lz = (dot(r, sun) for r in rows)
        y = y - at("mid")
        y, ly = y / at("span"), ly / at("span")
        length2 = lx * lx + ly * ly + lz * lz
        ahead = -(x * lx + y * ly + z * lz) / length2
        square = x * x + y * y + z * z
        miss = jnp.sqrt(jnp.maximum(square - ahead * ahead * length2, 0.0))
        blur = jnp.clip(soft * ahead * jnp.sqrt(length2), 0.06, 0.9)
        open_ = jnp.clip((miss - 1.0) / (2.0 * blur) + 0.5, 0.0, 1.0)
        other = (index != slot) & (at("casts") > 0.5)
        open_ = jnp.where(other & (ahead > 0.0), open_, 1.0)
        # The part of the sky above the surface that the ellipsoid covers.
        facing = -dot(normal, offset) * jax.lax.rsqrt(dot(offset, offset) + 1e-6)
        cover = jnp.maximum(facing + 0.15, 0.0) / jnp.maximum(square, 0.8)
        cover = jnp.where(other, cover, 0.0)
        return jnp.minimum(shade, open_ * open_ * (3.0 - 2.0 * open_)), contact + cover

    start = (jnp.ones_like(point[0]), jnp.zeros_like(point[0]))
    start = jax.lax.fori_loop(0, rings, block, start)
    shade, contact = jax.lax.fori_loop(MAX_RINGS, MAX_RINGS + casters, block, start)
    return shade, jnp.exp(-0.55 * contact)


def _lit(arrays, albedo, normal, ray, shade, contact, gloss, glow, relief, hit):
    """Linear colour of the surfaces under the scene's light."""
    sun = [arrays["sun"][:, i : i + 1] for i in range(3)]
    cartoon = arrays["style"][:, 2:3] > 0.5
    facing = dot(normal, sun)
    # Wrapped light keeps the shadow side soft, as on vinyl.
    diffuse = jnp.clip(0.8 * facing + 0.2, 0.0, 1.0) * shade
    bands = 0.25 + 0.75 * step(diffuse - 0.3, 0.02)
    diffuse = jnp.where(cartoon, bands, diffuse)
    half = normalise([s - d for s, d in zip(sun, ray, strict=True)])
    broad = jnp.maximum(dot(normal, half), 0.0) ** 16
    sharp = broad**3
    highlight = gloss * shade * (0.25 * broad + 1.2 * gloss * sharp)
    highlight = jnp.where(cartoon, gloss * step(sharp - 0.5, 0.05), highlight)
    rim = 1.0 + dot(normal, ray)
    rim = jnp.where(hit, 0.22 * rim * rim * rim * contact, 0.0)
    upward = 0.5 + 0.5 * normal[1]
    contact = jnp.where(cartoon, 0.35 + 0.65 * contact, contact)
    light, above, below = (arrays["light"][:, i] for i in range(3))
    colour = []
    for i in range(3):
        key, top, bounce = (c[:, i : i + 1] for c in (light, above, below))
        ambient = contact * (top * upward + bounce * (1.0 - upward))
        body = albedo[i] * relief * (key * diffuse + ambient + 1.3 * glow)
        colour.append(body + key * highlight + top * rim)
    return colour


def _brush(u, v, painting, seed):
    """Gathers rays into dabs of a brush where the style is painting."""
    wobble = 0.012 * sine(9.0 * v + seed) + 0.008 * sine(23.0 * u + 2.0 * seed)
    cells = 26.0
    a, b = (u + 0.45 * v) * cells, (v - 0.45 * u) * cells * 0.6
    row = jnp.floor(b)
    a = a + 0.5 * row
    cell = jnp.floor(a)
    jitter = chance(cell + seed, row) - 0.5
    a_mid, b_mid = cell + 0.5 + 0.4 * jitter - 0.5 * row, row + 0.5 - 0.4 * jitter
    a, b = a_mid / cells, b_mid / (cells * 0.6)
    u_mid, v_mid = (a - 0.45 * b) / 1.2025, (b + 0.45 * a) / 1.2025
    pull = 0.6 * painting
    u_new = u + pull * (u_mid - u) + painting * wobble
    v_new = v + pull * (v_mid - v) + painting * wobble
    return u_new, v_new


def _stylise(arrays, colour, outline, u, v, reach):
    """Applies outlines, paper and canvas to display colours [B, Hs, Ws]."""
    painting, sketch, cartoon = (arrays["style"][:, i, None, None] for i in range(3))
    seed = arrays["seed"][:, :, None]
    edge = jnp.zeros(outline.shape, jnp.bool_)
    for axis in (1, 2):
        for shift in (reach, -reach):
            other = jnp.roll(outline, shift, axis)
            lined = (outline != _UNLINED) & (other != _UNLINED)
            edge = edge | (lined & (other != outline))
    line = edge.astype(jnp.float32)
    luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    stroke = sine((u + 0.8 * v) * 80.0 + 2.0 * sine(7.0 * v)) * 0.5 + 0.5
    across = sine((u - 0.9 * v) * 80.0 + 2.0 * sine(6.0 * u)) * 0.5 + 0.5
    dark = step(0.72 - luminance - 0.45 * stroke, 0.1) * 0.45
    dark = dark + step(0.42 - luminance - 0.35 * across, 0.1) * 0.35
    pencil = (0.96 - dark) * (1.0 - 0.8 * line)
    daub = (
        noise((u + 0.45 * v) * 9.0 + seed, (v - 0.45 * u) * 46.0)
        - 0.5
        + 0.7 * (noise((u + 0.45 * v) * 40.0, (v - 0.45 * u) * 160.0) - 0.5)
    )
    out = []
    for i, c in enumerate(colour):
        grey = luminance
        oil = grey + 1.25 * (c - grey) + 0.11 * daub
        toon = (grey + 1.3 * (c - grey)) * (1.0 - 0.92 * line)
        paper = pencil * (1.0, 0.985, 0.94)[i]
        c = c + painting * (oil - c)
        c = c + cartoon * (toon - c)
        out.append(c + sketch * (paper - c))
    return out


def _display(linear):
    """Linear light to display values, with a soft shoulder towards white."""
    square = linear * linear
    shoulder = jnp.sqrt(jnp.sqrt(1.0 + square * square))
    return jnp.maximum(linear / shoulder, 1e-6) ** (1.0 / GAMMA)
