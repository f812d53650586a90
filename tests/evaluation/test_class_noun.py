"""What the photos seem to show, and whether the class noun fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from models.test_vit_parity import SMALL_CLIP
from test_evaluate import noise, small  # noqa: F401 a fixture

from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets
from imagen_booth.data import image_files
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.evaluation import (
    class_noun,
    clip_tokenizer,
    preprocess,
    protocol,
    toybox_judge,
)
from imagen_booth.evaluation.toybox_judge import WORDS, Readings
from imagen_booth.models.toybox_judge import Judge as Network
from imagen_booth.preflight import checks
from imagen_booth.preflight import class_noun as class_nouns
from imagen_booth.preflight.checks import OK, WARNING
from imagen_booth.train_state import flatten, unflatten
from imagen_booth.weights import vision

CAT = WORDS["noun"].index("cat")


@pytest.fixture(scope="module")
def sees_cats(tmp_path_factory):
    """The folder of a judge that takes everything for a cat."""
    network = Network(toybox_judge.CONFIG)
    blank = jnp.zeros((1, 64, 64, 3))
    params = jax.jit(network.init)(jax.random.key(0), blank)["params"]
    flat = {name: np.array(leaf) for name, leaf in flatten(params).items()}
    flat["noun/kernel"][:] = 0
    flat["noun/bias"][CAT] = 9.0
    folder = epath.Path(tmp_path_factory.mktemp("judge"))
    toybox_judge.write(folder, unflatten(flat), {})
    return folder


class Reader:
    """Answers as it is told, with certainty."""

    config = toybox_judge.CONFIG

    def __init__(self, *answers):
        self.answers = list(answers)

    def read(self, images):
        count = len(list(images))
        assert count == len(self.answers)
        sure = {"noun": np.full(count, 0.9, np.float32)}
        none = np.zeros((count, 1), np.float32)
        return Readings({"noun": self.answers}, sure, none, none)


@pytest.mark.parametrize(
    ("answers", "given", "far", "said"),
    [
        (["dog", "dog", "cat"], "dog", False, "'dog' fits"),
        (["dog"] * 19 + ["cat"], "cat", True, "give --config.subject.class_noun=dog"),
        (["dog", "cat", "cat"], "dog", False, "'dog' fits"),
        (["dog"] * 3, "", False, "; give --config.subject.class_noun=dog"),
        (["dog"] * 3, "hovercraft", False, "does not know the noun 'hovercraft'"),
        (["dog"] * 3, "teapot", True, "not like config.subject.class_noun='teapot'"),
    ],
)
def test_the_judge_votes(answers, given, far, said):
    reader: toybox_judge.Judge = Reader(*answers)  # pyright: ignore[reportAssignmentType]
    seen = class_noun.guess_by_judge([noise(0)] * len(answers), given, reader)
    assert seen.far == far
    assert said in seen.sentence(given)
    assert seen.best == max(set(answers), key=answers.count)


def test_clip_is_asked_about_every_noun(small, tmp_path):  # noqa: F811
    mesh = sharding.make_mesh()
    part = protocol.load_network("clip", "clip_vit_b32", "random", mesh)
    photos = [noise(number, 50 + number) for number in range(3)]
    seen = class_noun.guess_by_clip(
        photos, "hovercraft", part, cache=epath.Path(tmp_path), mesh=mesh
    )
    nouns = [*class_noun.NOUNS, "hovercraft"]
    assert set(seen.chances) == set(nouns)
    assert len(nouns) == len(set(nouns)) > 130
    recipe = preprocess.RECIPES["clip_vit_b32"]
    prepared = np.stack([preprocess.prepare(photo, recipe) for photo in photos])
    rows = np.asarray(part.apply(part.params, prepared), np.float64)
    tower = vision.text_tower(part)
    said = [f"a photo of {'an' if n[0] in 'aeiou' else 'a'} {n}" for n in nouns]
    tokens = clip_tokenizer.encode("random", said, SMALL_CLIP.text)
    columns = np.asarray(tower.apply(tower.params, tokens), np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    raised = np.exp(100 * rows @ columns.T)
    wanted = (raised / raised.sum(1, keepdims=True)).mean(0)
    found = [seen.chances[each] for each in nouns]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert sum(found) == pytest.approx(1.0)
    assert seen.best == nouns[int(wanted.argmax())]


def test_far_is_a_tenth_of_the_best():
    for share, far in ((0.11, False), (0.09, True)):
        seen = class_noun._guess({"dog": 0.8, "cat": 0.8 * share}, "cat")
        assert seen.far == far


class Found(list):
    """What the doctor would say, as (level, text)."""

    def ok(self, text):
        self.append((OK, text))

    def warn(self, text):
        self.append((WARNING, text))


def examine(clip="", reader="", **subject):
    job = job_of(**subject)
    found = Found()
    class_nouns.check_class_noun(found, job, by_name(job.cascade), clip, reader)
    return found


def job_of(**subject):
    settings = presets.dreambooth("tiny")
    for name, value in subject.items():
        settings.subject[name] = value
    return build.to_job(settings)


def test_a_noun_that_is_far_is_warned_of(tmp_path, sees_cats):
    toy = {"photos": "toybox:dog/7"}
    ((level, text),) = examine(reader=str(sees_cats), class_noun="dog", **toy)
    assert level == WARNING
    assert "look like cat (100%)" in text
    assert "give --config.subject.class_noun=cat" in text
    ((level, text),) = examine(reader=str(sees_cats), class_noun="cat", **toy)
    assert level == OK
    ((level, text),) = examine(reader=str(sees_cats), class_noun=" ", **toy)
    assert level == WARNING
    assert text.endswith("; give --config.subject.class_noun=cat")
    with pytest.raises(InputError, match="there is no judge"):
        examine(reader=str(tmp_path), class_noun="cat", **toy)


def test_clip_is_asked_about_photos(tmp_path, small):  # noqa: F811
    for number in range(3):
        image_files.save_png(tmp_path / "photos" / f"{number}.png", noise(number, 128))
    photos = {"photos": str(tmp_path / "photos"), "class_noun": "dog"}
    (_, loud), (_, text) = examine(clip="random", **photos)
    assert "meaningless" in loud
    assert "the photos look like" in text
    with pytest.raises(InputError, match="convert fetch clip_b32"):
        examine(clip=str(tmp_path), **photos)


def test_the_doctor_asks(tmp_path, sees_cats):
    job = job_of(photos="toybox:dog/7", class_noun="dog")
    findings = checks.check(job, epath.Path(tmp_path / "run"), judge=str(sees_cats))
    (found,) = [each for each in findings if each.topic == "noun"]
    assert found.level == WARNING
    assert not (tmp_path / "run").exists()


def test_nothing_is_said_without_a_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(class_nouns.judges, "shipped", lambda: None)
    assert examine(photos="toybox:dog/7", class_noun="dog") == []
    image_files.save_png(tmp_path / "photos" / "0.png", noise(0, 128))
    assert examine(photos=str(tmp_path / "photos"), class_noun="dog") == []
