"""The words for a subject, and what a user should know about its photos."""

import dataclasses

import pytest

from imagen_booth.config import build, presets
from imagen_booth.config.schema import Subject
from imagen_booth.errors import InputError
from imagen_booth.training import subject_photos


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("a dog", "dog"),
        ("An apple tree", "apple tree"),
        ("my old teapot", "old teapot"),
        ("photo of a dog", "dog"),
        ("a close-up photo of the stuffed animal", "stuffed animal"),
        ("an oil painting of a cat", "cat"),
        ("[V] dog", "dog"),
        ("a [V] [N] dog", "dog"),
        ("a <new1> cat", "cat"),
        ("dog,", "dog"),
        ("'dog'", "dog"),
        ("a photo of a [V] dog.", "dog"),
    ],
)
def test_a_noun_that_is_a_prompt_is_refused_and_the_noun_proposed(text, noun):
    with pytest.raises(InputError) as caught:
        subject_photos.check_class_noun(Subject(class_noun=text))
    assert f"config.subject.class_noun={text!r} is a prompt" in str(caught.value)
    assert f"--config.subject.class_noun={noun!r}" in str(caught.value)
    subject_photos.check_class_noun(Subject(class_noun=noun))


@pytest.mark.parametrize(
    "noun",
    ["dog", "Dog", "teddy bear", "hot dog", "painting", "photo album", "the-noun",
     "candle", "anemone", "Stra\u00dfenbahn", "\u72d7", "child's toy", "picture frame",
     "theremin", "one-eyed cat", " dog "],
)  # fmt: skip
def test_a_noun_is_a_noun(noun):
    subject_photos.check_class_noun(Subject(class_noun=noun))


@pytest.mark.parametrize(
    ("cascade", "photos", "told"),
    [
        ("toybox", "my/photos", True),
        ("toybox", "toybox:dog/3", False),
        ("tiny", "my/photos", False),
        ("if_m", "my/photos", False),
    ],
)
def test_real_photos_on_toy_weights_are_announced(cascade, photos, told):
    job = build.to_job(presets.dreambooth(cascade))
    subject = dataclasses.replace(job.subject, photos=photos, class_noun="dog")
    notices = subject_photos.notices(dataclasses.replace(job, subject=subject))
    assert bool(notices) == told
    if told:
        assert "only seen rendered toys" in notices[0]
        assert "convert fetch if_m" in notices[0]
