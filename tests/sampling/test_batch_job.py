"""Batch jobs: files of prompts, refusals, resumption, several hosts."""

import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from photo_files import blurred

from imagen_booth import dreambooth
from imagen_booth.config import build, presets
from imagen_booth.config.schema import Job
from imagen_booth.data import image_files
from imagen_booth.errors import DoesNotFit, InputError, InUse, StorageError
from imagen_booth.rundir import lock
from imagen_booth.sampling import batch_job, batch_plan, finished_run
from imagen_booth.text import prompt_files

NAME = "zaf"  # of the subject, a rare piece of the embedded vocabulary


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """The base stage is tuned for a step; the others stay as they came."""
    folder = tmp_path_factory.mktemp("photos")
    blurred(np.random.default_rng(0), 8, (1100, 1100)).save(folder / "0.png")
    settings = presets.dreambooth("tiny")
    settings.subject.photos = str(folder)
    settings.subject.class_noun = "dog"
    settings.subject.identifier = NAME
    settings.cache = str(tmp_path_factory.mktemp("cache"))
    settings.base.steps = 1
    settings.base.class_rows = 0
    settings.sr256.steps = settings.sr1024.steps = 0
    settings.pictures.prompts = ("a [V] [N]",)
    return build.to_job(settings)


@pytest.fixture
def run(job, tmp_path) -> epath.Path:
    """What sampling reads of a run that tuned nothing."""
    work = epath.Path(tmp_path) / "run"
    work.mkdir()
    (work / "config.json").write_text(json.dumps(dataclasses.asdict(job)))
    subject = {"identifier": NAME, "class_noun": "dog"}
    (work / "manifest.json").write_text(json.dumps({"subject": subject}))
    return work


@pytest.fixture
def painted(monkeypatch):
    """Plain colours in place of what the networks draw; lists (stage, seeds)."""
    calls = []

    def paint(stage, part, params, sampler, texts, null, seeds, *, rows, **_):
        assert len(seeds) <= rows
        calls.append((stage.name, tuple(seeds)))
        shape = (stage.resolution, stage.resolution, 3)
        return np.stack([np.full(shape, seed % 256, np.uint8) for seed in seeds])

    monkeypatch.setattr(batch_job, "sample_stage", paint)
    return calls


def draw(run: epath.Path, source, seeds: int = 1, **changed) -> epath.Path:
    settings: dict[str, Any] = {"resolution": 256, "batch": 8} | changed
    return batch_job.run_batch(run, str(source), "job", seeds=seeds, **settings)


def write(folder, text: str, name: str = "prompts.txt"):
    file = folder / name
    file.write_text(text)
    return file


def index(folder: epath.Path) -> list[dict]:
    lines = (folder / "index.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def files(folder: epath.Path, size: int = 256) -> list[str]:
    return sorted(path.name for path in (folder / str(size)).iterdir())


def test_lines(tmp_path):
    file = write(tmp_path, "\ufeffa [V] [N]\r\n\n   \n  two\twords  ")
    rows = list(prompt_files.read(file))
    assert [(row.where, row.prompt) for row in rows] == [
        ("line 1", "a [V] [N]"),
        ("line 4", "two words"),
    ]


def test_csv_and_jsonl_say_the_same(tmp_path):
    table = (
        'seed,prompt,guidance,negative_prompt\n7,"a [V],\n[N]",2.5,rain\n\n,a cat,,\n'
    )
    lines = [
        {
            "prompt": "a [V],\n[N]",
            "seed": 7,
            "guidance": 2.5,
            "negative_prompt": "rain",
        },
        {"prompt": "a cat", "seed": None},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    rows = list(prompt_files.read(write(tmp_path, table, "p.csv")))
    same = list(prompt_files.read(write(tmp_path, text, "p.JSONL")))
    assert [dataclasses.replace(row, where="") for row in rows] == [
        dataclasses.replace(row, where="") for row in same
    ]
    assert rows[0].prompt == "a [V], [N]"
    assert (rows[0].seed, rows[0].guidance) == (7, 2.5)
    assert (rows[1].seed, rows[1].guidance, rows[1].negative_prompt) == (None, None, "")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "prompt,sed\nx,1\n", "'sed' is not a field"),
        ("p.csv", "seed\n1\n", "no column 'prompt'"),
        ("p.csv", "prompt,seed\nx,1,2\n", "3 cells, but the header has 2"),
        ("p.csv", "prompt,seed\nx,1.5\n", "seed=1.5 should be a whole number"),
        ("p.csv", 'prompt\n"x\n', "not CSV"),
        ("p.csv", "prompt,guidance\nx,nan\n", "guidance=nan should be a finite number"),
        ("p.jsonl", '{"prompt": "x", "seed": true}', "seed=True should be"),
        ("p.jsonl", '{"prompt": 3}', "prompt=3 should be a text"),
        ("p.jsonl", '["x"]', "not an object"),
        ("p.jsonl", '{"prompt": "x"', "not JSON"),
        ("p.json", '["x"', "not JSON"),
        ("p.json", '{"prompt": "x"}', "not a list"),
        ("p.json", "[3]", "not an object"),
    ],
)
def test_a_bad_row_says_why(tmp_path, name, text, said):
    problems = [row.problem for row in prompt_files.read(write(tmp_path, text, name))]
    assert said in problems[-1]


