"""Pairs of pictures that show one individual in two scenes, cached on disk.

The judge learns from them which pictures show the same individual. The individuals
occur neither in pretraining nor among the subjects. Every word is equally frequent, and
combinations that pretraining leaves out occur too.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.toybox import grammar
from imagen_booth.toybox.bodies import pick
from imagen_booth.toybox.grammar import WORDS, Attributes, Individual, Words
from imagen_booth.toybox.records import BLOCK, Blocks
from imagen_booth.toybox.renderer import render
from imagen_booth.toybox.scene import Scene

# Seeds random generators apart from those of pretraining (0) and of subjects (1).
_SPACE = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two scenes of one individual, and their attributes."""

    scenes: tuple[Scene, Scene]
    attributes: tuple[Attributes, Attributes]


def attributes(
    seed: int, index: int, words: Words = WORDS
) -> tuple[Attributes, Attributes]:
    """Attributes of both pictures of a pair; they share noun and colour."""
    rng = np.random.default_rng((_SPACE, seed, index))
    noun = pick(rng, *words.nouns)
    colour = grammar.draw_colour(rng, noun, words.colours)

    def draw() -> Attributes:
        return Attributes(
            noun=noun,
            colour=colour,
            context=pick(rng, None, *words.contexts),
            view=pick(rng, *words.views),
            style=pick(rng, *words.styles),
            accessory=pick(rng, None, *words.accessories),
        )

    return draw(), draw()


def pair(seed: int, index: int, words: Words = WORDS) -> Pair:
    """The pair at an index: the same for the same seed, index and words."""
    one, other = attributes(seed, index, words)
    assert one.colour is not None
    individual = Individual(
        noun=one.noun, colour=one.colour, seed=(_SPACE, seed, index, 1)
    )
    rng = np.random.default_rng((_SPACE, seed, index, 2))
    return Pair(
        scenes=(
            grammar.compose(individual, one, rng),
            grammar.compose(individual, other, rng),
        ),
        attributes=(one, other),
    )


class Pairs:
    """Random access to the first ``length`` pairs of a seed, rendered at first use.

    Args:
        folder: Folder of the cache; its folders are named by seed and size.
        seed: Seed of the pairs.
        length: Number of pairs, a multiple of ``BLOCK``.
        size: Side of the images in pixels.
    """

    def __init__(self, folder: epath.Path, *, seed: int, length: int, size: int):
        def render_pairs(indices: Sequence[int]) -> np.ndarray:
            scenes = [scene for i in indices for scene in pair(seed, i).scenes]
            return render(scenes, size).reshape(len(indices), 2, size, size, 3)

        name = f"{size}px_pairs_seed{seed}_{len(WORDS.nouns)}nouns"
        self._seed = seed
        self._images = Blocks(folder / name, length, BLOCK, render_pairs)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self._images[index],
            "attributes": attributes(self._seed, index),
        }
