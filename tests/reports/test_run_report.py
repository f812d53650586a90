"""The report of whole, partial and hostile work directories."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen_booth.data import image_files
from imagen_booth.errors import StorageError
from imagen_booth.reports import curves, run_report

STAGES = {"base": 64, "sr256": 256, "sr1024": 1024}
PROMPTS = ["a zix dog", "a zix dog in the snow"]


def picture(size, seed=0):
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.array(Image.fromarray(cells).resize((size, size), 3))


def manifest():
    return {
        "run": "dog",
        "status": "done",
        "created": "2026-03-05T14:02:11+00:00",
        "finished": "2026-03-05T14:11:41+00:00",
        "versions": {"jax": "0.10.2"},
        "seed": 17,
        "subject": {
            "class_noun": "dog",
            "identifier": "zix",
            "identifier_ids": [5121, 8830],
            "instance_prompt": "a zix dog",
            "class_prompt": "a dog",
            "photos": [
                {
                    "name": f"{i}.jpg",
                    "sha256": f"{i}" * 64,
                    "width": 900 + i,
                    "height": 800,
                    "stages": ["base", "sr256"],
                }
                for i in range(3)
            ],
            "skipped": [{"name": "Thumbs.db", "reason": "left by Windows"}],
            "refused": [{"name": "half.jpg", "reason": "truncated or damaged"}],
        },
        "cascade": {
            "name": "toybox",
            "licence": "Apache-2.0",
            "parts": {
                name: {
                    "source": "random numbers",
                    "fingerprint": 32 * name[-2:],
                    "licence": "Apache-2.0",
                    "pretrained": False,
                }
                for name in ("text", *STAGES)
            },
        },
        "similarity": {"base": {"colour": {"before": 0.25, "after": 0.5}}},
        "warnings": ["2.jpg: a 700 px photo cannot teach the 1024 stage"],
        "timings": {"class images": 12.3, "tuning base": 558.0},
    }


@pytest.fixture
def workdir(tmp_path):
    """A finished run with everything in it."""
    (tmp_path / "manifest.json").write_text(json.dumps(manifest()))
    config = {"subject": {"class_noun": "dog"}, "optim": {"lr": 1e-5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for i in range(3):
        image_files.save_png(tmp_path / "photos" / f"{i}.jpg.png", picture(128, i))
    sheet = image_files.contact_sheet([picture(64, i) for i in range(6)], None, 3, 64)
    image_files.save_png(tmp_path / "photos" / "contact_sheet.png", sheet)
    image_files.save_png(tmp_path / "samples" / "class_images.png", sheet)
    for stage, resolution in STAGES.items():
        for step in range(0, 1000, 100):
            path = tmp_path / "samples" / "previews" / stage / f"step_{step:06}.png"
            story = {"prompts": json.dumps(PROMPTS)}
            image_files.save_png(path, picture(64, step), story)
        for i, prompt in enumerate(PROMPTS):
            path = tmp_path / "samples" / "final" / str(resolution) / f"{i}.png"
            story = {"prompt": prompt, "seed": str(40 + i), "run": "dog"}
            image_files.save_png(path, picture(resolution, i), story)
            image_files.save_png(path.with_name("contact_sheet.png"), sheet)
    rows = [
        {
            "stage": stage,
            "step": step,
            "train/loss": 0.5,
            "train/loss_subject": 0.4 if step < 500 else 0.1,
            "train/loss_class": 0.3,
            "time/images_per_sec": 2.0,
        }
        for stage in STAGES
        for step in range(10, 1001, 10)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


class Page(HTMLParser):
    """Parses a page, checks its nesting, and keeps what the tests ask about."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.html = path.read_text()
        self.feed(self.html)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def images(self, *alts):
        """The decoded pictures with these alternative texts."""
        found = {i["alt"]: i["src"].partition(",")[2] for i in self.all("img")}
        return [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(found[alt]))))
            for alt in alts
        ]


