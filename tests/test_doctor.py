"""The checks of doctor: each one, all of them together, and the exit codes."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from paths import ROOT
from PIL import Image

from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets
from imagen_booth.distributed import device_memory
from imagen_booth.preflight import checks
from imagen_booth.preflight.checks import OK, PROBLEM, WARNING, Finding
from imagen_booth.toybox import grammar
from imagen_booth.toybox import subjects as toys
from imagen_booth.toybox.subjects import ToyboxSubject
from imagen_booth.train_state import flatten
from imagen_booth.weights import load, native, tensor_files
from imagen_booth.weights.load import shapes


@pytest.fixture(autouse=True)
def _keep_compilation_cache():
    before = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def toy_photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    pictures = toys.photos(ToyboxSubject("dog", 7), 2, size=256)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture
def examine(tmp_path, toy_photos):
    """Runs the check on the tiny job, with settings changed by dotted name."""

    def run(settings_of="tiny", **changes):
        settings = presets.dreambooth(settings_of)
        settings.update_from_flattened_dict(
            {"subject.photos": toy_photos, "subject.class_noun": "dog"}
            | {name.replace("__", "."): value for name, value in changes.items()}
        )
        return checks.check(build.to_job(settings), epath.Path(tmp_path / "runs/dog"))

    return run


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, side in (("a.png", 1024), ("b.png", 400), ("c.png", 300)):
        cells = rng.integers(0, 256, (7, 7, 3), np.uint8)
        Image.fromarray(cells).resize((side, side), 0).save(folder / name)
    return folder


def texts(findings, level, topic=None):
    return [
        each.text
        for each in findings
        if each.level == level and topic in (None, each.topic)
    ]


def test_good_job_is_ready_and_nothing_is_written(examine, tmp_path):
    findings = examine()
    assert texts(findings, PROBLEM) == []
    assert {"photos", "identifier", "memory", "disk"} <= {f.topic for f in findings}
    assert len(texts(findings, WARNING, "weights")) == 4  # tiny is random
    assert list(tmp_path.iterdir()) == []


def test_all_problems_come_together(examine):
    findings = examine(
        subject__photos="/nowhere/to/be/found",
        subject__class_noun=" ",
        base__optim__name="adm",
        sr256__weighting="heavy",
        weights__text="",
        weights__sr1024="/nowhere/weights",
        mesh__data=3,
    )
    found = {f.topic: f.text for f in findings if f.level == PROBLEM}
    assert "/nowhere/to/be/found" in found["photos"]
    assert "class_noun" in found["identifier"]
    assert "adm" in found["base"]
    assert "heavy" in found["sr256"]
    assert "data=3" in found["devices"]
    weights = " ".join(texts(findings, PROBLEM, "weights"))
    assert "config.weights.text is empty" in weights
    assert "/nowhere/weights" in weights
    assert {f.exit_code for f in findings if f.level == PROBLEM} == {2}


@pytest.mark.parametrize(("name", "why"), [("sks", "pieces"), ("blue", "common word")])
def test_warning_for_a_weak_identifier(examine, name, why):
    findings = examine(subject__identifier=name)
    assert texts(findings, PROBLEM) == []
    assert any(why in text for text in texts(findings, WARNING, "identifier"))
    assert f"a {name} dog" in texts(findings, OK, "identifier")[0]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("a [V] [N] 狗", "lacks characters of 狗"),
        ("a [V] [N] wearing qzxkv", "lacks qzxkv"),
    ],
)
def test_prompts_that_cannot_be_read(examine, prompt, why):
    findings = examine(pictures__prompts=("a [V] [N]", prompt))
    (warning,) = texts(findings, WARNING, "prompts")
    assert why in warning


def test_a_prompt_that_train_refuses_as_too_long(examine):
    findings = examine(pictures__prompts=("a [V] [N]", "a [V] [N] in the snow " * 9))
    (problem,) = (f for f in findings if f.level == PROBLEM)
    assert (problem.topic, problem.exit_code) == ("prompts", 2)
    assert "1 prompts are too long" in problem.text


def test_prompt_with_an_unknown_place(examine):
    findings = examine(pictures__prompts=("a [X] dog", "a [V] [N] 狗"))
    assert "[X]" in texts(findings, PROBLEM, "prompts")[0]
    assert (
        "狗" in texts(findings, WARNING, "prompts")[0]
    )  # the other prompts are checked too


def test_refused_and_skipped_photos_are_named(examine, photos):
    (photos / "torn.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "notes.txt").write_text("bring the dog")
    findings = examine(subject__photos=str(photos))
    assert texts(findings, PROBLEM) == []
    assert any("torn.png is refused" in text for text in texts(findings, WARNING))
    good = texts(findings, OK, "photos")
    assert any("notes.txt is skipped" in text for text in good)
    assert any("a.png (1024 x 1024" in t and "sr1024" in t for t in good)
    assert any("c.png (300 x 300" in t and "sr1024" not in t for t in good)


def test_no_photo_is_good(examine, photos):
    for path in photos.iterdir():
        path.write_bytes(b"")
    findings = examine(subject__photos=str(photos))
    assert len(texts(findings, PROBLEM, "photos")) == 1
    assert len(texts(findings, WARNING, "photos")) == 3


def test_many_findings_of_a_kind_are_counted():
    warnings = [Finding("photos", WARNING, f"{i}.jpg is blurred") for i in range(300)]
    problems = [Finding("photos", PROBLEM, f"problem {i}", 2) for i in range(30)]
    other = [Finding("disk", OK, "enough")]
    shown = list(checks.shortened([*warnings, *problems, *other]))
    assert [each.text for each in shown[:20]] == [each.text for each in warnings[:20]]
    assert shown[20] == Finding("photos", WARNING, "and 280 more of this kind")
    assert shown[21:] == problems + other


def test_weights_are_read_by_their_header(examine, tmp_path):
    folder = epath.Path(tmp_path / "weights")
    wanted = flatten(shapes(by_name("tiny"), "sr256"))
    zeros = {
        name: tensor_files.held(np.zeros(leaf.shape, leaf.dtype))
        for name, leaf in wanted.items()
    }
    path = native.write(folder, "sr256", zeros, None, {})
    native.record(folder, licence="CC0", pretrained=False)

    findings = examine(weights__sr256=str(folder), weights__base=str(folder))
    (good,) = texts(findings, OK, "weights")
    assert "CC0" in good
    assert any("untrained" in text for text in texts(findings, WARNING, "weights"))
    assert "base.safetensors does not exist" in texts(findings, PROBLEM)[0]

    shutil.copy(path, folder / "base.safetensors")
    findings = examine(weights__base=str(folder))
    assert "does not fit this network" in texts(findings, PROBLEM)[0]

    path.write_bytes(path.read_bytes()[:-1])
    findings = examine(weights__sr256=str(folder))
    assert "not a whole safetensors file" in texts(findings, PROBLEM)[0]


def test_words_unknown_to_the_shipped_prior_are_named(examine, tmp_path, monkeypatch):
    knows = dataclasses.asdict(grammar.WORDS)
    folder = epath.Path(tmp_path / "shipped")
    for part in ("text", "base"):
        wanted = flatten(shapes(by_name("tiny"), part))
        zeros = {
            name: tensor_files.held(np.zeros(leaf.shape, leaf.dtype))
            for name, leaf in wanted.items()
        }
        native.write(folder, part, zeros, None, {"prior": {"knows": knows}})
    monkeypatch.setattr(load, "shipped_folder", lambda cascade: folder)
    prompts = ("a [V] [N] in the snow", "a pink [V] [N] in the desert seen from above")

    def warnings(source, noun="dog"):
        findings = examine(
            pictures__prompts=prompts,
            subject__class_noun=noun,
            weights__text=source,
            weights__base=source,
        )
        assert texts(findings, PROBLEM) == []
        return texts(findings, WARNING, "prior")

    (warning,) = warnings("shipped")
    assert prompts[1] in warning
    assert "the colour pink and the context desert and the view above" in warning
    first, second = warnings("shipped", "clock")
    assert "config.subject.class_noun" in first
    assert "the noun clock" in first
    assert second == warning
    assert warnings("random", "clock") == warnings(str(folder), "clock") == []


def test_what_does_not_fit_in_memory(examine, monkeypatch):
    monkeypatch.setattr(device_memory, "available", lambda: 10_000)
    problem = next(f for f in examine() if f.level == PROBLEM)
    assert (problem.topic, problem.exit_code) == ("memory", 3)


def test_time_of_a_job(examine, monkeypatch):
    (text,) = texts(examine(), OK, "time")
    assert text.startswith("about 1 min on ")
    monkeypatch.setattr(checks, "CPU_RATE", 1e6 / len(os.sched_getaffinity(0)))
    (text,) = texts(examine(), OK, "time")
    minutes, flops = re.findall(
        r"about (\d+) min .*: ([\d.]+) GFLOP at 1 MFLOP/s", text
    )[0]
    assert int(minutes) == pytest.approx(1000 * float(flops) / 60, rel=0.01)


def test_sampler_that_a_stage_cannot_use(examine):
    findings = examine(settings_of="if_m", cascade="tiny")
    assert "predicts no variance" in texts(findings, PROBLEM, "sr256")[0]


def test_disk_that_is_too_small(examine, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    problem = next(f for f in examine() if f.level == PROBLEM)
    assert (problem.topic, problem.exit_code) == ("disk", 5)


def doctor(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "imagen_booth.doctor", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_ends_with_ready_or_the_number_of_problems(tmp_path, toy_photos):
    workdir = f"--workdir={tmp_path / 'run'}"
    good = doctor("--config=configs/dog.py:tiny", workdir)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[-1].startswith("ready")
    bad = doctor(
        "--config=configs/dog.py:tiny",
        workdir,
        "--config.subject.photos=/nowhere",
        "--config.weights.base=",
    )
    assert (bad.returncode, bad.stderr) == (2, "")
    assert bad.stdout.splitlines()[-1].startswith("2 problems")
    photos = f"--config.subject.photos={toy_photos}"
    listed = doctor("--config=configs/dog.py:tiny", workdir, "--json", photos)
    findings = json.loads(listed.stdout)
    assert {"weights", "photos", "time", "memory"} <= {x["topic"] for x in findings}
    assert findings[0].keys() == {"topic", "level", "text", "exit_code"}
    assert list(tmp_path.iterdir()) == []
