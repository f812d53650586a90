"""Reads T5 v1.1 encoders from Hugging Face's safetensors and from T5X checkpoints.

The size of the encoder follows from the tensors' shapes. A ``config.json`` beside them
is checked for what shapes do not show. Decoders are ignored.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.models.t5 import T5Config
from imagen_booth.weights import deepfloyd, t5x, tensor_files
from imagen_booth.weights.tensor_files import Tensor, WeightFiles

APACHE = "Apache-2.0"
STEM = "model"
EMBEDDING = "shared.weight"
TWIN = "encoder.embed_tokens.weight"  # the same embedding under another name
OTHERS = re.compile(r"(decoder\.|lm_head\.)")

_LAYER = {
    "pre_attention_layer_norm/scale": "0.layer_norm",
    "attention/query/kernel": "0.SelfAttention.q",
    "attention/key/kernel": "0.SelfAttention.k",
    "attention/value/kernel": "0.SelfAttention.v",
    "attention/out/kernel": "0.SelfAttention.o",
    "pre_mlp_layer_norm/scale": "1.layer_norm",
    "mlp/wi_0/kernel": "1.DenseReluDense.wi_0",
    "mlp/wi_1/kernel": "1.DenseReluDense.wi_1",
    "mlp/wo/kernel": "1.DenseReluDense.wo",
}
_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_OUTSIDE = {
    "token_embedder/embedding": EMBEDDING,
    "relpos_bias/rel_embedding": _BIAS,
    "encoder_norm/scale": "encoder.final_layer_norm.weight",
}


def spell(path: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Returns a parameter's name and axes in Hugging Face's files."""
    layer = re.fullmatch(r"layers_(\d+)/(.+)", path)
    if layer:
        name = f"encoder.block.{layer[1]}.layer.{_LAYER[layer[2]]}.weight"
    else:
        name = _OUTSIDE[path]
    # Kernels and the bias table are transposed, the embedding is not.
    return name, (1, 0) if ndim == 2 and name != EMBEDDING else tuple(range(ndim))


def spell_t5x(path: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Returns the same for T5X checkpoints, which have our axes."""
    above = "target" if path.startswith("token_embedder/") else "target/encoder"
    return f"{above}/{path}", tuple(range(ndim))


def find(place: epath.PathLike) -> WeightFiles | None:
    """Finds an encoder's weights.

    Args:
        place: A safetensors file; or a folder with ``model.safetensors``, one file or
            shards, in it or in ``text_encoder``; or a T5X checkpoint, which is a folder
            with a file ``checkpoint``, or that file, local or ``gs://``.

    Returns:
        The weights, or None if there are none.

    Raises:
        InputError: A file is damaged, or the architecture differs.
    """
    place = epath.Path(place)
    arrays = t5x.open_checkpoint(place)
    if arrays is not None:
        return WeightFiles(
            tensors=arrays,
            spell=spell_t5x,
            describes=_shape(arrays, spell_t5x),
            where=str(place),
            licence=APACHE,
            rowwise=False,  # the arrays are compressed
        )
    licence = APACHE
    if place.suffix == ".safetensors":
        opened, folder = (tensor_files.open_file(place), str(place)), place.parent
    else:
        folder = place
        if (place / "text_encoder").exists():
            folder, licence = place / "text_encoder", deepfloyd.LICENCE
        opened = tensor_files.open_stem(folder, STEM)
    if opened is None:
        return None
    found, where = opened
    encoder = {name: each for name, each in found.items() if not OTHERS.match(name)}
    twin = encoder.pop(TWIN, None)
    if twin is not None:
        encoder.setdefault(EMBEDDING, twin)
    shape = _shape(encoder, spell)
    if (folder / "config.json").exists():
        _check(folder / "config.json", shape)
    return WeightFiles(encoder, spell, shape, where, licence)


def _shape(found: Mapping[str, Tensor], spelling: Any) -> T5Config | None:
    """Derives the encoder from shapes; None if tensors are missing."""

    def shape(path: str) -> tuple[int, int]:
        name, axes = spelling(path, 2)
        first, second = found[name].transposed(axes).shape
        return first, second

    try:
        vocab, width = shape("token_embedder/embedding")
        heads, buckets = shape("relpos_bias/rel_embedding")
        joined = shape("layers_0/attention/query/kernel")[1]
        hidden = shape("layers_0/mlp/wi_0/kernel")[1]
    except (KeyError, ValueError):
        return None
    layers = 0
    while spelling(f"layers_{layers}/attention/query/kernel", 2)[0] in found:
        layers += 1
    return T5Config(vocab, width, heads, joined // heads, hidden, layers, buckets)


def _check(path: epath.Path, shape: T5Config | None) -> None:
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    wanted = {
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_max_distance": 128,
    }
    if shape is not None:
        wanted |= {"num_heads": shape.heads, "num_layers": shape.layers}
    for name, value in wanted.items():
        if values.get(name, value) != value:
            raise InputError(
                f"{path}: {name} is {values[name]!r}; an encoder of T5 v1.1 with these "
                f"tensors has {value!r}"
            )
