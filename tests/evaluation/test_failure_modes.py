"""The paper's three failures: seen where they are, and not where they are not."""

import itertools
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageFilter
from reports.test_run_report import Page, workdir  # noqa: F401 a fixture

from imagen_booth.data import image_files
from imagen_booth.evaluation import failure_modes
from imagen_booth.evaluation.failure_modes import SEEN, UNMEASURED, UNSEEN
from imagen_booth.evaluation.image_sets import GeneratedImage, ImageSet, SubjectPhotos
from imagen_booth.evaluation.toybox_judge import PLAIN, Readings
from imagen_booth.reports import run_report
from imagen_booth.toybox.captions import parse

OWN = np.eye(8)[0]


def work_of(prompts, photos=3):
    shots = [
        GeneratedImage(epath.Path(f"/{n}.png"), each) for n, each in enumerate(prompts)
    ]
    files = [epath.Path(f"/photo_{n}.png") for n in range(photos)]
    return ImageSet(SubjectPhotos("dog", "dog", tuple(files)), tuple(shots))


def read(contexts, colours=None, likeness=None):
    """Readings of pictures; each embedding has the given cosine to ``OWN``."""
    count = len(contexts)
    likeness = np.full(count, 0.9) if likeness is None else np.asarray(likeness)
    rest = np.eye(8)[1 + np.arange(count) % 7]
    subjects = likeness[:, None] * OWN + np.sqrt(1 - likeness**2)[:, None] * rest
    words = {"context": list(contexts), "colour": colours or ["brown"] * count}
    sure = {name: np.linspace(0.5, 0.9, count) for name in words}
    return Readings(words, sure, subjects, subjects)


def looked(prompts, readings, photos=None):
    """Verdicts on place and entanglement."""
    work = work_of(prompts)
    asked = [parse(each) for each in prompts]
    photos = photos or read([PLAIN] * 3, likeness=[0.95] * 3)
    return (
        failure_modes.missing_context(work, asked, readings),
        failure_modes.entangled(work, asked, readings, photos),
    )


PLACES = ["a dog"] * 4 + ["a dog in the snow"] * 4 + ["a dog on the beach"] * 4
RIGHT = [PLAIN] * 4 + ["snow"] * 4 + ["beach"] * 4


def test_all_is_well():
    rng = np.random.default_rng(0)
    likeness = 0.85 + 0.1 * rng.random(12)
    place, entangled = looked(PLACES, read(RIGHT, likeness=likeness))
    assert (place.verdict, entangled.verdict) == (UNSEEN, UNSEEN)
    assert "8 of 8 pictures show the place" in place.said
    assert not place.evidence


@pytest.mark.parametrize(
    ("shown", "verdict", "count"),
    [
        ([PLAIN] * 4 + ["snow"] * 4 + [PLAIN] * 4, SEEN, 4),  # never the beach
        ([PLAIN] * 4 + ["snow"] + ["room"] * 3 + ["beach"] + ["snow"] * 3, SEEN, 6),
        ([PLAIN] * 4 + ["snow"] * 2 + [PLAIN] * 2 + ["beach"] * 4, UNSEEN, 2),
        (["room"] * 4 + ["snow"] * 4 + ["beach"] * 4, UNSEEN, 0),  # nobody asked
    ],
)
def test_places_that_are_not_drawn(shown, verdict, count):
    place, _ = looked(PLACES, read(shown))
    assert (place.verdict, len(place.evidence)) == (verdict, count)
    for each in place.evidence:
        number = int(each.file.stem)
        assert shown[number] != RIGHT[number]
        assert shown[number].split()[0] in each.said


def test_evidence_begins_with_what_the_judge_is_surest_of():
    place, _ = looked(PLACES, read([PLAIN] * 12))
    assert [each.file.stem for each in place.evidence][:2] == ["11", "10"]
    assert len(place.evidence) == failure_modes.SHOWN


def test_a_subject_that_drifts_in_one_place():
    """Far in the snow only; the same values spread over all places are no failure."""
    likeness = np.array([0.9, 0.91, 0.89, 0.9] * 3)
    likeness[4:8] = (0.3, 0.31, 0.29, 0.32)
    _, drifting = looked(PLACES, read(RIGHT, likeness=likeness))
    assert drifting.verdict == SEEN
    assert {int(each.file.stem) for each in drifting.evidence} == {4, 5, 6, 7}
    spread = likeness.reshape(3, 4).T.ravel()
    _, mixed = looked(PLACES, read(RIGHT, likeness=spread))
    assert mixed.verdict == UNSEEN


def test_places_apart_but_all_near_the_photos_are_no_failure():
    likeness = np.repeat([0.99, 0.95, 0.98], 4) + np.tile([0, 1e-3, 2e-3, 0], 3)
    photos = read([PLAIN] * 3, likeness=[0.9] * 3)
    _, found = looked(PLACES, read(RIGHT, likeness=likeness), photos)
    assert found.verdict == UNSEEN


def test_pictures_without_their_place_say_nothing_of_it():
    likeness = [0.9, 0.91, 0.89, 0.9] + [0.3] * 4 + [0.9, 0.91, 0.89, 0.9]
    shown = [PLAIN] * 4 + ["room"] * 4 + ["beach"] * 4
    place, found = looked(PLACES, read(shown, likeness=likeness))
    assert (place.verdict, found.verdict) == (SEEN, UNSEEN)


