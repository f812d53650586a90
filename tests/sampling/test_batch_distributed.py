"""Two processes over loopback share one batch job."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image
from train_jobs import train

from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets
from imagen_booth.train_state import flatten
from imagen_booth.weights import native, tensor_files
from imagen_booth.weights.load import random_params

pytestmark = pytest.mark.long

# The sampling command, in a process that notes which pictures it writes.
NOTES_PICTURES = """
import runpy, sys
from imagen_booth.data import image_files

save, log = image_files.save_png, sys.argv.pop(1)

def saving(path, *rest):
    save(path, *rest)
    with open(log, "a") as file:
        file.write(f"{path.name}\\n")

image_files.save_png = saving
runpy.run_module("imagen_booth.sample", run_name="__main__", alter_sys=True)
"""


def test_two_processes_share_a_batch_job(tmp_path):
    """Each stores half of every batch; together the pictures of one process."""
    # Where nothing is tuned the random network draws grey; with every weight shaken,
    # each picture is its own.
    rng = np.random.default_rng(0)
    weights = {
        path: tensor_files.held(
            (leaf + rng.normal(0, 0.05, leaf.shape)).astype(np.float32)
        )
        for path, leaf in flatten(random_params(by_name("tiny"), "base")).items()
    }
    shaken = epath.Path(tmp_path) / "weights"
    native.write(shaken, "base", weights, None, {"licence": "none"})
    settings = presets.dreambooth("tiny")
    settings.weights.base = str(shaken)
    job = build.to_job(settings)
    subject = {"identifier": "zaf", "class_noun": "dog"}
    for name in ("one", "two"):
        work = tmp_path / name / "run"
        work.mkdir(parents=True)
        # Random weights, and nothing tuned.
        (work / "config.json").write_text(json.dumps(dataclasses.asdict(job)))
        (work / "manifest.json").write_text(json.dumps({"subject": subject}))
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,seed,guidance\na [V] [N],,\na cat,7,3\n")

    def command(name: str, number: int) -> tuple[str, ...]:
        flags = f"--run={tmp_path / name / 'run'}", f"--prompts={prompts}"
        more = "--name=job", "--seeds=4", "--resolution=64", "--batch=4"
        return "-c", NOTES_PICTURES, str(tmp_path / f"{name}{number}"), *flags, *more

    [alone] = train(command("one", 0), devices=2)
    assert alone.code == 0, alone.said
    both = train(command("two", 0), command("two", 1), devices=1)
    assert [each.code for each in both] == [0, 0], both[0].said + both[1].said
    wrote = [(tmp_path / f"two{n}").read_text().split() for n in (0, 1)]
    assert not set(wrote[0]) & set(wrote[1])
    assert all(len(names) == 4 for names in wrote)
    folders = [tmp_path / name / "run" / "samples" / "job" for name in ("one", "two")]
    lines = [
        sorted((folder / "index.jsonl").read_text().splitlines()) for folder in folders
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 8
    for line in lines[0]:
        file = json.loads(line)["file"]
        one, two = (np.asarray(Image.open(each / file), int) for each in folders)
        assert one.std() > 5
        assert np.abs(one - two).max() <= 1
