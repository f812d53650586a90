"""Adapters against peft's, and their files in diffusers' pipelines for IF."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from models.test_unet_parity import (
    SMALL,
    draw_inputs,
    error,
    f32,
    reference,
    run_reference,
    to_params,
)
from weights.test_deepfloyd_parity import (
    NOISE_LEVEL,
    STEPS,
    TEXT,
    Noise,
    cascade_of,
    read,
    save,
)

from imagen_booth import models
from imagen_booth.diffusion import augment
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.models import lora
from imagen_booth.sampling import cascade_sampler
from imagen_booth.train_state import flatten
from imagen_booth.weights import deepfloyd, lora_files, tensor_files

pytestmark = [
    pytest.mark.parity,
    # The reference packages warn of their own and each other's deprecations.
    pytest.mark.filterwarnings("ignore"),
]

RANK, ALPHA = 4, 6.0


def add_theirs(unet, params, kernels):
    """peft's adapter on a network of diffusers; A and B are random."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    paths = lora.kernel_paths(params, kernels, RANK)
    names = [deepfloyd.spell(path, 2)[0] for path in paths]
    targets = [name.removesuffix(".weight") for name in names]
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    generator = torch.Generator().manual_seed(1)
    low = {name: p for name, p in unet.named_parameters() if ".lora_" in name}
    assert len(low) == 2 * len(targets)
    with torch.no_grad():
        for p in low.values():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(0.5 * noise / p[0].numel() ** 0.5)
    return low


def through_a_file(folder, tensors, params, **stated):
    """Tensors in peft's names, as diffusers writes them and this package reads them."""
    pipeline = pytest.importorskip("diffusers").IFPipeline
    layers = {name.replace(".default", ""): p.float() for name, p in tensors.items()}
    pipeline.save_lora_weights(folder, layers, **stated)
    path = lora_files.find(epath.Path(folder), "base", "--adapter")
    return lora_files.read(path, params, "--adapter")


@pytest.mark.parametrize("name", ["stage I", "stage II"])
@pytest.mark.parametrize("kernels", lora.KERNELS)
def test_output_and_gradients_are_those_of_peft(tmp_path, name, kernels):
    torch = pytest.importorskip("torch")
    config = SMALL[name]
    unet = reference(config).double()
    params = to_params(unet.state_dict())
    low = add_theirs(unet, params, kernels)
    *inputs, cotangent = draw_inputs(config, 2, 16, 16, 7)
    expected = run_reference(unet, *inputs)
    (expected * torch.tensor(cotangent)).sum().backward()
    adapter = through_a_file(tmp_path / "low", low, params)
    grads = through_a_file(
        tmp_path / "grads", {each: p.grad for each, p in low.items()}, params
    )
    x, time, text, level = f32(*inputs)
    weight = jnp.asarray(cotangent, jnp.float32)

    def forward(adapter):
        whole = {"params": lora.add(params, adapter, ALPHA / RANK)}
        args = x, time, text, None, level
        out = jnp.asarray(models.build(config).apply(whole, *args))
        return (out * weight).sum(), out

    ours, out = jax.jit(jax.grad(forward, has_aux=True))(adapter)
    found = error(out, expected.detach())
    ours, theirs = flatten(ours), flatten(grads)
    largest = {kind: 0.0 for kind in (lora.A, lora.B)}
    for path, leaf in theirs.items():
        kind = path.rpartition("/")[2]
        largest[kind] = max(largest[kind], float(np.abs(leaf).max()))
    worst = max(
        error(ours[path], leaf, largest[path.rpartition("/")[2]])
        for path, leaf in theirs.items()
    )
    print(f"{name}, {kernels}: output {found:.1e}, gradients {worst:.1e}")
    assert ours.keys() == theirs.keys()
    assert found <= 1e-4
    assert worst <= 1e-4
    # Without the adapter the output is another one.
    plain = models.build(config).apply({"params": params}, x, time, text, None, level)
    assert error(plain, expected.detach()) > 1e-2


