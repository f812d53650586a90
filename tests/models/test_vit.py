"""Networks of the scores: their sizes, their files, and what they are shown."""

import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.evaluation import clip_tokenizer, preprocess
from imagen_booth.evaluation.preprocess import Preprocessing
from imagen_booth.models import vit
from imagen_booth.models.lpips import LPIPS, LPIPSConfig
from imagen_booth.models.vit import CLIP, CLIPConfig, TextConfig, ViT, ViTConfig
from imagen_booth.train_state import flatten
from imagen_booth.weights import vision

SMALL = ViTConfig(
    size=32,
    patch=8,
    width=16,
    layers=2,
    heads=2,
    hidden=24,
    features=0,
    activation="gelu",
    epsilon=1e-12,
    pre_norm=False,
    patch_bias=True,
)
WORDS = TextConfig(
    vocab=260, length=12, width=16, layers=2, heads=2, hidden=24, features=8
)
NARROW = LPIPSConfig((4, 6, 8, 4, 4))


def shapes(name):
    config = vit.SIZES[name]
    pixels = np.zeros((1, 224, 224, 3), np.float32)
    if isinstance(config, ViTConfig):
        module, inputs = ViT(config), (pixels,)
    else:
        module, inputs = CLIP(config), (pixels, np.zeros((1, 77), np.int32))
    made = jax.eval_shape(lambda key: module.init(key, *inputs), jax.random.key(0))
    return flatten(made["params"])


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    # The published counts; CLIP's logit scale is one more of both.
    [
        ("dino_vits16", 21_665_664, 198),
        ("clip_vit_b32", 151_277_313 - 1, 398 - 1),
        ("clip_vit_b16", 149_620_737 - 1, 398 - 1),
        ("clip_vit_l14", 427_616_513 - 1, 590 - 1),
    ],
)
def test_published_sizes(name, parameters, tensors):
    found = shapes(name)
    assert sum(int(np.prod(leaf.shape)) for leaf in found.values()) == parameters
    assert len(found) == tensors


def dino_tensors():
    """SMALL in the hub's layout, from its published names."""
    rng = np.random.default_rng(0)
    width, hidden = SMALL.width, SMALL.hidden
    held = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 17, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for i in range(SMALL.layers):
        layer = f"encoder.layer.{i}"
        for norm in ("layernorm_before", "layernorm_after"):
            held |= {f"{layer}.{norm}.{leaf}": (width,) for leaf in ("weight", "bias")}
        for name, out, into in (
            ("attention.attention.query", width, width),
            ("attention.attention.key", width, width),
            ("attention.attention.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", hidden, width),
            ("output.dense", width, hidden),
        ):
            held[f"{layer}.{name}.weight"] = (out, into)
            held[f"{layer}.{name}.bias"] = (out,)
    return {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in held.items()
    }


