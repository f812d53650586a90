"""Pairs of pictures that show one individual in two scenes, cached on disk.

The judge learns from them which pictures show the same individual. The individuals
occur neither in pretraining nor among the subjects. Every word is equally frequent, and
combinations that pretraining leaves out occur too.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.storage import from_cache, write_array
from imagen_booth.toybox import grammar
from imagen_booth.toybox.bodies import pick
from imagen_booth.toybox.grammar import WORDS, Attributes, Individual, Words
from imagen_booth.toybox.records import BLOCK, open_block
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
        assert length % BLOCK == 0, length
        self._seed, self._size, self._length = seed, size, length
        name = f"{size}px_pairs_seed{seed}_{len(WORDS.nouns)}nouns"
        self._folder = folder / name
        # Shuffled reading opens all blocks, so they are memory-mapped.
        self._block = functools.lru_cache(maxsize=None)(self._read)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": np.asarray(self._block(index // BLOCK)[index % BLOCK]),
            "attributes": attributes(self._seed, index),
        }

    def _read(self, number: int) -> np.ndarray:
        """Pictures of a block, uint8 [BLOCK, 2, size, size, 3]."""
        size = self._size
        path = self._folder / f"{number:05d}.npy"
        block = from_cache(path, open_block)
        if block is None:
            indices = range(number * BLOCK, (number + 1) * BLOCK)
            scenes = [scene for i in indices for scene in pair(self._seed, i).scenes]
            pixels = render(scenes, size).reshape(BLOCK, 2, size, size, 3)
            write_array(path, pixels)
            block = open_block(path)
        return block
