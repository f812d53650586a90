"""Pictures of the toybox cached on disk in blocks, each rendered at its first use.

This saves time if training visits a picture more than once. The cached pictures of
records are those that ``examples`` renders.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from imagen_booth.storage import from_cache, write_array
from imagen_booth.toybox import examples
from imagen_booth.toybox.grammar import WORDS

BLOCK = 256  # records of a block


def block_length(size: int) -> int:
    """Records of a block of pictures of this side; fewer if rendering takes seconds."""
    return BLOCK if size <= 256 else BLOCK // 8


class Blocks:
    """Random access to rendered pictures.

    Args:
        folder: Folder of the blocks.
        length: Number of entries, a multiple of ``per_block``.
        per_block: Entries of a block.
        render: Gives the pictures of some entries, uint8 [N, ...].
    """

    def __init__(
        self,
        folder: epath.Path,
        length: int,
        per_block: int,
        render: Callable[[Sequence[int]], np.ndarray],
    ):
        assert length % per_block == 0, length
        self._folder, self._length, self._per_block = folder, length, per_block
        self._render = render
        # Shuffled reading opens all blocks, so they are memory-mapped.
        self._block = functools.lru_cache(maxsize=None)(self._read)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        number, place = divmod(index, self._per_block)
        return np.asarray(self._block(number)[place])

    def _read(self, number: int) -> np.ndarray:
        path = self._folder / f"{number:05d}.npy"
        block = from_cache(path, _open)
        if block is None:
            first = number * self._per_block
            write_array(path, self._render(range(first, first + self._per_block)))
            block = _open(path)
        return block


def _open(path: epath.Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


class RenderedRecords:
    """Random access to the first ``length`` records of a seed.

    Args:
        folder: Folder of the cache; its folders are named by seed and size.
        seed: Seed of the records, see ``examples.example``.
        length: Number of records, a multiple of ``block_length(size)``.
        size: Side of the images in pixels.
    """

    def __init__(self, folder: epath.Path, *, seed: int, length: int, size: int):
        def render(indices: Sequence[int]) -> np.ndarray:
            return examples.render_examples(seed, indices, size=size)[0]

        name = f"{size}px_seed{seed}_{len(WORDS.nouns)}nouns"
        self._seed = seed
        self._images = Blocks(folder / name, length, block_length(size), render)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, object]:
        _, caption = examples.describe(self._seed, index)
        return {"image": self._images[index], "caption": caption}
