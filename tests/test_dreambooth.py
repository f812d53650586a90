"""Whole runs of the tiny cascade: finished, stopped, killed, continued, refused."""

import dataclasses
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath
from interruptions import signal_at
from photo_files import blurred
from PIL import Image

from imagen_booth import dreambooth, train_state
from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets
from imagen_booth.config.schema import Job, Subject
from imagen_booth.data import image_files
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError, NotFinite, Stopped, StorageError
from imagen_booth.evaluation import evaluate_systems
from imagen_booth.evaluation.evaluate_systems import EvaluationRequest, Locations
from imagen_booth.preflight import checks
from imagen_booth.rundir import checkpoints, lock
from imagen_booth.rundir.layout import RunDirectory
from imagen_booth.sampling import batch_job, cascade_sampler
from imagen_booth.training import run_checks, subject_photos, subject_prompts
from imagen_booth.weights import export
from imagen_booth.weights.load import load

STAGES = ("base", "sr256", "sr1024")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate([(1100, 1200), (1300, 1040)]):
        rng = np.random.default_rng(index)
        blurred(rng, 6, size).save(folder / f"{index}.png")
    whole = (folder / "0.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / ".ipynb_checkpoints").mkdir()
    return folder


@pytest.fixture(scope="module")
def job(photos, tmp_path_factory) -> Job:
    """Four steps a stage; the cache of programs is shared, not that of pictures."""
    settings = presets.dreambooth("tiny")
    settings.subject.photos = str(photos)
    settings.subject.class_noun = "dog"
    return build.to_job(settings)


@pytest.fixture(scope="module")
def finished(job, tmp_path_factory) -> epath.Path:
    """An undisturbed run."""
    work = epath.Path(tmp_path_factory.mktemp("straight")) / "run"
    dreambooth.run(job, work, frozenset())
    return work


def tuned(work: epath.Path) -> dict[str, np.ndarray]:
    """Every tuned parameter of a finished run."""
    return {
        f"{stage}/{name}": leaf
        for stage in STAGES
        for name, leaf in train_state.flatten(
            checkpoints.read_params(work / stage)[0]
        ).items()
    }


def assert_same_run(one: epath.Path, other: epath.Path) -> None:
    first, second = tuned(one), tuned(other)
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)