def test_rank_and_alpha_that_diffusers_states_are_read(tmp_path):
    training = pytest.importorskip("diffusers.training_utils")
    unet = reference(SMALL["stage I"])
    params = to_params(unet.state_dict())
    low = add_theirs(unet, params, "attention")
    metadata = training._collate_lora_metadata({"unet": unet})
    plain = flatten(through_a_file(tmp_path / "plain", low, params))
    stated = flatten(through_a_file(tmp_path / "stated", low, params, **metadata))
    for path, leaf in plain.items():
        scale = ALPHA / RANK if path.endswith(lora.B) else 1.0
        np.testing.assert_allclose(stated[path], scale * leaf, rtol=1e-6)


def write_ours(folder, stage, params):
    """A random adapter of ours, and its file."""
    shapes = lora.shapes(params, "all", RANK)
    rng = np.random.default_rng(4)
    adapter = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.02).astype("f4"), shapes
    )
    held = {path: tensor_files.held(leaf) for path, leaf in flatten(adapter).items()}
    lora_files.save(folder / stage / lora_files.FILE, held, ALPHA / RANK)
    return adapter


@pytest.mark.parametrize("name", ["base", "sr256"])
def test_pictures_of_their_pipelines_with_our_adapters(tmp_path, monkeypatch, name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    for folder, size in (("1", "stage I"), ("2", "stage II")):
        config = dataclasses.replace(SMALL[size], text_width=TEXT)
        save(tmp_path / folder, config, 16 * int(folder), size == "stage II")
    cascade = cascade_of(tmp_path / "1", tmp_path / "2")
    stage, large = cascade.stage(name), name == "sr256"
    folder = tmp_path / ("2" if large else "1")
    rng = np.random.default_rng(3)
    text, null = rng.normal(size=(2, 1, 77, TEXT)).astype(np.float32)
    level = float(augment.if_level(jnp.float32(NOISE_LEVEL)))
    low = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    pipeline = getattr(
        diffusers, "IFSuperResolutionPipeline" if large else "IFPipeline"
    )
    part = read(cascade, name, folder)
    adapter = write_ours(epath.Path(tmp_path / "low"), name, part.params)
    more, inputs = {}, {"guidance_scale": 4.0}
    if large:
        noising = diffusers.DDPMScheduler.from_pretrained(
            folder, subfolder="image_noising_scheduler"
        )
        more = {"image_noising_scheduler": noising}
        inputs |= {
            "noise_level": NOISE_LEVEL,
            "image": torch.tensor(low.transpose(0, 3, 1, 2)),
        }
    theirs = pipeline(
        tokenizer=None,
        text_encoder=None,
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=diffusers.DDPMScheduler.from_pretrained(
            folder, subfolder="scheduler"
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
        **more,
    )
    theirs.load_lora_weights(tmp_path / "low" / stage.name)
    noise = Noise(stage, [11])
    for each in (theirs, theirs.scheduler):
        monkeypatch.setattr(sys.modules[type(each).__module__], "randn_tensor", noise)
    expected = theirs(
        prompt_embeds=torch.tensor(text),
        negative_prompt_embeds=torch.tensor(null),
        num_inference_steps=STEPS,
        output_type="pt",
        **inputs,
    ).images
    assert noise.used_up()
    stated = deepfloyd.read_scheduler(folder / "scheduler/scheduler_config.json")[1]
    config = SamplerConfig(
        "ancestral", STEPS, variance="learned", guidance=4.0, **stated
    )
    mask = jnp.ones((1, 77), bool)
    program = cascade_sampler.sampler_program(stage, part.apply, config)

    def sample(params):
        return program(
            params,
            jnp.asarray([11], jnp.uint32),
            *(jnp.asarray(text), mask, jnp.asarray(null), mask),
            jnp.asarray(low) if large else None,
            jnp.full((1,), level, jnp.float32) if large else None,
        )

    ours = sample(lora.add(part.params, adapter, ALPHA / RANK))
    expected = expected.permute(0, 2, 3, 1).numpy()
    found = np.abs(np.asarray(ours) - expected).max()
    print(f"{stage.name}: pixels differ by at most {found:.1e}")
    assert found <= 1e-3
    assert np.abs(np.asarray(sample(part.params)) - expected).max() > 1e-2
