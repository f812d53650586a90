"""Draws scenes with an analytic ray tracer, jitted once per picture size.

Every solid is the part of one quadric between three pairs of parallel planes, so a
single loop meets balls, boxes, tubes and cones alike. Light is one shadow term and
one contact term per caster, both in closed form from the ellipsoid inscribed in it:
soft, free of noise, and the same at every resolution.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from imagen_booth.data.toybox import scene as sc
from imagen_booth.errors import InputError

MAX_RINGS = 6
MAX_SHAPES = 90
TILE = 256
# So many pictures of 64 px are drawn together, and this many rays held at once.
GROUP = 8
RAYS = 1 << 16
# Outlines look one 128th of the picture to each side, so a tile needs this margin.
LINE_REACH = 128

_FAR = 1e9
_COLUMNS = {
    name: i
    for i, name in enumerate(
        [
            "m00",
            "m01",
            "m02",
            "m10",
            "m11",
            "m12",
            "m20",
            "m21",
            "m22",
            "cx",
            "cy",
            "cz",
            "qy",
            "b",
            "c",
            "w",
            "mid",
            "span",
            "hole",
            "cast",
            "ar",
            "ag",
            "ab",
            "br",
            "bg",
            "bb",
            "texture",
            "scale",
            "ax",
            "ay",
            "az",
            "offset",
            "gloss",
            "glow",
            "grain",
            "subject",
            "hx",
            "hy",
            "hz",
            "ox",
            "oy",
            "oz",
        ]
    )
}
_BRIGHT = 2.2


def pack(scene: sc.Scene) -> dict[str, np.ndarray]:
    """The scene as the fixed-size float32 arrays that the tracer reads.

    Raises:
      InputError: the scene has more shapes than the tracer has places for.
    """
    rings = [s for s in scene.shapes if s.hole > 0.0]
    solids = sorted(
        (s for s in scene.shapes if s.hole == 0.0), key=lambda s: not s.casts
    )
    if len(rings) > MAX_RINGS or len(solids) > MAX_SHAPES:
        raise InputError(
            f"scene.shapes has {len(rings)} rings and {len(solids)} solids; the "
            f"renderer takes {MAX_RINGS} and {MAX_SHAPES}: leave out some props."
        )
    eye = np.asarray(scene.camera.eye)
    forward = np.asarray(scene.camera.target) - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right = right / np.linalg.norm(right)
    up = np.cross(right, forward)

    table = np.zeros((MAX_RINGS + MAX_SHAPES, len(_COLUMNS)))
    rows = [_row(s) for s in rings + solids]
    if rows:
        values = np.asarray(rows)
        table[: len(rings)] = values[: len(rings)]
        table[MAX_RINGS : MAX_RINGS + len(solids)] = values[len(rings) :]
    # Unused places hold a ball of radius 1e-3 that the camera never sees.
    empty = table[:, _COLUMNS["c"]] == 0.0
    table[empty, :12] = [1e3, 0, 0, 0, 1e3, 0, 0, 0, 1e3, 0, -1e3, 0]
    table[empty, 12:18] = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    table[:, -3:] = np.einsum(
        "nij,nj->ni", table[:, :9].reshape(-1, 3, 3), eye - table[:, 9:12]
    )

    towards = np.asarray(scene.light.towards)
    ground, sky, light = scene.ground, scene.sky, scene.light
    packed = {
        "table": table,
        "counts": [len(rings), len(solids), sum(s.casts for s in solids)],
        "eye": eye,
        "basis": np.stack([right, up, forward]),
        "view": [np.tan(np.radians(scene.camera.fov) / 2), *scene.camera.shift],
        "sun": towards / np.linalg.norm(towards),
        "light": [light.colour, light.above, light.below],
        "softness": [light.softness],
        "sky_colours": [
            _linear(sky.top),
            _linear(sky.horizon),
            _linear(sky.disc_colour),
        ],
        "sky_amounts": [sky.clouds, sky.stars, sky.disc],
        "ground_kind": [sc.GROUNDS.index(ground.kind)],
        "ground_colours": [
            _linear(ground.colour),
            _linear(ground.second),
            _linear(ground.third),
        ],
        "ground_sizes": [ground.edge, ground.fade],
        "style": [scene.style == s for s in ("painting", "sketch", "cartoon")],
        "seed": [scene.seed % 1000 + 0.5],
    }
    return {
        name: np.asarray(value, np.int32 if name == "counts" else np.float32)
        for name, value in packed.items()
    }


def _row(shape: sc.Shape) -> list[float]:
    """One line of the table, without the camera's position in own coordinates."""
    hx, hy, hz = shape.half
    (x0, x1, x2), (y0, y1, y2), (z0, z1, z2) = shape.turn
    low, high, wide = shape.low, shape.high, 1.1
    qy, b, c = 1.0, 0.0, 1.0
    if shape.kind == "box":
        wide, c = 1.0, shape.round**2
    elif shape.kind == "tube":
        middle, slope = (1.0 + shape.taper) / 2, (1.0 - shape.taper) / 2
        qy, b, c = -(slope**2), 2 * middle * slope, middle**2
        wide = 1.1 * max(1.0, shape.taper)
    else:
        # Clear of the ball, so that grazing rays never meet a plane.
        low = -1.1 if low == -1.0 else low
        high = 1.1 if high == 1.0 else high
    m = shape.material
    return [
        x0 / hx, x1 / hx, x2 / hx, y0 / hy, y1 / hy, y2 / hy, z0 / hz, z1 / hz, z2 / hz,
        *shape.centre, qy, b, c, wide, (low + high) / 2, (high - low) / 2, shape.hole,
        float(shape.casts), *_linear(m.colour), *_linear(m.second),
        sc.TEXTURES.index(m.texture), m.scale, *m.axis, m.offset, m.gloss, m.glow,
        m.grain, float(shape.subject), hx, hy, hz, 0.0, 0.0, 0.0,
    ]  # fmt: skip