def test_a_finished_run_has_everything(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["subject"]["instance_prompt"].endswith(" dog")
    assert set(manifest["similarity"]) == set(STAGES)
    for size in (64, 256, 1024):
        path = finished / "samples" / "final" / str(size) / "00_0.png"
        assert image_files.load_png(path).shape == (size, size, 3)
        story = image_files.read_png_metadata(path)
        assert story["prompt"] == manifest["subject"]["instance_prompt"]
        assert story["seed"] == "0"
        assert story["run"] == "run"
    page = (finished / "report.html").read_text()
    assert "random numbers" in page or "ntrained" in page
    assert "Failure modes" in page
    modes = json.loads((finished / "failures.json").read_text())["modes"]
    assert modes["overfitted"]["verdict"] == "not seen"
    assert modes["context"]["verdict"] == "not measured"  # no judge reads photographs
    folder = epath.Path(manifest["class_images"]["folder"])
    assert len(list(folder.glob("*.png"))) == 4


def test_the_report_names_every_bad_file(finished):
    page = (finished / "report.html").read_text()
    subject = json.loads((finished / "manifest.json").read_text())["subject"]
    assert [photo["name"] for photo in subject["photos"]] == ["0.png", "1.png"]
    refused = {each["name"] for each in subject["refused"]}
    skipped = {each["name"] for each in subject["skipped"]}
    assert refused == {"torn.png", "empty.jpg", "dot.png"}
    assert {name.rstrip("/") for name in skipped} == {"Thumbs.db", ".ipynb_checkpoints"}
    for name in refused | skipped:
        assert name in page


def test_metrics_have_each_step_once_and_both_losses(finished):
    rows = [
        json.loads(line)
        for line in (finished / "metrics.jsonl").read_text().splitlines()
    ]
    assert [(row["stage"], row["step"]) for row in rows] == [
        (stage, step) for stage in STAGES for step in (1, 2, 3, 4)
    ]
    for row in rows:
        if row["stage"] == "base":
            whole = row["train/loss_subject"] + row["train/loss_class"]
            assert row["train/loss"] == pytest.approx(whole, rel=1e-4)
        else:
            assert row["train/loss_class"] is None


def test_every_parameter_of_a_tuned_stage_moved(job, finished):
    tuned_base = checkpoints.read_params(finished / "base")[0]["unet"]
    mesh = sharding.make_mesh()
    start = load(by_name("tiny"), "base", "random", mesh, np.dtype("float32")).params
    same = [
        name
        for name, leaf in train_state.flatten(start).items()
        if np.array_equal(leaf, train_state.flatten(tuned_base)[name])
    ]
    # Zero-initialised output layers hide the rest from the first steps' gradient.
    assert "conv_out/kernel" not in same


def test_running_again_changes_nothing(job, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    dreambooth.run(job, finished, frozenset())
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_draws_the_same_picture_again(finished):
    made = cascade_sampler.sampler_program.cache_info().misses
    folder = batch_job.sample_prompts(finished, ["a [V] [N]"], "again", seeds=2)
    assert (
        cascade_sampler.sampler_program.cache_info().misses == made
    )  # by the programs of the run
    for size in (64, 256, 1024):
        [first] = (folder / str(size)).glob("a-dog_0_*.png")
        first = image_files.load_png(first)
        path = finished / "samples" / "final" / str(size) / "00_0.png"
        np.testing.assert_array_equal(first, image_files.load_png(path))
    one, other = (
        image_files.load_png(path) for path in (folder / "64").glob("a-dog_*.png")
    )
    assert not np.array_equal(one, other)


def test_prompts_are_cleaned_as_in_the_run(finished, tmp_path, monkeypatch):
    settings = json.loads((finished / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"cleaning": "none"}))
    (tmp_path / "manifest.json").write_text((finished / "manifest.json").read_text())

    class Asked(Exception):
        pass

    def embed(job, *_, **__):
        raise Asked(job.cleaning)

    monkeypatch.setattr(batch_job, "embed_prompts", embed)
    with pytest.raises(Asked, match="none"):
        batch_job.sample_prompts(epath.Path(tmp_path), ["a [V] [N]"], "more", seeds=1)


def test_a_finished_run_is_scored(finished, tmp_path):
    to, cache = epath.Path(tmp_path / "to"), epath.Path(tmp_path / "cache")
    asked = EvaluationRequest(runs=[f"ours={finished}"])
    evaluate_systems.evaluate_systems(asked, Locations(dino="random"), to, cache)
    found = json.loads((to / "evaluation.json").read_text())
    prompts = json.loads((finished / "config.json").read_text())["pictures"]["prompts"]
    assert found["systems"]["ours"]["prompts"] == len(prompts)
    assert found["systems"]["ours"]["sizes"] == ["1024 x 1024"]
    assert found["systems"]["ours"]["scores"].keys() == {"dino"}
    assert list(found["subjects"].values()) == [{"noun": "dog", "photos": 2}]


def test_an_exported_run_is_read_back_as_weights(finished, tmp_path):
    to = epath.Path(tmp_path)
    export.write_native(to, export.export_run(finished, []), None)
    mesh = sharding.make_mesh()
    for stage in STAGES:
        part = load(by_name("tiny"), stage, str(to), mesh, np.dtype("float32"))
        assert part.pretrained
        exported = train_state.flatten(
            checkpoints.read_params(finished / stage)[0]["unet"]
        )
        for name, leaf in train_state.flatten(part.params).items():
            np.testing.assert_array_equal(leaf, exported[name], err_msg=name)


@pytest.mark.long
def test_stopped_and_continued_is_bit_identical(job, finished, tmp_path, monkeypatch):
    """A signal in the middle of each stage in turn."""
    work = epath.Path(tmp_path) / "run"
    stops = [("base", 1), ("sr256", 3), ("sr1024", 2)]
    left = signal_at(monkeypatch, stops)
    for _ in range(3):
        with pytest.raises(Stopped, match="saved at step"):
            dreambooth.run(job, work, frozenset())
    assert not left
    dreambooth.run(job, work, frozenset())
    assert_same_run(work, finished)
    # Drawn by another run with its own cache: equal to the last pixel.
    for size in (64, 256, 1024):
        name = epath.Path("samples") / "final" / str(size) / "01_0.png"
        np.testing.assert_array_equal(
            image_files.load_png(work / name), image_files.load_png(finished / name)
        )


@pytest.fixture(scope="module")
def second_photos(tmp_path_factory):
    """One photo that every stage can use, and one that only the base stage can."""
    folder = tmp_path_factory.mktemp("second")
    for index, size in enumerate([(1040, 1040), (200, 180)]):
        blurred(np.random.default_rng(7 + index), 6, size).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def both(job, second_photos) -> Job:
    """Two subjects that share three rows of the subject, without the last stage."""
    return dataclasses.replace(
        job,
        second=Subject(photos=str(second_photos), class_noun="cat"),
        base=dataclasses.replace(job.base, subject_rows=3),
        pictures=dataclasses.replace(job.pictures, prompts=presets.TWO_PROMPTS[:3]),
        weights=dataclasses.replace(job.weights, sr1024="none"),
    )


@pytest.mark.long
def test_two_subjects_stopped_and_continued_are_bit_identical(
    job, both, tmp_path, monkeypatch
):
    straight, work = (epath.Path(tmp_path) / name / "run" for name in "ab")
    dreambooth.run(both, straight, frozenset())
    left = signal_at(monkeypatch, [("base", 3), ("sr256", 1)])
    for _ in range(2):
        with pytest.raises(Stopped, match="saved at step"):
            dreambooth.run(both, work, frozenset())
    assert not left
    dreambooth.run(both, work, frozenset())
    first, second = (
        {
            f"{stage}/{name}": leaf
            for stage in STAGES[:2]
            for name, leaf in train_state.flatten(
                checkpoints.read_params(run / stage)[0]
            ).items()
        }
        for run in (straight, work)
    )
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)

    manifest = json.loads((work / "manifest.json").read_text())
    alone = subject_prompts.choose_prompts(job, by_name("tiny"))
    dog, cat = manifest["subject"], manifest["second"]
    assert dog["identifier"] == alone.identifier != cat["identifier"]
    assert [photo["stages"] for photo in cat["photos"]] == [["base", "sr256"], ["base"]]
    folders = [epath.Path(each["class_images"]["folder"]) for each in (manifest, cat)]
    assert [folder.name.partition("-")[0] for folder in folders] == ["a_dog", "a_cat"]
    assert [len(list(folder.glob("*.png"))) for folder in folders] == [4, 4]
    shown = image_files.read_png_metadata(
        work / "samples/previews/base/step_000000.png"
    )
    prompts = [each["instance_prompt"] for each in (dog, cat)]
    assert json.loads(shown["prompts"])[:4] == [p for p in prompts for _ in range(2)]
    page = (work / "report.html").read_text()
    for words in (*prompts, "of a cat", "“a dog” and “a cat”"):
        assert words in page

    folder = batch_job.sample_prompts(
        work, ["a [V] [N] beside a [V2] [N2]"], "both", seeds=1
    )
    [picture] = (folder / "256").glob("a-dog-beside-a-cat_0_*.png")
    about = image_files.read_png_metadata(picture)
    name, other = dog["identifier"], cat["identifier"]
    assert about["prompt"] == f"a {name} dog beside a {other} cat"
    assert (about["second_identifier"], about["second_subject"]) == (other, "cat")
    np.testing.assert_array_equal(
        image_files.load_png(picture),
        image_files.load_png(work / "samples/final/256/02_0.png"),
    )
    # The failures are those of the first subject, in its own pictures.
    assert json.loads((work / "failures.json").read_text())["pictures"] == 1
    for changed, words in (
        ({"class_noun": "dog"}, "second.subject.class_noun: cat -> dog"),
        ({"photos": both.subject.photos + "/."}, "second.photos"),
        ({"photos": "", "class_noun": ""}, "second: .* -> None"),
    ):
        other_job = dataclasses.replace(
            both,
            second=dataclasses.replace(both.second, **changed),
            pictures=dataclasses.replace(both.pictures, prompts=("a [V] [N]",)),
        )
        with pytest.raises(InputError, match=words):
            dreambooth.run(other_job, work, frozenset())


