"""The networks of the scores against transformers and lpips, from picture to number."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from imagen_booth.distributed import sharding
from imagen_booth.evaluation import clip_tokenizer, features, preprocess
from imagen_booth.evaluation.preprocess import Preprocessing
from imagen_booth.models.lpips import LPIPSConfig
from imagen_booth.models.vit import SIZES, CLIPConfig, TextConfig, ViT, ViTConfig
from imagen_booth.weights import vision

pytestmark = [
    pytest.mark.parity,
    # The reference packages warn of their own and each other's deprecations.
    pytest.mark.filterwarnings("ignore"),
]

SIDES = ((37, 53), (61, 40), (300, 257), (48, 48), (33, 100))
VISION = ViTConfig(
    size=32,
    patch=8,
    width=24,
    layers=3,
    heads=3,
    hidden=40,
    features=0,
    activation="gelu",
    epsilon=1e-12,
    pre_norm=False,
    patch_bias=True,
)
SMALL_CLIP = CLIPConfig(
    dataclasses.replace(
        VISION,
        features=20,
        activation="quick_gelu",
        epsilon=1e-5,
        pre_norm=True,
        patch_bias=False,
    ),
    TextConfig(
        vocab=300, length=16, width=32, layers=3, heads=2, hidden=56, features=20
    ),
)


@pytest.fixture
def pictures():
    """Pictures of odd sizes: noise over slow waves, so that filters matter."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in SIDES:
        wave = np.sin(np.arange(height)[:, None] / 9 + np.arange(width)[None] / 5)
        values = 127 + 70 * wave[..., None] + rng.normal(0, 30, (height, width, 3))
        found.append(values.clip(0, 255).astype(np.uint8))
    return found


def shaken(model, torch):
    """Random values everywhere: fresh biases are zero, and norms one."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def small_recipe(monkeypatch, name, resize, crop, mean, std):
    recipe = Preprocessing(resize, crop, mean, std)
    monkeypatch.setitem(preprocess.RECIPES, name, recipe)


def relative_error(ours, expected):
    return np.abs(ours - expected).max() / np.abs(expected).max()


def reference_dino(config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.hidden,
            image_size=config.size,
            patch_size=config.patch,
            layer_norm_eps=config.epsilon,
        ),
        add_pooling_layer=False,
    )
    return shaken(model, torch)


def reference_clip(config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    eyes, words = config.vision, config.text

    def tower(own):
        return {
            "hidden_size": own.width,
            "num_hidden_layers": own.layers,
            "num_attention_heads": own.heads,
            "intermediate_size": own.hidden,
        }

    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=tower(eyes)
            | {"image_size": eyes.size, "patch_size": eyes.patch},
            text_config=tower(words)
            | {
                "vocab_size": words.vocab,
                "max_position_embeddings": words.length,
                "bos_token_id": words.vocab - 2,
                "eos_token_id": words.vocab - 1,
            },
            projection_dim=eyes.features,
        )
    )
    return shaken(model, torch)


def torchvision_pixels(pictures, recipe):
    """As DINO's evaluation prepares pictures, but for the crop's rounding."""
    transforms = pytest.importorskip("torchvision.transforms")
    resize = transforms.Resize(
        recipe.resize, interpolation=transforms.InterpolationMode.BICUBIC
    )
    after = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(recipe.mean, recipe.std)]
    )
    pixels = []
    for picture in pictures:
        image = resize(Image.fromarray(picture))
        left, top = ((side - recipe.crop) // 2 for side in image.size)
        box = (left, top, left + recipe.crop, top + recipe.crop)
        pixels.append(after(image.crop(box)))
    return pytest.importorskip("torch").stack(pixels)


def clip_processor(transformers, **settings):
    name = "CLIPImageProcessorPil"
    if not hasattr(transformers, name):
        pytest.skip(f"transformers has no {name}")
    return getattr(transformers, name)(**settings)


@pytest.mark.parametrize("size", ["small", "full"])
def test_dino_from_pictures(tmp_path, monkeypatch, pictures, size):
    torch = pytest.importorskip("torch")
    name = "dino_vits16"
    if size == "small":
        monkeypatch.setitem(vision.SIZES, name, VISION)
        full = preprocess.RECIPES[name]
        small_recipe(monkeypatch, name, 37, 32, full.mean, full.std)
    config = vision.SIZES[name]
    assert isinstance(config, ViTConfig)
    model = reference_dino(config)
    model.save_pretrained(tmp_path / "weights")
    with torch.no_grad():
        pixels = torchvision_pixels(pictures, preprocess.RECIPES[name])
        expected = model(pixels).last_hidden_state[:, 0].numpy()
    mesh = sharding.make_mesh()
    network = vision.load(name, str(tmp_path / "weights"), mesh)
    ours = features.of_images(network, pictures, cache=tmp_path, mesh=mesh)
    error = relative_error(ours, expected)
    print(f"DINO {size}, from pictures: relative error {error:.1e}")
    assert error <= 1e-4


@pytest.mark.parametrize("shape", [(48, 24), (40, 72), (8, 8), (37, 45)])
def test_other_sizes_resample_the_positions(tmp_path, monkeypatch, shape):
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(vision.SIZES, "dino_vits16", VISION)
    model = reference_dino(VISION)
    model.save_pretrained(tmp_path)
    params = vision.load("dino_vits16", str(tmp_path), sharding.make_mesh()).params
    pixels = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(
            torch.tensor(pixels.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True
        )
    ours = ViT(VISION).apply({"params": params}, pixels)
    error = relative_error(ours, expected.last_hidden_state[:, 0].numpy())
    print(f"positions resampled to {shape}: relative error {error:.1e}")
    assert error <= 1e-4


@pytest.mark.parametrize(
    "size", ["small", pytest.param("full", marks=pytest.mark.slow)]
)
def test_clip_sees_pictures(tmp_path, monkeypatch, pictures, size):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name = "clip_vit_b32"
    processor = clip_processor(transformers)
    if size == "small":
        monkeypatch.setitem(vision.SIZES, name, SMALL_CLIP)
        full = preprocess.RECIPES[name]
        small_recipe(monkeypatch, name, 32, 32, full.mean, full.std)
        processor = clip_processor(
            transformers,
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
        )
    config = vision.SIZES[name]
    assert isinstance(config, CLIPConfig)
    model = reference_clip(config)
    model.save_pretrained(tmp_path / "weights")
    images = [Image.fromarray(picture) for picture in pictures]
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        seen = model.vision_model(pixels).pooler_output
        expected = model.visual_projection(seen).numpy()
    mesh = sharding.make_mesh()
    network = vision.load(name, str(tmp_path / "weights"), mesh)
    ours = features.of_images(network, pictures, cache=tmp_path, mesh=mesh)
    error = relative_error(ours, expected)
    print(f"CLIP {size}, from pictures: relative error {error:.1e}")
    assert error <= 1e-4


def small_tokenizer(transformers, vocab):
    """CLIP's kind of tokenizer over bytes, with a few merges."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("d", "o"), ("do", "g</w>"), ("o", "n</w>"), ("t", "h"), ("th", "e</w>")]
    pieces = [*letters, *(f"{c}</w>" for c in "abcdegnorst"), *map("".join, merges)]
    pieces += [f"unused{i}" for i in range(vocab - 2 - len(pieces))]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=ids, merges=merges)


