"""Scenes as arrays of fixed shapes, the input of the renderer."""

from collections.abc import Sequence

import numpy as np

from imagen_booth.errors import InputError
from imagen_booth.toybox import scene as sc

MAX_RINGS = 6
MAX_SOLIDS = 90

# One row of the table per shape: the matrix into its own coordinates and its centre;
# the quadric qy, b, c and planes of `render`; the material; half extents; the camera
# in own coordinates.
_NAMES = (
    "m00 m01 m02 m10 m11 m12 m20 m21 m22 cx cy cz qy b c wide mid span hole casts "
    "ar ag ab br bg bb texture scale ax ay az offset gloss glow grain "
    "hx hy hz ox oy oz"
)
COLUMNS = {name: i for i, name in enumerate(_NAMES.split())}
GAMMA = 2.2


def pack(scene: sc.Scene) -> dict[str, np.ndarray]:
    """The scene as float32 arrays whose shapes are the same for every scene.

    Rows of "table" hold rings first, MAX_RINGS of them used or not, then solids,
    those that cast shadows first. "counts" are int32: rings, solids, casting solids.

    Raises:
      InputError: The scene has more shapes than the table has rows.
    """
    rings = [s for s in scene.shapes if s.hole > 0.0]
    solids = [s for s in scene.shapes if s.hole == 0.0]
    if len(rings) > MAX_RINGS or len(solids) > MAX_SOLIDS:
        raise InputError(
            f"scene.shapes has {len(rings)} rings and {len(solids)} solids; the "
            f"renderer takes {MAX_RINGS} and {MAX_SOLIDS}: leave out some props."
        )
    solids.sort(key=lambda s: not s.casts)
    eye = np.asarray(scene.camera.eye)
    forward = np.asarray(scene.camera.target) - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right = right / np.linalg.norm(right)
    towards = np.asarray(scene.light.towards)
    ground, sky, light = scene.ground, scene.sky, scene.light
    packed = {
        "table": _table(rings, solids, eye),
        "counts": [len(rings), len(solids), sum(s.casts for s in solids)],
        "eye": eye,
        "basis": [right, np.cross(right, forward), forward],
        "view": [np.tan(np.radians(scene.camera.fov) / 2), *scene.camera.shift],
        "sun": towards / np.linalg.norm(towards),
        "light": [light.colour, light.above, light.below],
        "softness": [light.softness],
        "sky_colours": [_linear(c) for c in (sky.top, sky.horizon, sky.disc_colour)],
        "sky_amounts": [sky.clouds, sky.stars, sky.disc],
        "ground_kind": [sc.GROUNDS.index(ground.kind)],
        "ground_colours": [
            _linear(c) for c in (ground.colour, ground.second, ground.third)
        ],
        "ground_sizes": [ground.edge, ground.fade],
        "style": [scene.style == s for s in ("painting", "sketch", "cartoon")],
        "seed": [scene.seed % 1000 + 0.5],
    }
    return {
        name: np.asarray(value, np.int32 if name == "counts" else np.float32)
        for name, value in packed.items()
    }


def stack(scenes: Sequence[sc.Scene]) -> dict[str, np.ndarray]:
    """The packed scenes with a leading batch axis, but for "counts": the largest."""
    packed = [pack(scene) for scene in scenes]
    arrays = {name: np.stack([p[name] for p in packed]) for name in packed[0]}
    arrays["counts"] = arrays["counts"].max(0)
    return arrays


def _table(
    rings: list[sc.Shape], solids: list[sc.Shape], eye: np.ndarray
) -> np.ndarray:
    table = np.zeros((MAX_RINGS + MAX_SOLIDS, len(COLUMNS)))
    # Unused rows hold a ball of radius 1e-3 that the camera never sees.
    table[:, : COLUMNS["hole"]] = (
        *(1e3, 0.0, 0.0, 0.0, 1e3, 0.0, 0.0, 0.0, 1e3),
        *(0.0, -1e3, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0),
    )
    for first, shapes in ((0, rings), (MAX_RINGS, solids)):
        if shapes:
            table[first : first + len(shapes)] = [_row(s) for s in shapes]
    matrices = table[:, : COLUMNS["cx"]].reshape(-1, 3, 3)
    offsets = eye - table[:, COLUMNS["cx"] : COLUMNS["qy"]]
    table[:, COLUMNS["ox"] :] = np.einsum("nij,nj->ni", matrices, offsets)
    return table


def _row(shape: sc.Shape) -> list[float]:
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
        *(x0 / hx, x1 / hx, x2 / hx, y0 / hy, y1 / hy, y2 / hy),
        *(z0 / hz, z1 / hz, z2 / hz, *shape.centre),
        *(qy, b, c, wide, (low + high) / 2, (high - low) / 2),
        *(shape.hole, float(shape.casts)),
        *(*_linear(m.colour), *_linear(m.second), float(sc.TEXTURES.index(m.texture))),
        *(m.scale, *m.axis, m.offset, m.gloss, m.glow, m.grain, hx, hy, hz),
        *(0.0, 0.0, 0.0),
    ]


def _linear(colour: sc.Vec) -> sc.Vec:
    """Linear light of an sRGB colour, to the accuracy of a plain power."""
    r, g, b = colour
    return (r**GAMMA, g**GAMMA, b**GAMMA)
