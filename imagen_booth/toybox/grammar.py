"""The words of the toybox, the tiers of its grammar, and scenes from words."""

import dataclasses
import math
import zlib
from collections.abc import Sequence

import numpy as np

from imagen_booth.toybox import animals, objects, tableware
from imagen_booth.toybox import scene as sc
from imagen_booth.toybox.bodies import COLOURS, Pose, pick
from imagen_booth.toybox.places import PLACES, light_for, studio
from imagen_booth.toybox.wear import WEAR

BODIES = {
    "dog": animals.dog,
    "cat": animals.cat,
    "duck": animals.duck,
    "rabbit": animals.rabbit,
    "car": objects.car,
    "teapot": tableware.teapot,
    "backpack": objects.backpack,
    "clock": objects.clock,
    "vase": tableware.vase,
    "robot": objects.robot,
    "candle": tableware.candle,
    "mug": tableware.mug,
}
NOUNS = tuple(BODIES)
LIVING = ("dog", "cat", "duck", "rabbit")
CONTEXTS = tuple(PLACES)
ACCESSORIES = tuple(WEAR)
LIGHTS = ("day", "sunset", "night")
VIEWS = ("front", "side", "back", "above")
EXPRESSIONS = ("calm", "happy", "sleeping", "angry", "surprised")
STYLES = sc.STYLES

# Most frequent colours of animals; objects have all colours equally often.
_NATURAL = ("brown", "white", "black", "orange", "grey", "yellow")

