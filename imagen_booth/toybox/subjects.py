"""Subjects: one individual, its photos, and its true picture for any prompt."""

import dataclasses

import numpy as np

from imagen_booth.errors import InputError
from imagen_booth.toybox import grammar
from imagen_booth.toybox.bodies import Pose
from imagen_booth.toybox.captions import parse
from imagen_booth.toybox.grammar import Attributes, Individual
from imagen_booth.toybox.renderer import render
from imagen_booth.toybox.scene import Scene

# Separates the random numbers of subjects from those of pretraining.
_SPACE = 1
_MAX_PHOTOS = 6
_CANDIDATES = 4


@dataclasses.dataclass(frozen=True)
class ToyboxSubject:
    """An individual of a class, fixed by its seed.

    Of a few individuals that the seed gives, it is the one with the most distinct and
    textured materials, which make it recognisable.

    Raises:
      InputError: The noun is not in the grammar.
    """

    noun: str
    seed: int

    def __post_init__(self) -> None:
        if self.noun not in grammar.BODIES:
            # Parsing the noun as a prompt raises an error that names the nearest one.
            parse(self.noun)
            raise InputError(f"noun {self.noun!r} is not one of {[*grammar.BODIES]}.")

    @property
    def individual(self) -> Individual:
        """The individual: its noun, its colour and the seed of its traits."""
        candidates = []
        for attempt in range(_CANDIDATES):
            seed = (_SPACE, self.seed, attempt)
            rng = np.random.default_rng((*seed, 1))
            colour = grammar.draw_colour(rng, self.noun, grammar.WORDS.colours)
            made = Individual(noun=self.noun, colour=colour, seed=(*seed, 2))
            candidates.append(made)
        return max(candidates, key=_marks)


def describe(subject: ToyboxSubject) -> str:
    """A subject in the words of the grammar: its colour and its noun.

    The grammar has no words for marks and materials, so a prompt cannot describe more.
    """
    return f"{subject.individual.colour} {subject.noun}"


def _marks(individual: Individual) -> int:
    """The number of materials of an individual; textured ones count twice."""
    rng = np.random.default_rng(individual.seed)
    body = grammar.BODIES[individual.noun](rng, individual.colour, Pose())
    materials = {s.material for s in body.shapes}
    return len(materials) + sum(m.texture != "plain" for m in materials)


def photo_attributes(count: int = 5) -> list[Attributes]:
    """The place and view of each of a subject's photos."""
    if not 1 <= count <= _MAX_PHOTOS:
        raise InputError(f"count is {count}; a subject has 1 to {_MAX_PHOTOS} photos.")
    settings = (
        ("room", "front"),
        ("meadow", "side"),
        (None, "front"),
        ("street", "front"),
        ("beach", "side"),
        ("snow", "back"),
    )
    return [Attributes(noun="", context=c, view=v) for c, v in settings[:count]]


def photo_scenes(subject: ToyboxSubject, count: int = 5) -> list[Scene]:
    """Scenes of the subject's photos, in different poses, views and places."""
    scenes = []
    for i, setting in enumerate(photo_attributes(count)):
        rng = np.random.default_rng((_SPACE, subject.seed, 1000 + i))
        shown = dataclasses.replace(setting, noun=subject.noun)
        scenes.append(grammar.compose(subject.individual, shown, rng))
    return scenes


def photos(subject: ToyboxSubject, count: int = 5, size: int = 1024) -> np.ndarray:
    """The subject's photos, uint8 [count, size, size, 3]."""
    return render(photo_scenes(subject, count), size)


def truth_scene(subject: ToyboxSubject, prompt: str, take: int = 0) -> Scene:
    """The scene that a prompt such as "a [V] dog in the snow" asks for.

    The subject appears whatever the noun of the prompt, because experiments use wrong
    nouns. Each `take` has its own pose, place and camera.

    Raises:
      InputError: The prompt is not in the grammar.
    """
    asked = parse(prompt)
    rng = np.random.default_rng((_SPACE, subject.seed, 2000 + take))
    shown = dataclasses.replace(asked, noun=subject.noun)
    return grammar.compose(subject.individual, shown, rng)
