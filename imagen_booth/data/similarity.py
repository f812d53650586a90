"""Similarity of samples and photos, measured without a network.

Two measures: colours (histogram intersection) and coarse layout (correlation of small
grey images). They show whether fine-tuning moved the samples towards the subject; they
do not replace learned features.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

BINS = 6  # per colour channel
SIDE = 16  # side in pixels of the images whose layout is compared


def colour_similarity(image: np.ndarray, photo: np.ndarray) -> float:
    """Intersection of colour histograms, 0 to 1.

    Args:
        image, photo: uint8 [H, W, 3], of any sizes.
    """
    return float(np.minimum(_histogram(image), _histogram(photo)).sum())


def layout_similarity(image: np.ndarray, photo: np.ndarray) -> float:
    """Pearson correlation of 16 x 16 grey images, -1 to 1; 0 for a uniform one."""
    one, other = _layout(image), _layout(photo)
    scale = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / scale) if scale > 1e-9 else 0.0


def to_photos(
    images: Iterable[np.ndarray], photos: Sequence[np.ndarray]
) -> dict[str, float]:
    """Mean of both measures over all (image, photo) pairs.

    Returns:
        {"colour": mean, "layout": mean}.
    """
    pairs = [(image, photo) for image in images for photo in photos]
    return {
        "colour": float(np.mean([colour_similarity(*pair) for pair in pairs])),
        "layout": float(np.mean([layout_similarity(*pair) for pair in pairs])),
    }


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images of one size, in dB.

    -10 log10(mean squared error) with pixel values in [0, 1]; 100 for equal images.
    """
    error = np.mean((image.astype(np.float64) - truth.astype(np.float64)) ** 2) / 255**2
    return float(-10 * np.log10(max(error, 1e-10)))


def _histogram(image: np.ndarray) -> np.ndarray:
    bins = image.reshape(-1, 3).astype(int) * BINS // 256
    flat = (bins[:, 0] * BINS + bins[:, 1]) * BINS + bins[:, 2]
    return np.bincount(flat, minlength=BINS**3) / len(flat)


def _layout(image: np.ndarray) -> np.ndarray:
    grey = (
        Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    )
    values = np.asarray(grey, np.float64).ravel()
    return values - values.mean()
