"""The encoder of T5 v1.1: text tokens to a sequence of embeddings.

Against the usual transformer: gated GELU in the MLP, root-mean-square norm
without mean or bias, no position embedding but a learned bias on the attention
logits (one table for all layers), and logits that are not divided by
sqrt(head width), which the initial scale of the query kernel makes up for.

Parameters are named as T5X names them, less its leading `encoder/`, and kernels
are (in, out) as there; PyTorch's are the transposes, the bias table included.
Dropout is left out: v1.1 was pretrained without.

Source: Raffel et al., arXiv 1910.10683; Shazeer, arXiv 2002.05202 (gated MLP).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from imagen_booth.models.hint import hint


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape of a T5 encoder.

    Args:
        vocab: Rows of the embedding, at least the size of the tokenizer's vocabulary.
        width: D, the width of tokens between layers.
        heads, head_width: N and K; N*K need not equal D.
        hidden: Width inside the gated MLP.
        layers: Number of layers.
        buckets: Rows of the relative position bias, half of them per direction.
        max_distance: Distance in tokens from which all share the last bucket.
    """

    vocab: int
    width: int
    heads: int
    head_width: int
    hidden: int
    layers: int
    buckets: int = 32
    max_distance: int = 128


def _v1_1(width: int, heads: int, hidden: int, layers: int) -> T5Config:
    """The published sizes: 32000 pieces and 100 sentinels, padded to 32128."""
    return T5Config(32128, width, heads, 64, hidden, layers)


# 'small' to 'xxl' as in T5X's t5_1_1 configurations; 'toybox' and 'tiny' are ours,
# for the embedded vocabulary of text/.
T5_SIZES = {
    "tiny": T5Config(2048, 32, 2, 16, 64, 2),
    "toybox": T5Config(2048, 128, 4, 32, 384, 4),
    "small": _v1_1(512, 6, 1024, 8),
    "base": _v1_1(768, 12, 2048, 12),
    "large": _v1_1(1024, 16, 2816, 24),
    "xl": _v1_1(2048, 32, 5120, 24),
    "xxl": _v1_1(4096, 64, 10240, 24),
}


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of the distance from each query to each key.

    Half of the buckets are for keys after the query. Of each half, the first half
    holds one distance each; the others widen logarithmically up to `max_distance`.

    Returns:
        int [length, length], rows are queries.
    """
    half = buckets // 2
    exact = half // 2
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    distance = np.abs(offset)
    far = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    far = np.minimum(exact + (far * (half - exact)).astype(int), half - 1)
    return np.where(distance < exact, distance, far) + half * (offset > 0)


def _dense(features: int, name: str, dtype: DTypeLike, scale: float = 1.0) -> nn.Dense:
    init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in f32, returned as `dtype`."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(mean_square + 1e-6)
        return (x * jnp.expand_dims(scale, range(x.ndim - 1))).astype(self.dtype)


class RelativeBias(nn.Module):
    """The learned bias [1, N, L, L] f32 that every layer adds to its logits."""

    config: T5Config

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 N L L"]:
        config = self.config
        init = nn.initializers.normal(config.width**-0.5)
        shape = (config.heads, config.buckets)
        table = self.param("rel_embedding", init, shape, jnp.float32)
        buckets = relative_buckets(length, config.buckets, config.max_distance)
        return table[:, buckets][None]


class Attention(nn.Module):
    """Self-attention whose logits are q.k + bias, unscaled; softmax in f32."""

    config: T5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], bias: Float[Array, "b N L L"]
    ) -> Float[Array, "B L D"]:
        heads, head_width = self.config.heads, self.config.head_width
        split = (*x.shape[:-1], heads, head_width)
        joined = heads * head_width
        q = _dense(joined, "query", self.dtype, 1 / head_width)(x).reshape(split)
        k = _dense(joined, "key", self.dtype)(x).reshape(split)
        v = _dense(joined, "value", self.dtype)(x).reshape(split)
        f32 = jnp.float32
        logits = jnp.einsum("bqnk,bsnk->bnqs", q, k, preferred_element_type=f32)
        weights = nn.softmax(logits + jnp.broadcast_to(bias, logits.shape), axis=-1)
        y = jnp.einsum("bnqs,bsnk->bqnk", weights.astype(self.dtype), v)
        return _dense(x.shape[-1], "out", self.dtype)(y.reshape(*x.shape[:-1], joined))


class GatedMLP(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x), with the tanh form of GELU."""

    hidden: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        gate = nn.gelu(_dense(self.hidden, "wi_0", self.dtype)(x), approximate=True)
        y = gate * _dense(self.hidden, "wi_1", self.dtype)(x)
        return _dense(x.shape[-1], "wo", self.dtype)(y)


class Layer(nn.Module):
    """Attention and MLP, each after a norm and inside a residual connection."""

    config: T5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], bias: Float[Array, "b N L L"]
    ) -> Float[Array, "B L D"]:
        y = RMSNorm(self.dtype, name="pre_attention_layer_norm")(x)
        x = x + Attention(self.config, self.dtype, name="attention")(y, bias)
        y = RMSNorm(self.dtype, name="pre_mlp_layer_norm")(x)
        x = x + GatedMLP(self.config.hidden, self.dtype, name="mlp")(y)
        return hint(x)


class T5Encoder(nn.Module):
    """Tokens to text embeddings.

    The mask hides keys only: rows of padding attend to the real tokens too. T5X
    hides both ways, which changes the padding rows, and IF's U-Nets read those.

    Args:
        config: The shape.
        dtype: Dtype of the activations. Norms, softmax and the result are f32. f16
            overflows in the residual of the large sizes; use bfloat16.
    """

    config: T5Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        """Encodes token ids [B, L]; mask [B, L] is True at real tokens, default id > 0.

        Returns:
            f32 [B, L, D], padding rows included.
        """
        config = self.config
        if mask is None:
            mask = tokens > 0
        bias = RelativeBias(config, name="relpos_bias")(tokens.shape[1])
        hidden = jnp.where(mask[:, None, None, :], 0.0, -1e9).astype(jnp.float32)
        shape = (tokens.shape[0], *bias.shape[1:])
        bias = jnp.broadcast_to(bias, shape) + jnp.broadcast_to(hidden, shape)

        embedding_init = nn.initializers.normal(1.0)
        x = nn.Embed(
            config.vocab,
            config.width,
            dtype=self.dtype,
            embedding_init=embedding_init,
            name="token_embedder",
        )(tokens)
        x = hint(x)
        for i in range(config.layers):
            x = Layer(config, self.dtype, name=f"layers_{i}")(x, bias)
        return RMSNorm(jnp.float32, name="encoder_norm")(x)