def test_doctor_checks_both_subjects(both, tmp_path):
    work = epath.Path(tmp_path) / "run"
    texts: dict[str, list[str]] = {}
    for each in checks.check(both, work):
        assert each.level != checks.PROBLEM, each.text
        texts.setdefault(each.topic, []).append(each.text)
    assert len([text for text in texts["photos"] if "is used for" in text]) == 4
    assert any("cat" in text for text in texts["identifier"])
    assert any("8 class images" in text for text in texts["base"])
    wrong = dataclasses.replace(both.second, class_noun="my cat", photos="/nowhere")
    problems = [
        each.text
        for each in checks.check(dataclasses.replace(both, second=wrong), work)
        if each.level == checks.PROBLEM
    ]
    assert any("config.second.photos=/nowhere does not exist" in p for p in problems)
    assert any("config.second.class_noun='my cat' is a prompt" in p for p in problems)


def test_a_recipe_of_one_subject_has_no_second(job, both, photos, second_photos):
    """A run that was begun before there were second subjects is resumed."""
    cascade = by_name("tiny")
    stage = cascade.stage("base")

    def recipe(job):
        found = [
            subject_photos.inspect_photos(job, cascade, subject.photos, name).photos
            for name, subject in job.subjects.items()
        ]
        texts = subject_prompts.choose_prompts(job, cascade)
        return run_checks.stage_recipe(job, stage, texts, "text", "unet", found, "f32")

    one, two = recipe(job), recipe(both)
    assert list(one) == [
        "cascade", "weights", "text", "photos", "subject", "instance_prompt", "seed",
        "dtype", "class_images", "base",
    ]  # fmt: skip
    assert list(one["photos"]) == ["0.png", "1.png"]
    second = two.pop("second")
    assert second["subject"]["class_noun"] == "cat"
    assert set(second["photos"].values()).isdisjoint(one["photos"].values())
    assert two.pop("base") == one.pop("base") | {"subject_rows": 3}
    assert two == one


