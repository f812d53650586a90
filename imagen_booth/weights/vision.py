"""Loads the networks that compute scores from the files of the Hugging Face hub.

``dino_vits16`` reads ``facebook/dino-vits16`` (transformers' ViTModel) and
``clip_vit_*`` reads ``openai/clip-vit-*`` (CLIPModel): a folder with
``model.safetensors``, whole or in shards, or such a file. A ``config.json`` beside it
is checked for what shapes do not show.

``lpips_alex`` is not published as safetensors. Its file holds, under their own names,
the tensors of torchvision's AlexNet (``features.N.weight``, ``features.N.bias``) and
those of the lpips package's ``weights/v0.1/alex.pth`` (``linN.model.1.weight``). With
torch installed, two calls write it::

    files = [torch.load(path, weights_only=True) for path in (ALEXNET, ALEX)]
    safetensors.torch.save_file(files[0] | files[1], "lpips_alex.safetensors")
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.models import vit
from imagen_booth.models.lpips import LPIPS, LPIPSConfig
from imagen_booth.models.vit import CLIP, CLIPConfig, TextConfig, ViT, ViTConfig
from imagen_booth.train_state import Params, flatten
from imagen_booth.weights import tensor_files
from imagen_booth.weights.load import Part
from imagen_booth.weights.tensor_files import Index, Tensor, WeightFiles

Config = ViTConfig | CLIPConfig | LPIPSConfig

SIZES: dict[str, Config] = vit.SIZES | {"lpips_alex": LPIPSConfig()}
STEM = "model"


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Names of a network's tensors in files.

    Attributes:
        names: Names in the file by path of a module, or of a parameter outside modules;
            ``*`` stands for the number of a layer.
        wrapped: Pattern of tensors with additional axes of length 1.
        unread: Pattern of tensors that scores do not use.
        licence: Licence of the weights.
    """

    names: Mapping[str, str]
    wrapped: str
    unread: str
    licence: str

    def spell(self, path: str, ndim: int) -> tuple[str, tuple[int, ...]]:
        """Returns the name and the axes in the file of one of our parameters."""
        layer = re.search(r"layers_(\d+)/", path)
        key = re.sub(r"layers_\d+/", "layers_*/", path)
        module, _, leaf = key.rpartition("/")
        if key in self.names:
            name = self.names[key]
        else:
            name = f"{self.names[module]}.{'bias' if leaf == 'bias' else 'weight'}"
        if layer:
            name = name.replace("*", layer[1])
        axes = tuple(range(ndim))
        if leaf == "kernel":
            axes = {2: (1, 0), 4: (2, 3, 1, 0)}[ndim]
        return name, axes


