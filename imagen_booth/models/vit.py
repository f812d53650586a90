"""Vision transformers of the scores: DINO, and CLIP's image and text towers.

All share one stack of layers: norm, attention, norm, MLP, each pair inside a residual
connection. The configurations of DINO and CLIP differ: CLIP has a norm before the
stack, no bias on its patches, the quick GELU, and a projection of its features to the
space that images and texts share. The feature of a picture is that of the class token,
the feature of a text that of its end token.

Everything is float32.

Source: Dosovitskiy et al., arXiv 2010.11929; DINO, arXiv 2104.14294; CLIP,
arXiv 2103.00020.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imagen_booth.models.layers import ACTIVATIONS

_ACTIVATIONS = ACTIVATIONS | {"quick_gelu": lambda x: x * nn.sigmoid(1.702 * x)}
_SMALL = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape of an image encoder.

    Args:
        size: Side of the square pictures of its training, in pixels.
        patch: Side of a patch, in pixels.
        width, layers, heads: Shape of the stack.
        hidden: Width inside the MLP.
        features: Width that the class token is projected to, 0 for no projection.
        activation: `gelu` (exact) or `quick_gelu`.
        epsilon: Epsilon of the norms.
        pre_norm: Whether a norm comes before the stack.
        patch_bias: Whether the patch projection has a bias.
    """

    size: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    features: int
    activation: str
    epsilon: float
    pre_norm: bool
    patch_bias: bool


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Shape of CLIP's text encoder.

    Args:
        vocab: Number of token ids; the end token is the largest.
        length: Tokens at most.
        width, layers, heads, hidden, features, activation, epsilon: As in `ViTConfig`.
    """

    vocab: int
    length: int
    width: int
    layers: int
    heads: int
    hidden: int
    features: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """An image and a text encoder with one space of features."""

    vision: ViTConfig
    text: TextConfig


def _clip(patch: int, width: int, layers: int, words: int, features: int) -> CLIPConfig:
    """The published sizes: heads of width 64, hidden layers of four times the width."""
    rest = {"activation": "quick_gelu", "epsilon": 1e-5}
    return CLIPConfig(
        ViTConfig(
            size=224,
            patch=patch,
            width=width,
            layers=layers,
            heads=width // 64,
            hidden=4 * width,
            features=features,
            pre_norm=True,
            patch_bias=False,
            **rest,
        ),
        TextConfig(49408, 77, words, 12, words // 64, 4 * words, features, **rest),
    )


# DINO's norms have the epsilon of the hub's configuration; its first code had 1e-6.
SIZES: dict[str, ViTConfig | CLIPConfig] = {
    "dino_vits16": ViTConfig(
        size=224,
        patch=16,
        width=384,
        layers=12,
        heads=6,
        hidden=1536,
        features=0,
        activation="gelu",
        epsilon=1e-12,
        pre_norm=False,
        patch_bias=True,
    ),
    "clip_vit_b32": _clip(32, 768, 12, 512, 512),
    "clip_vit_b16": _clip(16, 768, 12, 512, 512),
    "clip_vit_l14": _clip(14, 1024, 24, 768, 768),
}


def bicubic(old: int, new: int) -> np.ndarray:
    """Weights that resample `old` points to `new` by cubic convolution, a = -0.75.

    Both grids span the same length, and points outside repeat the outermost one. The
    position embeddings of these networks are resampled so, without antialiasing.

    Returns:
        f32 [new, old], rows sum to 1.
    """
    a = -0.75
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int)
    weights = np.zeros((new, old))
    for point in range(-1, 3):
        d = np.abs(centres - first - point)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        source = np.clip(first + point, 0, old - 1)
        np.add.at(weights, (np.arange(new), source), np.where(d <= 1, near, far))
    return weights.astype(np.float32)


def _norm(config: ViTConfig | TextConfig, name: str) -> nn.LayerNorm:
    # In two passes: with an epsilon of 1e-12 the fast variance can turn negative.
    return nn.LayerNorm(config.epsilon, use_fast_variance=False, name=name)


class Layer(nn.Module):
    """Attention and MLP, each after a norm and inside a residual connection."""

    config: ViTConfig | TextConfig
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        config = self.config
        split = (*x.shape[:-1], config.heads, config.width // config.heads)
        h = _norm(config, "norm1")(x)
        q, k, v = (
            nn.Dense(config.width, name=name)(h).reshape(split)
            for name in ("query", "key", "value")
        )
        h = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + nn.Dense(config.width, name="out")(h.reshape(x.shape))
        h = _norm(config, "norm2")(x)
        h = _ACTIVATIONS[config.activation](nn.Dense(config.hidden, name="fc1")(h))
        return x + nn.Dense(config.width, name="fc2")(h)


class ViT(nn.Module):
    """Pictures to features."""

    config: ViTConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B F"]:
        """Encodes pictures of at least one patch, normalised as in training.

        Position embeddings are resampled if the grid of patches differs from that of
        training. Pixels beyond the last whole patch are ignored.

        Returns:
            [B, features], or [B, width] without a projection.
        """
        config = self.config
        x = nn.Conv(
            config.width,
            (config.patch, config.patch),
            strides=(config.patch, config.patch),
            padding="VALID",
            use_bias=config.patch_bias,
            name="patches",
        )(pixels)
        batch, rows, columns, width = x.shape
        side = config.size // config.patch
        token = self.param("class_token", _SMALL, (width,))
        position = self.param("position", _SMALL, (side * side + 1, width))
        grid = position[1:]
        if (rows, columns) != (side, side):
            grid = jnp.einsum(
                "ri,cj,ijd->rcd",
                bicubic(side, rows),
                bicubic(side, columns),
                grid.reshape(side, side, width),
            ).reshape(rows * columns, width)
        x = x.reshape(batch, rows * columns, width) + grid[None]
        token = jnp.broadcast_to(token + position[0], (batch, 1, width))
        x = jnp.concatenate([token, x], axis=1)
        if config.pre_norm:
            x = _norm(config, "pre_norm")(x)
        for i in range(config.layers):
            x = Layer(config, causal=False, name=f"layers_{i}")(x)
        x = _norm(config, "norm")(x[:, 0])
        if config.features:
            x = nn.Dense(config.features, use_bias=False, name="projection")(x)
        return x


class TextTower(nn.Module):
    """Tokens to features, with causal attention."""

    config: TextConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B F"]:
        """Encodes token ids; what follows a row's first end token has no effect."""
        config = self.config
        embedding = nn.Embed(
            config.vocab, config.width, embedding_init=_SMALL, name="token_embedding"
        )
        position = self.param("position", _SMALL, (config.length, config.width))
        x = embedding(tokens) + position[None, : tokens.shape[1]]
        for i in range(config.layers):
            x = Layer(config, causal=True, name=f"layers_{i}")(x)
        end = jnp.argmax(tokens, axis=1)  # the first of the largest id
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        x = _norm(config, "norm")(x)
        return nn.Dense(config.features, use_bias=False, name="projection")(x)


class CLIP(nn.Module):
    """Both towers; the methods `image` and `text` run one alone."""

    config: CLIPConfig

    def setup(self):
        self.vision_model = ViT(self.config.vision)
        self.text_model = TextTower(self.config.text)

    def image(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B F"]:
        """Features of pictures."""
        return self.vision_model(pixels)

    def text(self, tokens: Int[Array, "B L"]) -> Float[Array, "B F"]:
        """Features of texts."""
        return self.text_model(tokens)

    def __call__(
        self, pixels: Float[Array, "B H W 3"], tokens: Int[Array, "C L"]
    ) -> tuple[Float[Array, "B F"], Float[Array, "C F"]]:
        """Features of pictures and of texts."""
        return self.image(pixels), self.text(tokens)