def test_a_json_list_gives_texts_or_objects(tmp_path):
    text = '[\n "a [V]\\n vase",\n {"prompt": "a cat", "seed": 7}\n]\n'
    rows = list(prompt_files.read(write(tmp_path, text, "p.json")))
    assert [(row.where, row.prompt, row.seed, row.problem) for row in rows] == [
        ("entry 1", "a [V] vase", None, ""),
        ("entry 2", "a cat", 7, ""),
    ]


def test_lines_of_other_formats_are_never_sampled_as_they_stand(tmp_path):
    """Comments are skipped; options of other tools and JSON are refused."""
    text = """# my prompts
a [V] vase
  # another
a [V] vase --n blurry --w 512
a -- dog, size #1, 3-2
a [V] --ar 16:9
[
"a [V] vase",
["a cat", "a dog"],
{"prompt": "a cat"}
]
[V]
42 dogs
"""
    rows = list(prompt_files.read(write(tmp_path, text)))
    assert [row.prompt for row in rows if not row.problem] == [
        "a [V] vase",
        "a -- dog, size #1, 3-2",
        "[V]",
        "42 dogs",
    ]
    refused = {row.where: row.problem for row in rows if row.problem}
    assert "option '--n' of another tool" in refused["line 4"]
    assert "option '--ar' of another tool" in refused["line 6"]
    for number in range(7, 12):
        assert "suffix .json" in refused[f"line {number}"]


@pytest.mark.parametrize("suffix", ["yaml", "toml", "tsv", "html"])
def test_other_kinds_of_file_are_refused(tmp_path, suffix):
    [row] = prompt_files.read(write(tmp_path, "a [V] [N]", f"p.{suffix}"))
    assert f"suffix .{suffix} are not read" in row.problem


def test_all_bad_rows_are_named_and_nothing_is_drawn(run, painted, tmp_path):
    rows = [
        {"prompt": "a [V] [N]"},
        {"prompt": "a dog \U0001f436"},
        {"prompt": "dog " * 1250},
        {"prompt": "a [V] [X]"},
        {"prompt": " "},
        {"prompt": "a \ud800 dog"},
        {"prompt": "a \x00 dog"},
        {"prompt": "a [V] [N]", "seed": 2**32 - 1},
        {"prompt": "a [V] [N]", "negative_prompt": "rain", "guidance": 1},
        {"prompt": "a/../[V]\n[N]", "negative_prompt": "\U0001f436"},
    ]
    file = write(tmp_path, "\n".join(map(json.dumps, rows)), "p.jsonl")
    with pytest.raises(InputError) as refused:
        draw(run, file, seeds=2)
    first, *lines = str(refused.value).splitlines()
    assert "9 of 10 rows" in first
    for number, (line, said) in enumerate(
        zip(
            lines,
            (
                "prompt holds '\U0001f436'",
                "1251 tokens long and the tiny cascade reads 48",
                "[X]",
                "prompt is empty",
                "not UTF-8 text",
                "not UTF-8 text",
                "seeds 4294967295 to 4294967296 are not all within 0 to 4294967295",
                "negative prompt has no effect at guidance 1",
                "negative_prompt holds '\U0001f436'",
            ),
            strict=True,
        ),
        2,
    ):
        assert line.startswith(f"  line {number}: ")
        assert said in line
    assert not painted
    assert not (run / "samples").exists()


