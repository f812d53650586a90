"""Captioned pictures of any set as rows of a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagen_booth.data import pipeline


class CaptionedImages:
    """Records as rows: the image, its low-res version, and its text.

    Args:
        records: ``image`` uint8 [S, S, 3] and ``caption``.
        text: caption to the entries of a row that say it.
        low: side in pixels of the low-res version, None for none.
    """

    def __init__(
        self, records: Any, text: Callable[[str], pipeline.Example], low: int | None
    ):
        self._records, self._text, self._low = records, text, low

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> pipeline.Example:
        record = self._records[index]
        row = {"image": record["image"], **self._text(record["caption"])}
        if self._low is None:
            return row
        small = Image.fromarray(record["image"]).resize(
            (self._low, self._low), Image.Resampling.LANCZOS
        )
        return row | {"low": np.asarray(small)}


class Embedding(NamedTuple):
    """One prompt as a U-Net reads it.

    Attributes:
        text: [L, D] f32.
        mask: [L] bool, True where the U-Net reads.
    """

    text: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImagePair:
    """One training image, uint8, with its low-res version where the stage has one."""

    image: np.ndarray
    low: np.ndarray | None

    def example(self, embedding: Embedding) -> pipeline.Example:
        """As a row of a batch."""
        row = {
            "image": self.image,
            "text": embedding.text,
            "text_mask": embedding.mask,
        }
        return row if self.low is None else row | {"low": self.low}
