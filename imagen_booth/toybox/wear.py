"""Accessories, fitted to any body by its `Fit`."""

from collections.abc import Callable

import numpy as np

from imagen_booth.toybox.bodies import COLOURS, Fit, pick, shade
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


WEAR: dict[str, Callable[[np.random.Generator, Fit], list[Shape]]] = {
    "hat": hat,
    "scarf": scarf,
}
