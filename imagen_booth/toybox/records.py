"""Toybox records cached on disk in blocks, each rendered at its first use.

This saves time if training visits a record more than once. The cached pictures are
those that ``examples`` renders.
"""

import functools
import json

import numpy as np
from etils import epath

from imagen_booth.storage import from_cache, write_array, write_atomic
from imagen_booth.toybox import examples
from imagen_booth.toybox.grammar import WORDS

BLOCK = 256  # records of a block


def block_length(size: int) -> int:
    """Records of a block of pictures of this side; fewer if rendering takes seconds."""
    return BLOCK if size <= 256 else BLOCK // 8


class RenderedRecords:
    """Random access to the first ``length`` records of a seed.

    Args:
        folder: Folder of the cache; its folders are named by seed and size.
        seed: Seed of the records, see ``examples.example``.
        length: Number of records, a multiple of ``block_length(size)``.
        size: Side of the images in pixels.
    """

    def __init__(self, folder: epath.Path, *, seed: int, length: int, size: int):
        self._per_block = block_length(size)
        assert length % self._per_block == 0, length
        self._seed, self._size, self._length = seed, size, length
        name = f"{size}px_seed{seed}_{len(WORDS.nouns)}nouns"
        self._folder = folder / name
        # Shuffled reading opens all blocks, so they are memory-mapped.
        self._block = functools.lru_cache(maxsize=None)(self._read)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, object]:
        images, captions = self._block(index // self._per_block)
        place = index % self._per_block
        return {
            "image": np.asarray(images[place]),
            "caption": captions[place],
        }

    def _read(self, number: int) -> tuple[np.ndarray, list[str]]:
        images = self._folder / f"{number:05d}.npy"
        captions = self._folder / f"{number:05d}.json"
        texts, pixels = from_cache(captions, read_texts), from_cache(images, open_block)
        if texts is None or pixels is None:
            first = number * self._per_block
            indices = range(first, first + self._per_block)
            pixels, texts, _ = examples.render_examples(
                self._seed, indices, size=self._size
            )
            write_array(images, pixels)
            # Written last, so that a block with captions is complete.
            write_atomic(captions, json.dumps(texts).encode())
            return open_block(images), texts
        return pixels, texts


def open_block(path: epath.Path) -> np.ndarray:
    """The array of a block, memory-mapped."""
    return np.load(path, mmap_mode="r")


def read_texts(path: epath.Path) -> list[str]:
    """The captions of a block."""
    return json.loads(path.read_text())
