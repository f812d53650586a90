"""The U-Net against diffusers' `UNet2DConditionModel` in float64, random weights."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth import models
from imagen_booth.models import UNetConfig, layers

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

STAGE_1 = UNetConfig(
    widths=(32, 96, 64),
    blocks=(1, 3, 2),
    attention=(False, True, True),
    out_channels=6,
    text_width=48,
    cross_width=64,
    time_width=80,
    head_width=16,
    pool_heads=4,
    text_norm="group",
    activation="gelu",
)
STAGE_2 = dataclasses.replace(
    STAGE_1,
    widths=(64, 32, 96, 96),
    blocks=(2, 1, 3, 2),
    attention=(False, False, True, True),
    in_channels=6,
    level_input=True,
    head_width=32,
    residual_scale=1 / 0.7071,
)
SMALL = {
    "stage I": STAGE_1,
    "stage II": STAGE_2,
    "stage II, text only": dataclasses.replace(STAGE_2, self_attention=False),
}


def reference(config: UNetConfig):
    """The same network in PyTorch, every weight random."""
    torch = pytest.importorskip("torch")
    unet = pytest.importorskip("diffusers").UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks,
        down_block_types=[
            "SimpleCrossAttnDownBlock2D" if attends else "ResnetDownsampleBlock2D"
            for attends in config.attention
        ],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=[
            "SimpleCrossAttnUpBlock2D" if attends else "ResnetUpsampleBlock2D"
            for attends in reversed(config.attention)
        ],
        act_fn="gelu",
        addition_embed_type="text",
        addition_embed_type_num_heads=config.pool_heads,
        attention_head_dim=config.head_width,
        class_embed_type="timestep" if config.level_input else None,
        cross_attention_dim=config.cross_width,
        cross_attention_norm="group_norm",
        encoder_hid_dim=config.text_width,
        encoder_hid_dim_type="text_proj",
        mid_block_scale_factor=config.residual_scale,
        norm_num_groups=config.norm_groups,
        only_cross_attention=not config.self_attention,
        resnet_out_scale_factor=config.residual_scale,
        resnet_skip_time_act=config.level_input,
        resnet_time_scale_shift="scale_shift",
        time_embedding_act_fn="gelu" if config.level_input else None,
        time_embedding_dim=config.time_width,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in unet.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1 or "positional" in name:
                p += 0.3 * noise
            else:
                p.copy_(noise / p[0].numel() ** 0.5)
    return unet


def to_params(tensors):
    """PyTorch's names and axes to ours."""
    params = {}
    for name, tensor in tensors.items():
        name = re.sub(r"\.(\d+)", r"_\1", name).replace("to_out_0", "to_out")
        *path, leaf = name.split(".")
        value = tensor.detach().float().numpy()
        if leaf == "weight":
            leaf = "scale" if value.ndim == 1 else "kernel"
            value = value.transpose({1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[value.ndim])
        node = params
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = value
    return params


def draw_inputs(config: UNetConfig, batch: int, height: int, width: int, length: int):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(batch, height, width, config.in_channels))
    text = rng.normal(size=(batch, length, config.text_width))
    time = rng.integers(0, 1000, batch)
    level = rng.integers(0, 1000, batch) if config.level_input else None
    cotangent = rng.normal(size=(batch, height, width, config.out_channels))
    return x, time, text, level, cotangent


def run_reference(unet, x, time, text, level):
    torch = pytest.importorskip("torch")

    def tensor(a):
        return torch.tensor(a, dtype=unet.dtype)

    out = unet(
        tensor(x.transpose(0, 3, 1, 2)),
        torch.tensor(time),
        tensor(text),
        class_labels=None if level is None else torch.tensor(level),
    ).sample
    return out.permute(0, 2, 3, 1)


def f32(*arrays):
    return [None if a is None else jnp.asarray(a, jnp.float32) for a in arrays]


def error(a, b, scale=None):
    """Largest difference, relative to the largest of b or of `scale`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / (np.abs(b).max() if scale is None else scale)


@pytest.mark.parametrize("name", SMALL)
def test_forward_and_gradients(name):
    torch = pytest.importorskip("torch")
    config = SMALL[name]
    unet = reference(config).double()
    *inputs, cotangent = draw_inputs(config, 3, 16, 24, 7)
    expected = run_reference(unet, *inputs)
    (expected * torch.tensor(cotangent)).sum().backward()
    expected_grads = to_params({k: p.grad for k, p in unet.named_parameters()})

    x, time, text, level = f32(*inputs)
    weight = jnp.asarray(cotangent, jnp.float32)

    def forward(params):
        args = x, time, text, None, level
        out = jnp.asarray(models.build(config).apply({"params": params}, *args))
        return (out * weight).sum(), out

    params = to_params(unet.state_dict())
    grads, out = jax.jit(jax.grad(forward, has_aux=True))(params)
    assert error(out, expected.detach()) <= 1e-4

    leaves = dict(jax.tree.leaves_with_path(grads))
    expected_leaves = dict(jax.tree.leaves_with_path(expected_grads))
    assert leaves.keys() == expected_leaves.keys()
    # A bias that a norm or softmax cancels has a gradient of nothing but rounding:
    # each layer's leaves are measured by the layer's largest gradient.
    scales = {}
    for path, g in expected_leaves.items():
        scales[path[:-1]] = max(scales.get(path[:-1], 0.0), np.abs(g).max())
    for path, g in expected_leaves.items():
        where = jax.tree_util.keystr(path)
        assert error(leaves[path], g, scales[path[:-1]]) <= 1e-3, where


@pytest.mark.slow
@pytest.mark.parametrize("name", ["if_i_m", "if_ii_m"])
def test_full_size_forward(name):
    torch = pytest.importorskip("torch")
    config = models.SIZES[name]
    assert isinstance(config, UNetConfig)
    unet = reference(config)
    *inputs, _ = draw_inputs(config, 1, 64, 64, 77)
    with torch.no_grad():
        expected = run_reference(unet, *inputs)
    x, time, text, level = f32(*inputs)
    params = to_params(unet.state_dict())
    forward = jax.jit(models.build(config).apply)
    out = forward({"params": params}, x, time, text, None, level)
    assert error(out, expected) <= 1e-4


@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked keys"])
def test_gradient_of_attention(masked, key):
    """Against PyTorch's attention in float64."""
    torch = pytest.importorskip("torch")
    shapes = {"q": (3, 7, 2, 4), "k": (3, 5, 2, 4), "v": (3, 5, 2, 4)}
    keys = jax.random.split(key, 4)
    inputs = [
        3 * jax.random.normal(k, s) for k, s in zip(keys, shapes.values(), strict=False)
    ]
    of_out = jax.random.normal(keys[3], shapes["q"])
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    mask = mask if masked else None

    out, gradient = jax.vjp(lambda q, k, v: layers.attend(q, k, v, mask), *inputs)

    doubles = [torch.tensor(np.asarray(x, np.float64)) for x in inputs]
    heads = [x.transpose(1, 2).requires_grad_() for x in doubles]
    hidden = None if mask is None else torch.tensor(mask)[:, None, None, :]
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=hidden)
    wanted.backward(torch.tensor(np.asarray(of_out, np.float64)).transpose(1, 2))
    for ours, theirs in zip(
        (out, *gradient(of_out)), (wanted, *(x.grad for x in heads)), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs.detach().transpose(1, 2), rtol=1e-4, atol=1e-5
        )
