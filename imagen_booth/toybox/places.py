"""Places: for each context, the ground, the sky and a few props behind the subject.

Places are laid out for a viewer who looks along -z at a subject in the origin.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from imagen_booth.toybox import props
from imagen_booth.toybox.bodies import COLOURS, pick, shade
from imagen_booth.toybox.props import prop
from imagen_booth.toybox.scene import Build, Ground, Light, Material, Shape, Sky


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A setting without its subject."""

    shapes: tuple[Shape, ...]
    ground: Ground
    sky: Sky
    indoors: bool = False


def _sides(rng: np.random.Generator, near: float, far: float) -> list[float]:
    """One x on each side of the subject, in random order."""
    side = float(rng.choice([-1.0, 1.0]))
    return [side * float(rng.uniform(near, far)), -side * float(rng.uniform(near, far))]


def beach(rng: np.random.Generator) -> Place:
    """Sand, a strip of sea, a palm, and a ball, a parasol or a starfish."""
    left, right = _sides(rng, 1.15, 1.7)
    shapes = prop(props.palm(rng), (left, 0.0, -1.9), 1.15)
    kind = pick(rng, "ball", "parasol", "star")
    if kind == "ball":
        shapes += prop(props.beach_ball(), (right * 0.8, 0.26, -0.8))
    elif kind == "parasol":
        shapes += prop(props.parasol(rng), (right * 1.1, 0.0, -1.6))
    else:
        shapes += prop(props.starfish(), (right * 0.75, 0.0, 0.3))
    ground = Ground(
        kind="sand",
        colour=shade(rng, (0.93, 0.82, 0.60), 0.04),
        second=(0.10, 0.50, 0.68),
        third=(0.97, 0.98, 0.98),
        edge=float(rng.uniform(1.6, 2.6)),
        fade=40.0,
    )
    clouds = float(rng.uniform(0.2, 0.9))
    sky = Sky(top=(0.28, 0.58, 0.90), horizon=(0.78, 0.90, 0.97), clouds=clouds)
    return Place(shapes=tuple(shapes), ground=ground, sky=sky)


def snow(rng: np.random.Generator) -> Place:
    """Snow, snowy pines and drifts; sometimes a snowman."""
    left, right = _sides(rng, 1.25, 1.7)
    near = float(rng.uniform(0.95, 1.2))
    shapes = prop(props.pine(rng), (left, 0.0, -1.9), near)
    shapes += prop(props.pine(rng), (left * 2.1, 0.0, -4.0), 1.3)
    if rng.random() < 0.4:
        yaw = -20.0 * float(np.sign(right))
        shapes += prop(props.snowman(), (right, 0.0, -1.6), 0.95, yaw=yaw)
    else:
        size = float(rng.uniform(0.85, 1.1))
        shapes += prop(props.pine(rng), (right, 0.0, -2.4), size)
    for x in (left * 0.9, right * 1.2):
        shapes += prop(props.drift(), (x, 0.0, -1.0))
    ground = Ground(
        kind="snow",
        colour=(0.95, 0.97, 1.0),
        second=(0.82, 0.89, 0.98),
        third=(1.0, 1.0, 1.0),
        fade=26.0,
    )
    clouds = float(rng.uniform(0.0, 0.6))
    sky = Sky(top=(0.55, 0.72, 0.90), horizon=(0.90, 0.94, 0.98), clouds=clouds)
    return Place(shapes=tuple(shapes), ground=ground, sky=sky)


def jungle(rng: np.random.Generator) -> Place:
    """Dark leaves underfoot, thick trunks, vines and ferns all round."""
    left, right = _sides(rng, 1.2, 1.6)
    trunks = ((left, -2.2, 0.26), (right * 1.15, -2.8, 0.32), (0.25 * left, -4.2, 0.34))
    shapes: list[Shape] = []
    for x, z, radius in trunks:
        shapes += prop(props.trunk(rng, radius), (x, 0.0, z))
    for i in range(10):
        at = (-3.2 + 0.72 * i, float(rng.uniform(0.5, 3.0)), -5.0)
        shapes += prop(props.foliage(rng, i % 3), at)
    for x in (left * 0.95, right * 0.95):
        shapes += prop(props.fern(rng), (x, 0.0, -0.9))
    for x in (left * 0.62, right):
        shapes += prop(props.vine(), (x, 0.0, -1.9))
    ground = Ground(
        kind="leaves",
        colour=(0.26, 0.30, 0.12),
        second=(0.27, 0.48, 0.15),
        third=(0.48, 0.62, 0.20),
        fade=9.0,
    )
    sky = Sky(top=(0.14, 0.36, 0.18), horizon=(0.52, 0.70, 0.42))
    return Place(shapes=tuple(shapes), ground=ground, sky=sky)


def street(rng: np.random.Generator) -> Place:
    """A pavement, a road with a dashed line, houses and a street lamp."""
    start = float(rng.uniform(-3.4, -2.6))
    shapes: list[Shape] = []
    for i in range(4):
        shapes += prop(props.house(rng), (start + 1.85 * i, 0.0, -4.6))
    left, _ = _sides(rng, 0.95, 1.3)
    shapes += prop(props.street_lamp(), (left * 1.1, 0.0, -1.0))
    ground = Ground(
        kind="road",
        colour=(0.70, 0.69, 0.67),
        second=(0.26, 0.27, 0.30),
        third=(0.93, 0.92, 0.86),
        edge=float(rng.uniform(0.9, 1.2)),
        fade=40.0,
    )
    clouds = float(rng.uniform(0.2, 0.8))
    sky = Sky(top=(0.42, 0.64, 0.88), horizon=(0.86, 0.90, 0.93), clouds=clouds)
    return Place(shapes=tuple(shapes), ground=ground, sky=sky)