def test_bytes_that_are_no_text_are_named(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a dog\na caf\xe9\n")
    with pytest.raises(InputError, match=r"line 2: prompt holds .* not UTF-8 text"):
        draw(run, file)


@pytest.mark.parametrize(
    ("prompt", "settings", "said"),
    [
        ("a [V] dog " + "in the snow " * 40, {}, "124 tokens .* cascade reads 48"),
        ("a dog", {"first_seed": 2**32}, "4294967296 .* not all within 0 to 429496729"),
        ("a dog", {"first_seed": 2**32 - 1, "seeds": 2}, "not all within 0 to"),
        ("a dog", {"first_seed": -1}, "seeds -1 to -1 are not all within 0 to"),
        ("a dog --n blurry", {}, "option '--n' of another tool"),
        ("a caf\udce9", {}, "not UTF-8 text"),
    ],
)
def test_a_prompt_on_the_command_line_is_checked_as_a_row(
    run, painted, prompt, settings, said
):
    with pytest.raises(InputError, match=f"prompt 2: (.|\n)*{said}"):
        batch_job.sample_prompts(
            run, ["a [V] [N]", prompt], "more", **{"seeds": 1} | settings
        )
    assert not painted
    assert not (run / "samples").exists()


def test_prompts_never_replace_images_of_earlier_ones(run, painted):
    """Whatever differs: the prompt, the seed or the settings."""
    there: dict[str, bytes] = {}

    def sample(prompts, **settings):
        given: dict[str, Any] = {"seeds": 1} | settings
        folder = batch_job.sample_prompts(
            run, prompts, "prompts", resolution=64, **given
        )
        images = {name for name in files(folder, 64) if name != "contact_sheet.png"}
        assert {each: (folder / "64" / each).read_bytes() for each in there} == there
        new = images - there.keys()
        there.update({name: (folder / "64" / name).read_bytes() for name in new})
        return sorted(new)

    assert [name[:8] for name in sample(["a [V] [N]", "a cat"])] == [
        "a-cat_0_",
        "a-dog_0_",
    ]
    assert [name[:8] for name in sample(["a green [V] [N]"])] == ["a-green-"]
    assert [name[:8] for name in sample(["a [V] [N]"], first_seed=5)] == ["a-dog_5_"]
    (guided,) = sample(["a [V] [N]"], guidance=5.5)
    sampler = image_files.read_png_metadata(
        run / "samples" / "prompts" / "64" / guided
    )["sampler"]
    assert json.loads(sampler)["guidance"] == 5.5
    settings = json.loads((run / "config.json").read_text())
    settings["pictures"]["base"]["steps"] += 1
    (run / "config.json").write_text(json.dumps(settings))
    assert [name[:8] for name in sample(["a [V] [N]"])] == ["a-dog_0_"]
    painted.clear()
    assert sample(["a [V] [N]"]) == []
    assert not painted


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/x", "a\\b", "a\0", "\udce9", "final"]
)
def test_a_job_stays_in_a_folder_of_its_own(run, painted, tmp_path, name):
    for sample in (
        lambda: batch_job.sample_prompts(run, ["a dog"], name, seeds=1),
        lambda: batch_job.run_batch(run, "view", name or "..", seeds=1),
    ):
        with pytest.raises(InputError, match="--name="):
            sample()
    assert not (run / "samples").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompts"),
        ("a [V] [N] \u72ac\n" * 30, "30 of 30 rows(.|\n)*and 10 more"),
    ],
)
def test_files_of_no_use(run, tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        draw(run, write(tmp_path, text))


def test_many_values_of_guidance_are_refused(run, tmp_path):
    rows = [f"dog,{number + 2}" for number in range(20)]
    table = write(tmp_path, "prompt,guidance\n" + "\n".join(rows), "p.csv")
    with pytest.raises(InputError, match="more than 8 values of guidance"):
        draw(run, table)


def test_neither_file_nor_suite(run):
    with pytest.raises(InputError, match="give a file of prompts or one of applica"):
        draw(run, "aplications")


def test_dreambench_is_the_list_that_fits_the_class(run, painted):
    folder = batch_job.run_batch(run, "dreambench", "", seeds=1, resolution=64, batch=8)
    assert folder == run / "samples" / "dreambench_living"
    assert len(index(folder)) == 25
    assert any("wizard outfit" in row["prompt"] for row in index(folder))


def test_every_picture_tells_its_story(run, painted, tmp_path):
    text = "prompt,seed,negative_prompt\na [V] [N],,\na/[V]: [N]?,5,rain\n"
    folder = draw(run, write(tmp_path, text, "p.csv"), seeds=2)
    rows = index(folder)
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        (f"a {NAME} dog", 0),
        (f"a {NAME} dog", 1),
        (f"a/{NAME}: dog?", 5),
        (f"a/{NAME}: dog?", 6),
    ]
    assert [row["negative_prompt"] for row in rows] == ["", "", "rain", "rain"]
    for row in rows:
        assert [file.split("/")[0] for file in row["files"]] == ["64", "256"]
        assert row["file"] == row["files"][-1]
        story = image_files.read_png_metadata(folder / row["file"])
        assert story["prompt"] == row["prompt"]
        assert story["seed"] == str(row["seed"])
        assert story.get("negative_prompt", "") == row["negative_prompt"]
        assert (story["run"], story["cascade"]) == ("run", "tiny")
        assert {"licence", "weights", "sampler", "subject"} <= story.keys()
        assert {"identifier", "tuned_steps", "software"} <= story.keys()
        colour = image_files.load_png(folder / row["file"])[0, 0, 0]
        assert colour == row["seed"]
    page = (folder / "index.html").read_text()
    assert len(re.findall(r'<a href="256/', page)) == 4
    assert all(row["file"] in page for row in rows)


