"""Props of the places, each built around the origin."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from imagen_booth.toybox.bodies import COLOURS, pick, shade
from imagen_booth.toybox.scene import (
    ORIGIN,
    Build,
    Material,
    Shape,
    Vec,
    add,
    moved,
    rotation,
    scaled,
)

_WOOD = Material(
    colour=(0.55, 0.36, 0.20), second=(0.44, 0.28, 0.15), texture="wood", scale=3.0
)
_WHITE = Material(colour=(0.95, 0.94, 0.91))
_ACROSS: Vec = (1.0, 0.0, 0.0)
_GREENS = ((0.12, 0.38, 0.14), (0.20, 0.50, 0.16), (0.10, 0.30, 0.16))


def prop(
    shapes: Sequence[Shape], at: Vec, size: float = 1.0, *, yaw: float = 0.0
) -> list[Shape]:
    """The shapes scaled, turned and moved."""
    return [
        dataclasses.replace(
            shape,
            centre=add(at, scaled(shape.centre, size)),
            half=scaled(shape.half, size),
        )
        for shape in moved(shapes, rotation(yaw=yaw))
    ]


def _ring(shapes: Sequence[Shape], count: int, at: Vec = ORIGIN) -> list[Shape]:
    """Copies of the shapes all round `at`."""
    step = 360.0 / count
    return [s for i in range(count) for s in moved(shapes, rotation(yaw=step * i), at)]


def palm(rng: np.random.Generator) -> list[Shape]:
    """A leaning palm with six fronds and two coconuts, about two units tall."""
    bark = Material(colour=(0.62, 0.45, 0.28), second=(0.50, 0.35, 0.21))
    bark = bark.but(texture="stripes", scale=4.0)
    leaf = Material(colour=shade(rng, (0.24, 0.58, 0.22)), gloss=0.2)
    nut = Material(colour=(0.36, 0.22, 0.12))
    lean = float(rng.uniform(-0.35, 0.35))
    top = (lean, 2.0, 0.0)
    made = Build()
    made.tube((0.0, 0.0, 0.0), (lean * 0.35, 1.0, 0.0), 0.13, bark, taper=0.85)
    made.tube((lean * 0.35, 0.98, 0.0), top, 0.11, bark, taper=0.8)
    frond = Build()
    frond.ball((0.0, 0.0, 0.50), (0.15, 0.05, 0.56), leaf, pitch=22.0)
    for i in range(6):
        turn = rotation(yaw=60.0 * i + float(rng.uniform(0.0, 30.0)))
        made += moved(frond, turn, add(top, (0.0, 0.10, 0.0)))
    made.ball(add(top, (0.10, -0.06, 0.10)), 0.10, nut)
    made.ball(add(top, (-0.10, -0.06, 0.06)), 0.10, nut)
    return made


def beach_ball() -> list[Shape]:
    """A red and white ball of radius 0.26 around the origin."""
    skin = Material(colour=COLOURS["red"], second=COLOURS["white"], gloss=0.5)
    made = Build()
    made.ball(ORIGIN, 0.26, skin.but(texture="stripes", axis=_ACROSS, scale=2.0))
    return made


def parasol(rng: np.random.Generator) -> list[Shape]:
    """A striped parasol, a little askew."""
    colour = COLOURS[pick(rng, "red", "blue", "yellow")]
    canvas = Material(colour=colour, second=(0.97, 0.95, 0.9))
    canvas = canvas.but(texture="stripes", scale=1.6, axis=_ACROSS)
    made = Build()
    pole = Material(colour=(0.9, 0.86, 0.78))
    made.tube((0.0, 0.0, 0.0), (0.0, 1.35, 0.0), 0.035, pole)
    made.ball((0.0, 1.15, 0.0), (0.75, 0.36, 0.75), canvas, low=0.1)
    return moved(made, rotation(roll=-8.0))


def starfish() -> list[Shape]:
    """A starfish on the ground."""
    arm = Build()
    skin = Material(colour=(0.93, 0.45, 0.30))
    arm.ball((0.0, 0.03, 0.14), (0.07, 0.045, 0.18), skin)
    return _ring(arm, 5)


def pine(rng: np.random.Generator) -> list[Shape]:
    """A pine of three cones with snow on its tops, about two units tall."""
    green = shade(rng, (0.13, 0.38, 0.24))
    needle = Material(
        colour=green, second=(0.95, 0.97, 1.0), texture="split", offset=-0.15, grain=0.8
    )  # fmt: skip
    made = Build()
    trunk = Material(colour=(0.38, 0.25, 0.15))
    made.tube((0.0, 0.0, 0.0), (0.0, 0.4, 0.0), 0.12, trunk)
    for y, radius in ((0.30, 0.66), (0.80, 0.52), (1.25, 0.36)):
        made.tube((0.0, y, 0.0), (0.0, y + 0.72, 0.0), radius, needle, taper=0.03)
    return made


def snowman() -> list[Shape]:
    """Three balls, coal and a carrot."""
    white = Material(colour=(0.94, 0.96, 0.99), grain=0.3)
    coal, carrot = (
        Material(colour=(0.08, 0.08, 0.09)),
        Material(colour=(0.95, 0.5, 0.12)),
    )
    made = Build()
    made.ball((0.0, 0.36, 0.0), 0.40, white)
    made.ball((0.0, 0.92, 0.0), 0.30, white)
    made.ball((0.0, 1.34, 0.0), 0.22, white)
    made.tube((0.0, 1.33, 0.2), (0.0, 1.31, 0.44), 0.05, carrot, taper=0.1)
    for at, size in (
        ((-0.08, 1.41, 0.19), 0.03),
        ((0.08, 1.41, 0.19), 0.03),
        ((0.0, 0.98, 0.29), 0.035),
        ((0.0, 0.85, 0.29), 0.035),
    ):
        made.ball(at, size, coal)
    return made


def drift() -> list[Shape]:
    """A low heap of snow."""
    made = Build()
    white = Material(colour=(0.94, 0.96, 0.99), grain=0.3)
    made.ball((0.0, -0.06, 0.0), (0.55, 0.20, 0.36), white)
    return made


def trunk(rng: np.random.Generator, radius: float) -> list[Shape]:
    """A tall mossy trunk, a little aslant."""
    bark = Material(
        colour=(0.33, 0.24, 0.15), second=(0.24, 0.30, 0.14), texture="patches",
        scale=3.0, grain=1.0,
    )  # fmt: skip
    made = Build()
    top = (float(rng.uniform(-0.3, 0.3)), 5.0, 0.0)
    made.tube((0.0, 0.0, 0.0), top, radius, bark, taper=0.8)
    return made


def foliage(rng: np.random.Generator, tone: int) -> list[Shape]:
    """A mass of leaves in one of three greens."""
    made = Build()
    half = (float(rng.uniform(0.7, 1.2)), float(rng.uniform(0.5, 0.9)), 0.4)
    leaf = Material(colour=shade(rng, _GREENS[tone]), grain=1.0)
    made.ball(ORIGIN, half, leaf, casts=False)
    return made


def fern(rng: np.random.Generator) -> list[Shape]:
    """Five long fronds rising from one point."""
    leaf = Material(
        colour=shade(rng, (0.32, 0.58, 0.18)), second=(0.14, 0.40, 0.14),
        texture="band", axis=_ACROSS, scale=0.12, gloss=0.3,
    )  # fmt: skip
    made: list[Shape] = []
    for i in range(5):
        frond = Build()
        tilt = -42.0 + 6.0 * (i % 2)
        frond.ball((0.0, 0.10, 0.42), (0.14, 0.03, 0.44), leaf, pitch=tilt)
        size = float(rng.uniform(0.9, 1.25))
        made += prop(frond, ORIGIN, size, yaw=72.0 * i + 10.0)
    return made


def vine() -> list[Shape]:
    """A vine that hangs from far above."""
    made = Build()
    stalk = Material(colour=(0.22, 0.42, 0.14))
    made.tube((0.0, 1.5, 0.0), (0.1, 4.0, 0.0), 0.04, stalk)
    return made


def house(rng: np.random.Generator) -> list[Shape]:
    """A painted house with windows, a door and a gable roof."""
    walls = (
        (0.93, 0.80, 0.62),
        (0.86, 0.50, 0.42),
        (0.62, 0.76, 0.84),
        (0.95, 0.90, 0.80),
        (0.70, 0.80, 0.66),
        (0.93, 0.74, 0.72),
    )
    wall = pick(rng, *walls)
    tile = pick(rng, (0.62, 0.24, 0.20), (0.36, 0.33, 0.38), (0.50, 0.30, 0.22))
    tall = float(rng.uniform(0.72, 1.0))
    paint, pane = shade(rng, wall, 0.04), (0.30, 0.40, 0.52)
    shift = float(rng.uniform(0.0, 1.0))
    front = Material(colour=paint, second=pane, gloss=0.1)
    front = front.but(texture="windows", scale=1.55, offset=shift)
    roof = Material(colour=tile)
    made = Build()
    made.box((0.0, tall, 0.0), (0.85, tall, 0.6), front)
    made.box((0.0, 2 * tall - 0.02, 0.0), (0.66, 0.66, 0.58), roof, roll=45.0)
    made.box((0.0, 0.36, 0.60), (0.20, 0.36, 0.03), roof)
    return made


def street_lamp() -> list[Shape]:
    """An iron lamp post, lit."""
    iron = Material(colour=(0.16, 0.20, 0.22), gloss=0.5)
    lit = Material(colour=(1.0, 0.93, 0.72), glow=0.6)
    made = Build()
    made.tube((0.0, 0.0, 0.0), (0.0, 2.0, 0.0), 0.05, iron)
    made.ball((0.0, 2.1, 0.0), (0.17, 0.20, 0.17), lit)
    made.ball((0.0, 2.30, 0.0), (0.20, 0.06, 0.20), iron)
    return made


def wall(paper: Vec, stripe: Vec) -> list[Shape]:
    """A papered wall with a skirting board, its front at z = 0."""
    papered = Material(
        colour=paper, second=stripe, texture="stripes", scale=1.3, axis=_ACROSS
    )
    made = Build()
    made.box((0.0, 4.0, -0.1), (9.0, 4.0, 0.1), papered, casts=False)
    made.box((0.0, 0.12, 0.0), (9.0, 0.12, 0.06), _WHITE, casts=False)
    return made


def window() -> list[Shape]:
    """A white window, its middle in the origin."""
    glass = Material(
        colour=(0.55, 0.78, 0.95), second=(0.96, 0.95, 0.92), texture="band",
        axis=_ACROSS, scale=0.06, glow=0.35,
    )  # fmt: skip
    made = Build()
    made.box(ORIGIN, (0.50, 0.62, 0.05), _WHITE)
    made.box((0.0, 0.0, 0.03), (0.43, 0.55, 0.04), glass)
    made.box((0.0, 0.0, 0.06), (0.45, 0.03, 0.03), _WHITE)
    return made


def picture(rng: np.random.Generator) -> list[Shape]:
    """A framed landscape of sky and field, its middle in the origin."""
    art = Material(
        colour=shade(rng, (0.35, 0.60, 0.75)), second=(0.92, 0.70, 0.35),
        texture="split", axis=(0.2, -1.0, 0.0), offset=0.1,
    )  # fmt: skip
    made = Build()
    made.box(ORIGIN, (0.50, 0.40, 0.05), _WOOD)
    made.box((0.0, 0.0, 0.03), (0.42, 0.32, 0.04), art)
    return made


def armchair(rng: np.random.Generator) -> list[Shape]:
    """A soft armchair."""
    colour = COLOURS[pick(rng, "blue", "green", "red", "purple")]
    cloth = Material(colour=colour, grain=0.4)
    made = Build()
    for at, half in (
        ((0.0, 0.30, 0.0), (0.50, 0.30, 0.42)),
        ((0.0, 0.72, -0.32), (0.50, 0.52, 0.16)),
        ((-0.48, 0.42, 0.02), (0.13, 0.36, 0.42)),
        ((0.48, 0.42, 0.02), (0.13, 0.36, 0.42)),
    ):
        made.box(at, half, cloth, round=1.4)
    return made


def potted_plant() -> list[Shape]:
    """A plant with six broad leaves in a clay pot."""
    leaf, clay = Material(colour=(0.22, 0.50, 0.22), gloss=0.2), (0.76, 0.42, 0.28)
    made = Build()
    rim = (0.0, 0.42, 0.0)
    made.tube((0.0, 0.0, 0.0), rim, 0.20, Material(colour=clay), taper=1.3)
    blade = Build()
    blade.ball((0.0, 0.36, 0.16), (0.11, 0.40, 0.05), leaf, pitch=24.0)
    return [*made, *_ring(blade, 6, (0.0, 0.40, 0.0))]


def tree(rng: np.random.Generator) -> list[Shape]:
    """A round tree, about two units tall."""
    leaf = Material(colour=shade(rng, (0.33, 0.60, 0.24)), grain=1.0)
    made = Build()
    bark = Material(colour=(0.45, 0.30, 0.18))
    made.tube((0.0, 0.0, 0.0), (0.0, 0.9, 0.0), 0.13, bark)
    made.ball((0.0, 1.35, 0.0), (0.62, 0.58, 0.62), leaf)
    made.ball((0.38, 1.10, 0.1), (0.38, 0.34, 0.38), leaf)
    made.ball((-0.36, 1.15, 0.1), (0.38, 0.36, 0.38), leaf)
    return made


def flower(rng: np.random.Generator) -> list[Shape]:
    """A flower half a unit tall that faces the viewer."""
    colour = COLOURS[pick(rng, "red", "yellow", "white", "pink", "purple")]
    stalk = Material(colour=(0.25, 0.55, 0.20))
    petal, top = Build(), (0.0, 0.5, 0.0)
    petal.ball((0.0, 0.0, 0.13), (0.08, 0.03, 0.11), Material(colour=colour))
    made = Build()
    made.tube((0.0, 0.0, 0.0), top, 0.025, stalk)
    made += moved(_ring(petal, 5), rotation(pitch=55.0), top)
    made.ball((0.0, 0.52, 0.03), 0.08, Material(colour=(0.98, 0.78, 0.15)))
    return made