@pytest.mark.long
def test_a_run_without_class_images(job, tmp_path, monkeypatch):
    """The frozen model gives the prior term; stopped and continued, bit for bit."""
    monkeypatch.setattr(dreambooth, "_sample_pictures", lambda *_: None)
    frozen = dataclasses.replace(job.frozen_model, from_noise=0.5)
    stages = {
        name: dataclasses.replace(job.finetuning(name), steps=0)
        for name in ("sr256", "sr1024")
    }
    job = dataclasses.replace(
        job, prior="frozen_model", frozen_model=frozen, keep="last", **stages
    )
    straight, work = (epath.Path(tmp_path) / name / "run" for name in "ab")
    dreambooth.run(job, straight, frozenset())
    assert not list(straight.parent.glob("cache/class_images*"))
    rows = [
        json.loads(line)
        for line in (straight / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["train/loss_class"] for row in rows]
    assert losses[0] < 1e-8 * rows[0]["train/loss_subject"]
    assert losses[0] < losses[-1] < rows[-1]["train/loss_subject"]
    signal_at(monkeypatch, [("base", 2)])
    with pytest.raises(Stopped, match="saved at step 2"):
        dreambooth.run(job, work, frozenset())
    dreambooth.run(job, work, frozenset())
    one, other = (
        train_state.flatten(checkpoints.read_params(each / "base")[0])
        for each in (straight, work)
    )
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)
    changed = dataclasses.replace(frozen, from_noise=1.0)
    with pytest.raises(InputError, match="frozen_model.from_noise: 0.5 -> 1.0"):
        dreambooth.run(
            dataclasses.replace(job, frozen_model=changed), work, frozenset()
        )


def start_run(work: epath.Path, job: Job) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "imagen_booth.train"),
            "--config=configs/subject.py:tiny",
            f"--config.subject.photos={job.subject.photos}",
            "--config.subject.class_noun=dog",
            f"--workdir={work}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_when(process: subprocess.Popen, ready, limit: float = 300) -> None:
    end = time.monotonic() + limit
    while not ready() and process.poll() is None:
        assert time.monotonic() < end, "the run never came to that point"
        time.sleep(0.005)
    process.kill()
    process.wait()


