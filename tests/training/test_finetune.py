"""Examples of tuning: which class images come without their text."""

import numpy as np
import pytest

from imagen_booth.data.examples import Embedding, ImagePair
from imagen_booth.training.finetune import class_examples

TEXT, NULL = (
    Embedding(np.full((3, 2), value, np.float32), np.ones(3, bool))
    for value in (1.0, 0.0)
)


@pytest.mark.parametrize(
    ("share", "silent"), [(0.0, []), (0.125, [7, 15]), (0.25, [3, 7, 11, 15])]
)
def test_a_share_of_class_images_is_silent(share, silent):
    pairs = [ImagePair(np.full((2, 2, 3), i, np.uint8), None) for i in range(16)]
    found = class_examples(pairs, TEXT, NULL, share)
    assert [row["image"][0, 0, 0] for row in found] == list(range(16))
    assert [i for i, row in enumerate(found) if not row["text"].any()] == silent
