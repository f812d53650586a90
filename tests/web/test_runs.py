"""The state of runs, from files written here as train writes them."""

import json
import os
import zipfile

import numpy as np
import pytest

from imagen_booth.data.image_files import save_png
from imagen_booth.errors import InputError
from imagen_booth.rundir import lock
from imagen_booth.rundir.metrics import read_rows
from imagen_booth.web.jobs import Queue
from imagen_booth.web.runs import Runs, metadata


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path, Queue(tmp_path))


def write_run(runs, name, status="done", rows=()):
    path = runs.root / name
    path.mkdir()
    subject = {"class_noun": "dog", "identifier": "zaj"}
    manifest = {"status": status, "subject": subject}
    (path / "manifest.json").write_text(json.dumps(manifest))
    config = {"cascade": "tiny", **{s: {"steps": 4} for s in ("base", "sr256")}}
    config["sr1024"] = {"steps": 0}
    (path / "config.json").write_text(json.dumps(config))
    lines = [json.dumps({"stage": s, "step": n, "wall": w}) for s, n, w in rows]
    (path / "metrics.jsonl").write_text("\n".join([*lines, '{"stage": "ba']))
    return path


def save_picture(path, prompt, seed):
    pixels = np.zeros((8, 8, 3), np.uint8)
    save_png(path, pixels, {"prompt": prompt, "seed": str(seed)})


def test_only_folders_of_runs_below_the_root(runs, tmp_path):
    write_run(runs, "dog")
    (runs.root / "cache").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("{}")
    (runs.root / "linked").symlink_to(outside)
    assert runs.names() == ["dog"]
    for name in ("linked", "../" + outside.name, str(outside), "", ".", "cat"):
        with pytest.raises(InputError, match="there is no run"):
            runs.open(name)


@pytest.mark.parametrize(
    ("recorded", "status", "sentence"),
    [
        ("done", "done", "Sample more pictures"),
        ("running", "stopped", "resume it"),
        ("Stopped: base: saved at step 2 of 4", "stopped", "saved at step 2"),
        ("InputError: no photos", "failed", "no photos"),
    ],
)
def test_status_of_a_run_of_the_command_line(runs, recorded, status, sentence):
    path = write_run(runs, "dog", recorded)
    run = runs.open("dog")
    assert run.status == status
    assert sentence in run.sentence
    assert run.filled("a red [V] [N]") == "a red zaj dog"
    with lock.held(path):
        run = runs.open("dog")
        assert run.status == "running"
        assert f"process {os.getpid()}" in run.sentence
        with pytest.raises(InputError, match="stop it before"):
            runs.delete("dog")
    assert runs.open("dog").status == status


def test_progress_by_stage(runs):
    rows = [("base", n, 100.0 + 3 * n) for n in (1, 2)]
    run = runs.open(write_run(runs, "dog", rows=rows).name)
    base, sr256, sr1024 = runs.stages(run)
    assert (base.step, base.steps, base.seconds_left) == (2, 4, 6.0)
    assert (sr256.step, sr256.steps, sr256.seconds_left) == (0, 4, None)
    assert (sr1024.name, sr1024.steps) == ("sr1024", 0)
    assert [row["step"] for row in read_rows(run.path)["base"]] == [1, 2]


def test_pictures_favourites_and_the_zip(runs):
    path = write_run(runs, "dog")
    run = runs.open("dog")
    with pytest.raises(InputError, match="has no pictures"):
        runs.archive(run, [])
    for size in ("64", "256"):
        save_picture(path / "samples" / "final" / size / "00_0.png", "a zaj dog", 3)
    save_picture(path / "samples" / "final" / "256" / "contact_sheet.png", "", 0)
    save_picture(path / "samples" / "previews" / "base" / "step_000002.png", "", 0)
    save_picture(path / "samples" / "prompts" / "64" / "x.png", "<b>a dog</b>", 4)
    pictures = runs.pictures(run)
    assert sorted(each.caption for each in pictures) == [
        "<b>a dog</b> · seed 4",
        "a zaj dog · seed 3",
    ]
    assert {each.path.parent.name for each in pictures} == {"256", "64"}
    assert [each.caption for each in runs.previews(run)["base"]] == ["base, step 2"]
    final = next(each for each in pictures if each.path.name == "00_0.png")
    assert runs.toggle_favourite(run, final.path)
    assert runs.pictures(run, favourites=True) == [final]
    with zipfile.ZipFile(runs.archive(run, [final])) as archive:
        assert archive.namelist() == ["samples/final/256/00_0.png", "metadata.json"]
        listed = json.loads(archive.read("metadata.json"))
        assert listed["samples/final/256/00_0.png"]["prompt"] == "a zaj dog"
        assert archive.read("samples/final/256/00_0.png") == final.path.read_bytes()
    assert not runs.toggle_favourite(run, final.path)
    assert runs.pictures(run, favourites=True) == []
    assert metadata(path / "gone.png") == {}


def test_deleting_a_run(runs):
    write_run(runs, "dog")
    write_run(runs, "cat")
    runs.delete("dog")
    assert runs.names() == ["cat"]