@pytest.mark.long
def test_killed_while_saving_and_continued_is_bit_identical(job, finished, tmp_path):
    work = epath.Path(tmp_path) / "run"
    process = start_run(work, job)
    kill_when(process, lambda: any((work / "base").glob("2*")))
    assert process.returncode == -signal.SIGKILL
    dreambooth.run(job, work, frozenset())
    assert_same_run(work, finished)


@pytest.mark.slow
def test_killed_at_five_random_moments_is_bit_identical(job, finished, tmp_path):
    work = epath.Path(tmp_path) / "run"
    rng = random.Random(0)
    kills = 0
    while kills < 5:
        process = start_run(work, job)
        try:
            process.wait(timeout=rng.uniform(5, 60))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            break
    dreambooth.run(job, work, frozenset())
    assert_same_run(work, finished)
    assert kills >= 3


def test_a_changed_setting_is_named_and_refused(job, finished):
    other = dataclasses.replace(
        job, base=dataclasses.replace(job.base, prior_weight=0.5)
    )
    with pytest.raises(InputError, match=r"base.prior_weight: 1.0 -> 0.5.*--overwrite"):
        dreambooth.run(other, finished, frozenset())
    with pytest.raises(InputError, match=r"text: \w+ -> \w+ caption.*--overwrite=base"):
        dreambooth.run(
            dataclasses.replace(job, cleaning="caption"), finished, frozenset()
        )
    longer = dataclasses.replace(job.base, log_every=2)
    dreambooth.run(dataclasses.replace(job, base=longer), finished, frozenset())


def files(folder: epath.Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder: when it was written, and its bytes."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "seed: 0 -> 5"),
        ({"subject.class_noun": "cat"}, "subject.class_noun: dog -> cat"),
        ({"subject.photos": "toybox:dog/3"}, "subject.photos: .* -> toybox:dog/3"),
        ({"subject.photos": "EMPTY"}, "holds no photo that can be used"),
        ({"subject.photos": "/nowhere"}, "/nowhere does not exist"),
        ({"base.prior_weight": 0.5}, "base.prior_weight: 1.0 -> 0.5"),
        ({"base.steps": 3}, "base.steps=3, but .* for 4 steps"),
        ({"sr256.optim.lr": 1.0}, "sr256.optim.lr: 0.001 -> 1.0"),
        ({"sr1024.optim.name": "adm"}, "optim.name='adm'"),
        ({"sr1024.weighting": "heavy"}, "loss weight is 'heavy'"),
        ({"pictures.seeds": 2}, "pictures.seeds: 1 -> 2"),
        ({"pictures.prompts": ("a [X]",)}, r"\[X\]"),
        ({"pictures.prompts": ("a [V] dog " * 30,)}, "too long"),
        ({"pictures.base.variance": "learned"}, "pictures.base.variance='learned'"),
        (
            {"pictures.base.guidance_interval": (1e6, 1e7)},
            "^config.pictures.base.guidance_interval is",
        ),
        ({"weights.sr1024": "/nowhere"}, "config.weights.sr1024=/nowhere"),
        ({"mesh.data": 3}, "data=3"),
        ({"dtype": "float8"}, "config.dtype='float8'"),
    ],
)
def test_a_refused_job_changes_nothing_and_doctor_refuses_it_too(
    finished, changes, words, tmp_path
):
    settings = presets.dreambooth("tiny")
    kept = json.loads((finished / "config.json").read_text())["subject"]
    settings.subject.photos, settings.subject.class_noun = kept["photos"], "dog"
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, value in changes.items():
        value = str(tmp_path) if value == "EMPTY" else value
        settings.update_from_flattened_dict({name: value})
    refused, before = build.to_job(settings), files(finished)
    with pytest.raises(InputError, match=words):
        dreambooth.run(refused, finished, frozenset())
    findings = checks.check(refused, finished)
    assert any(each.level == checks.PROBLEM for each in findings)
    assert files(finished) == before