def test_a_finished_run_in_the_order_a_person_wants(workdir):
    page = Page(run_report.write(workdir))
    told = [
        "a zix dog",
        "fine-tuned on 3 photos of a dog in 9 min 30 s",
        "Untrained: all weights.",
        "a 700 px photo cannot teach the 1024 stage",
        "1024 px",
        "256 px",
        "64 px",
        "Row by row: “a zix dog”, “a zix dog in the snow”.",
        "before step 0",
        "after step 900",
        "0.25 → 0.5 colour",
        "0.jpg 900 × 800 px",
        "half.jpg refused truncated or damaged",
        "Thumbs.db skipped left by Windows",
        "Sampled from the frozen model with the prompt “a dog” before",
        "subject 0.4 → 0.1 class 0.3 → 0.3 2 images per second",
        "9 min 18 s",
        "optim.lr 1e-05",
        "5121, 8830",
        "random numbers Apache-2.0 " + "xt" * 32,
    ]
    places = [page.text.index(words) for words in told]
    assert places == sorted(places)


def test_it_is_one_file_that_asks_for_nothing(workdir):
    page = Page(run_report.write(workdir))
    assert not page.all("script")
    assert not page.all("link")
    assert len(page.all("img")) == 6 + 3 * (2 + 5) + 3 + 1
    assert all(i["src"].startswith("data:image/") for i in page.all("img"))
    assert all(i["alt"] for i in page.all("img"))
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {a["href"] for a in page.all("a")} == {f"#{i}" for i in ids}
    assert not re.search(r"url\(|@import|https?://", page.html)


def test_pictures_are_the_right_ones(workdir):
    page = Page(run_report.write(workdir))
    before, after = page.images("base before", "base after")  # small ones are exact
    np.testing.assert_array_equal(before, picture(64, 0))
    np.testing.assert_array_equal(after, picture(64, 900))
    final = next(i for i in page.all("img") if i["alt"] == PROMPTS[1])
    assert final["width"] == final["height"] == "800"


def test_untrained_is_said_only_of_what_is(workdir):
    facts = manifest()
    for untrained in (["sr1024"], []):
        for name, part in facts["cascade"]["parts"].items():
            part["pretrained"] = name not in untrained
        (workdir / "manifest.json").write_text(json.dumps(facts))
        page = Page(run_report.write(workdir))
        assert ("Untrained: sr1024." in page.text) == bool(untrained)
        assert ("Untrained" in page.text) == bool(untrained)


@pytest.mark.parametrize("key", [None, *manifest(), *manifest()["subject"]])
def test_any_part_may_be_missing(tmp_path, key):
    facts = manifest()
    if key is not None:
        facts.pop(key, None)
        facts["subject"] = facts.get("subject", {})
        facts["subject"].pop(key, None)
        (tmp_path / "manifest.json").write_text(json.dumps(facts))
    page = Page(run_report.write(tmp_path))
    if key in (None, "photos", "subject"):
        return
    assert "3 photos" in page.text.lower()


@pytest.mark.parametrize("status", ["running", "Stopped: SIGTERM came", None])
def test_an_unfinished_run_says_so(workdir, status):
    facts = manifest()
    facts["status"] = status
    (workdir / "manifest.json").write_text(json.dumps(facts))
    page = Page(run_report.write(workdir))
    assert "The toybox cascade is being fine-tuned on 3 photos of a dog." in page.text
    assert "not finished" in page.text
    early = "The run ended early. Stopped: SIGTERM came" in page.text
    assert early == (status == "Stopped: SIGTERM came")


def test_no_usable_photo(tmp_path):
    facts = {"subject": {"refused": [{"name": "a.jpg", "reason": "zero bytes long"}]}}
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    page = Page(run_report.write(tmp_path))
    assert "None of the photos could be used" in page.text
    assert "a.jpg refused zero bytes long" in page.text