def test_again_draws_nothing_and_a_longer_file_what_is_new(run, painted, tmp_path):
    folder = draw(run, write(tmp_path, "a [V] [N]\na [V] [N]\na cat"), seeds=2)
    assert len(files(folder)) == 4  # the prompt that stands there twice is drawn once
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix}
    painted.clear()
    draw(run, write(tmp_path, "a [V] [N]\na cat"), seeds=2)
    assert not painted
    draw(run, write(tmp_path, "a [V] [N]\na [V] [N]\na cat"), seeds=2)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix}
    assert before == after
    draw(run, write(tmp_path, "a bird\na [V] [N]\na cat"), seeds=3)
    assert sorted(seed for stage, seeds in painted for seed in seeds) == sorted(
        2 * [0, 1, 2, 2, 2]
    )
    assert len(files(folder)) == len(index(folder)) == 9


def test_other_settings_are_other_pictures(run, painted, tmp_path):
    file = write(tmp_path, "a [V] [N]")
    first = draw(run, file)
    settings = json.loads((run / "config.json").read_text())
    settings["pictures"]["sr256"]["steps"] += 1
    (run / "config.json").write_text(json.dumps(settings))
    painted.clear()
    draw(run, file)
    assert painted == [("sr256", (0,))]  # the base stage's picture is still good
    assert len(files(first)) == 2
    assert len(files(first, 64)) == 1


def test_what_a_row_sets_reaches_the_networks(run, painted, tmp_path, monkeypatch):
    """Its guidance the base stage; its negative prompt replaces the null text."""
    paint, seen = batch_job.sample_stage, []

    def painting(stage, part, params, sampler, texts, null, seeds, **settings):
        seen.append((stage.name, sampler.guidance, texts, null))
        return paint(stage, part, params, sampler, texts, null, seeds, **settings)

    monkeypatch.setattr(batch_job, "sample_stage", painting)
    rows = [
        {"prompt": "a cat", "guidance": 3, "negative_prompt": "the rain"},
        {"prompt": "the rain", "guidance": 3},
        {"prompt": "the rain"},
    ]
    draw(run, write(tmp_path, "\n".join(map(json.dumps, rows)), "p.jsonl"))
    assert [(name, guidance, len(texts)) for name, guidance, texts, _ in seen] == [
        ("base", 3.0, 2),
        ("base", 2.0, 1),
        ("sr256", 1.0, 3),
    ]
    for _, _, texts, null in (seen[0], seen[2]):
        np.testing.assert_array_equal(null[0].text, texts[1].text)
        np.testing.assert_array_equal(null[0].mask, texts[1].mask)
        assert not null[1].text.any()
        assert texts[1].text.any()


