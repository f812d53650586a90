"""Training examples: images with their text as rows of a batch."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagen_booth.data import pipeline


class CaptionedImages:
    """Random access to captioned images as rows of a batch.

    Args:
        records: Records with ``image`` uint8 [S, S, 3] and ``caption``.
        text: Turns a caption into the text entries of a row.
        low: Side of the low-res version in pixels; None for none.
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
    """The embedding of one prompt.

    Attributes:
        text: Encoder output, f32 [L, D].
        mask: Tokens that the U-Net reads, bool [L].
    """

    text: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImagePair:
    """One training image, uint8, and its low-res version if the stage has one."""

    image: np.ndarray
    low: np.ndarray | None

    def example(self, embedding: Embedding) -> pipeline.Example:
        """The pair with an embedding as a row of a batch."""
        row = {
            "image": self.image,
            "text": embedding.text,
            "text_mask": embedding.mask,
        }
        return row if self.low is None else row | {"low": self.low}


@dataclasses.dataclass(frozen=True)
class SubjectExamples:
    """What a stage is fine-tuned on for one subject.

    Attributes:
        photos: The photos; each is used equally often.
        prompt: The instance prompt.
        text: Its embedding.
        class_prompt: The class prompt.
        class_text: Its embedding.
        class_pairs: The class images; empty without class images, and for a second
            subject of the same class.
    """

    photos: Sequence[ImagePair]
    prompt: str
    text: Embedding
    class_prompt: str
    class_text: Embedding
    class_pairs: Sequence[ImagePair] = ()