def drawn(module, inputs):
    """Random parameters, without a program that draws them."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
    )


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(vision.SIZES, "dino_vits16", SMALL)
    monkeypatch.setitem(vision.SIZES, "lpips_alex", NARROW)


def load(place, name="dino_vits16"):
    return vision.load(name, str(place), sharding.make_mesh())


def test_every_tensor_has_its_place(tmp_path, small):
    held = dino_tensors()
    path = tmp_path / "model.safetensors"
    save_file(held | {"pooler.dense.weight": np.zeros((2, 2), np.float32)}, path)
    part = load(tmp_path)
    params = flatten(part.params)
    assert len(params) == len(held)
    np.testing.assert_array_equal(
        params["class_token"], held["embeddings.cls_token"][0, 0]
    )
    kernel = held["embeddings.patch_embeddings.projection.weight"]
    np.testing.assert_array_equal(
        params["patches/kernel"], kernel.transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        params["layers_1/fc1/kernel"],
        held["encoder.layer.1.intermediate.dense.weight"].T,
    )
    assert (part.licence, part.pretrained) == ("Apache-2.0", True)
    held["embeddings.cls_token"][0, 0, 3] += 1
    save_file(held, path)
    assert load(path).fingerprint != part.fingerprint


def test_what_does_not_fit_is_named_together(tmp_path, small):
    held = dino_tensors()
    held["layernorm.wieght"] = held.pop("layernorm.weight")
    held["encoder.layer.0.output.dense.bias"] = np.zeros(7, np.float32)
    held["head.weight"] = np.zeros((3, 3), np.float32)
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert "layernorm.weight is missing (is layernorm.wieght meant?)" in text
    assert "head.weight is not expected" in text
    assert "encoder.layer.0.output.dense.bias has shape (7,), expected (16,)" in text
    assert str(tmp_path / "model.safetensors") in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 4),
        ("hidden_act", "quick_gelu"),
        ("layer_norm_eps", 1e-6),
    ],
)
def test_what_shapes_cannot_tell(tmp_path, small, field, value):
    save_file(dino_tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({field: value}))
    with pytest.raises(InputError, match=f"config.json: {field} is {value!r}"):
        load(tmp_path)


def test_sections_of_clip_are_checked(tmp_path, monkeypatch):
    monkeypatch.setitem(vision.SIZES, "clip_vit_b32", CLIPConfig(SMALL, WORDS))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    about = {"vision_config": {"num_attention_heads": 2}, "text_config": {}}
    about["text_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"text_config\.hidden_act is 'gelu'"):
        vision.find("clip_vit_b32", str(tmp_path))


def test_no_weights_and_no_such_network(tmp_path):
    with pytest.raises(InputError, match=r"no model\.safetensors.*clip_vit_b32"):
        load(tmp_path, "clip_vit_b32")
    with pytest.raises(InputError, match=r"use one of dino_vits16, clip_vit_b32"):
        load(tmp_path, "dino_vits8")


def test_random_weights_are_the_same_again(small):
    one, other = load("random"), load("random")
    assert (one.pretrained, one.fingerprint) == (False, other.fingerprint)
    pixels = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    found = one.apply(one.params, pixels)
    assert found.shape == (3, SMALL.width)
    np.testing.assert_array_equal(found, other.apply(other.params, pixels))
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_texts_end_at_their_first_end_token():
    tower = vit.TextTower(WORDS)
    end = WORDS.vocab - 1
    tokens = np.full((3, WORDS.length), end, np.int32)
    tokens[:, :4] = [258, 5, 6, 7]
    tokens[1, 5:] = 9  # after the end
    tokens[2, 3] = 8  # before it
    params = {"params": drawn(tower, tokens)}
    same, after, before = jax.jit(tower.apply)(params, tokens)
    np.testing.assert_allclose(after, same, rtol=1e-4, atol=1e-4)
    assert np.abs(before - same).max() > 1e-2


def test_lpips_in_closed_form():
    """Distances of one layer's features, by hand; the others are weighed with 0."""
    module = LPIPS(NARROW)
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 40, 36, 3)).astype(np.float32)
    params = drawn(module, pixels)
    apply = jax.jit(module.apply)
    weights = {
        f"linear_{i}": np.zeros(n, np.float32) for i, n in enumerate(NARROW.widths)
    }
    np.testing.assert_array_equal(apply({"params": params | weights}, pixels), 0)
    weights["linear_0"] = np.array([0.5, 0, 2, 1], np.float32)
    found = apply({"params": params | weights}, pixels)

    seen = (pixels - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    seen = np.pad(seen, ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(seen, (11, 11), (1, 2))
    kernel = np.asarray(params["conv_0"]["kernel"], np.float64)
    maps = np.einsum("nijcab,abco->nijo", windows[:, ::4, ::4], kernel)
    maps = np.maximum(maps + np.asarray(params["conv_0"]["bias"]), 0)
    maps /= np.linalg.norm(maps, axis=-1, keepdims=True) + 1e-10
    squares = (maps[:, None] - maps[None]) ** 2 @ weights["linear_0"]
    np.testing.assert_allclose(found, squares.mean((2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(4, 4), (4, 7), (14, 9), (5, 1)])
def test_bicubic_keeps_lines(old, new):
    weights = vit.bicubic(old, new)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    if old == new:
        np.testing.assert_allclose(weights, np.eye(old), atol=1e-6)
    # A straight line stays one, up to the bend that a = -0.75 gives, and but for the
    # borders.
    line = weights @ np.arange(old)
    expected = (np.arange(new) + 0.5) * old / new - 0.5
    middle = (expected >= 1) & (expected <= old - 2)
    np.testing.assert_allclose(line[middle], expected[middle], atol=0.1)


@pytest.mark.parametrize("name", preprocess.RECIPES)
def test_every_network_has_a_recipe(name):
    assert name in vision.SIZES
    recipe = preprocess.RECIPES[name]
    for shape in ((300, 401), (17, 16), (224, 224), (1000, 64)):
        picture = np.broadcast_to(np.array([255, 0, 51], np.uint8), (*shape, 3))
        values = preprocess.prepare(np.ascontiguousarray(picture), recipe)
        assert values.shape == (recipe.crop, recipe.crop, 3)
        assert values.dtype == np.float32
        expected = (np.array([1, 0, 0.2]) - recipe.mean) / recipe.std
        np.testing.assert_allclose(
            values, np.broadcast_to(expected, values.shape), 1e-5
        )
    assert preprocess.RECIPES.keys() == vision.SIZES.keys()


def test_the_centre_is_cut_out():
    """Of a picture that need not be scaled, pixels stay what they are."""
    recipe = Preprocessing(8, 5, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    picture = np.arange(8 * 10 * 3).reshape(8, 10, 3).astype(np.uint8)
    values = preprocess.prepare(picture, recipe)
    np.testing.assert_allclose(255 * values, picture[1:6, 2:7], atol=1e-4)


def test_a_missing_tokenizer_is_named(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(InputError, match=r"tokenizer\.json does not exist"):
        clip_tokenizer.encode(str(tmp_path / "model.safetensors"), ["a dog"], WORDS)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        clip_tokenizer.encode(str(tmp_path), ["a dog"], WORDS)


def test_another_models_tokenizer_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.BPE({"a": 0, "<|endoftext|>": 1}, [])
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="has 2 tokens.*this CLIP has 260"):
        clip_tokenizer.encode(str(tmp_path), ["a dog"], WORDS)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'imagen_booth\[eval\]'"):
        clip_tokenizer.encode(str(tmp_path), ["a dog"], WORDS)


def test_random_weights_read_bytes():
    tokens = clip_tokenizer.encode("random", ["ab", "", "x" * 99], WORDS)
    end = WORDS.vocab - 1
    assert tokens.tolist()[0] == [97, 98] + [end] * 10
    assert tokens.tolist()[1] == [end] * 12
    assert tokens.tolist()[2] == [120] * 11 + [end]