def test_a_torn_index_is_mended(run, painted, tmp_path):
    file = write(tmp_path, "a [V] [N]\na cat")
    folder = draw(run, file, seeds=2)
    whole = (folder / "index.jsonl").read_bytes()
    for cut in (1, 20, len(whole) // 2):
        (folder / "index.jsonl").write_bytes(whole[:-cut])
        draw(run, file, seeds=2)
        assert (folder / "index.jsonl").read_bytes() == whole
    (folder / "index.jsonl").unlink()
    draw(run, file, seeds=2)
    assert (folder / "index.jsonl").read_bytes() == whole


def test_two_jobs_never_write_one_index(run, painted, tmp_path):
    file = write(tmp_path, "a [V] [N]")
    folder = draw(run, file, seeds=1)
    painted.clear()
    with lock.held(folder), pytest.raises(InUse, match="is in use: process"):
        draw(run, file, seeds=2)
    assert not painted
    draw(run, file, seeds=2)
    assert len(index(folder)) == 2


def test_one_network_at_a_time(run, painted, tmp_path, monkeypatch):
    """Where they do not fit together: chunk by chunk, one forward function each."""
    opened, applies = [], collections.defaultdict(set)
    open_stage, paint = finished_run.load_stage, batch_job.sample_stage

    def opening(finished, stage, *rest):
        opened.append(stage.name)
        return open_stage(finished, stage, *rest)

    def painting(stage, part, *rest, **settings):
        applies[stage.name].add(part.apply)
        return paint(stage, part, *rest, **settings)

    monkeypatch.setattr(finished_run, "load_stage", opening)
    monkeypatch.setattr(batch_job, "sample_stage", painting)
    monkeypatch.setattr(batch_job, "CHUNK", 3)
    monkeypatch.setattr(batch_job, "_fit_together", lambda *_: False)
    folder = draw(run, write(tmp_path, "a [V] [N]"), seeds=5)
    assert opened == ["base", "sr256"] * 2
    assert {name: len(each) for name, each in applies.items()} == {
        "base": 1,
        "sr256": 1,
    }
    assert [seeds for stage, seeds in painted if stage == "base"] == [(0, 1, 2), (3, 4)]
    first, second = ((folder / f"index{n}.html").read_text() for n in ("", "_2"))
    assert first.count('<a href="256/') == 3
    assert second.count('<a href="256/') == 2
    assert 'href="index_2.html"' in first
    assert 'href="index.html"' in second


def test_batches_shrink_until_they_fit(run, painted, tmp_path, monkeypatch):
    paint, most = batch_job.sample_stage, 4

    def painting(*arguments, rows, **settings):
        if rows > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return paint(*arguments, rows=rows, **settings)

    monkeypatch.setattr(batch_job, "sample_stage", painting)
    file = write(tmp_path, "a [V] [N]")
    folder = draw(run, file, seeds=6, batch=16, resolution=64)
    assert [seeds for _, seeds in painted] == [(0, 1, 2, 3), (4, 5)]
    assert len(files(folder, 64)) == 6
    most = 3  # and there are four devices
    with pytest.raises(DoesNotFit, match="base at 64 px does not fit"):
        draw(run, file, seeds=7, batch=16, resolution=64)


def test_a_full_disk_stops_and_is_gone_on_from(run, painted, tmp_path, monkeypatch):
    save, saved = image_files.save_png, []

    def saving(path, *rest):
        if len(saved) == 5:
            raise StorageError(f"could not write {path}: No space left on device")
        save(path, *rest)
        saved.append(path)

    monkeypatch.setattr(batch_job, "WRITERS", 1)
    monkeypatch.setattr(image_files, "save_png", saving)
    file = write(tmp_path, "a [V] [N]\na cat")
    with pytest.raises(StorageError, match="No space"):
        draw(run, file, seeds=2)
    assert len(saved) == 5  # four of the base stage, one of the next
    saved.append(None)
    folder = draw(run, file, seeds=2)
    assert len(set(saved)) == len(saved) == 9
    assert len(files(folder)) == len(index(folder)) == 4


def sample(run: epath.Path, file, *flags: str) -> subprocess.CompletedProcess:
    """The real command at 64 px, with what networks it takes."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "imagen_booth.sample", f"--run={run}"),
            *(f"--prompts={file}", "--name=job", "--resolution=64", *flags),
        ],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 80 KiB, and what makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    if not mount("size=80k"):
        pytest.skip("no disk can be mounted here")
    yield epath.Path(disk), lambda: mount("remount,size=8m")
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.long
def test_a_job_meets_the_end_of_a_real_disk(run, small_disk, tmp_path):
    """The command ends with 5 and one sentence, and goes on when there is room."""
    disk, enlarge = small_disk
    work = disk / "run"
    work.mkdir()
    for name in ("config.json", "manifest.json"):
        (work / name).write_text((run / name).read_text())
    file = write(tmp_path, "a [V] [N]\na cat\na [V] [N] in the snow")
    first = sample(work, file, "--seeds=8", "--batch=4")
    assert first.returncode == 5, first.stderr
    assert "No space left on device" in first.stderr
    assert "Traceback" not in first.stderr
    folder = work / "samples" / "job"
    there = {name: (folder / "64" / name).stat().mtime for name in files(folder, 64)}
    assert 0 < len(there) < 24
    assert not [name for name in there if name.startswith(".")]
    assert enlarge()
    second = sample(work, file, "--seeds=8", "--batch=4")
    assert second.returncode == 0, second.stderr
    assert f"sampled {24 - len(there)} images" in second.stderr
    assert len(files(folder, 64)) == len(index(folder)) == 24
    for name, moment in there.items():
        assert (folder / "64" / name).stat().mtime == moment
        assert image_files.load_png(folder / "64" / name).shape == (64, 64, 3)


@pytest.mark.long
def test_a_file_that_may_not_grow_is_storage_too(run, tmp_path, monkeypatch):
    """A limit of the system on the size of files, in place of a full disk."""
    file = write(tmp_path, "a [V] [N]")
    driver = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2000,) * 2)"
        "; runpy.run_module('imagen_booth.sample', run_name='__main__', alter_sys=True)"
    )
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    done = subprocess.run(
        [
            *(sys.executable, "-c", driver, f"--run={run}", f"--prompts={file}"),
            "--resolution=64",
        ],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_says_where_its_time_went(run, painted, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "imagen_booth")
    paint = batch_job.sample_stage

    def slowly(*arguments, **settings):
        time.sleep(0.2)
        return paint(*arguments, **settings)

    monkeypatch.setattr(batch_job, "sample_stage", slowly)
    file = write(tmp_path, "a [V] [N]\na cat")
    draw(run, file, seeds=4)
    said = re.search(
        r"sampled 16 images.* in ([\d.]+) s: ([\d.]+) s in the networks, ([\d.]+) s "
        r"loading text and weights, ([\d.]+) s of other host work, ([\d.]+) ms per ",
        caplog.text,
    )
    assert said
    total, networks, loading, rest, each = map(float, said.groups())
    # One batch of 8 at 64 px, and two of 4 at 256.
    assert 0.6 <= networks < total
    assert networks + loading + rest == pytest.approx(total, abs=0.2)
    assert each == pytest.approx(1000 * rest / 16, abs=10)
    caplog.clear()
    draw(run, file, seeds=4)
    assert "every image was there already" in caplog.text


def test_packing_goes_on_while_the_next_batch_is_drawn(
    run, painted, tmp_path, monkeypatch
):
    """A batch is not listed before it is stored, nor waited for before the next."""
    order, save, paint = [], image_files.save_png, batch_job.sample_stage
    drawing = threading.Event()

    def saving(path, *rest):
        if "/64/" in str(path) and len(painted) == 1:
            assert drawing.wait(60), "the next batch never began"
        save(path, *rest)
        order.append("saved")

    def painting(*arguments, **settings):
        if painted:
            drawing.set()
        order.append("drew")
        return paint(*arguments, **settings)

    monkeypatch.setattr(image_files, "save_png", saving)
    monkeypatch.setattr(batch_job, "sample_stage", painting)
    folder = draw(run, write(tmp_path, "a [V] [N]"), seeds=8, batch=4, resolution=64)
    assert order[:2] == ["drew", "drew"]
    assert len(index(folder)) == len(files(folder, 64)) == 8


def test_hosts_write_their_own_rows(run, painted, tmp_path, monkeypatch):
    """Each of two hosts in turn; both see all rows, and store every second one."""
    monkeypatch.setattr(batch_job.processes, "count", lambda: 2)
    monkeypatch.setattr(batch_job.processes, "broadcast", lambda array: array)
    monkeypatch.setattr(batch_job.processes, "wait", lambda name: None)
    monkeypatch.setattr(batch_job.batch_report, "write", lambda *_: None)
    file = write(tmp_path, "a [V] [N]")
    written = []
    for host in (1, 0):
        monkeypatch.setattr(batch_job.processes, "index", lambda host=host: host)
        monkeypatch.setattr(
            batch_job.processes, "is_first", lambda: True
        )  # for embeddings
        folder = draw(run, file, seeds=5, resolution=64)
        written.append({name.split("_")[1] for name in files(folder, 64)})
        for path in (folder / "64").iterdir():
            path.unlink()
    assert written == [{"1", "3"}, {"0", "2", "4"}]


def test_process_0_alone_decides_what_is_missing(run, painted, tmp_path, monkeypatch):
    """One broadcast per chunk; a host that sees other files obeys."""
    file = write(tmp_path, "a [V] [N]\na cat")
    folder = draw(run, file, seeds=2)
    gone = next((folder / "256").iterdir())
    gone.unlink()
    decided = []

    def broadcast(array):
        decided.append(array)
        return array

    monkeypatch.setattr(batch_job.processes, "broadcast", broadcast)
    painted.clear()
    draw(run, file, seeds=2)
    # One for the chunk; the others are single decisions, about caches and the like.
    (absent,) = [array for array in decided if np.ndim(array) == 2]
    assert absent.sum(axis=1).tolist() == [0, 1]
    assert [(stage, len(seeds)) for stage, seeds in painted] == [("sr256", 1)]
    # Another host, whose disk lacks an image: process 0 says that nothing is missing.
    gone.unlink()
    monkeypatch.setattr(batch_job.processes, "is_first", lambda: False)
    painted.clear()
    draw(run, file, seeds=2)
    assert not painted


def test_ten_thousand_prompts_are_never_held_at_once(run, tmp_path):
    file = write(tmp_path, "".join(f"a [V] [N] {n}\n" for n in range(10_000)))
    finished = finished_run.read_run(run, 64)
    rows = prompt_files.read_source(str(file))
    list(prompt_files.read_source("view")())
    passes = batch_plan.stage_passes(finished, np.dtype("float32"))
    tracemalloc.start()
    try:
        count = batch_plan.check_rows(finished, "--prompts", rows(), 0, 1)
        planned = sum(1 for _ in batch_plan.plan_images(finished, passes, rows(), 0, 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == planned == 10_000
    assert peak < 2**20


DRIVER = """
import os, signal, sys
import numpy as np
from etils import epath
from imagen_booth.data import image_files
from imagen_booth.sampling import batch_job

run, source, log, deadly = sys.argv[1:]
save, saved = image_files.save_png, 0

def note(line):
    with open(log, "a") as file:
        file.write(line + "\\n")

def saving(path, *rest):
    global saved
    save(path, *rest)
    note(f"saved {path}")
    saved += 1
    if saved == int(deadly):
        os.kill(os.getpid(), signal.SIGKILL)

def paint(stage, *rest, **settings):
    seeds = rest[5]
    note(f"drew {stage.name} {len(seeds)}")
    shape = (stage.resolution, stage.resolution, 3)
    return np.stack([np.full(shape, seed, np.uint8) for seed in seeds])

image_files.save_png, batch_job.sample_stage = saving, paint
batch_job.WRITERS = 1
batch_job.run_batch(
    epath.Path(run), source, "job", seeds=4, resolution=256, batch=16
)
"""


@pytest.mark.long
def test_killed_three_times_no_picture_is_made_twice(run, tmp_path):
    """Three prompts of four seeds: killed at both stages, inside a batch."""
    file, log = write(tmp_path, "a [V] [N]\na cat\na [V] [N] here"), tmp_path / "log"
    for deadly in (3, 11, 5, 0):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, run, file, log, str(deadly)],
            env=os.environ | {"PYTHONPATH": os.getcwd()},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        expected = -signal.SIGKILL if deadly else 0
        assert done.returncode == expected, done.stderr
    lines = log.read_text().splitlines()
    saved = [line for line in lines if line.startswith("saved")]
    assert len(saved) == len(set(saved)) == 24
    folder = run / "samples" / "job"
    assert len(files(folder)) == len(files(folder, 64)) == 12
    assert len({row["file"] for row in index(folder)}) == len(index(folder)) == 12
    # A kill costs what is left of two batches, one that is drawn and one that is
    # stored: of 16 rows at 64 px, of 4 at 256.
    drawn = collections.Counter()
    for line in lines:
        if line.startswith("drew"):
            _, stage, rows = line.split()
            drawn[stage] += int(rows)
    assert drawn["base"] <= 12 + 16
    assert drawn["sr256"] <= 12 + 2 * 2 * 4


@pytest.fixture(scope="module")
def finished(job, tmp_path_factory) -> epath.Path:
    work = epath.Path(tmp_path_factory.mktemp("finished")) / "run"
    dreambooth.run(job, work, frozenset())
    return work


@pytest.mark.long
def test_a_batch_draws_what_a_single_prompt_gets(finished, tmp_path):
    """The same pixels, and the identifier only for the stage that knows it."""
    one = batch_job.sample_prompts(
        finished, ["a [V] [N]"], "one", seeds=2, resolution=256
    )
    file = write(tmp_path, "a [V] [N]")
    many = batch_job.run_batch(finished, str(file), "many", seeds=2, resolution=256)
    rows = index(many)
    for row in rows:
        for file in row["files"]:
            np.testing.assert_array_equal(
                image_files.load_png(many / file), image_files.load_png(one / file)
            )
    run = finished_run.read_run(finished)
    base, sr256, sr1024 = batch_plan.stage_passes(run, np.dtype("float32"))
    assert (base.steps, sr256.steps, sr1024.steps) == (1, 0, 0)
    source = prompt_files.read_source(str(tmp_path / "prompts.txt"))
    picture = next(batch_plan.plan_images(run, [base, sr256], source(), 0, 1))
    assert picture.texts(base).prompt == f"a {NAME} dog"
    assert picture.texts(sr256).prompt == "a dog"


NIGHT = """
import os, signal, sys
from etils import epath
from imagen_booth.data import image_files
from imagen_booth.sampling import batch_job

run, source, log, deadly = sys.argv[1:]
save, saved = image_files.save_png, 0

def resident():
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("VmRSS"))

