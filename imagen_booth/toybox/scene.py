"""Descriptions of scenes: frozen dataclasses, independent of resolution.

Axes: x right, y up, z towards the viewer; the ground is y = 0. Lengths are toy
units: a subject is about 1.4 units tall. Colours are sRGB triples in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

Vec = tuple[float, float, float]
Rotation = tuple[Vec, Vec, Vec]

ORIGIN: Vec = (0.0, 0.0, 0.0)
UPRIGHT: Rotation = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

TEXTURES = (
    "plain",
    "stripes",
    "spots",
    "patches",
    "checks",
    "wood",
    "split",
    "blob",
    "dial",
    "windows",
    "band",
    "fade",
)
GROUNDS = (
    "studio",
    "sand",
    "snow",
    "grass",
    "leaves",
    "dunes",
    "road",
    "planks",
    "waves",
)
STYLES = ("photo", "painting", "sketch", "cartoon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """Surface of a shape: two colours mixed by a solid texture.

    Attributes:
      colour: Main colour.
      second: Colour where the texture's mask is 1.
      texture: One of TEXTURES. "stripes", "spots", "patches", "checks" and "wood"
        are in toy units; "split" (axis . p > offset), "blob" (|p - axis| < offset),
        "band" (|axis . p - offset| < scale) and "fade" in the shape's own
        coordinates, where it spans [-1, 1].
      scale: Features per toy unit, or the half width of a band.
      axis: Direction or centre, by texture.
      offset: Phase or threshold, by texture.
      gloss: Strength of the highlight, 0 to 1.
      glow: Emitted light, as a fraction of the colour.
      grain: Depth of the fine fur or cloth relief, 0 to 1.
    """

    colour: Vec
    second: Vec = (1.0, 1.0, 1.0)
    texture: str = "plain"
    scale: float = 1.0
    axis: Vec = (0.0, 1.0, 0.0)
    offset: float = 0.0
    gloss: float = 0.15
    glow: float = 0.0
    grain: float = 0.0

    def but(self, **changes) -> Material:
        """This material with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A convex solid, possibly with a round hole along its own y axis.

    Attributes:
      kind: "ball" (ellipsoid), "box" or "tube" (cylinder or cone along y).
      centre: Position of the middle.
      half: Half extents along the shape's own axes.
      material: Surface of the shape.
      turn: Rotation whose rows are the shape's own axes in world coordinates.
      low, high: The part of the own y range [-1, 1] that is solid.
      round: Boxes only: the largest distance of a corner, from 1.1 (a pillow) to 1.75
        (sharp), in own coordinates.
      taper: Tubes only: radius at the top over radius at the bottom.
      hole: Radius of the hole as a fraction of the half extents; 0 is none.
      casts: Whether it casts a shadow.
    """

    kind: str
    centre: Vec
    half: Vec
    material: Material
    turn: Rotation = UPRIGHT
    low: float = -1.0
    high: float = 1.0
    round: float = 1.75
    taper: float = 1.0
    hole: float = 0.0
    casts: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole at `eye` looking at `target`; `fov` is the full angle in degrees.

    `shift` moves the picture: (0.1, 0) puts the target a tenth of half the frame
    to the right of the centre.
    """

    eye: Vec
    target: Vec
    fov: float = 30.0
    shift: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Light:
    """One soft distant light, the light of the sky above and of the ground below.

    `towards` points to the light (any length); `softness` is the half width of the
    penumbra per unit of distance; colours are linear and may exceed 1.
    """

    towards: Vec
    colour: Vec
    above: Vec
    below: Vec
    softness: float = 0.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sky:
    """A vertical gradient with clouds, stars and a disc for the sun or moon."""

    top: Vec
    horizon: Vec
    clouds: float = 0.0
    stars: float = 0.0
    disc: float = 0.0
    disc_colour: Vec = (1.0, 0.95, 0.8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ground:
    """The plane y = 0: one of GROUNDS in up to three colours, fading into the sky.

    `edge` is a distance behind the subject by kind: the sea's shore, the kerb, the
    rug's radius. `fade` is the distance at which the horizon colour wins.
    """

    kind: str
    colour: Vec
    second: Vec
    third: Vec
    edge: float = 4.0
    fade: float = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """The input of `render`; a scene looks the same at every resolution."""

    shapes: tuple[Shape, ...]
    camera: Camera
    light: Light
    sky: Sky
    ground: Ground
    style: str = "photo"
    seed: int = 0


def rotation(*, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Rotation:
    """Rotation that rolls about z, then pitches about x, then yaws about y.

    Angles in degrees, right-handed: a positive yaw turns z towards x, a positive
    pitch turns y towards z, a positive roll turns x towards y. Applied to a
    direction v it gives `apply(rotation(...), v)`.
    """
    cy, sy = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    cp, sp = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    cr, sr = math.cos(math.radians(roll)), math.sin(math.radians(roll))
    about_z: Rotation = ((cr, -sr, 0.0), (sr, cr, 0.0), (0.0, 0.0, 1.0))
    about_x: Rotation = ((1.0, 0.0, 0.0), (0.0, cp, -sp), (0.0, sp, cp))
    about_y: Rotation = ((cy, 0.0, sy), (0.0, 1.0, 0.0), (-sy, 0.0, cy))
    return matmul(about_y, matmul(about_x, about_z))


def matmul(a: Rotation, b: Rotation) -> Rotation:
    """The product a b of two 3x3 matrices."""
    columns = transpose(b)
    return (apply(columns, a[0]), apply(columns, a[1]), apply(columns, a[2]))


def transpose(a: Rotation) -> Rotation:
    """The transpose of a 3x3 matrix; of a rotation, its inverse."""
    (a0, a1, a2), (b0, b1, b2), (c0, c1, c2) = a
    return ((a0, b0, c0), (a1, b1, c1), (a2, b2, c2))


def apply(a: Rotation, v: Vec) -> Vec:
    """The product a v."""
    return (dot(a[0], v), dot(a[1], v), dot(a[2], v))


def dot(a: Vec, b: Vec) -> float:
    """Inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def add(a: Vec, b: Vec) -> Vec:
    """Sum of two vectors."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def sub(a: Vec, b: Vec) -> Vec:
    """Difference of two vectors."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def scaled(v: Vec, factor: float) -> Vec:
    """v times a number."""
    return (v[0] * factor, v[1] * factor, v[2] * factor)


def cross(a: Vec, b: Vec) -> Vec:
    """Vector product."""
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def unit(v: Vec) -> Vec:
    """v scaled to length 1."""
    return scaled(v, 1.0 / math.sqrt(dot(v, v)))


def moved(shapes: Sequence[Shape], turn: Rotation, to: Vec = ORIGIN) -> list[Shape]:
    """The shapes rotated about the origin, then moved by `to`."""
    back = transpose(turn)
    return [
        dataclasses.replace(
            shape,
            centre=add(apply(turn, shape.centre), to),
            turn=matmul(shape.turn, back),
        )
        for shape in shapes
    ]


class Build(list[Shape]):
    """A growing list of shapes; each method adds one.

    `half` are the half extents, or one radius; yaw, pitch and roll turn the shape as
    `rotation` does; other options are fields of Shape.
    """

    def ball(self, centre: Vec, half: Vec | float, material: Material, **options):
        """Adds an ellipsoid."""
        size = half if isinstance(half, tuple) else (half, half, half)
        self._add("ball", centre, size, material, options)

    def box(self, centre: Vec, half: Vec, material: Material, **options):
        """Adds a box with corners rounded by `round`."""
        self._add("box", centre, half, material, options)

    def tube(
        self,
        start: Vec,
        end: Vec,
        radius: float,
        material: Material,
        *,
        flat: float = 1.0,
        **options,
    ):
        """Adds a cylinder, or with `taper` a cone, from `start` to `end`.

        `flat` scales its depth: below 1 the section is an ellipse.
        """
        y = unit(sub(end, start))
        helper = (1.0, 0.0, 0.0) if abs(y[0]) < 0.9 else (0.0, 0.0, 1.0)
        x = unit(sub(helper, scaled(y, dot(helper, y))))
        shape = Shape(
            kind="tube",
            centre=scaled(add(start, end), 0.5),
            half=(radius, math.dist(start, end) / 2, radius * flat),
            material=material,
            turn=(x, y, cross(x, y)),
            **options,
        )
        self.append(shape)

    def _add(self, kind: str, centre: Vec, half: Vec, material: Material, options):
        angles = {n: options.pop(n) for n in ("yaw", "pitch", "roll") if n in options}
        turn = transpose(rotation(**angles)) if angles else UPRIGHT
        self.append(
            Shape(
                kind=kind,
                centre=centre,
                half=half,
                material=material,
                turn=turn,
                **options,
            )
        )