_DINO_LAYER = {
    "norm1": "layernorm_before",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "norm2": "layernorm_after",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
_CLIP_LAYER = {
    "norm1": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_LAYOUTS = {
    ViTConfig: _Layout(
        {
            "class_token": "embeddings.cls_token",
            "position": "embeddings.position_embeddings",
            "patches": "embeddings.patch_embeddings.projection",
            "norm": "layernorm",
        }
        | {f"layers_*/{a}": f"encoder.layer.*.{b}" for a, b in _DINO_LAYER.items()},
        wrapped=r"embeddings\.(cls_token|position_embeddings)",
        unread=r"pooler\..*",
        licence="Apache-2.0",
    ),
    CLIPConfig: _Layout(
        {
            "vision_model/class_token": "vision_model.embeddings.class_embedding",
            "vision_model/patches": "vision_model.embeddings.patch_embedding",
            "vision_model/pre_norm": "vision_model.pre_layrnorm",  # as they spell it
            "vision_model/norm": "vision_model.post_layernorm",
            "vision_model/projection": "visual_projection",
            "text_model/token_embedding": "text_model.embeddings.token_embedding",
            "text_model/norm": "text_model.final_layer_norm",
            "text_model/projection": "text_projection",
        }
        | {
            f"{tower}/position": f"{tower}.embeddings.position_embedding.weight"
            for tower in ("vision_model", "text_model")
        }
        | {
            f"{tower}/layers_*/{a}": f"{tower}.encoder.layers.*.{b}"
            for tower in ("vision_model", "text_model")
            for a, b in _CLIP_LAYER.items()
        },
        wrapped="",
        unread=r"logit_scale|.*\.position_ids",
        licence="MIT",
    ),
    LPIPSConfig: _Layout(
        {f"conv_{i}": f"features.{n}" for i, n in enumerate((0, 3, 6, 8, 10))}
        | {f"linear_{i}": f"lin{i}.model.1.weight" for i in range(5)},
        wrapped=r"lin\d\.model\.1\.weight",
        unread=r"classifier\..*",
        licence="BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision)",
    ),
}


def load(name: str, place: str, mesh: jax.sharding.Mesh) -> Part:
    """Loads a network of ``SIZES``, in f32 on the mesh.

    Its ``apply(params, pixels)`` is compiled once. For images [B, H, W, 3] it returns
    features [B, F] (DINO, CLIP) or distances [B, B] (LPIPS).

    Args:
        name: Name in ``SIZES``.
        place: Folder or file of the weights, see above, or ``random``.
        mesh: Devices to place the parameters on.

    Raises:
        InputError: The name is unknown, or the weights are missing, damaged or of
            another network.
    """
    if name not in SIZES:
        raise InputError(
            f"{name!r} is not a network for scores; use one of {', '.join(SIZES)}"
        )
    config = SIZES[name]
    found = None if place == "random" else find(name, place)
    shapes = _shapes(config)
    apply = _compiled(config, "image" if isinstance(config, CLIPConfig) else "__call__")
    if found is None:
        fingerprint = hashlib.sha256(f"random {name} {config}".encode()).hexdigest()
        weights = _random(shapes)
    else:
        fingerprint, weights = found.fingerprint(), found.matched(shapes)
    return Part(
        apply=apply,
        params=tensor_files.place(weights, mesh),
        name=name,
        source=place,
        fingerprint=fingerprint,
        licence="none" if found is None else found.licence,
        pretrained=found is not None,
    )


def text_tower(clip: Part) -> Part:
    """Returns the same CLIP with ``apply(params, tokens)``: ids [B, L] to features."""
    config = SIZES[clip.name]
    assert isinstance(config, CLIPConfig), f"{clip.name} reads no text"
    return dataclasses.replace(clip, apply=_compiled(config, "text"))


def find(name: str, place: str) -> WeightFiles:
    """Finds the weights of a network of ``SIZES`` and reads their headers.

    Raises:
        InputError: The weights are missing or damaged, or a ``config.json`` describes
            another network.
    """
    config, path = SIZES[name], epath.Path(place)
    layout = _LAYOUTS[type(config)]
    if path.suffix == ".safetensors":
        opened, folder = (tensor_files.open_file(path), str(path)), path.parent
    else:
        opened, folder = tensor_files.open_stem(path, STEM), path
    if opened is None:
        raise InputError(
            f"{place} has no {STEM}.safetensors, which should hold {name}; pickled "
            "weights (.bin, .pth) are not read"
        )
    if (folder / "config.json").exists() and not isinstance(config, LPIPSConfig):
        _check(folder / "config.json", config)
    held, where = opened
    held = {
        key: _unwrapped(each) if re.fullmatch(layout.wrapped, key) else each
        for key, each in held.items()
        if not re.fullmatch(layout.unread, key)
    }
    return WeightFiles(held, layout.spell, None, where, layout.licence)


def _module(config: Config) -> ViT | CLIP | LPIPS:
    if isinstance(config, ViTConfig):
        return ViT(config)
    return CLIP(config) if isinstance(config, CLIPConfig) else LPIPS(config)


def _shapes(config: Config) -> Params:
    vision = config.vision if isinstance(config, CLIPConfig) else config
    side = vision.size if isinstance(vision, ViTConfig) else 64
    inputs = [jnp.zeros((1, side, side, 3), jnp.float32)]
    if isinstance(config, CLIPConfig):
        inputs.append(jnp.zeros((1, config.text.length), jnp.int32))
    return jax.eval_shape(_module(config).init, jax.random.key(0), *inputs)["params"]


def _random(shapes: Params) -> dict[str, Tensor]:
    """Makes reproducible random weights without compiling a program."""
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith(("scale", "bias")):
            return np.full(shape, path.endswith("scale"), np.float32)
        values = rng.standard_normal(shape, np.float32)
        values *= math.prod(shape[:-1]) ** -0.5
        return np.abs(values) if path.startswith("linear_") else values

    return {
        path: tensor_files.held(draw(path, leaf.shape))
        for path, leaf in flatten(shapes).items()
    }


def _compiled(config: Config, method: str) -> Callable[..., jax.Array]:
    module = _module(config)

    @jax.jit
    def apply(params: Any, inputs: jax.Array) -> Any:
        # Full precision, because scores are compared with published ones.
        with jax.default_matmul_precision("highest"):
            return module.apply({"params": params}, inputs, method=method)

    return apply


def _unwrapped(tensor: Tensor) -> Tensor:
    """Removes the axes of length 1."""
    kept = [axis for axis, size in enumerate(tensor.shape) if size != 1]
    shape = tuple(tensor.shape[axis] for axis in kept)

    def read(index: Index) -> Any:
        whole = [slice(None)] * len(tensor.shape)
        for axis, part in zip(kept, index, strict=True):
            whole[axis] = part
        array = tensor.read(tuple(whole))
        return array.reshape([array.shape[axis] for axis in kept])

    return Tensor(shape, tensor.dtype, read)


def _check(path: epath.Path, config: ViTConfig | CLIPConfig) -> None:
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    towers: Sequence[tuple[str, ViTConfig | TextConfig]]
    if isinstance(config, CLIPConfig):
        towers = [("vision_config", config.vision), ("text_config", config.text)]
    else:
        towers, values = [("", config)], {"": values}
    for name, tower in towers:
        section = values.get(name) or {}
        wanted = {
            "num_attention_heads": tower.heads,
            "hidden_act": tower.activation,
            "layer_norm_eps": tower.epsilon,
        }
        for field, value in wanted.items():
            given = section.get(field, value)
            if given != value:
                where = f"{name}.{field}" if name else field
                raise InputError(
                    f"{path}: {where} is {given!r}; this network has {value!r}"
                )
