"""Accessories, fitted to any body by its `Fit`."""

from collections.abc import Callable

import numpy as np

from imagen_booth.toybox.bodies import COLOURS, SPARK, Fit, pick, shade
from imagen_booth.toybox.scene import (
    Build,
    Material,
    Shape,
    add,
    apply,
    matmul,
    moved,
    rotation,
)

_CLOTH = ("red", "blue", "green", "yellow", "purple", "pink", "orange")
_SIDES = (-1.0, 1.0)


def hat(rng: np.random.Generator, fit: Fit) -> list[Shape]:
    """A brimmed hat with a band: a top hat, a bowler or a straw hat."""
    centre, radius = fit.crown
    kind = pick(rng, "top", "bowler", "straw")
    felt = {
        "top": (0.15, 0.14, 0.22),
        "bowler": (0.55, 0.18, 0.22),
        "straw": (0.95, 0.82, 0.50),
    }[kind]
    cloth = Material(colour=shade(rng, felt), grain=0.3)
    ribbon = Material(colour=COLOURS[pick(rng, *_CLOTH)])
    tilt = rotation(roll=float(rng.uniform(-9.0, 9.0)))
    r = radius * 0.86
    brim = radius * {"top": 1.42, "bowler": 1.40, "straw": 1.75}[kind]
    made = Build()
    made.ball((0.0, 0.02, 0.0), (brim, 0.05, brim), cloth)
    if kind == "bowler":
        made.ball((0.0, 0.03, 0.0), (r, r * 1.15, r), cloth, low=0.0)
    elif kind == "top":
        made.tube((0.0, 0.0, 0.0), (0.0, r * 1.55, 0.0), r, cloth)
    else:
        made.tube((0.0, 0.0, 0.0), (0.0, r, 0.0), r, cloth, taper=0.85)
    made.tube((0.0, 0.03, 0.0), (0.0, 0.03 + r * 0.34, 0.0), r * 1.04, ribbon)
    return moved(made, matmul(fit.turn, tilt), centre)


def scarf(rng: np.random.Generator, fit: Fit) -> list[Shape]:
    """A thick scarf with one end hanging down in front, often striped."""
    centre, radius = fit.neck
    first, second = rng.choice(len(_CLOTH), 2, replace=False)
    other = COLOURS[_CLOTH[second]] if rng.random() < 0.5 else (0.96, 0.94, 0.9)
    striped = rng.random() < 0.7
    wrap = Material(colour=shade(rng, COLOURS[_CLOTH[first]]), second=other, grain=0.6)
    knit = wrap.but(texture="stripes", scale=4.5) if striped else wrap
    side = float(rng.choice(_SIDES))
    r = radius * 1.18 + 0.03
    length = 0.17 + 0.18 * radius
    knot = (side * 0.38 * r, -0.06, r * 0.95)
    wound = Build()
    wound.ball((0.0, 0.03, 0.0), (r, 0.13, r), wrap)
    wound.ball((0.0, -0.07, 0.01), (r * 1.04, 0.12, r * 1.04), wrap)
    wound.ball(knot, (0.125, 0.12, 0.10), wrap)
    # The end hangs straight down, a little away from the chest.
    end = Build()
    end.box((0.0, -length, 0.06), (0.115, length + 0.04, 0.05), knit, round=1.5)
    lean = rotation(pitch=fit.lean)
    hang = rotation(pitch=-9.0, roll=side * 5.0)
    root = add(centre, apply(lean, knot))
    return [*moved(wound, lean, centre), *moved(end, hang, root)]


def glasses(rng: np.random.Generator, fit: Fit) -> list[Shape]:
    """Round glasses before the eyes, clear or dark."""
    centre, spread = fit.face
    rim = Material(
        colour=COLOURS[pick(rng, "red", "black", "yellow", "blue")], gloss=0.6
    )
    dark = rng.random() < 0.5
    lens = Material(colour=(0.10, 0.10, 0.16), gloss=0.95)
    r = spread * 0.86
    made = Build()
    made.tube((-0.25 * spread, 0.0, 0.06), (0.25 * spread, 0.0, 0.06), 0.024, rim)
    for side in _SIDES:
        at = (side * spread * 1.02, 0.0, 0.05)
        tilt = {"yaw": side * 14.0, "pitch": 90.0}
        if dark:
            made.ball(at, (r * 0.96, 0.03, r * 0.92), lens, **tilt)
        made.ball(at, (r * 1.14, 0.05, r * 1.10), rim, hole=0.78, **tilt)
    return moved(made, fit.turn, centre)


def bow(rng: np.random.Generator, fit: Fit) -> list[Shape]:
    """A big ribbon bow at the neck, plain or spotted."""
    centre, radius = fit.neck
    colour = shade(rng, COLOURS[pick(rng, *_CLOTH)])
    silk = Material(colour=colour, second=(0.97, 0.95, 0.92), gloss=0.35)
    if rng.random() < 0.4:
        silk = silk.but(texture="spots", scale=8.0)
    front = (0.0, -0.02, radius * 1.18)
    made = Build()
    made.ball((0.0, 0.0, 0.0), (radius * 1.06, 0.045, radius * 1.06), silk)
    for side in _SIDES:
        start, end = (
            add(front, (side * 0.02, 0.0, 0.0)),
            add(front, (side * 0.29, 0.02, 0.0)),
        )
        made.tube(end, start, 0.17, silk, taper=0.25, flat=0.45)
        made.ball(add(front, (side * 0.28, 0.02, 0.0)), (0.06, 0.165, 0.075), silk)
    made.ball(add(front, (0.0, 0.0, 0.03)), (0.065, 0.075, 0.065), silk)
    return moved(made, rotation(pitch=fit.lean), centre)


def crown(rng: np.random.Generator, fit: Fit) -> list[Shape]:
    """A golden crown with pearls and jewels."""
    centre, radius = fit.crown
    gold = Material(colour=(0.98, 0.76, 0.22), gloss=0.9)
    gem = COLOURS[pick(rng, "red", "blue", "green", "purple")]
    jewel = Material(colour=gem, gloss=0.9)
    r = radius * 0.80
    made = Build()
    made.tube((0.0, -0.02, 0.0), (0.0, 0.15, 0.0), r, gold, taper=1.12, hole=0.86)
    for i in range(6):
        turn = rotation(yaw=60.0 * i)
        foot = apply(turn, (0.0, 0.12, r * 1.03))
        tip = apply(turn, (0.0, 0.12 + 0.75 * r, r * 1.16))
        made.tube(foot, tip, r * 0.42, gold, taper=0.1, flat=0.4)
        made.ball(tip, r * 0.14, SPARK if i % 2 else jewel)
    made.ball((0.0, 0.06, r * 1.08), (0.06, 0.06, 0.04), jewel)
    return moved(made, fit.turn, centre)


WEAR: dict[str, Callable[[np.random.Generator, Fit], list[Shape]]] = {
    "hat": hat,
    "scarf": scarf,
    "glasses": glasses,
    "bow": bow,
    "crown": crown,
}
