"""Cascades: stages that chain, networks that fit them, published sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from imagen_booth import cascade, train_state
from imagen_booth.cascade import CASCADES
from imagen_booth.config.schema import OptimConfig
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.errors import InputError
from imagen_booth.models import EfficientUNetConfig, ResidualUNetConfig
from imagen_booth.training import optimizers
from imagen_booth.weights.load import network

STAGES = pytest.mark.parametrize(
    ("name", "stage"),
    [(name, stage) for name, each in CASCADES.items() for stage in each.stages],
    ids=lambda value: value if isinstance(value, str) else value.name,
)


@pytest.mark.parametrize("name", CASCADES)
def test_each_stage_enlarges_the_one_before(name):
    model = cascade.by_name(name)
    assert model.name == name
    names = [stage.name for stage in model.stages]
    sizes = [stage.resolution for stage in model.stages]
    assert names == ["base", "sr256", "sr1024"][: len(names)]
    assert sizes == [64, 256, 1024][: len(sizes)]
    assert [stage.low_resolution for stage in model.stages] == [None, *sizes[:-1]]
    assert [model.stage(name) for name in names] == list(model.stages)


@STAGES
def test_a_stages_network_fits_it(name, stage):
    model, text = stage.model, CASCADES[name].text
    assert model.in_channels == (3 if stage.low_resolution is None else 6)
    assert model.out_channels == (6 if stage.learned_variance else 3)
    assert model.level_input == (stage.low_resolution is not None)
    assert model.text_width == text.encoder.width
    # its normal level is a small variance; crops are cut on the low-res grid
    assert 0 < stage.normal_level < 0.1
    if stage.crop:
        assert stage.crop % stage.scale == 0
        assert stage.crop < stage.resolution
    if stage.learned_variance:
        assert isinstance(stage.schedule, TableSchedule)
    for size in (stage.train_size, stage.resolution):
        halvings = 0 if isinstance(model, EfficientUNetConfig) else -1
        assert size % (model.patch * 2 ** (len(model.widths) + halvings)) == 0


@pytest.mark.parametrize("name", CASCADES)
def test_text_fits_its_encoder(name):
    text = CASCADES[name].text
    first, last = text.rare
    assert 0 < first < last < text.encoder.vocab
    # group-normed text takes no mask: all positions are read, or none would be left out
    for stage in CASCADES[name].stages:
        if isinstance(stage.model, ResidualUNetConfig):
            continue  # reads no text
        masks = getattr(stage.model, "text_norm", "layer") != "group"
        assert text.masked == masks


@pytest.mark.parametrize("name", ["if_m", "if_l", "if_xl"])
def test_deepfloyd_is_as_published(name):
    model = CASCADES[name]
    assert (model.text.length, model.text.null) == (77, "empty")
    assert model.text.rare == (5000, 10000)
    base, large, _ = model.stages
    assert large.aligned
    assert large.level_map == "if_index"
    assert {base.prediction, large.prediction} == {"eps"}
    assert "non-commercial" in model.licence


def test_an_unknown_cascade_is_refused():
    with pytest.raises(InputError, match="'if_s' is not known.*toybox.*if_xl"):
        cascade.by_name("if_s")


@functools.cache
def parameters(name, part):
    """Shapes of a part's parameters; nothing is made."""
    init, _ = network(CASCADES[name], part, jnp.bfloat16)
    return jax.eval_shape(init, jax.random.key(0))


def count(name, part):
    return sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters(name, part))
    )


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("if_m", "base", 371_605_830),
        ("if_l", "base", 935_365_830),
        ("if_xl", "base", 4_304_695_110),
        ("if_m", "sr256", 461_064_198),
        ("if_l", "sr256", 461_064_198),
        ("if_xl", "sr256", 1_243_277_190),
        ("if_xl", "text", 4_762_310_656),
    ],
)
def test_parts_have_the_published_size(name, part, expected):
    assert count(name, part) == expected


@STAGES
def test_a_network_answers_at_its_stages_size(name, stage):
    text = CASCADES[name].text
    _, apply = network(CASCADES[name], stage.name, jnp.bfloat16)
    low, size, rows = stage.low_resolution, stage.train_size, 2

    def shape(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype)

    out = jax.eval_shape(
        apply,
        parameters(name, stage.name),
        shape(rows, size, size, 6 if low else 3),
        shape(rows),
        shape(rows, text.length, text.encoder.width),
        shape(rows, text.length, dtype=jnp.bool_),
        shape(rows) if low else None,
    )
    assert out.shape == (rows, size, size, 6 if stage.learned_variance else 3)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("name", ["toybox", "tiny"])
def test_the_embedded_parts_train_by_path(name):
    """The patterns that training names match, and nothing else is left to freeze."""
    params = {"unet": parameters(name, "base"), "text": parameters(name, "text")}
    optimizer = optimizers.build(OptimConfig(), 10)
    created = jax.eval_shape(
        lambda params: train_state.create(
            params, ("unet/.*", "text/.*"), optimizer, True
        ),
        params,
    )
    assert not jax.tree.leaves(created.frozen)
    leaves = jax.tree.leaves(created.ema)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count(name, "base") + count(
        name, "text"
    )


@pytest.mark.parametrize(
    ("left_out", "names"),
    [((), 3), (("sr1024",), 2), (("sr256", "sr1024"), 1)],
)
def test_upper_stages_can_be_left_out(left_out, names):
    sources = dict.fromkeys(("text", "base", "sr256", "sr1024"), "random")
    model = CASCADES["if_m"].without(sources | dict.fromkeys(left_out, "none"))
    assert len(model.stages) == names


@pytest.mark.parametrize(
    "left_out", [("text",), ("base",), ("sr256",), ("base", "sr256", "sr1024")]
)
def test_parts_that_others_need_cannot_be_left_out(left_out):
    sources = dict.fromkeys(("text", "base", "sr256", "sr1024"), "random")
    with pytest.raises(InputError, match="config.weights.*'none', but the stages"):
        CASCADES["if_m"].without(sources | dict.fromkeys(left_out, "none"))
