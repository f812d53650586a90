"""Hostile prompts and names on the pages that are not about one run."""

import dataclasses
import json

import jinja2
import numpy as np
import pytest
from etils import epath
from reports.test_run_report import Page

from imagen_booth.data import image_files
from imagen_booth.evaluation import report as evaluation_report
from imagen_booth.evaluation.image_sets import GeneratedImage, ImageSet, SubjectPhotos
from imagen_booth.evaluation.protocol import PHOTOS
from imagen_booth.evaluation.scores import Score
from imagen_booth.experiments import claims
from imagen_booth.experiments import report as experiments_report
from imagen_booth.reports import curves, html, subjects_page
from imagen_booth.sampling import batch_report

HOSTILE = "<img src=x onerror=y>'\"& <script>"
SCORE = dataclasses.asdict(Score(0.5, 0.4, 0.6, 1, 2))
INNER = "</script></title></style>{{ 7 * 7 }}{% raw %}"


@pytest.fixture
def folder(tmp_path):
    """Holds one picture, with a hostile name, in a folder of its resolution."""
    image = np.zeros((64, 64, 3), np.uint8)
    image_files.save_png(epath.Path(tmp_path) / "64" / f"{HOSTILE}.png", image)
    return epath.Path(tmp_path)


def check(path, *texts):
    """The page shows the texts, and they are nothing but text."""
    page = Page(path)
    assert not page.all("script")
    assert all(each["src"].startswith("data:") for each in page.all("img"))
    assert not any("onerror" in attributes for _, attributes in page.tags)
    for text in texts:
        assert text in page.text
    return page


def test_a_batch_page(folder):
    file = f"64/{HOSTILE}.png"
    entry = {
        "files": [file],
        "file": file,
        "prompt": HOSTILE,
        "negative_prompt": INNER,
        "seed": 3,
        "family": HOSTILE,
    }
    metadata = {key: HOSTILE for key in ("job", "run", "cascade", "licence")}
    batch_report.write(folder, [entry], metadata, (2, 3))
    page = check(
        folder / "index_2.html",
        f"{HOSTILE} · {HOSTILE} · licence: {HOSTILE}",
        f"seed 3 negative prompt: {INNER}",
        "page 2 of 3 · 1 picture · previous page · next page",
    )
    links = [each["href"] for each in page.all("a")]
    assert {"index.html", "index_3.html", file} <= set(links)
    before = (folder / "index_2.html").read_text()
    batch_report.write(folder, [entry], metadata, (2, 3))
    assert (folder / "index_2.html").read_text() == before


def test_an_evaluation_page(folder):
    file = folder / "64" / f"{HOSTILE}.png"
    counts = {"subjects": 1, "prompts": 1, "pictures": 1, "class_pictures": 0}
    shared = {"by_subject": {HOSTILE: {"dino": SCORE}}, "scores": {"dino": SCORE}}
    files = {"sizes": [HOSTILE], "skipped": [HOSTILE]}
    network = {"name": HOSTILE, "source": HOSTILE, "fingerprint": 8 * HOSTILE}
    preparation = {"resize": 256, "crop": 224, "mean": [0.5], "std": [0.25]}
    results = {
        "made": HOSTILE,
        "warnings": [HOSTILE],
        "untrained": [],
        "subjects": {HOSTILE: {}},
        "bootstrap": {"level": 0.95},
        "systems": {name: counts | shared | files for name in (PHOTOS, HOSTILE)},
        "instruments": {
            "dino": network | {"preparation": preparation},
            "judge": {"name": HOSTILE, "held_out": {"words": {"noun": {"right": 0.9}}}},
        },
    }
    subject = SubjectPhotos(HOSTILE, "dog", (file,))
    system = ImageSet(subject, (GeneratedImage(file, HOSTILE),))
    check(
        evaluation_report.write(folder, results, {HOSTILE: [system]}),
        f"{HOSTILE} 0.500 [0.400, 0.600]",
        f"{HOSTILE}, photos",
        f"Files that are not pictures: {HOSTILE}, {HOSTILE}.",
        "centre crop of 224 px, minus (0.5), divided by (0.25)",
        "correct on held-out renders: noun 90.0%",
        "Not measured: CLIP-I, CLIP-T, PRES ↓, DIV ↑.",
    )


