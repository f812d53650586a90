"""What DreamBooth is compared with, as configs: which words, and what is tuned."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from etils import epath
from paths import CONFIGS
from PIL import Image

from imagen_booth import dreambooth
from imagen_booth.config import build
from imagen_booth.config.schema import Job
from imagen_booth.data import image_files
from imagen_booth.errors import InputError
from imagen_booth.sampling import batch_job, batch_plan, finished_run
from imagen_booth.text.prompts import fill
from imagen_booth.toybox.captions import parse
from imagen_booth.toybox.subjects import ToyboxSubject, describe
from imagen_booth.training import subject_prompts


def job_of(name: str, cascade: str) -> Job:
    """The job of a file in configs/."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return build.to_job(module.get_config(cascade))


@pytest.mark.parametrize("cascade", ["toybox", "tiny", "if_m", "if_xl", "imagen"])
def test_what_the_configs_tune(cascade):
    usual = job_of("dog", cascade)
    naive = job_of("no_prior", cascade)
    inverted = job_of("textual_inversion", cascade)
    told = job_of("prompts_only", cascade)
    assert naive.base.class_rows == 0 < usual.base.class_rows
    base = dataclasses.replace(naive.base, class_rows=usual.base.class_rows)
    assert dataclasses.replace(naive, base=base) == usual
    assert inverted.finetuned_parts == ("text",)
    assert told.finetuned_parts == ()
    assert len({job.subject.photos for job in (usual, naive, inverted, told)}) == 1
    assert len({job.pictures for job in (usual, naive, inverted, told)}) == 1
    assert tuple(each.identifier_replaces_noun for each in (usual, inverted, told)) == (
        False,
        True,
        True,
    )


def test_inversions_of_the_public_cascades_are_as_published():
    text = job_of("textual_inversion", "if_m").text
    assert (text.steps, text.subject_rows, text.optim.lr) == (5000, 4, 0.04)
    assert len(text.templates) > 10
    assert not text.initializer


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a [V] [N] in the snow", "an old brown dog in the snow"),
        ("a red [V][N]", "a red old brown dog"),
        ("the [v] [n]", "the old brown dog"),
        ("a [V] and a [N]", "an old brown dog and a dog"),
        ("a [N] [V]", "a dog old brown dog"),
    ],
)
def test_a_description_stands_for_the_noun_too(template, expected):
    assert fill(template, "old brown dog", "dog", alone=True) == expected


@pytest.mark.parametrize(
    "subject", [ToyboxSubject("dog", 7), ToyboxSubject("teapot", 302)]
)
def test_the_toybox_describes_its_subjects(subject):
    """Truly, and in words that its prompts may have."""
    said = parse(f"a {describe(subject)} in the snow")
    assert (said.noun, said.colour) == (subject.noun, subject.individual.colour)


def test_only_the_toybox_describes_by_itself():
    told = job_of("prompts_only", "tiny").subject
    toy = dataclasses.replace(told, photos="toybox:teapot/302")
    assert subject_prompts.subject_description(toy) == describe(
        ToyboxSubject("teapot", 302)
    )
    own = dataclasses.replace(told, photos="photos/dog")
    with pytest.raises(
        InputError, match="description='toybox', but .*describe what it looks"
    ):
        subject_prompts.subject_description(own)
    own = dataclasses.replace(own, description="small brown dog")
    assert subject_prompts.subject_description(own) == "small brown dog"


@pytest.mark.parametrize("part", ["text", "base", "sr256"])
def test_a_description_and_tuning_do_not_go_together(part):
    job = job_of("prompts_only", "tiny")
    tuning = dataclasses.replace(job.finetuning(part), steps=1)
    with pytest.raises(InputError, match=f"this one fine-tunes {part}; leave it empty"):
        dataclasses.replace(job, **{part: tuning})


@pytest.mark.long
def test_a_run_by_description_tunes_nothing(tmp_path):
    """Every stage reads the description; photos are only kept and compared with."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.full((80, 90, 3), 99, np.uint8)).save(photos / "0.png")
    job = job_of("prompts_only", "tiny")
    job = dataclasses.replace(
        job,
        subject=dataclasses.replace(
            job.subject, photos=str(photos), description="small brown dog"
        ),
        pictures=dataclasses.replace(job.pictures, prompts=("a [V] [N] in the snow",)),
    )
    work = epath.Path(tmp_path) / "run"
    dreambooth.run(job, work, frozenset())
    manifest = json.loads((work / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["subject"]["instance_prompt"] == "a small brown dog"
    assert not [name for name in ("base", "sr256", "text") if (work / name).exists()]
    prompt = "a small brown dog in the snow"
    metadata = image_files.read_png_metadata(work / "samples/final/64/00_0.png")
    assert metadata["prompt"] == prompt
    assert {
        "run",
        "cascade",
        "subject",
        "seed",
        "licence",
        "weights",
    } <= metadata.keys()
    assert {"stage", "sampler", "tuned_steps", "weights_licence"} <= metadata.keys()
    assert metadata["tuned_steps"] == "0"
    page = (work / "report.html").read_text()
    assert "No network was fine-tuned: prompts" in page
    run = finished_run.read_run(work)
    for each in batch_plan.stage_passes(run, np.dtype("float32")):
        assert each.uses_identifier
        assert each.steps == 0
    # Drawn again, every stage reads the same words and draws the same picture.
    folder = batch_job.sample_prompts(work, ["a [V] [N] in the snow"], "more", seeds=1)
    for size in ("64", "256"):
        [again] = (folder / size).glob("a-dog-in-the-snow_0_*.png")
        again = image_files.load_png(again)
        first = image_files.load_png(work / "samples" / "final" / size / "00_0.png")
        np.testing.assert_array_equal(again, first)