# Range of a subject's turn away from the viewer in degrees, to either side, by noun and
# view. The front of a teapot is its spout, which is seen best from an angle.
_YAW = {
    ("", "front"): (0.0, 36.0),
    ("", "side"): (78.0, 98.0),
    ("", "back"): (155.0, 180.0),
    ("", "above"): (0.0, 30.0),
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
    light: str = "day"
    view: str = "front"
    style: str = "photo"
    accessory: str | None = None
    expression: str = "calm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tier:
    """The part of the grammar that a cascade is trained on."""

    nouns: tuple[str, ...]
    contexts: tuple[str, ...]
    colours: tuple[str, ...]
    accessories: tuple[str, ...]
    views: tuple[str, ...]
    styles: tuple[str, ...]
    lights: tuple[str, ...]
    expressions: tuple[str, ...]


TIER_A = Tier(
    nouns=("dog", "cat", "duck", "car", "teapot", "backpack"),
    contexts=("beach", "snow", "jungle", "street", "room", "meadow"),
    colours=("red", "orange", "yellow", "green", "blue", "brown", "white", "black"),
    accessories=("hat", "scarf"),
    views=("front", "side", "back"),
    styles=("photo", "painting"),
    lights=("day",),
    expressions=("calm",),
)
TIER_B = Tier(
    nouns=NOUNS,
    contexts=CONTEXTS,
    colours=tuple(COLOURS),
    accessories=ACCESSORIES,
    views=VIEWS,
    styles=STYLES,
    lights=LIGHTS,
    expressions=EXPRESSIONS,
)
TIERS = {"A": TIER_A, "B": TIER_B}


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


def held_out_combinations(tier: Tier) -> list[tuple[str, str, str]]:
    """All (noun, colour, context) of a tier that training leaves out, in order."""
    return [
        (noun, colour, context)
        for noun in tier.nouns
        for colour in tier.colours
        for context in tier.contexts
        if held_out(noun, colour, context)
    ]


def draw_colour(rng: np.random.Generator, noun: str, colours: Sequence[str]) -> str:
    """A random colour for an individual of a class; natural for most animals."""
    natural = [c for c in colours if c in _NATURAL]
    if noun in LIVING and natural and rng.random() < 0.6:
        return pick(rng, *natural)
    return pick(rng, *colours)


def draw_attributes(rng: np.random.Generator, tier: Tier) -> Attributes:
    """Random attributes of a training picture, never a held-out combination."""
    noun = pick(rng, *tier.nouns)
    while True:
        colour = draw_colour(rng, noun, tier.colours)
        context = None
        if rng.random() < 0.85:
            context = pick(rng, *tier.contexts)
        if not held_out(noun, colour, context):
            break

    def rarely(chance: float, usual: str, others: tuple[str, ...]) -> str:
        rest = [o for o in others if o != usual]
        hit = rng.random() < chance and rest
        return pick(rng, *rest) if hit else usual

    accessory = None
    if rng.random() < 0.25:
        accessory = pick(rng, *tier.accessories)
    return Attributes(
        noun=noun,
        colour=colour,
        context=context,
        light=rarely(0.3, "day", tier.lights),
        view=rarely(0.25, "front", tier.views),
        style=rarely(0.1 if len(tier.styles) < 3 else 0.25, "photo", tier.styles),
        accessory=accessory,
        expression=rarely(0.3, "calm", tier.expressions) if noun in LIVING else "calm",
    )


def draw_pose(rng: np.random.Generator, attributes: Attributes) -> Pose:
    """A random pose that suits the attributes."""
    asleep = attributes.expression == "sleeping"
    stance = "lie" if asleep else pick(rng, "stand", "sit", "sit", "lie")
    return Pose(
        stance=stance,
        head_yaw=float(rng.uniform(-18.0, 18.0)),
        head_pitch=float(rng.uniform(-4.0, 8.0)) + 8.0 * asleep,
        head_roll=float(rng.uniform(-10.0, 10.0)),
        wag=float(rng.uniform(-1.0, 1.0)),
        expression=attributes.expression,
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
    pose = draw_pose(rng, attributes)
    body = BODIES[individual.noun](traits, colour, pose)
    shapes = list(body.shapes)
    if attributes.accessory is not None:
        shapes += WEAR[attributes.accessory](rng, body.fit)
    place = PLACES.get(attributes.context or "", studio)(rng)
    light, sky = light_for(rng, attributes.light, place)

    low, high = _YAW.get((attributes.noun, attributes.view), _YAW["", attributes.view])
    turn = sc.rotation(yaw=float(rng.uniform(low, high) * rng.choice([-1.0, 1.0])))
    sink = (0.0, -place.depth, 0.0)
    shapes = sc.moved(shapes, turn, sink)
    if attributes.style == "statue":
        shapes = _carved(rng, shapes)
    rise = (58.0, 68.0) if attributes.view == "above" else (5.0, 11.0)
    camera = _framed(rng, shapes, float(rng.uniform(*rise)))
    return sc.Scene(
        shapes=(*shapes, *place.shapes),
        camera=camera,
        light=light,
        sky=sky,
        ground=place.ground,
        style=attributes.style,
        seed=int(rng.integers(1000)),
    )


def _carved(rng: np.random.Generator, shapes: list[sc.Shape]) -> list[sc.Shape]:
    """The subject in stone or bronze, on a plinth."""
    bronze = rng.random() < 0.35
    tone = (0.52, 0.38, 0.22) if bronze else (0.90, 0.89, 0.87)
    vein = (0.40, 0.40, 0.28) if bronze else (0.80, 0.79, 0.77)
    stone = sc.Material(
        colour=tone, second=vein, texture="patches", scale=3.0,
        gloss=0.55 if bronze else 0.12, grain=0.25,
    )  # fmt: skip
    lift = 0.35
    carved = [
        dataclasses.replace(
            s, material=stone, centre=sc.add(s.centre, (0.0, lift, 0.0))
        )
        for s in shapes
    ]
    reach = max(math.hypot(s.centre[0], s.centre[2]) for s in shapes) + 0.15
    plinth = sc.Material(colour=(0.50, 0.49, 0.48), grain=0.4)
    block = sc.Build(carved)
    block.box((0.0, lift / 2, 0.0), (reach, lift / 2, reach), plinth, round=1.7)
    return block


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