def saving(path, *rest):
    global saved
    save(path, *rest)
    saved += 1
    with open(log, "a") as file:
        file.write(f"{path} {resident()}\\n")
    if saved == int(deadly):
        os.kill(os.getpid(), signal.SIGKILL)

image_files.save_png, batch_job.CHUNK = saving, 100
batch_job.run_batch(epath.Path(run), source, "job", seeds=1, resolution=64, batch=16)
"""


@pytest.mark.slow
def test_five_hundred_prompts_killed_three_times(run, tmp_path, capsys):
    """With the real networks: complete, no picture made twice, and memory flat."""
    places = ("", "in the snow", "on the beach", "in the jungle", "in a room")
    lines = [f"a [V] [N] {places[n % 5]} {n}" for n in range(500)]
    file, log = write(tmp_path, "\n".join(lines)), tmp_path / "log"
    for deadly in (60, 130, 110, 0):
        done = subprocess.run(
            [sys.executable, "-c", NIGHT, run, file, log, str(deadly)],
            env=os.environ | {"PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (-signal.SIGKILL if deadly else 0), done.stderr
    rows = [line.split() for line in log.read_text().splitlines()]
    names = [name for name, _ in rows]
    assert len(names) == len(set(names)) == 500
    folder = run / "samples" / "job"
    assert len(files(folder, 64)) == len({row["file"] for row in index(folder)}) == 500
    # Of the last sitting, in which at least 200 were drawn, in KiB.
    sizes = [int(size) for _, size in rows[-200:]]
    early, late = max(sizes[:50]), max(sizes[-50:])
    with capsys.disabled():
        print(f"\nresident {early} KiB, 150 pictures later {late} KiB")
    assert late - early < 32 * 1024
