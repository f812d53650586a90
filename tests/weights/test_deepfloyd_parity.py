"""Files and pipelines of diffusers against ours: networks, weights, pictures."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from models.test_unet_parity import SMALL, draw_inputs, reference, run_reference

from imagen_booth.cascade import Stage, by_name
from imagen_booth.diffusion import augment
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import sharding
from imagen_booth.models.t5 import T5_SIZES
from imagen_booth.sampling import cascade_sampler
from imagen_booth.weights import deepfloyd, export
from imagen_booth.weights.load import load, resolve

pytestmark = [
    pytest.mark.parity,
    # The reference packages warn of their own and each other's deprecations.
    pytest.mark.filterwarnings("ignore"),
]

TEXT = 48
STEPS = 5
NOISE_LEVEL = 250


def f32(a):
    return None if a is None else jnp.asarray(a, jnp.float32)


def save(folder, config, size, top):
    """A random network and IF's schedulers, written by diffusers."""
    diffusers = pytest.importorskip("diffusers")
    unet = reference(config)
    # A random network is chaotic: sampling would make much of the last digits.
    unet.conv_out.weight.data *= 0.2
    unet.register_to_config(sample_size=size)
    unet.save_pretrained(folder / "unet")
    common = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
    diffusers.DDPMScheduler(
        **common,
        variance_type="learned_range",
        thresholding=True,
        clip_sample=False,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.0 if top else 1.5,
    ).save_pretrained(folder / "scheduler")
    if top:
        diffusers.DDPMScheduler(**common).save_pretrained(
            folder / "image_noising_scheduler"
        )
    return unet


def cascade_of(base, sr256=None):
    """if_m with narrow text and the stages that lie in two folders."""
    encoder = dataclasses.replace(T5_SIZES["tiny"], width=TEXT)
    cascade = by_name("if_m").having(encoder)
    sources = {"text": "random", "base": str(base), "sr256": str(sr256)}
    sources["sr1024"] = "none"
    if sr256 is None:
        cascade = dataclasses.replace(cascade, stages=cascade.stages[:1])
    return resolve(cascade, sources)


def read(cascade, name, folder):
    return load(cascade, name, str(folder), sharding.make_mesh(), jnp.float32)


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_of_diffusers_is_read(tmp_path, name):
    config = SMALL[name]
    unet = save(tmp_path / "theirs", config, 16, config.level_input).double()
    (parcel,) = export.export_folder(epath.Path(tmp_path / "theirs"), ())
    assert isinstance(parcel.network, Stage)
    assert parcel.network.model == config
    own = epath.Path(tmp_path / "own")
    export.write_native(own, [parcel], None)
    cascade = by_name("if_m").having(parcel.network)
    part = read(cascade, parcel.name, own)
    x, time, text, level, _ = draw_inputs(config, 2, 16, 16, 77)
    expected = run_reference(unet, x, time, text, level).detach().numpy()
    out = jax.jit(part.apply)(
        part.params, f32(x), f32(time), f32(text), None, f32(level)
    )
    error = np.abs(out - expected).max() / np.abs(expected).max()
    print(f"{name}, through files: relative error {error:.1e}")
    assert error <= 1e-4


@pytest.mark.parametrize("name", ["stage I", "stage II"])
def test_diffusers_reads_what_we_write(tmp_path, name):
    diffusers = pytest.importorskip("diffusers")
    unet = save(tmp_path / "theirs", SMALL[name], 16, name == "stage II")
    parcels = export.export_folder(epath.Path(tmp_path / "theirs"), ())
    (folder,) = export.write_diffusers(epath.Path(tmp_path / "out"), parcels, None)
    again, info = diffusers.UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", output_loading_info=True
    )
    assert not any(info.values())
    told, back = unet.state_dict(), again.state_dict()
    assert told.keys() == back.keys()
    for key, value in told.items():
        assert value.numpy().tobytes() == back[key].numpy().tobytes(), key
    unsaid = {"mid_block_only_cross_attention", "layers_per_block"}
    for field, value in unet.config.items():
        if value is not None and field not in unsaid and not field.startswith("_"):
            ours = again.config[field]
            assert (tuple(ours) if isinstance(ours, list) else ours) == (
                tuple(value) if isinstance(value, list) else value
            ), field
    theirs, ours = (
        diffusers.DDPMScheduler.from_pretrained(each, subfolder="scheduler")
        for each in (tmp_path / "theirs", folder)
    )
    for field in ("variance_type", "thresholding", "sample_max_value", "clip_sample"):
        assert ours.config[field] == theirs.config[field]
    np.testing.assert_array_equal(ours.betas, theirs.betas)