def test_a_colour_that_comes_with_a_place():
    colours = ["brown"] * 4 + ["white"] * 4 + ["brown"] * 4
    _, found = looked(PLACES, read(RIGHT, colours))
    assert found.verdict == SEEN
    assert "the colour changes in: snow" in found.said
    _, everywhere = looked(PLACES, read(RIGHT, ["white"] * 12))
    assert everywhere.verdict == UNSEEN  # a wrong colour, but not the place's
    asked = [each.replace("a dog in", "a white dog in") for each in PLACES]
    _, wanted = looked(asked, read(RIGHT, colours))
    assert wanted.verdict == UNSEEN


def test_what_cannot_be_measured_is_said():
    place, entangled = looked(["a dog", "a red dog"], read([PLAIN] * 2))
    assert (place.verdict, entangled.verdict) == (UNMEASURED, UNMEASURED)
    assert "--seeds=4" in entangled.said
    one = work_of(["a dog"], photos=1)
    mode = failure_modes.overfitted(one, np.zeros((1, 1)), np.zeros((1, 1)), "x")
    assert mode.verdict == UNMEASURED


def test_chance_is_that_of_all_arrangements():
    """Against every way to deal six values into three groups of two."""
    values = np.array([0.1, 0.2, 0.45, 0.5, 0.9, 0.7])

    def between(order):
        pairs = np.reshape(order, (3, 2)).mean(1)
        return ((pairs - values.mean()) ** 2).sum()

    everything = [between(each) for each in itertools.permutations(values)]
    exact = np.mean(np.array(everything) >= between(values) - 1e-12)
    found = failure_modes.permutation_p_value(list(values.reshape(3, 2)))
    assert found == pytest.approx(exact, abs=0.02)


def blobs(seed):
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(cells).resize((128, 128), Image.Resampling.BICUBIC)


@pytest.fixture
def run(tmp_path):
    """A run of a subject of flesh and blood, five photos."""
    subject = {"identifier": "zaf", "class_noun": "dog"}
    manifest = {"subject": subject, "status": "done", "cascade": {"name": "tiny"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "config.json").write_text('{"subject": {"photos": "me/dog"}}')
    for number in range(5):
        image_files.save_png(tmp_path / "photos" / f"{number}.png", blobs(number))
    return epath.Path(tmp_path)


def drawn(run, images):
    for number, image in enumerate(images):
        file = run / "samples" / "final" / "64" / f"{number:02}_0.png"
        image_files.save_png(file, image, {"prompt": "a zaf dog", "seed": "0"})
    failure_modes.check_run(run, "final")
    return json.loads((run / failure_modes.FILE).read_text())


def test_copies_of_photos_are_seen_without_a_judge(run):
    copies = [
        blobs(number).filter(ImageFilter.GaussianBlur(3)).resize((64, 64))
        for number in range(2)
    ]
    found = drawn(run, [*copies, *(blobs(50 + n) for n in range(4))])
    assert found["modes"]["overfitted"]["verdict"] == SEEN
    evidence = found["modes"]["overfitted"]["evidence"]
    assert {each["file"] for each in evidence} == {
        f"samples/final/64/{number:02}_0.png" for number in range(2)
    }
    for mode in ("context", "entangled"):
        assert found["modes"][mode]["verdict"] == UNMEASURED
        assert "judge" in found["modes"][mode]["said"]


def test_new_pictures_are_no_copies(run):
    found = drawn(run, [blobs(50 + number) for number in range(6)])
    assert found["modes"]["overfitted"]["verdict"] == UNSEEN
    assert found["modes"]["overfitted"]["evidence"] == []


def test_near_is_half_the_way_of_the_nearest_photos():
    work = work_of(["a dog"] * 4)
    between = np.array([[0, 0.4, 0.9], [0.4, 0, 0.9], [0.9, 0.9, 0]])
    to_photos = np.full((4, 3), 0.5)
    to_photos[2, 1] = 0.19
    found = failure_modes.overfitted(work, to_photos, between, "x")
    assert found.verdict == SEEN  # a quarter of them
    (evidence,) = found.evidence
    assert evidence.file.stem == "2"
    assert "photo_1" in evidence.said
    to_photos[2, 1] = 0.21
    assert failure_modes.overfitted(work, to_photos, between, "x").verdict == UNSEEN
    five = work_of(["a dog"] * 5)
    to_photos = np.vstack([to_photos, [[0.1, 0.5, 0.5]]])
    assert failure_modes.overfitted(five, to_photos, between, "x").verdict == UNSEEN


def test_the_report_names_them(workdir):  # noqa: F811
    file = "samples/final/256/1.png"
    modes = {
        "context": {"verdict": SEEN, "said": "1 of 4 <shown>.", "rule": "Seen where."},
        "entangled": {"verdict": UNMEASURED, "said": "Not measured: no.", "rule": "R."},
        "overfitted": {"verdict": UNSEEN, "said": "0 of 4.", "rule": "S."},
    }
    modes = {name: {**mode, "evidence": []} for name, mode in modes.items()}
    modes["context"]["evidence"] = [{"file": file, "said": "asked for snow"}]
    modes["overfitted"]["evidence"] = [{"file": "samples/gone.png", "said": "gone"}]
    found = {"pictures": 4, "photos": 3, "by": "plain measures", "modes": modes}
    (workdir / failure_modes.FILE).write_text(json.dumps(found))
    page = Page(run_report.write(workdir))
    assert "Place missing: seen" in page.text
    assert "1 of 4 <shown>." in page.text
    assert "Subject and place entangled: not measured" in page.text
    assert "Overfitted: not seen" in page.text
    (shown,) = page.images("asked for snow")
    assert shown.shape[:2] == (256, 256)
    assert "gone" not in {each["alt"] for each in page.all("img")}
