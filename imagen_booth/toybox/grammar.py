"""The words of the toybox, and scenes from words."""

import dataclasses
import math
import zlib
from collections.abc import Sequence

import numpy as np

from imagen_booth.toybox import animals, objects
from imagen_booth.toybox import scene as sc
from imagen_booth.toybox.bodies import Pose, pick
from imagen_booth.toybox.places import PLACES, light_for, studio
from imagen_booth.toybox.wear import WEAR

BODIES = {
    "dog": animals.dog,
    "cat": animals.cat,
    "duck": animals.duck,
    "car": objects.car,
    "teapot": objects.teapot,
    "backpack": objects.backpack,
    "vase": objects.vase,
}
NEW = "vase"  # a noun for subjects of a class that no prior has seen
LIVING = ("dog", "cat", "duck")

# Most frequent colours of animals; objects have all colours equally often.
_NATURAL = ("brown", "white", "black", "orange", "yellow")

# Range of a subject's turn away from the viewer in degrees, to either side, by noun and
# view. The front of a teapot is its spout, which is seen best from an angle.
_YAW = {
    ("", "front"): (0.0, 36.0),
    ("", "side"): (78.0, 98.0),
    ("", "back"): (155.0, 180.0),
    ("teapot", "front"): (35.0, 70.0),
    ("teapot", "back"): (115.0, 140.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attributes:
    """What a picture shows.

    None means any colour, a plain backdrop, or no accessory.
    """

    noun: str
    colour: str | None = None
    context: str | None = None
    view: str = "front"
    style: str = "photo"
    accessory: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """Words of training pictures, for every attribute."""

    nouns: tuple[str, ...]
    contexts: tuple[str, ...]
    colours: tuple[str, ...]
    accessories: tuple[str, ...]
    views: tuple[str, ...]
    styles: tuple[str, ...]


# The order is part of every record: what is drawn is a number of a word.
WORDS = Words(
    nouns=tuple(noun for noun in BODIES if noun != NEW),
    contexts=tuple(PLACES),
    colours=("red", "orange", "yellow", "green", "blue", "brown", "white", "black"),
    accessories=tuple(WEAR),
    views=("front", "side", "back"),
    styles=("photo", "painting"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Individual:
    """One individual of a class; noun, colour and seed determine all its traits."""

    noun: str
    colour: str
    seed: tuple[int, ...]


def held_out(noun: str, colour: str, context: str | None) -> bool:
    """Whether training leaves a combination out, which is so for about one in eight.

    The rule is crc32("noun/colour/context") mod 8 = 0. Plain backdrops are never left
    out, so training shows every noun in every colour.
    """
    if context is None:
        return False
    return zlib.crc32(f"{noun}/{colour}/{context}".encode()) % 8 == 0


def held_out_combinations(words: Words = WORDS) -> list[tuple[str, str, str]]:
    """All (noun, colour, context) that training leaves out, in order."""
    return [
        (noun, colour, context)
        for noun in words.nouns
        for colour in words.colours
        for context in words.contexts
        if held_out(noun, colour, context)
    ]


def draw_colour(rng: np.random.Generator, noun: str, colours: Sequence[str]) -> str:
    """A random colour for an individual of a class; natural for most animals."""
    natural = [c for c in colours if c in _NATURAL]
    if noun in LIVING and natural and rng.random() < 0.6:
        return pick(rng, *natural)
    return pick(rng, *colours)


def draw_attributes(rng: np.random.Generator, words: Words = WORDS) -> Attributes:
    """Random attributes of a training picture, never a held-out combination."""
    noun = pick(rng, *words.nouns)
    while True:
        colour = draw_colour(rng, noun, words.colours)
        context = None
        if rng.random() < 0.85:
            context = pick(rng, *words.contexts)
        if not held_out(noun, colour, context):
            break

    def rarely(chance: float, usual: str, others: tuple[str, ...]) -> str:
        rest = [o for o in others if o != usual]
        hit = rng.random() < chance and rest
        return pick(rng, *rest) if hit else usual

    accessory = None
    if rng.random() < 0.25:
        accessory = pick(rng, *words.accessories)
    # Two draws go unused, so that records stay those that the weights were trained on.
    rng.random()
    shown = Attributes(
        noun=noun,
        colour=colour,
        context=context,
        view=rarely(0.25, "front", words.views),
        style=rarely(0.1, "photo", words.styles),
        accessory=accessory,
    )
    if noun in LIVING:
        rng.random()
    return shown


def draw_pose(rng: np.random.Generator) -> Pose:
    """A random pose."""
    return Pose(
        stance=pick(rng, "stand", "sit", "sit", "lie"),
        head_yaw=float(rng.uniform(-18.0, 18.0)),
        head_pitch=float(rng.uniform(-4.0, 8.0)),
        head_roll=float(rng.uniform(-10.0, 10.0)),
        wag=float(rng.uniform(-1.0, 1.0)),
    )


def compose(
    individual: Individual, attributes: Attributes, rng: np.random.Generator
) -> sc.Scene:
    """The scene of an individual with the given attributes.

    Everything that is not a trait of the individual (pose, place, light, camera)
    is drawn from `rng`; a colour in the attributes repaints the individual.
    """
    traits = np.random.default_rng(individual.seed)
    colour = attributes.colour or individual.colour
    body = BODIES[individual.noun](traits, colour, draw_pose(rng))
    shapes = list(body.shapes)
    if attributes.accessory is not None:
        shapes += WEAR[attributes.accessory](rng, body.fit)
    place = PLACES.get(attributes.context or "", studio)(rng)
    light = light_for(rng, place)

    low, high = _YAW.get((attributes.noun, attributes.view), _YAW["", attributes.view])
    turn = sc.rotation(yaw=float(rng.uniform(low, high) * rng.choice([-1.0, 1.0])))
    shapes = sc.moved(shapes, turn)
    camera = _framed(rng, shapes, float(rng.uniform(5.0, 11.0)))
    return sc.Scene(
        shapes=(*shapes, *place.shapes),
        camera=camera,
        light=light,
        sky=place.sky,
        ground=place.ground,
        style=attributes.style,
        seed=int(rng.integers(1000)),
    )


def _framed(rng: np.random.Generator, shapes: list[sc.Shape], rise: float) -> sc.Camera:
    """A camera `rise` degrees up for which the shapes fill about 65 % of the frame."""
    fov = 30.0
    fill = float(rng.uniform(0.74, 0.86))
    turned = sc.rotation(pitch=-rise)
    axes = [sc.apply(turned, axis) for axis in sc.UPRIGHT]
    target, extents = sc.ORIGIN, []
    for axis in axes:
        low, high = _extent(shapes, axis)
        target = sc.add(target, sc.scaled(axis, (low + high) / 2))
        extents.append(high - low)
    wide, tall, deep = extents
    # Parts nearer than the middle look larger; a quarter of the depth compensates.
    tangent = math.tan(math.radians(fov / 2))
    distance = max(wide, tall) / (2 * tangent * fill) + 0.25 * deep
    eye = sc.add(target, sc.scaled(axes[2], distance))
    shift = (float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.06, 0.02)))
    return sc.Camera(eye=eye, target=target, fov=fov, shift=shift)


def _extent(shapes: list[sc.Shape], axis: sc.Vec) -> tuple[float, float]:
    """The least and the greatest reach of the shapes, as ellipsoids, along an axis."""
    low, high = math.inf, -math.inf
    for shape in shapes:
        along = [sc.dot(row, axis) for row in shape.turn]
        reach = math.hypot(*(h * a for h, a in zip(shape.half, along, strict=True)))
        middle = sc.dot(shape.centre, axis)
        low, high = min(low, middle - reach), max(high, middle + reach)
    return low, high
