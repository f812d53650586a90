"""DeepFloyd IF in three commands, from a hub on loopback with reduced networks."""

import json
import os
import pathlib
import subprocess
import sys

import deepfloyd_files as files
import numpy as np
import pytest
from hub import serve
from paths import ROOT, SHARED
from photo_files import blurred
from PIL import Image
from safetensors.numpy import save
from train_jobs import QUICK

from imagen_booth.weights import fetch

pytestmark = pytest.mark.long

pytest.importorskip("huggingface_hub")
VOCABULARY = SHARED / "data" / "t5" / "spiece.model"
# A few steps of everything; the true settings take hours.
BRIEF = (
    "--config.class_images.count=2",
    "--config.class_images.group=2",
    "--config.class_images.sampler.steps=2",
    "--config.base.steps=1",
    "--config.base.subject_rows=1",
    "--config.base.class_rows=1",
    "--config.base.preview_every=0",
    "--config.sr256.steps=1",
    "--config.sr256.subject_rows=1",
    "--config.sr256.preview_every=0",
    "--config.sr1024.steps=1",
    "--config.sr1024.subject_rows=1",
    "--config.sr1024.preview_every=0",
    "--config.pictures.prompts=('a [V] [N]',)",
    "--config.pictures.base.steps=2",
    "--config.pictures.sr256.steps=2",
    "--config.pictures.sr1024.steps=2",
)


def reduced_repositories() -> dict[str, dict[str, bytes]]:
    """The files that fetching if_m asks for, with small networks."""
    known = fetch.known()

    def stage(config, size):
        tensors = files.fill(files.shapes(config))
        small = {name: 0.05 * tensor for name, tensor in tensors.items()}
        return {
            "unet/config.json": json.dumps(config | {"sample_size": size}).encode(),
            "unet/diffusion_pytorch_model.safetensors": save(small),
            "scheduler/scheduler_config.json": json.dumps(files.SCHEDULER).encode(),
        }

    # Attention at 32 px alone, because at 128 px it would take gigabytes.
    deep = files.STAGE_2 | {
        "block_out_channels": [32, 32, 32, 64],
        "down_block_types": [
            *["ResnetDownsampleBlock2D"] * 3,
            "SimpleCrossAttnDownBlock2D",
        ],
        "up_block_types": ["SimpleCrossAttnUpBlock2D", *["ResnetUpsampleBlock2D"] * 3],
        "layers_per_block": [1, 1, 1, 2],
    }
    text = json.dumps(files.SCHEDULER).encode()
    noising = {"image_noising_scheduler/scheduler_config.json": text}
    encoder = files.fill(files.encoder_shapes(vocab=32128))
    return {
        known["if_i_m"]["repo"]: stage(files.STAGE_1, 64),
        known["if_ii_m"]["repo"]: stage(deep, 256) | noising,
        known["t5_xxl"]["repo"]: {"t5xxl_fp16.safetensors": save(encoder)},
        known["t5_vocabulary"]["repo"]: {"spiece.model": VOCABULARY.read_bytes()},
    }


def command(folder: pathlib.Path, address: str, *arguments: str) -> str:
    """Runs one command in a folder that is no checkout; returns its output."""
    environment = os.environ | QUICK
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home")}
    environment |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    environment.pop(fetch.VARIABLE, None)
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.skipif(not VOCABULARY.exists(), reason="no T5 vocabulary in ../shared")
def test_three_commands_end_in_pictures(tmp_path):
    (tmp_path / "photos").mkdir()
    blurred(np.random.default_rng(0), 6, (1100, 1024)).save(tmp_path / "photos/0.png")
    config = f"--config={ROOT / 'configs' / 'subject.py'}:if_m"
    with serve() as (hub, address):
        hub.repos |= reduced_repositories()
        out = command(
            tmp_path, address, "imagen_booth.convert", "fetch", "if_m", "--to=weights"
        )
    assert "finds them" in out
    subject = "--config.subject.photos=photos", "--config.subject.class_noun=dog"
    command(tmp_path, "", "imagen_booth.train", config, *subject, *BRIEF)
    run = tmp_path / "runs" / "subject_if_m"
    command(
        tmp_path,
        "",
        "imagen_booth.sample",
        f"--run={run}",
        "--prompt=a [V] dog in the snow",
        "--name=snow",
    )
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["cascade"]["parts"]["base"]["source"].startswith(str(tmp_path))
    assert manifest["cascade"]["parts"]["sr1024"]["source"] == "shipped"
    pictures = set((run / "samples" / "snow" / "1024").glob("*.png"))
    (picture,) = (path for path in pictures if path.stem != "contact_sheet")
    with Image.open(picture) as picture:
        assert picture.size == (1024, 1024)
        assert picture.info["tuned_steps"] == "1"
        assert picture.info["prompt"].endswith("dog in the snow")
