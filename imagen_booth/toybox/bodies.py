"""Shared parts of the bodies: colours, poses, faces, and fit of accessories.

A body function takes the individual's own generator, the name of its colour and a
pose. It first draws every trait of the individual, in a fixed order, and only then
looks at the pose, so the marks of an individual are the same in every picture.
Bodies stand on y = 0 around x = z = 0 and face z.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from imagen_booth.toybox.scene import (
    UPRIGHT,
    Build,
    Material,
    Rotation,
    Shape,
    Vec,
    add,
    apply,
    rotation,
)

# The named colours, sRGB. Individuals differ a little from them, see `shade`.
COLOURS: dict[str, Vec] = {
    "red": (0.84, 0.16, 0.15),
    "orange": (0.95, 0.53, 0.14),
    "yellow": (0.97, 0.82, 0.20),
    "green": (0.28, 0.66, 0.26),
    "blue": (0.18, 0.42, 0.84),
    "brown": (0.50, 0.31, 0.17),
    "white": (0.95, 0.94, 0.91),
    "black": (0.15, 0.15, 0.17),
    # Of collars, trims and props alone; captions do not have them.
    "purple": (0.54, 0.28, 0.74),
    "pink": (0.95, 0.54, 0.68),
}
CREAM: Vec = (0.97, 0.92, 0.82)
INK: Vec = (0.05, 0.045, 0.05)
GOLD: Vec = (0.95, 0.74, 0.25)
STEEL: Vec = (0.72, 0.74, 0.78)
_TAN: Vec = (0.80, 0.58, 0.36)
_DARK = ("brown", "black", "red", "blue", "green")
_BRIGHT = ("red", "yellow", "green", "blue", "purple", "orange", "pink")

EYE = Material(colour=INK, gloss=0.9)
SPARK = Material(colour=(1.0, 1.0, 1.0), glow=0.8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """The pose of an individual, which differs between its pictures.

    Attributes:
      stance: "stand", "sit" or "lie", for bodies that have them.
      head_yaw, head_pitch, head_roll: Rotation of the head in degrees.
      wag: Position of the tail or the wings, -1 to 1.
    """

    stance: str = "stand"
    head_yaw: float = 0.0
    head_pitch: float = 0.0
    head_roll: float = 0.0
    wag: float = 0.0

    @property
    def head(self) -> Rotation:
        """Rotation of the head."""
        return rotation(yaw=self.head_yaw, pitch=self.head_pitch, roll=self.head_roll)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Where accessories sit on a body.

    Attributes:
      crown: Middle and radius of the top of the head.
      neck: Middle and radius of the neck.
      turn: Rotation of the head.
      lean: Pitch of the neck in degrees.
    """

    crown: tuple[Vec, float]
    neck: tuple[Vec, float]
    turn: Rotation = UPRIGHT
    lean: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Body:
    """The shapes of one posed individual, and the fit of its accessories."""

    shapes: Sequence[Shape]
    fit: Fit


def shade(rng: np.random.Generator, colour: Vec, amount: float = 0.06) -> Vec:
    """The colour, a little lighter, darker or shifted."""
    bright = 1.0 + amount * rng.uniform(-1.6, 1.0)
    shift = rng.uniform(-amount, amount, 3) * 0.5
    r, g, b = (
        float(np.clip(c * bright + s, 0.02, 0.98))
        for c, s in zip(colour, shift, strict=True)
    )
    return (r, g, b)


def contrast(rng: np.random.Generator, name: str) -> Vec:
    """A neutral colour that stands out from the named one, for marks."""
    if name in _DARK:
        choices = [CREAM, _TAN, COLOURS["white"]]
    else:
        choices = [COLOURS["brown"], COLOURS["black"], (0.36, 0.20, 0.11)]
        if name != "white":
            choices.insert(2, COLOURS["white"])
    if name == "brown":
        choices.append(COLOURS["black"])
    return shade(rng, choices[rng.integers(len(choices))], 0.04)


def vivid(rng: np.random.Generator, other: str) -> Vec:
    """A bright colour, not the one named `other`, for collars and trims."""
    names = [n for n in _BRIGHT if n != other]
    return shade(rng, COLOURS[names[rng.integers(len(names))]], 0.04)


def pick(rng: np.random.Generator, *choices):
    """One of the choices, all equally likely."""
    return choices[rng.integers(len(choices))]


def add_eyes(
    head: Build,
    half: Vec,
    place: tuple[float, float],
    size: float,
    iris: Vec | None = None,
):
    """Adds two eyes to an ellipsoidal head around the origin that looks along z.

    Args:
      head: The shapes of the head.
      half: Half extents of the head.
      place: Position (x, y) of an eye, as fractions of the head's half extents.
      size: Radius of an eye in toy units.
      iris: Colour of an iris with a slit pupil; None makes the whole eye dark.
    """
    spread, height = place
    depth = max(0.05, 1.0 - spread**2 - height**2) ** 0.5
    for side in (-1.0, 1.0):
        at = (side * spread * half[0], height * half[1], depth * half[2])
        yaw = side * 22.0
        turn = rotation(yaw=yaw)

        def off(x: float, y: float, z: float, at=at, turn=turn) -> Vec:
            return add(at, apply(turn, (x * size, y * size, z * size)))

        if iris is None:
            head.ball(at, (size, 1.12 * size, 0.55 * size), EYE, yaw=yaw)
        else:
            whole = (1.1 * size, 1.15 * size, 0.5 * size)
            head.ball(at, whole, Material(colour=iris, gloss=0.8), yaw=yaw)
            slit = (0.55 * size, 0.95 * size, 0.42 * size)
            head.ball(off(0.0, 0.0, 0.22), slit, EYE, yaw=yaw)
        head.ball(off(0.30, 0.42, 0.50), 0.26 * size, SPARK, casts=False)