PROMPTS = [
    "a dog on the beach",
    "  A  DOG\non\tTHE\u00a0beach!!! ",
    "dog's 12:30 & \u00e9t\u00e9 \U0001f436",
    "",
    "the dog on the dog on the dog on the dog on the dog on the dog on the dog",
]


def test_clip_reads_prompts(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    name, config = "clip_vit_b32", SMALL_CLIP
    monkeypatch.setitem(vision.SIZES, name, config)
    model = reference_clip(config)
    folder = tmp_path / "weights"
    model.save_pretrained(folder)
    tokenizer = small_tokenizer(transformers, config.text.vocab)
    tokenizer.save_pretrained(folder)
    read = tokenizer(
        PROMPTS,
        padding="max_length",
        max_length=config.text.length,
        truncation=True,
        return_tensors="pt",
    )
    ours = clip_tokenizer.encode(str(folder), PROMPTS, config.text)
    np.testing.assert_array_equal(ours, read["input_ids"].numpy())
    with torch.no_grad():
        seen = model.text_model(
            read["input_ids"], attention_mask=read["attention_mask"]
        )
        expected = model.text_projection(seen.pooler_output).numpy()
    mesh = sharding.make_mesh()
    tower = vision.text_tower(vision.load(name, str(folder), mesh))
    ours = features.of_prompts(tower, PROMPTS, cache=tmp_path, mesh=mesh)
    error = relative_error(ours, expected)
    print(f"CLIP small, from prompts: relative error {error:.1e}")
    assert error <= 1e-4


@pytest.mark.slow
def test_clip_text_of_full_size(tmp_path):
    torch = pytest.importorskip("torch")
    config = SIZES["clip_vit_b32"]
    assert isinstance(config, CLIPConfig)
    model = reference_clip(config)
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, config.text.vocab - 2, (3, 77))
    for row, length in enumerate((77, 12, 2)):
        tokens[row, length - 1 :] = config.text.vocab - 1
    with torch.no_grad():
        seen = model.text_model(torch.tensor(tokens)).pooler_output
        expected = model.text_projection(seen).numpy()
    network = vision.load("clip_vit_b32", str(tmp_path), sharding.make_mesh())
    tower = vision.text_tower(network)
    ours = tower.apply(tower.params, tokens.astype(np.int32))
    error = relative_error(ours, expected)
    print(f"CLIP text, full size: relative error {error:.1e}")
    assert error <= 1e-4


@pytest.mark.parametrize("linear", ["random", "published"])
def test_lpips(tmp_path, pictures, linear):
    torch = pytest.importorskip("torch")
    lpips = pytest.importorskip("lpips")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    # The backbone is random in both; its published weights come over the network.
    model = lpips.LPIPS(
        pretrained=linear == "published", net="alex", pnet_rand=True, verbose=False
    )
    held = {}
    for name, value in model.net.state_dict().items():
        held[f"features.{name.split('.', 1)[1]}"] = value
    for i in range(5):
        layer = model.get_submodule(f"lin{i}").model[1]
        layer.weight.data.abs_()  # the published ones are not negative
        held[f"lin{i}.model.1.weight"] = layer.weight.data
    held["classifier.6.weight"] = torch.zeros(3, 4)  # as torchvision's file has
    path = tmp_path / "lpips_alex.safetensors"
    save_file(held, path)

    network = vision.load("lpips_alex", str(path), sharding.make_mesh())
    assert vision.SIZES["lpips_alex"] == LPIPSConfig()
    ours = features.distances(network, pictures, cache=tmp_path)
    recipe = preprocess.RECIPES["lpips_alex"]
    pixels = torchvision_pixels(pictures, recipe)
    one, other = np.triu_indices(len(pictures), 1)
    with torch.no_grad():
        expected = model(pixels[one], pixels[other]).numpy().ravel()
    error = relative_error(ours[one, other], expected)
    print(f"LPIPS, {linear} linear weights: relative error {error:.1e}")
    assert error <= 1e-4
    assert expected.min() > 0
    np.testing.assert_allclose(ours, ours.T, atol=1e-6)
    np.testing.assert_array_equal(ours.diagonal(), 0)
