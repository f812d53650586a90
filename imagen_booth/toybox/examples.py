"""Training examples of the toybox: a picture and caption for any seed and index."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from imagen_booth.toybox import grammar
from imagen_booth.toybox.captions import training_caption
from imagen_booth.toybox.grammar import WORDS, Attributes, Individual, Words
from imagen_booth.toybox.renderer import render
from imagen_booth.toybox.scene import Scene

# Separates the random numbers of pretraining from those of subjects of one seed.
SPACE = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A scene of pretraining, its caption, and its attributes."""

    scene: Scene
    caption: str
    attributes: Attributes


def example(seed: int, index: int, words: Words = WORDS) -> Example:
    """The example at an index: the same for the same seed, index and words."""
    attributes, text = describe(seed, index, words)
    scene = scene_of(attributes, (seed, index))
    return Example(scene=scene, caption=text, attributes=attributes)


def describe(seed: int, index: int, words: Words = WORDS) -> tuple[Attributes, str]:
    """Attributes and caption of the example at an index, without its scene."""
    rng = np.random.default_rng((SPACE, seed, index))
    attributes = grammar.draw_attributes(rng, words)
    return attributes, training_caption(rng, attributes)


def scene_of(attributes: Attributes, seed: tuple[int, int]) -> Scene:
    """A scene with a random individual that shows the attributes.

    A colour of None is drawn at random.
    """
    rng = np.random.default_rng((SPACE, *seed, 1))
    colour = grammar.draw_colour(rng, attributes.noun, WORDS.colours)
    individual = Individual(noun=attributes.noun, colour=colour, seed=(SPACE, *seed, 2))
    return grammar.compose(individual, attributes, rng)


def render_examples(
    seed: int,
    indices: Sequence[int],
    *,
    words: Words = WORDS,
    size: int = 64,
) -> tuple[np.ndarray, list[str], list[Attributes]]:
    """Pictures, captions and attributes at the indices, rendered together.

    Returns:
      (uint8 [N, size, size, 3], N captions, N attributes). Each picture depends on
      its own index alone, up to rounding.
    """
    examples = [example(seed, int(i), words) for i in indices]
    images = render([e.scene for e in examples], size)
    return images, [e.caption for e in examples], [e.attributes for e in examples]