class Noise:
    """Our noise, in the order in which diffusers asks for its own."""

    def __init__(self, stage, seeds):
        self._keys = [
            jax.random.fold_in(jax.random.key(seed), cascade_sampler.STREAM[stage.name])
            for seed in seeds
        ]
        side = stage.resolution
        self._shape = (side, side, 3)
        self._left = [0]
        if stage.low_resolution is not None:
            self._left.append(cascade_sampler.LOW_NOISE)
        self._left += range(1, STEPS)

    def __call__(self, shape, **_):
        torch = pytest.importorskip("torch")
        number = self._left.pop(0)
        rows = [
            jax.random.normal(jax.random.fold_in(key, number), self._shape)
            for key in self._keys
        ]
        noise = torch.tensor(np.stack(rows)).permute(0, 3, 1, 2)
        assert noise.shape == tuple(shape)
        return noise

    def used_up(self):
        return not self._left


def test_pictures(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    small = dataclasses.replace(SMALL["stage I"], text_width=TEXT)
    large = dataclasses.replace(SMALL["stage II"], text_width=TEXT)
    save(tmp_path / "1", small, 16, top=False)
    save(tmp_path / "2", large, 32, top=True)
    exported = epath.Path(tmp_path / "exported")
    for each in ("1", "2"):
        parcels = export.export_folder(epath.Path(tmp_path / each), ())
        export.write_diffusers(exported, parcels, None)
    folders = exported / "base", exported / "sr256"
    cascade = cascade_of(*folders)
    rng = np.random.default_rng(3)
    text, null = rng.normal(size=(2, 2, 77, TEXT)).astype(np.float32)
    seeds = [11, 12]

    def open_theirs(pipeline, folder, **more):
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        scheduler = diffusers.DDPMScheduler.from_pretrained(
            folder, subfolder="scheduler"
        )
        made = pipeline(
            tokenizer=None,
            text_encoder=None,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
            **more,
        )
        made.set_progress_bar_config(disable=True)
        return made

    def draw_theirs(pipeline, stage, **inputs):
        noise = Noise(stage, seeds)
        for each in (pipeline, pipeline.scheduler):
            module = sys.modules[type(each).__module__]
            monkeypatch.setattr(module, "randn_tensor", noise)
        images = pipeline(
            prompt_embeds=torch.tensor(text),
            negative_prompt_embeds=torch.tensor(null),
            num_inference_steps=STEPS,
            output_type="pt",
            **inputs,
        ).images
        assert noise.used_up()
        return images

    def draw_ours(stage, folder, guidance, low, level):
        told = deepfloyd.read_scheduler(folder / "scheduler/scheduler_config.json")[1]
        config = SamplerConfig(
            "ancestral", STEPS, variance="learned", guidance=guidance, **told
        )
        part = read(cascade, stage.name, folder)
        mask = jnp.ones((2, 77), bool)
        level = None if low is None else jnp.full((2,), level, jnp.float32)
        return cascade_sampler.sampler_program(stage, part.apply, config)(
            part.params,
            jnp.asarray(seeds, jnp.uint32),
            *(f32(text), mask, f32(null), mask),
            low,
            level,
        )

    base, top = cascade.stages
    theirs = draw_theirs(
        open_theirs(diffusers.IFPipeline, folders[0]),
        base,
        guidance_scale=7.0,
    )
    ours = draw_ours(base, folders[0], 7.0, None, None)
    noising = diffusers.DDPMScheduler.from_pretrained(
        folders[1], subfolder="image_noising_scheduler"
    )
    theirs_large = draw_theirs(
        open_theirs(
            diffusers.IFSuperResolutionPipeline,
            folders[1],
            image_noising_scheduler=noising,
        ),
        top,
        image=theirs,
        guidance_scale=4.0,
        noise_level=NOISE_LEVEL,
    )
    level = float(augment.if_level(jnp.float32(NOISE_LEVEL)))
    ours_large = draw_ours(top, folders[1], 4.0, ours, level)
    for name, a, b in (("I", ours, theirs), ("II", ours_large, theirs_large)):
        b = b.permute(0, 2, 3, 1).numpy()
        error = np.abs(np.asarray(a) - b).max()
        print(f"stage {name}, {STEPS} steps: pixels differ by at most {error:.1e}")
        assert np.abs(b).max() > 0.5
        assert error <= 1e-3