def test_similarity_over_drift_is_a_point_for_each_subject(folder):
    def score(mean):
        return {"mean": mean, "low": mean, "high": mean}

    drift = evaluation_report._drift(
        {
            PHOTOS: {"by_subject": {"rex": {"dino": score(0.9)}}},
            HOSTILE: {
                "by_subject": {
                    "rex": {"dino": score(0.8), "pres": score(-0.1)},
                    "mia": {"dino": score(0.4), "pres": score(0.5)},
                }
            },
        }
    )
    assert drift is not None
    chart = drift["chart"]
    assert list(chart.groups) == [HOSTILE]
    (left, high, rex), (right, low, mia) = chart.groups[HOSTILE]
    assert (rex, mia) == ("rex", "mia")
    assert left == curves.LEFT  # a cosine below 0 is drawn at 0
    assert left < right < curves.WIDTH
    assert curves.TOP < high < low < curves.HEIGHT - curves.BOTTOM
    assert chart.across[0] == (curves.LEFT, "0")
    assert chart.up[0] == (curves.HEIGHT - curves.BOTTOM, "0")
    # Two equal steps in value are two equal steps on the axis.
    assert low - high == pytest.approx((curves.HEIGHT - curves.BOTTOM - low), abs=0.1)
    assert evaluation_report._drift({"a": {"by_subject": {"rex": {}}}}) is None


def test_a_page_of_many_subjects(folder):
    for name, status in (("rex", "done"), ("mia", f"NotFinite: {INNER}")):
        work = folder / name
        for number in range(2):
            image = np.full((64, 64, 3), 90 * number, np.uint8)
            image_files.save_png(work / "photos" / f"{number}.png", image)
            image_files.save_png(work / "samples/final/64" / f"{number}.png", image)
        similarity = {"base": {"colour": {"before": 0.25, "after": 0.5}}}
        manifest = {
            "status": status,
            "finished": "2026-01-01T00:00:00+00:00",
            "subject": {"class_noun": HOSTILE},
            "timings": {"text": 3.0, "pictures": 4.0},
            "similarity": similarity,
        }
        (work / "manifest.json").write_text(json.dumps(manifest))
    (folder / "rex" / "report.html").write_text("report")
    table = [("seconds", "first", "further"), (HOSTILE, "1.0", "2.0")]
    page = check(
        subjects_page.write(folder, ["rex", "mia", "zoe"], [HOSTILE], {}, table),
        "3 subjects",
        "1 done, 1 failed, 1 waiting.",
        f"mia: NotFinite: {INNER}",
        f"Not trained {HOSTILE}",
        f"{HOSTILE} · done · 7 s · colour 0.25 → 0.50 · report",
        f"{HOSTILE} 1.0 2.0",
    )
    links = [each["href"] for each in page.all("a")]
    assert [link for link in links if not link.startswith("#")] == ["rex/report.html"]
    assert len(page.all("img")) == 8  # two photos and two pictures of each of two


def test_an_experiments_page(folder):
    cell = {"caption": HOSTILE, "files": [f"64/{HOSTILE}.png"], "crop": 0}
    claim = claims.target(HOSTILE, Score(0.5, 0.4, 0.6, 1, 2), 0.9)
    study = {
        "tables": [{HOSTILE: {"right": SCORE}}],
        "claims": [claim],
        "pictures": [cell],
        "subjects": [HOSTILE],
        "notes": [INNER],
    }
    results = {
        "weights": {HOSTILE: {"pretrained": False, "fingerprint": "a" * 64}},
        "judge": {},
        "studies": {"vanilla": study},
    }
    check(
        experiments_report.write(folder, results),
        f"{HOSTILE}: these weights are random",
        f"Subjects: {HOSTILE}.",
        INNER,
    )


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'metadata' is undefined"):
        html.render("batch.html.j2", title="job", number=1, pages=1, families=[])