def test_doctor_accepts_what_train_accepts(job, finished):
    before = files(finished)
    findings = checks.check(job, finished)
    assert not [each for each in findings if each.level == checks.PROBLEM]
    other = dataclasses.replace(job, seed=5)
    redone = checks.check(other, finished, overwrite=frozenset({"all"}))
    assert not [each for each in redone if each.level == checks.PROBLEM]
    assert files(finished) == before


@pytest.mark.parametrize("name", ["[proj]/run", "run*", "file", "file/run"])
def test_a_run_directory_that_cannot_be_is_refused_before_the_work(job, tmp_path, name):
    (tmp_path / "file").write_text("")
    work, before = epath.Path(tmp_path) / name, files(epath.Path(tmp_path))
    with pytest.raises(InputError, match="--workdir=.*give a"):
        dreambooth.run(job, work, frozenset())
    problems = [
        each for each in checks.check(job, work) if each.level == checks.PROBLEM
    ]
    assert {each.topic for each in problems} <= {"run", "disk"}
    assert {each.exit_code for each in problems} == {2}
    assert files(epath.Path(tmp_path)) == before


def test_a_run_directory_in_use_is_refused(job, finished):
    with lock.held(finished):
        before = files(finished)
        with pytest.raises(InputError, match="in use: process"):
            dreambooth.run(job, finished, frozenset())
        assert any("in use" in each.text for each in checks.check(job, finished))
        assert files(finished) == before


@pytest.mark.parametrize("latest", [6, 600])
def test_fewer_steps_than_were_trained_are_refused_before_anything_is_written(
    job, tmp_path, latest
):
    work = epath.Path(tmp_path) / "run"
    (work / "base" / str(latest)).mkdir(parents=True)
    for shorter in (job, dataclasses.replace(job, keep="best")):
        with pytest.raises(
            InputError, match=rf"config\.base\.steps=4\b.* {latest} .*--overwrite=base"
        ):
            dreambooth.run(shorter, work, frozenset())
    assert [path.name for path in work.iterdir()] == ["base"]


@pytest.mark.parametrize("steps", [4, 3, 0])
@pytest.mark.parametrize("overwrite", [set(), {"base"}, {"all"}])
def test_as_many_steps_or_more_or_an_overwrite_are_accepted(
    job, tmp_path, steps, overwrite
):
    work = epath.Path(tmp_path)
    (work / "base" / "3").mkdir(parents=True)
    (work / "base" / "9.orbax-checkpoint-tmp").mkdir()
    if overwrite:
        (work / "base" / "700").mkdir()
    base = dataclasses.replace(job.base, steps=steps)
    other = dataclasses.replace(job, base=base)
    run_checks.check_steps(other, RunDirectory(work, frozenset(overwrite)))


def test_a_report_that_cannot_be_written_does_not_hide_the_error(
    job, tmp_path, monkeypatch, caplog
):
    def fail(error):
        def failing(*_, **__):
            raise error

        return failing

    full = StorageError("the disk is full")
    monkeypatch.setattr(dreambooth.run_report, "write", fail(full))
    monkeypatch.setattr(
        dreambooth.subject_prompts, "prepare_prompts", fail(Stopped("stopped"))
    )
    with pytest.raises(Stopped, match="stopped"):
        dreambooth.run(job, epath.Path(tmp_path) / "run", frozenset())
    assert "the disk is full" in caplog.text


@pytest.mark.long
def test_a_diverging_run_names_step_stage_and_tensor(job, tmp_path):
    optim = dataclasses.replace(job.base.optim, lr=1e30, clip=0.0)
    wild = dataclasses.replace(job, base=dataclasses.replace(job.base, optim=optim))
    with pytest.raises(NotFinite, match=r"base: step \d is not finite, in: .*unet/"):
        dreambooth.run(wild, epath.Path(tmp_path) / "run", frozenset())


def test_without_a_good_photo_only_the_report_is_written(job, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "Thumbs.db").write_bytes(b"x")
    bad = dataclasses.replace(
        job, subject=dataclasses.replace(job.subject, photos=str(folder))
    )
    work = epath.Path(tmp_path) / "run"
    with pytest.raises(InputError, match="empty.jpg"):
        dreambooth.run(bad, work, frozenset())
    assert [path.name for path in work.iterdir()] == ["report.html"]
    assert "empty.jpg" in (work / "report.html").read_text()