def room(rng: np.random.Generator) -> Place:
    """A wooden floor with a rug, a papered wall, a window or picture, furniture."""
    mint, cream, rose = (0.80, 0.86, 0.82), (0.93, 0.84, 0.72), (0.88, 0.76, 0.74)
    paper = pick(rng, mint, cream, rose, (0.74, 0.80, 0.88))
    stripe = shade(rng, paper, 0.05)
    left, right = _sides(rng, 1.0, 1.25)
    back = -2.5
    shapes = prop(props.wall(paper, stripe), (0.0, 0.0, back))
    hung = props.window() if rng.random() < 0.5 else props.picture(rng)
    shapes += prop(hung, (left * 0.95, 1.75, back))
    if rng.random() < 0.5:
        yaw = -15.0 * float(np.sign(right))
        shapes += prop(props.armchair(rng), (right * 1.25, 0.0, back + 0.7), yaw=yaw)
    else:
        shapes += prop(props.potted_plant(), (right * 1.1, 0.0, back + 0.6), 1.15)
    rug = COLOURS[pick(rng, "red", "blue", "green", "purple")]
    ground = Ground(
        kind="planks",
        colour=(0.72, 0.50, 0.30),
        second=shade(rng, rug),
        third=(0.94, 0.88, 0.76),
        edge=float(rng.uniform(1.15, 1.35)),
        fade=60.0,
    )
    sky = Sky(top=(0.9, 0.88, 0.84), horizon=(0.9, 0.88, 0.84))
    return Place(shapes=tuple(shapes), ground=ground, sky=sky, indoors=True)


def meadow(rng: np.random.Generator) -> Place:
    """Grass with flowers, rolling hills, a round tree and clouds."""
    left, right = _sides(rng, 1.3, 1.8)
    size = float(rng.uniform(1.0, 1.3))
    shapes = prop(props.tree(rng), (left, 0.0, -2.2), size)
    hills = (
        (-7.0, (7.0, 1.9, 4.0), (0.42, 0.66, 0.30)),
        (6.5, (8.0, 2.4, 4.0), (0.36, 0.60, 0.28)),
    )
    for x, half, tone in hills:
        hill = Build()
        turf = Material(colour=shade(rng, tone), grain=0.5)
        hill.ball((0.0, 0.0, 0.0), half, turf, casts=False)
        shapes += prop(hill, (x, -0.2, -15.0))
    for x, z in ((right * 0.72, -0.5), (right * 0.95, -1.1), (left * 0.75, -0.6)):
        grown, yaw = float(rng.uniform(0.8, 1.1)), float(rng.uniform(-25.0, 25.0))
        shapes += prop(props.flower(rng), (x, 0.0, z), grown, yaw=yaw)
    ground = Ground(
        kind="grass",
        colour=(0.36, 0.62, 0.20),
        second=(0.52, 0.74, 0.28),
        third=(0.96, 0.94, 0.88),
        fade=40.0,
    )
    clouds = float(rng.uniform(0.5, 1.0))
    sky = Sky(top=(0.30, 0.60, 0.92), horizon=(0.80, 0.91, 0.97), clouds=clouds)
    return Place(shapes=tuple(shapes), ground=ground, sky=sky)


def studio(rng: np.random.Generator) -> Place:
    """A seamless backdrop in a soft colour."""
    stone, sky_blue, rose = (0.86, 0.84, 0.80), (0.74, 0.82, 0.88), (0.90, 0.80, 0.76)
    sage, lilac, straw = (0.80, 0.86, 0.78), (0.84, 0.79, 0.88), (0.93, 0.88, 0.74)
    tone = shade(rng, pick(rng, stone, sky_blue, rose, sage, lilac, straw), 0.04)
    dim = (tone[0] * 0.82, tone[1] * 0.82, tone[2] * 0.82)
    ground = Ground(kind="studio", colour=tone, second=tone, third=tone, fade=7.0)
    return Place(shapes=(), ground=ground, sky=Sky(top=dim, horizon=tone))


PLACES: dict[str, Callable[[np.random.Generator], Place]] = {
    "beach": beach,
    "snow": snow,
    "jungle": jungle,
    "street": street,
    "room": room,
    "meadow": meadow,
}


def light_for(rng: np.random.Generator, place: Place) -> Light:
    """The light of a day in a place."""
    side = float(rng.choice([-1.0, 1.0]))
    towards = (
        side * float(rng.uniform(0.5, 1.1)),
        float(rng.uniform(1.2, 1.7)),
        float(rng.uniform(0.8, 1.3)),
    )
    warm = float(rng.uniform(0.94, 1.06))
    if place.indoors:
        return Light(
            towards=towards,
            colour=(0.78, 0.70, 0.60),
            above=(0.46, 0.44, 0.42),
            below=(0.34, 0.28, 0.22),
            softness=0.3,
        )
    return Light(
        towards=towards,
        colour=(0.98 * warm, 0.92, 0.80 / warm),
        above=(0.42, 0.48, 0.56),
        below=(0.26, 0.23, 0.20),
    )