def test_text_is_escaped(workdir):
    nasty = "<script>alert('x')</script>\"&<img src=x onerror=y>"

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return nasty if isinstance(value, str) else value

    facts: dict = spoil(manifest())
    facts["versions"] = {nasty: nasty}
    (workdir / "manifest.json").write_text(json.dumps(facts))
    (workdir / "config.json").write_text(json.dumps({nasty: {nasty: nasty}}))
    name = nasty.replace("/", "")  # of a file
    image_files.save_png(workdir / "photos" / f"{name}.png", picture(64))
    for path in workdir.glob("samples/*/*/*.png"):
        story = {"prompt": nasty, "seed": nasty, "prompts": json.dumps([nasty])}
        image_files.save_png(path, picture(64), story)
    with (workdir / "metrics.jsonl").open("a") as rows:
        row = {"stage": nasty, "step": 1, "train/loss": 1.0}
        rows.write(json.dumps(row) + "\n")
    page = Page(run_report.write(workdir))
    assert not page.all("script")
    assert all(i["src"].startswith("data:") for i in page.all("img"))
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert nasty in page.text
    assert f"photo {name}" in {i["alt"] for i in page.all("img")}


def test_pictures_shrink_until_the_page_is_small(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 300, 3), np.uint8)  # the worst to compress
    for i in range(14):
        image_files.save_png(tmp_path / "samples" / "final" / "300" / f"{i}.png", noise)
    path = run_report.write(tmp_path)
    limit = path.stat().length // 2
    monkeypatch.setattr(run_report, "_MOST_BYTES", limit)
    assert run_report.write(tmp_path).stat().length <= limit
    page = Page(path)
    assert len(page.all("img")) == 12
    assert "2 more are in samples/final/300" in page.text


def test_metrics_of_an_interrupted_run(tmp_path):
    rows = [{"stage": "base", "step": s, "train/loss": 9.0} for s in (1, 2, 3, 4)]
    rows += [{"stage": "base", "step": s, "train/loss": 0.5} for s in (3, 4, 5)]
    rows += [{"stage": "base", "step": 6, "train/loss": float("nan")}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"stage": "base", "st')
    page = Page(run_report.write(tmp_path))
    assert "loss 9 → 0.5" in page.text
    assert "5 steps" in page.text  # the last step with a finite loss


def test_a_damaged_picture_is_left_out(workdir):
    path = workdir / "samples" / "final" / "1024" / "1.png"
    path.write_bytes(path.read_bytes()[:3000])
    assert len(Page(run_report.write(workdir)).all("img")) == 30


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match=r"manifest\.json is damaged"):
        run_report.write(tmp_path)


def test_curve_places_its_points():
    steps, values = np.array([0.0, 50.0, 100.0]), np.array([0.0, 0.5, 1.0])
    chart = curves.curve({"subject": (steps, values)})
    (line,) = chart.lines
    points = np.array([p.split(",") for p in line.values.split()], float)
    height = {float(label): y for y, label in chart.ticks}
    assert points[0, 1] == height[0.0]
    assert points[2, 1] == height[1.0]
    np.testing.assert_allclose(points[1], points[[0, 2]].mean(0), atol=0.1)


def test_one_wild_step_does_not_flatten_the_curve():
    values = np.full(200, 0.1)
    values[50] = 1000.0
    chart = curves.curve({"loss": (np.arange(200.0), values)})
    assert max(float(label) for _, label in chart.ticks) <= 0.2


def test_long_curves_are_thinned_to_means():
    x, y = curves.thin(np.arange(10_000.0), np.arange(10_000.0) % 2)
    assert len(x) == 300
    np.testing.assert_allclose(y, 0.5, atol=0.02)
    np.testing.assert_allclose(np.diff(x), 10_000 / 300, atol=1)


@pytest.mark.parametrize("highest", [1e-6, 0.02, 0.11, 1.0, 2.4, 9.99, 35_000])
def test_ticks_are_few_and_reach_the_top(highest):
    ticks = curves.ticks(highest)
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-2] < highest <= ticks[-1] * (1 + 1e-9)
