"""Examples of tuning: whose they are, and which come without their text."""

import dataclasses

import numpy as np
import pytest

from imagen_booth.config.schema import FrozenModel
from imagen_booth.data.examples import Embedding, ImagePair, SubjectExamples
from imagen_booth.training.finetune import class_examples, class_sets
from imagen_booth.training.frozen_targets import FrozenPrior

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


def pairs_of(value, count):
    return [ImagePair(np.full((2, 2, 3), value, np.uint8), None)] * count


def test_two_subjects_have_class_images_of_each_class():
    """One set for subjects of one class; with the frozen model the photos of both."""
    dog = SubjectExamples(pairs_of(1, 2), "a zuj dog", TEXT, "a dog", TEXT)
    cat = SubjectExamples(pairs_of(2, 3), "a kex cat", TEXT, "a cat", NULL)

    def values(subjects, prior=None):
        sets = class_sets(subjects, 0.5, NULL, prior)
        return [[int(row["image"][0, 0, 0]) for row in rows] for rows in sets]

    images = [
        dataclasses.replace(each, class_pairs=pairs_of(value, 2))
        for each, value in ((dog, 11), (cat, 12))
    ]
    assert values(images) == [[11, 11], [12, 12]]
    assert values([images[0], cat]) == [[11, 11]]
    frozen = FrozenPrior(FrozenModel(), np.dtype("float32"), 2)
    assert values([dog, cat], frozen) == [[1] * 4, [2] * 6]
