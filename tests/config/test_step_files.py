"""Lists of sampler steps from files, as a setting of a job."""

import dataclasses

import pytest

from imagen_booth.config import build, presets
from imagen_booth.config.build import to_job
from imagen_booth.errors import InputError


def job_with(steps):
    config = presets.dreambooth("tiny")
    config.class_images.sampler.steps = steps
    return to_job(config)


def test_a_file_becomes_its_list(tmp_path):
    file = tmp_path / "steps.txt"
    file.write_text("sigma  # noise over picture\n100, 8.5 3\n0.25\n")
    sampler = job_with(str(file)).class_images.sampler
    assert (sampler.steps, sampler.spacing) == ((100.0, 8.5, 3.0, 0.25), "sigma")
    # and config.json has the numbers, not the path
    kept = dataclasses.asdict(sampler)
    assert build.build(type(sampler), kept, "config") == sampler


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "steps.txt.*cannot be read"),
        ("1 2 3", "begin with one of time, logsnr, sigma.*not with '1'"),
        ("", "begin with one of"),
        ("sigma 3 two", "more than numbers.*two"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    file = tmp_path / "steps.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=rf"sampler.steps=.*{words}"):
        job_with(str(file))