def _linear(colour: sc.Vec) -> sc.Vec:
    r, g, b = colour
    return (r**_BRIGHT, g**_BRIGHT, b**_BRIGHT)


def render(
    scenes: Sequence[sc.Scene], size: int, *, supersample: int = 2
) -> np.ndarray:
    """Square pictures of the scenes, uint8 [B, size, size, 3].

    Groups of small pictures and tiles of large ones are drawn on all cores at once;
    whatever B, each size compiles at most two programs.

    Args:
      scenes: B scenes.
      size: side in pixels, 64 to 1024.
      supersample: rays per pixel along each side.
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
        # A short last group is filled up, so that nothing compiles again.
        arrays = _stack(some + some[-1:] * (group - count))
        part = out[start : start + count, top : top + tile, left : left + tile]
        part[:] = _draw(arrays, top, left, size, *part.shape[1:3], supersample)[:count]

    starts = range(0, len(scenes), group)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, itertools.product(starts, corners)))
    return out


def render_crop(
    scenes: Sequence[sc.Scene],
    size: int,
    corner: tuple[int, int],
    crop: tuple[int, int],
    *,
    supersample: int = 2,
) -> np.ndarray:
    """The part of the size x size pictures that starts at `corner` (top, left).

    Only the crop and a thin margin for outlines are traced.

    Returns:
      uint8 [B, *crop, 3], equal to the same part of `render(scenes, size)`.
    """
    return np.asarray(_draw(_stack(scenes), *corner, size, *crop, supersample))


def _stack(scenes: Sequence[sc.Scene]) -> dict[str, np.ndarray]:
    packed = [pack(scene) for scene in scenes]
    arrays = {name: np.stack([p[name] for p in packed]) for name in packed[0]}
    # The loops run to the fullest scene of the batch.
    arrays["counts"] = arrays["counts"].max(0)
    return arrays


@functools.partial(jax.jit, static_argnames=("size", "height", "width", "supersample"))
def _draw(arrays, top, left, size, height, width, supersample):
    """Traces one tile: uint8 [B, height, width, 3]."""
    reach = max(1, round(size * supersample / LINE_REACH))
    high, wide = (n * supersample + 2 * reach for n in (height, width))
    batch = arrays["eye"].shape[0]
    # Strips of rows are traced one after the other: that bounds the memory, and
    # what the outlines read more than once is computed once.
    strips = -(-high * wide * batch // RAYS)
    some = -(-high // strips)
    rows = jnp.arange(strips * some) - reach + top * supersample
    columns = jnp.arange(wide) - reach + left * supersample
    samples = float(size * supersample)
    v = 1.0 - (rows.astype(jnp.float32) + 0.5) * (2.0 / samples)
    u = (columns.astype(jnp.float32) + 0.5) * (2.0 / samples) - 1.0

    def trace(strip):
        grid = (some, wide)
        across = jnp.broadcast_to(u[None, :], grid).reshape(1, -1)
        down = jnp.broadcast_to(strip[:, None], grid).reshape(1, -1)
        *colour, index = _trace(arrays, across, down, 2.0 / size)
        return [x.reshape(batch, *grid) for x in (*colour, index)]

    traced = jax.lax.map(trace, v.reshape(strips, some))
    *colour, index = (
        x.swapaxes(0, 1).reshape(batch, -1, wide)[:, :high] for x in traced
    )
    v = v[:high]
    u, v = u[None, None, :], v[None, :, None]
    colour = _stylise(arrays, colour, index, u, v, reach)
    inner = slice(reach, -reach)
    picture = jnp.stack(colour, -1)[:, inner, inner]
    picture = picture.reshape(batch, height, supersample, width, supersample, 3)
    return jnp.round(jnp.clip(picture.mean((2, 4)), 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _trace(arrays, u, v, pixel):
    """Red, green, blue (display values) and shape index of each ray, all [B, R]."""
    painting = arrays["style"][:, 0:1]
    seed = arrays["seed"]
    u, v = _brush(u, v, painting, seed)
    tangent, shift_u, shift_v = (arrays["view"][:, i : i + 1] for i in range(3))
    basis = arrays["basis"]
    su, sv = (u - shift_u) * tangent, (v - shift_v) * tangent
    ray = [
        basis[:, 0, i : i + 1] * su + basis[:, 1, i : i + 1] * sv
        + basis[:, 2, i : i + 1]
        for i in range(3)
    ]  # fmt: skip
    ray = _normalise(ray)
    eye = [arrays["eye"][:, i : i + 1] for i in range(3)]

    distance, index = _nearest(arrays, ray)
    down = jnp.minimum(ray[1], -1e-6)
    on_ground = (ray[1] < -1e-6) & (-eye[1] / down < distance)
    distance = jnp.where(on_ground, -eye[1] / down, distance)
    index = jnp.where(on_ground, -1, index)
    hit = index >= 0
    point = [e + jnp.minimum(distance, 80.0) * d for e, d in zip(eye, ray, strict=True)]

    own = _gather(arrays["table"], index)
    point = point
    normal, local = _surface(own, point, ray)
    texel = jnp.minimum(distance, 80.0) * tangent * pixel
    wave, ground_colour, ground_gloss = _ground(arrays, point, distance, texel)
    flat = [wave[0], jnp.ones_like(wave[0]), wave[1]]
    normal = [
        jnp.where(hit, n, g) for n, g in zip(normal, _normalise(flat), strict=True)
    ]
    normal = normal
    paint, relief = _texture(own, local, texel)
    albedo = [jnp.where(hit, p, g) for p, g in zip(paint, ground_colour, strict=True)]
    gloss = jnp.where(hit, own["gloss"], ground_gloss)
    glow = jnp.where(hit, own["glow"], 0.0)

    shade, contact = _occlusion(arrays, point, normal, index)
    colour = _lit(arrays, albedo, normal, ray, shade, contact, gloss, glow, relief, hit)
    sky = _sky(arrays, ray)
    # Far ground melts into the sky; a studio's floor becomes its wall.
    fade = arrays["ground_sizes"][:, 1:2]
    haze = jnp.where(on_ground, 1.0 - jnp.exp(-jnp.square(distance / fade)), 0.0)
    horizon = arrays["sky_colours"][:, 1]
    solid = hit | on_ground
    colour = [
        jnp.where(solid, c + haze * (horizon[:, i : i + 1] - c), s)
        for i, (c, s) in enumerate(zip(colour, sky, strict=True))
    ]
    return *(_display(c) for c in colour), index


def _nearest(arrays, ray):
    """Distance and index of the first shape along each ray; index -1 is none."""
    table = arrays["table"]
    rings, solids, _ = arrays["counts"]

    def meet(slot, carry, hollow):
        best, index = carry
        row = jax.lax.dynamic_index_in_dim(table, slot, 1, keepdims=False)
        at = lambda name: row[:, _COLUMNS[name], None]  # noqa: E731
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
    wide = at("w")
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
    return {name: columns[i][place] for name, i in _COLUMNS.items()}


def _surface(own, point, ray):
    """World normal and own coordinates of each hit."""
    matrix = [[own[f"m{i}{j}"] for j in range(3)] for i in range(3)]
    offset = [p - own[name] for p, name in zip(point, ("cx", "cy", "cz"), strict=True)]
    x, y, z = (_dot(row, offset) for row in matrix)
    dx, dy, dz = (_dot(row, ray) for row in matrix)
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
    normal = [
        gradient[0] * matrix[0][j] + gradient[1] * matrix[1][j]
        + gradient[2] * matrix[2][j]
        for j in range(3)
    ]  # fmt: skip
    return _normalise(normal), (x, y, z)


def _texture(own, local, texel):
    """Linear colour of the surface (three arrays) and its fine relief, around 1."""
    x, y, z = local
    toy = (x * own["hx"], y * own["hy"], z * own["hz"])
    axis = (own["ax"], own["ay"], own["az"])
    scale, offset = own["scale"], own["offset"]
    along = _dot(axis, toy) * scale
    height = _dot(axis, local)
    sx, sy, sz = (c * scale + 7.0 * offset for c in toy)
    apart = jnp.sqrt(sum(jnp.square(c - a) for c, a in zip(local, axis, strict=True)))
    lumps = _lumps(sx, sy, sz)
    ring = jnp.sqrt(x * x + z * z)
    # The cosine of twelve times the angle, by doubling and tripling.
    twice = 2.0 * jnp.square(z / jnp.maximum(ring, 1e-3)) - 1.0
    fourfold = 2.0 * twice * twice - 1.0
    hours = fourfold * (4.0 * fourfold * fourfold - 3.0)
    masks = {
        "stripes": _step(_sine(6.2832 * (along + offset) + 0.6 * lumps), 0.15),
        "spots": _spots(sx, sy, sz),
        "patches": _step(lumps - 0.35, 0.06),
        "checks": _step(
            _sine(3.1416 * sx) * _sine(3.1416 * sy) * _sine(3.1416 * sz), 0.03
        ),
        "wood": 0.5 + 0.5 * _sine(6.2832 * (sx * 0.4 + sz) + 2.0 * lumps),
        "split": _step(height - offset, 0.03),
        "blob": _step(offset - apart, 0.03),
        "dial": _step(hours - 0.75, 0.1) * _step(0.07 - jnp.abs(ring - 0.8), 0.01),
        "windows": _step(0.22 - jnp.abs(_centred(sx)), 0.02)
        * _step(0.28 - jnp.abs(_centred(sy)), 0.02),
        "band": _step(scale - jnp.abs(height - offset), 0.02),
        "fade": jnp.clip(0.5 + 0.5 * height - offset, 0.0, 1.0),
    }
    kind = own["texture"]
    mask = jnp.zeros_like(x)
    for i, name in enumerate(sc.TEXTURES):
        if name in masks:
            mask = jnp.where(jnp.abs(kind - i) < 0.5, masks[name], mask)
    colour = [own[f"a{c}"] + mask * (own[f"b{c}"] - own[f"a{c}"]) for c in "rgb"]
    tx, ty, tz = toy
    curl = _sine(31.0 * tx + 3.0 * _sine(17.0 * ty)) * _sine(
        43.0 * ty + 2.0 * _sine(23.0 * tz)
    )
    tuft = _sine(97.0 * tx + 31.0 * tz + 4.0 * _sine(61.0 * ty + 9.0 * tz))
    strand = _sine(
        330.0 * tx + 190.0 * tz + 6.0 * _sine(47.0 * ty + 3.0 * curl) + 2.0 * tuft
    )
    hair = (
        0.5 * curl
        + 0.5 * tuft * _seen(texel, 110.0)
        + 1.1 * strand * _seen(texel, 390.0)
    )
    return colour, 1.0 + 0.11 * own["grain"] * hair


def _occlusion(arrays, point, normal, index):
    """Sunlight that arrives, and closeness to other shapes, both [B, R] in [0, 1]."""
    table = arrays["table"]
    rings, _, casters = arrays["counts"]
    sun = [arrays["sun"][:, i : i + 1] for i in range(3)]
    soft = arrays["softness"]

    def block(slot, carry):
        shade, contact = carry
        row = jax.lax.dynamic_index_in_dim(table, slot, 1, keepdims=False)
        at = lambda name: row[:, _COLUMNS[name], None]  # noqa: E731
        offset = [p - at(n) for p, n in zip(point, ("cx", "cy", "cz"), strict=True)]
        rows = [[at(f"m{i}{j}") for j in range(3)] for i in range(3)]
        x, y, z = (_dot(r, offset) for r in rows)
        lx, ly, lz = (_dot(r, sun) for r in rows)
        y = y - at("mid")
        y, ly = y / at("span"), ly / at("span")
        length2 = lx * lx + ly * ly + lz * lz
        ahead = -(x * lx + y * ly + z * lz) / length2
        square = x * x + y * y + z * z
        miss = jnp.sqrt(jnp.maximum(square - ahead * ahead * length2, 0.0))
        blur = jnp.clip(soft * ahead * jnp.sqrt(length2), 0.06, 0.9)
        open_ = jnp.clip((miss - 1.0) / (2.0 * blur) + 0.5, 0.0, 1.0)
        other = (index != slot) & (at("cast") > 0.5)
        open_ = jnp.where(other & (ahead > 0.0), open_, 1.0)
        # The part of the sky above the surface that the ellipsoid covers.
        facing = -_dot(normal, offset) * jax.lax.rsqrt(_dot(offset, offset) + 1e-6)
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
    facing = _dot(normal, sun)
    # Wrapped light keeps the shadow side soft, as on vinyl.
    diffuse = jnp.clip(0.8 * facing + 0.2, 0.0, 1.0) * shade
    bands = 0.25 + 0.75 * _step(diffuse - 0.3, 0.02)
    diffuse = jnp.where(cartoon, bands, diffuse)
    half = _normalise([s - d for s, d in zip(sun, ray, strict=True)])
    glint = jnp.maximum(_dot(normal, half), 0.0)
    glint = glint * glint
    glint = glint * glint
    glint = glint * glint
    broad = glint * glint
    sharp = broad * broad * broad
    highlight = gloss * shade * (0.25 * broad + 1.2 * gloss * sharp)
    highlight = jnp.where(cartoon, gloss * _step(sharp - 0.5, 0.05), highlight)
    rim = 1.0 + _dot(normal, ray)
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


def _sky(arrays, ray):
    """Linear colour of the sky along each ray."""
    top, horizon, disc_colour = (arrays["sky_colours"][:, i] for i in range(3))
    clouds, stars, disc = (arrays["sky_amounts"][:, i : i + 1] for i in range(3))
    seed = arrays["seed"]
    height = jnp.clip(ray[1], 0.0, 1.0)
    rise = jnp.sqrt(height)
    flat = 1.0 / (height + 0.12)
    cx, cz = ray[0] * flat + seed, ray[2] * flat
    puff = _noise(cx * 1.1, cz * 1.6) + 0.5 * _noise(cx * 2.7 + 9.0, cz * 3.9)
    cover = clouds * _step(puff - 0.85, 0.16)
    sun = [arrays["sun"][:, i : i + 1] for i in range(3)]
    near = _dot(ray, sun)
    moon = disc * (_step(near - 0.9965, 0.0006) + 0.25 * jnp.maximum(near, 0.0) ** 24)
    gx, gy = ray[0] * flat * 14.0, ray[2] * flat * 14.0
    bright = _hash(jnp.floor(gx), jnp.floor(gy) + seed)
    twinkle = jnp.square(_centred(gx)) + jnp.square(_centred(gy))
    twinkle = stars * jnp.where(bright > 0.8, _step(0.03 - twinkle, 0.015), 0.0)
    colour = []
    for i in range(3):
        low, high = horizon[:, i : i + 1], top[:, i : i + 1]
        c = low + rise * (high - low)
        c = c + cover * (0.95 * jnp.maximum(low, 0.25) + 0.2 - c)
        colour.append(c + moon * disc_colour[:, i : i + 1] + twinkle)
    return colour


def _ground(arrays, point, distance, texel):
    """Tilt (two arrays), linear colour (three) and gloss of the ground plane."""
    x, _, z = point
    kind = arrays["ground_kind"]
    seed = arrays["seed"]
    edge = arrays["ground_sizes"][:, 0:1]
    # Detail dies away with distance, before it would alias.
    calm = 1.0 / (1.0 + 0.012 * distance * distance)
    px, pz = x + seed, z + 0.37 * seed
    broad = _noise(px * 0.9, pz * 0.9) - 0.5
    fine = (_noise(px * 5.0, pz * 5.0) - 0.5) * calm
    tiny = (_noise(px * 24.0, pz * 24.0) - 0.5) * calm * calm * _seen(texel, 75.0)
    grit = (_noise(px * 83.0, pz * 83.0) - 0.5) * calm * calm * _seen(texel, 260.0)
    tiny = tiny + grit

    def is_(name):
        return jnp.abs(kind - sc.GROUNDS.index(name)) < 0.5

    behind = -z - edge + 0.35 * _sine(1.1 * x + seed) + 0.5 * broad
    ripple = _sine(9.0 * pz + 2.5 * _sine(0.9 * px) + 3.0 * broad) * calm
    swell = _sine(2.6 * pz + 1.3 * _sine(0.8 * px + 1.0) + 4.0 * broad)
    chop = _sine(5.1 * pz + 2.0 * px + 5.0 * broad) * calm
    gust = _sine(3.0 * pz + 1.2 * _sine(0.7 * px) + 2.0 * broad)

    cx, cz = px * 2.2, pz * 2.2
    pick = _hash(jnp.floor(cx), jnp.floor(cz))
    jx, jz = 0.5 * (pick - 0.5), 0.5 * (_hash(jnp.floor(cz), jnp.floor(cx)) - 0.5)
    petal = jnp.square(_centred(cx) - jx) + jnp.square(_centred(cz) - jz)
    blossom = jnp.where(pick > 0.45, _step(0.028 - petal, 0.008), 0.0)
    leaf = _noise(px * 3.0 + 2.0 * fine, pz * 7.0 + 3.0 * broad)
    plank = _centred(px * 1.6)
    board = _hash(jnp.floor(px * 1.6), jnp.floor(pz * 0.5 + 7.0 * jnp.floor(px * 1.6)))
    seam = _step(jnp.abs(plank) - 0.475, 0.012) * calm
    far = jnp.sqrt(x * x + z * z)
    rug = _step(edge - far, 0.03)
    weave = _step(_sine(far * (15.0 / edge)), 0.2)
    stone = _step(
        jnp.maximum(jnp.abs(_centred(px * 1.3)), jnp.abs(_centred(pz * 1.3))) - 0.46,
        0.015,
    )
    dash = _step(0.09 - jnp.abs(-z - edge - 1.1), 0.02) * _step(_sine(1.9 * px), 0.1)
    kerb = _step(-z - edge, 0.02)
    kerb_stone = _step(0.13 - jnp.abs(-z - edge), 0.02)

    # For each kind: mix of second, mix of third, brightness, gloss.
    zero = jnp.zeros_like(x)
    sea = _step(behind, 0.05)
    foam = _step(0.22 - jnp.abs(behind - 0.12 + 0.25 * fine), 0.08)
    surf = sea * _step(swell - 0.86, 0.1) * 0.6
    looks = {
        "studio": (zero, zero, zero, zero),
        "sand": (sea, jnp.maximum(foam, surf), jnp.where(sea > 0.5, 0.10 * swell, 0.05 * ripple + 0.25 * fine + 0.35 * tiny), 0.5 * sea),
        "snow": (_step(broad - 0.1, 0.3) * 0.5, zero, 0.08 * broad + 0.10 * fine + 0.12 * tiny, zero + 0.1),
        "grass": (jnp.clip(0.5 + 1.2 * broad + 0.7 * fine, 0.0, 1.0), blossom, 0.35 * fine + 0.55 * tiny, zero),
        "leaves": (_step(leaf - 0.55, 0.12), _step(leaf - 0.82, 0.08), 0.5 * fine + 0.4 * tiny, zero + 0.1),
        "dunes": (_step(gust, 0.7), zero, 0.06 * ripple + 0.12 * fine + 0.2 * tiny, zero),
        "road": (kerb, jnp.maximum(dash, kerb_stone * 0.7), jnp.where(kerb > 0.5, 0.25 * fine + 0.5 * tiny, 0.12 * (_hash(jnp.floor(px * 1.3 + 0.5), jnp.floor(pz * 1.3 + 0.5)) - 0.5) - 0.22 * stone * calm + 0.2 * tiny), zero + 0.05),
        "planks": (jnp.maximum(rug, 0.35 * board), rug * weave, jnp.where(rug > 0.5, 0.35 * tiny, 0.25 * (board - 0.5) - 0.45 * seam + 0.3 * (_noise(px * 14.0, pz * 1.5) - 0.5)), 0.25 * (1.0 - rug)),
        "waves": (jnp.clip(0.5 + 0.5 * swell, 0.0, 1.0) * 0.7, _step(swell * chop - 0.72, 0.12) * calm, 0.06 * chop, zero + 0.55),
    }  # fmt: skip
    second, third, bright, gloss = zero, zero, zero, zero
    for name, look in looks.items():
        here = is_(name)
        second, third, bright, gloss = (
            jnp.where(here, new, old)
            for new, old in zip(look, (second, third, bright, gloss), strict=True)
        )
    wet = jnp.where(is_("waves") | (is_("sand") & (behind > 0.0)), 1.0, 0.0)
    lump = jnp.where(is_("snow") | is_("dunes"), 0.25, 0.0)
    tilt = (
        wet * 0.10 * chop + lump * 2.0 * broad,
        wet * (0.14 * swell * calm) + lump * (broad + fine),
    )
    colours = arrays["ground_colours"]
    colour = []
    for i in range(3):
        c, s, t = (colours[:, j, i : i + 1] for j in range(3))
        mixed = c + second * (s - c)
        if i == 0:
            petals = (t, 0.75, 0.9)
        elif i == 1:
            petals = (t, 0.08, 0.85)
        else:
            petals = (t, 0.12, 0.9)
        # Meadow flowers come in three colours.
        flower = jnp.where(pick > 0.82, petals[1], jnp.where(pick > 0.65, petals[2], t))
        top = jnp.where(is_("grass"), flower, t)
        colour.append((mixed + third * (top - mixed)) * (1.0 + bright))
    return tilt, colour, gloss


def _brush(u, v, painting, seed):
    """Gathers rays into dabs of a brush where the style is painting."""
    wobble = 0.012 * _sine(9.0 * v + seed) + 0.008 * _sine(23.0 * u + 2.0 * seed)
    cells = 26.0
    a, b = (u + 0.45 * v) * cells, (v - 0.45 * u) * cells * 0.6
    row = jnp.floor(b)
    a = a + 0.5 * row
    cell = jnp.floor(a)
    jitter = _hash(cell + seed, row) - 0.5
    a_mid, b_mid = cell + 0.5 + 0.4 * jitter - 0.5 * row, row + 0.5 - 0.4 * jitter
    a, b = a_mid / cells, b_mid / (cells * 0.6)
    u_mid, v_mid = (a - 0.45 * b) / 1.2025, (b + 0.45 * a) / 1.2025
    pull = 0.6 * painting
    u_new = u + pull * (u_mid - u) + painting * wobble
    v_new = v + pull * (v_mid - v) + painting * wobble
    return u_new, v_new


def _stylise(arrays, colour, index, u, v, reach):
    """Applies outlines, paper and canvas to display colours [B, Hs, Ws]."""
    painting, sketch, cartoon = (arrays["style"][:, i, None, None] for i in range(3))
    seed = arrays["seed"][:, :, None]
    edge = jnp.zeros(index.shape, jnp.bool_)
    for axis in (1, 2):
        for step in (reach, -reach):
            edge = edge | (jnp.roll(index, step, axis) != index)
    line = edge.astype(jnp.float32)
    luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    stroke = _sine((u + 0.8 * v) * 80.0 + 2.0 * _sine(7.0 * v)) * 0.5 + 0.5
    across = _sine((u - 0.9 * v) * 80.0 + 2.0 * _sine(6.0 * u)) * 0.5 + 0.5
    dark = _step(0.72 - luminance - 0.45 * stroke, 0.1) * 0.45
    dark = dark + _step(0.42 - luminance - 0.35 * across, 0.1) * 0.35
    pencil = (0.96 - dark) * (1.0 - 0.8 * line)
    daub = (
        _noise((u + 0.45 * v) * 9.0 + seed, (v - 0.45 * u) * 46.0)
        - 0.5
        + 0.7 * (_noise((u + 0.45 * v) * 40.0, (v - 0.45 * u) * 160.0) - 0.5)
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
    return jnp.maximum(linear / shoulder, 1e-6) ** (1.0 / _BRIGHT)


def _step(x, softness):
    """0 below -softness, 1 above +softness, smooth between."""
    t = jnp.clip(x * (0.5 / softness) + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _centred(x):
    """Distance from the middle of x's unit cell, in [-0.5, 0.5]."""
    return x - jnp.floor(x) - 0.5


