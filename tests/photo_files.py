"""Photos for tests: each another, and blurred enough to survive being reduced."""

import numpy as np
from PIL import Image


def blurred(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> Image.Image:
    """``cells`` x ``cells`` random colours, enlarged to (width, height)."""
    small = rng.integers(0, 255, (cells, cells, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
