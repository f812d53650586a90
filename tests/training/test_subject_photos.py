"""The words for a subject, its photos, and what a user should know about them."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from etils import epath

from imagen_booth.config import build, presets
from imagen_booth.config.schema import Subject
from imagen_booth.data import image_files
from imagen_booth.errors import InputError
from imagen_booth.rundir.layout import RunDirectory
from imagen_booth.toybox import subjects as toys
from imagen_booth.training import subject_photos

JOB = build.to_job(presets.dreambooth("toybox"))


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


def test_a_toy_is_rendered_once_for_all_runs_of_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(subject_photos, "TOYBOX_PHOTO_SIZE", 64)
    render = mock.Mock(wraps=toys.photos)
    monkeypatch.setattr(toys, "photos", render)

    def photos_of(run, toy):
        subject = dataclasses.replace(JOB.subject, photos=toy)
        work = RunDirectory(epath.Path(tmp_path) / run)
        folder = epath.Path(
            subject_photos.photo_folder(dataclasses.replace(JOB, subject=subject), work)
        )
        assert folder == work.path / "source"
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first = photos_of("first", "toybox:cat/3")
    truth = toys.photos(toys.ToyboxSubject("cat", 3), 5, size=64)
    render.reset_mock()
    for index, image in enumerate(truth):
        png = image_files.load_png(tmp_path / "first" / "source" / f"{index:02d}.png")
        np.testing.assert_array_equal(png, image)
    assert photos_of("second", "toybox:cat/3") == first
    assert render.call_count == 0
    assert photos_of("third", "toybox:cat/4") != first
    assert render.call_count == 1
    # A new version of the package may render other photos.
    monkeypatch.setattr(subject_photos, "sources", lambda: "other")
    assert photos_of("fourth", "toybox:cat/3") == first
    assert render.call_count == 2