def _seen(texel, frequency):
    """How much of a pattern of so many radians per unit a pixel can resolve."""
    blur = jnp.square(texel * frequency * 0.45)
    return 1.0 / (1.0 + blur * blur)


def _sine(x):
    """A parabolic sine, within 0.06 of the real one: exact sines are slow on CPU."""
    turns = x * 0.15915494
    turns = turns - jnp.floor(turns + 0.5)
    return turns * (8.0 - 16.0 * jnp.abs(turns))


def _hash(x, y):
    """A repeatable value in [0, 1) for a pair of whole numbers."""
    a, b = x * 0.1031, y * 0.1031
    a, b = a - jnp.floor(a), b - jnp.floor(b)
    mixed = a * (b + 33.33) + b * (a + 33.33) + a * (a + 33.33)
    a, b = a + mixed, b + mixed
    value = (a + b) * a
    return value - jnp.floor(value)


def _noise(x, y):
    """Smooth value noise in [0, 1]."""
    i, j = jnp.floor(x), jnp.floor(y)
    a, b = x - i, y - j
    a, b = a * a * (3.0 - 2.0 * a), b * b * (3.0 - 2.0 * b)
    low = _hash(i, j) + a * (_hash(i + 1.0, j) - _hash(i, j))
    high = _hash(i, j + 1.0) + a * (_hash(i + 1.0, j + 1.0) - _hash(i, j + 1.0))
    return low + b * (high - low)


def _lumps(x, y, z):
    """Smooth solid blotches, roughly in [-1, 1]."""
    return 0.5 * (
        _sine(x + 1.7 * _sine(y * 0.9)) + _sine(y * 1.1 + 1.3 * _sine(z * 1.2))
        + _sine(z * 0.9 + 1.5 * _sine(x * 1.1))
    )  # fmt: skip


def _spots(x, y, z):
    """Round spots, one in each unit cell, moved about inside it."""
    i, j, k = jnp.floor(x), jnp.floor(y), jnp.floor(z)
    a, b, c = _hash(i + 7.0 * k, j), _hash(j + 5.0 * i, k), _hash(k + 3.0 * j, i)
    square = (
        jnp.square(x - i - 0.5 - 0.3 * (a - 0.5))
        + jnp.square(y - j - 0.5 - 0.3 * (b - 0.5))
        + jnp.square(z - k - 0.5 - 0.3 * (c - 0.5))
    )
    return _step(0.33 + 0.1 * (a - 0.5) - jnp.sqrt(square), 0.03)


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _normalise(vector):
    inverse = jax.lax.rsqrt(jnp.maximum(_dot(vector, vector), 1e-12))
    return [c * inverse for c in vector]
