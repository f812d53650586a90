"""Photos, then tuned stages, then an export that diffusers draws the same from."""

import dataclasses
import json
from typing import Any

import deepfloyd_files as files
import numpy as np
import pytest
from etils import epath
from PIL import Image
from safetensors.numpy import load_file, save_file
from weights.test_deepfloyd_parity import Noise

from imagen_booth import cascade, dreambooth
from imagen_booth.config import build
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth as defaults
from imagen_booth.distributed.sharding import make_mesh
from imagen_booth.sampling.text_embeddings import embed_prompts
from imagen_booth.text import tokenizer
from imagen_booth.weights import export
from imagen_booth.weights.load import resolve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parity,
    # The reference packages warn of their own and each other's deprecations.
    pytest.mark.filterwarnings("ignore"),
]

STEPS = 5
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def calm(config, seed):
    """Random weights of the size that keeps activations in bounds."""
    weights = files.fill(files.shapes(config), seed)
    for name, value in weights.items():
        if value.ndim > 1:
            value /= np.sqrt(value[0].size)
        else:
            value *= 0.1
            value += name.endswith("weight")
    # A random network is chaotic: sampling would turn rounding into grey levels.
    weights["conv_out.weight"] *= 0.05
    return weights


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run on reduced stages of IF, with our small vocabulary."""
    known = cascade.by_name("if_m")
    text = dataclasses.replace(known.text, rare=tokenizer.EMBEDDED_RARE)
    monkeypatch.setitem(cascade.CASCADES, "if_m", dataclasses.replace(known, text=text))
    files.write_stage(tmp_path / "1", weights=calm(files.STAGE_1, 0))
    bounded = files.SCHEDULER | {"sample_max_value": 1.0}
    files.write_stage(tmp_path / "2", files.STAGE_2, bounded, calm(files.STAGE_2, 1))
    encoder = files.fill(files.encoder_shapes(vocab=2048), 2)
    encoder = {
        name: 1 + 0.1 * value if value.ndim == 1 else 0.3 * value
        for name, value in encoder.items()
    }
    (tmp_path / "text").mkdir()
    save_file(encoder, tmp_path / "text/model.safetensors")
    config: Any = defaults("if_m")
    config.subject.photos = "toybox:dog/7"
    config.subject.class_noun = "dog"
    config.weights.base = str(tmp_path / "1")
    config.weights.sr256 = str(tmp_path / "2")
    config.weights.text = str(tmp_path / "text")
    config.weights.vocabulary = str(tokenizer.EMBEDDED)
    config.class_images.count, config.class_images.group = 4, 4
    config.class_images.sampler.steps = 2
    for name in ("base", "sr256"):
        stage = config[name]
        stage.steps, stage.optim.lr = 2, 1e-4
        config.pictures[name].steps = STEPS
    config.pictures.prompts = ("a [V] [N]",)
    dreambooth.run(to_job(config), epath.Path(tmp_path / "run"), frozenset())
    return tmp_path


def test_both_sides_draw_the_same(run, monkeypatch):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    out = epath.Path(run / "out")
    parcels = export.export_run(epath.Path(run / "run"), ())
    export.write_diffusers(out, parcels, None)
    for name, number in (("base", "1"), ("sr256", "2")):
        tuned, before = (
            load_file(folder / WEIGHTS) for folder in (out / name, run / number)
        )
        assert tuned.keys() == before.keys()
        moved = [key for key in tuned if np.any(tuned[key] != before[key])]
        assert len(moved) > 0.9 * len(tuned)
        scheduler = json.loads(
            (out / name / "scheduler/scheduler_config.json").read_text()
        )
        assert scheduler["variance_type"] == "learned_range"

    story = json.loads((run / "run/manifest.json").read_text())
    config = json.loads((run / "run/config.json").read_text())
    assert any("non" in line or "without" in line for line in story["warnings"])
    job = build.build(dreambooth.Job, config, "config")
    model = resolve(cascade.by_name("if_m"), dataclasses.asdict(job.weights))
    prompt = story["subject"]["instance_prompt"]
    found, _ = embed_prompts(
        job,
        model,
        [prompt],
        cache=epath.Path(run / "cache"),
        mesh=make_mesh(),
        dtype=np.dtype(np.float32),
    )
    assert found[prompt].mask.all()
    assert found[""].mask.all()
    assert np.abs(found[""].text).max() > 0

    drawn = {}
    pipelines = diffusers.IFPipeline, diffusers.IFSuperResolutionPipeline
    for stage, pipeline in zip(model.stages, pipelines, strict=True):
        folder = out / stage.name
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        more, inputs = {}, {"guidance_scale": 7.0}
        if stage.name == "sr256":
            noising = diffusers.DDPMScheduler.from_pretrained(
                folder, subfolder="image_noising_scheduler"
            )
            # Our level is below the least of IF's, which it has no number for.
            monkeypatch.setattr(noising, "add_noise", _at_level(job.sr256.level))
            more = {"image_noising_scheduler": noising}
            low = torch.tensor(drawn["base"][None]).permute(0, 3, 1, 2)
            low = low.float() / 127.5 - 1
            inputs = {"guidance_scale": 4.0, "noise_level": 0, "image": low}
        made = pipeline(
            tokenizer=None,
            text_encoder=None,
            unet=unet,
            scheduler=diffusers.DDPMScheduler.from_pretrained(
                folder, subfolder="scheduler"
            ),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
            **more,
        )
        noise = Noise(stage, [job.seed])
        for each in (made, made.scheduler):
            monkeypatch.setattr(f"{type(each).__module__}.randn_tensor", noise)
        image = made(
            prompt_embeds=torch.tensor(found[prompt].text[None]),
            negative_prompt_embeds=torch.tensor(found[""].text[None]),
            num_inference_steps=STEPS,
            output_type="pt",
            **inputs,
        ).images[0]
        theirs = (image.permute(1, 2, 0).numpy() + 1) * 127.5
        path = run / f"run/samples/final/{stage.resolution}/00_0.png"
        ours = np.asarray(Image.open(path))
        drawn[stage.name] = ours
        difference = np.abs(np.clip(theirs, 0, 255) - ours).max()
        print(f"{stage.name}: at most {difference:.2f} grey levels apart")
        assert ours.std() > 10
        assert difference <= 0.75  # half a level is rounding


def _at_level(level):
    def add_noise(image, noise, timesteps):
        return (1 - level) ** 0.5 * image + level**0.5 * noise

    return add_noise
