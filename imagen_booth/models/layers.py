"""Layers shared by the U-Nets, named as in the public DeepFloyd IF weights.

Parameters are float32. Normalisation, attention logits and softmax are computed
in float32; everything else in the module's `dtype`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from imagen_booth.models.convolution import Conv, UpsampleConv
from imagen_booth.models.hint import on_one_device

Dtype = Any
ZEROS = nn.initializers.zeros_init()
CACHED = 2**23  # bytes of attention logits that a CPU's caches hold well
TEXT = "text"  # collection of what networks make of the text alone, see `from_text`


def gelu(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """x times the normal cumulative distribution at x, exactly.

    It uses erf, as torch does. jax.nn.gelu uses erfc, which is half as fast on a CPU
    and differs only below rounding error.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": gelu, "swish": nn.swish}


def sinusoid(x: Float[Array, " B"], width: int) -> Float[Array, "B F"]:
    """Embeds a number as cosines, then sines, of geometrically falling frequency."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10000) / half * jnp.arange(half, dtype=jnp.float32))
    angles = x[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def space_to_depth(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B I J D"]:
    """Folds patch x patch pixels into channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, -1)


def depth_to_space(x: Float[Array, "B I J D"], patch: int) -> Float[Array, "B H W C"]:
    """Inverse of `space_to_depth`."""
    b, i, j, _ = x.shape
    x = x.reshape(b, i, j, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, i * patch, j * patch, -1)


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B I J C"]:
    """Halves height and width by the mean of 2 x 2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def nearest_upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B I J C"]:
    """Doubles height and width by repeating each pixel."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


@jax.custom_vjp
def attend(
    q: Float[Array, "B Q N K"],
    k: Float[Array, "B M N K"],
    v: Float[Array, "B M N K"],
    mask: Bool[Array, "B M"] | None,
) -> Float[Array, "B Q N K"]:
    """Scaled dot-product attention of N heads; keys with False in `mask` are hidden.

    Masked logits are large, negative and finite, so no row becomes NaN.

    The gradient is written out: with the output at hand, the softmax's sum over keys is
    one over channels (FlashAttention, arXiv 2205.14135, B.2). So of the arrays of Q x M
    numbers only the weights are kept, in the dtype of `v`. On a TPU v5e this takes 8 %
    off the memory traffic of a training step of IF-I-M, and 1 GiB off its peak.
    """
    return jax.lax.platform_dependent(
        *(q, k, v, mask),
        cpu=_attend_by_heads,
        default=lambda *inputs: _attend(*inputs)[0],
    )


def _attend_by_heads(q, k, v, mask):
    """The output alone, on a CPU: some heads at a time, with logits in its caches.

    The output is divided by the sum of the weights: it has fewer numbers than they. In
    sampling this takes 0.3 to 0.8 of the time of `_attend`, whose arrays of Q x M
    numbers leave the caches.
    """
    rows, heads, width = q.shape[0], q.shape[2], q.shape[3]
    queries, keys = q.shape[1], k.shape[1]
    q = (q / math.sqrt(width)).transpose(0, 2, 1, 3)
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    count = _heads_at_a_time(rows * heads, 4 * queries * keys)

    def grouped(x):
        return x.reshape(-1, count, *x.shape[2:])

    def attend_some(inputs):
        q, k, v, mask = inputs
        logits = jnp.matmul(q, k, preferred_element_type=jnp.float32)
        if mask is not None:
            logits = jnp.where(mask, logits, -1e9)
        weights = jnp.exp(logits - _maximum(logits)[..., None])
        out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

    if mask is not None:
        mask = jnp.broadcast_to(mask[:, None, None, :], (rows, heads, 1, keys))
    inputs = jax.tree.map(grouped, (q, k, v, mask))
    if count == rows * heads:
        out = attend_some(jax.tree.map(lambda x: x[0], inputs))
    else:
        out = jax.lax.map(attend_some, inputs)
    return out.reshape(rows, heads, queries, width).transpose(0, 2, 1, 3)


def _heads_at_a_time(heads: int, size: int) -> int:
    """As many heads of ``size`` bytes each as a CPU's cache holds, in equal groups."""
    if not on_one_device():
        return heads
    fit = max(1, CACHED // size)
    return max(n for n in range(1, min(fit, heads) + 1) if heads % n == 0)


def _attend(q, k, v, mask):
    """The output, and what its gradient needs."""
    f32 = jnp.float32
    q = q / math.sqrt(q.shape[-1])  # fewer numbers than the logits
    logits = jnp.einsum("BQNK,BMNK->BNQM", q, k, preferred_element_type=f32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -1e9)
    weights = _softmax(logits).astype(v.dtype)
    out = jnp.einsum("BNQM,BMNK->BQNK", weights, v)
    return out, (q, k, v, mask, weights, out)


def _softmax(logits):
    """Softmax over the last axis, of float32; not to be differentiated.

    XLA's CPU compiler gives the maximum over a product to a library, and with it all of
    the attention, whose arrays of Q x M numbers the library then takes from the system
    anew at each call. It does not see through a maximum by comparison.
    """

    most = jax.lax.platform_dependent(
        logits, cpu=_maximum, default=lambda x: x.max(axis=-1)
    )
    weights = jnp.exp(logits - most[..., None])
    return weights / weights.sum(axis=-1, keepdims=True)


def _maximum(x):
    """The maximum over the last axis of float32, by comparison."""

    def greater(a, b):
        return jax.lax.select(a > b, a, b)

    return jax.lax.reduce(x, np.float32(-np.inf), greater, (x.ndim - 1,))


def _attend_gradient(kept, of_out):
    """Gradients of queries, keys and values, from that of the output."""
    q, k, v, mask, weights, out = kept
    f32 = jnp.float32
    of_weights = jnp.einsum("BQNK,BMNK->BNQM", of_out, v, preferred_element_type=f32)
    mean = (of_out.astype(f32) * out.astype(f32)).sum(-1)  # [B, Q, N]
    of_logits = weights.astype(f32) * (of_weights - mean.swapaxes(1, 2)[..., None])
    if mask is not None:
        of_logits = jnp.where(mask[:, None, None, :], of_logits, 0.0)
    of_logits = of_logits.astype(q.dtype)
    return (
        jnp.einsum("BNQM,BMNK->BQNK", of_logits, k) / math.sqrt(q.shape[-1]),
        jnp.einsum("BNQM,BQNK->BMNK", of_logits, q),
        jnp.einsum("BNQM,BQNK->BMNK", weights, of_out),
        None,
    )


attend.defvjp(_attend, _attend_gradient)


class GroupNorm(nn.Module):
    """Group normalisation over all positions, optionally with scale and shift.

    Mean and variance are computed in two passes in float32. The result, times
    (1 + scale) plus shift where given, is cast back once.
    """

    groups: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B *N C"],
        scale: Float[Array, "B C"] | None = None,
        shift: Float[Array, "B C"] | None = None,
    ) -> Float[Array, "B *N C"]:
        b, c = x.shape[0], x.shape[-1]
        assert c % self.groups == 0, f"{c} channels in {self.groups} groups"
        gain = self.param("scale", nn.initializers.ones_init(), (c,))
        bias = self.param("bias", ZEROS, (c,))

        def group_mean(per_channel):  # [B, C] -> [B, 1, C], equal within a group
            means = per_channel.reshape(b, self.groups, -1).mean(-1, keepdims=True)
            return jnp.broadcast_to(means, (b, self.groups, c // self.groups)).reshape(
                b, 1, c
            )

        h = x.reshape(b, -1, c).astype(jnp.float32)
        h = h - group_mean(h.mean(1))
        gain = gain[None, :] * jax.lax.rsqrt(
            group_mean(jnp.square(h).mean(1))[:, 0] + self.epsilon
        )
        bias = jnp.broadcast_to(bias, (b, c))
        if scale is not None and shift is not None:
            scale = 1 + scale.astype(jnp.float32)
            gain, bias = gain * scale, bias * scale + shift.astype(jnp.float32)
        h = h * gain[:, None, :] + bias[:, None, :]
        return h.astype(x.dtype).reshape(x.shape)


class LayerNorm(nn.Module):
    """Layer normalisation over channels in float32, cast back once."""

    @nn.compact
    def __call__(self, x: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
        axes = range(x.ndim - 1)
        gain = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", ZEROS, x.shape[-1:])
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5)
        h = h * jnp.expand_dims(gain, axes) + jnp.expand_dims(bias, axes)
        return h.astype(x.dtype)


class Embedding(nn.Module):
    """Two-layer perceptron on the sinusoid of a number per row."""

    width: int  # of the sinusoid
    features: int
    activation: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, " B"]) -> Float[Array, "B E"]:
        h = sinusoid(x.astype(jnp.float32), self.width).astype(self.dtype)
        h = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(h)
        h = ACTIVATIONS[self.activation](h)
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(h)


def from_text(module: nn.Module, compute: Callable[[], Any]) -> Any:
    """What a module makes of the text alone: computed, or as an earlier call left it.

    A call with `mutable=[TEXT]` also returns these arrays, by module. Given as
    variables to later calls with the same text, they take its place: a sampler
    computes them once, not in every step.
    """
    if module.has_variable(TEXT, "made"):
        return module.get_variable(TEXT, "made")
    made = compute()
    if module.is_mutable_collection(TEXT) and not module.is_initializing():
        module.put_variable(TEXT, "made", made)
    return made


class Pool(nn.Module):
    """Attention of one query, the mean token plus a learned vector, to all tokens."""

    heads: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, text: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B D"]:
        b, l, d = text.shape
        if mask is None:
            mask = jnp.ones((b, l), bool)
        place = self.param(
            "positional_embedding", nn.initializers.normal(d**-0.5), (1, d)
        )
        mean = text.mean(1, keepdims=True, where=mask[:, :, None])
        query = (mean + place[None].astype(text.dtype)).astype(self.dtype)
        tokens = jnp.concatenate([query, text.astype(self.dtype)], axis=1)
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)

        def project(name, x):
            h = nn.Dense(d, dtype=self.dtype, name=name)(x)
            return h.reshape(b, -1, self.heads, d // self.heads)

        q, k = project("q_proj", query), project("k_proj", tokens)
        return attend(q, k, project("v_proj", tokens), mask).reshape(b, d)


class TextPool(nn.Module):
    """The whole text as one vector, which is added to the time embedding."""

    features: int
    heads: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, text: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None
    ) -> Float[Array, "B E"]:
        def pool() -> Array:
            h = LayerNorm(name="norm1")(text)
            h = Pool(self.heads, self.dtype, name="pool")(h, mask)
            h = nn.Dense(self.features, dtype=self.dtype, name="proj")(h)
            return LayerNorm(name="norm2")(h)

        return from_text(self, pool)


class ScaleAndShift(nn.Module):
    """A dense layer of twice the features, as its halves.

    Each half has its own sum with the bias: where a CPU's compiler finds one sum that
    is read at two places, it computes what follows number by number, at a quarter of
    the speed.
    """

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, emb: Float[Array, "B E"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        sizes = emb.shape[-1], 2 * self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), sizes)
        bias = self.param("bias", ZEROS, sizes[1:])
        products = emb.astype(self.dtype) @ kernel.astype(self.dtype)
        bias = bias.astype(self.dtype)[None, :]
        scale = products[:, : self.features] + bias[:, : self.features]
        shift = products[:, self.features :] + bias[:, self.features :]
        return scale, shift


class ResBlock(nn.Module):
    """Two convolutions, modulated by the embedding of time and text.

    Source: ADM's "biggan" block (arXiv 2105.05233); `resample`, 'down' or 'up', changes
    the size of both the residual and the shortcut between first activation and
    convolution.
    """

    features: int
    groups: int
    activation: str
    dtype: Dtype
    scale: float = 1.0  # divides the sum of residual and shortcut
    resample: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"]
    ) -> Float[Array, "B I J D"]:
        act = ACTIVATIONS[self.activation]
        conv = functools.partial(Conv, self.features, dtype=self.dtype)
        first = conv
        h = act(GroupNorm(self.groups, name="norm1")(x))
        if self.resample == "down":
            h, x = average_pool(h), average_pool(x)
        elif self.resample == "up":
            x = nearest_upsample(x)
            first = functools.partial(UpsampleConv, self.features, dtype=self.dtype)
        h = first((3, 3), name="conv1")(h)
        scale, shift = ScaleAndShift(self.features, self.dtype, name="time_emb_proj")(
            emb
        )
        h = act(GroupNorm(self.groups, name="norm2")(h, scale, shift))
        h = conv((3, 3), kernel_init=ZEROS, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = conv((1, 1), name="conv_shortcut")(x)
        return (x + h) / self.scale


class Attention(nn.Module):
    """Attention of the image to the text and, with `self_attention`, to itself.

    Text keys and values are joined to the image's own, so one softmax chooses
    between them. `mask` is of the text.
    """

    heads: int
    inner: int  # width of all heads together
    groups: int
    text_norm: str  # 'layer', or 'group': statistics over tokens too, as in IF
    self_attention: bool
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        text: Float[Array, "B L D"],
        mask: Bool[Array, "B L"] | None,
    ) -> Float[Array, "B H W C"]:
        b, height, width, c = x.shape

        def project(name, h):
            h = nn.Dense(self.inner, dtype=self.dtype, name=name)(h)
            return h.reshape(b, -1, self.heads, self.inner // self.heads)

        if self.text_norm == "group":
            assert mask is None, "group statistics would mix in the masked positions"
            norm = GroupNorm(self.groups, name="norm_cross")
        else:
            norm = LayerNorm(name="norm_cross")

        def keys_and_values() -> tuple[Array, Array]:
            h = norm(text)
            return project("add_k_proj", h), project("add_v_proj", h)

        h = GroupNorm(self.groups, name="group_norm")(x).reshape(b, -1, c)
        keys, values = from_text(self, keys_and_values)
        if self.self_attention:
            keys = jnp.concatenate([keys, project("to_k", h)], axis=1)
            values = jnp.concatenate([values, project("to_v", h)], axis=1)
        if mask is not None:
            image_keys = keys.shape[1] - mask.shape[1]
            mask = jnp.pad(mask, ((0, 0), (0, image_keys)), constant_values=True)
        h = attend(project("to_q", h), keys, values, mask)
        h = nn.Dense(c, dtype=self.dtype, kernel_init=ZEROS, name="to_out")(
            h.reshape(b, -1, self.inner)
        )
        return x + h.reshape(b, height, width, c)


def condition(
    config: Any,
    time: Float[Array, " B"],
    level: Float[Array, " B"] | None,
    text: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None,
    activation: str,
    dtype: Dtype,
) -> tuple[Float[Array, "B E"], Float[Array, "B L X"]]:
    """The conditioning of every block, built inside a network's compact `__call__`.

    Args:
      config: Configuration of a U-Net, for its widths.

    Returns:
      The activated sum of the embeddings of time, noise level (if given) and pooled
      text, [B, E], and the text sequence projected to `cross_width`, [B, L, X].
    """
    assert (level is not None) == config.level_input, "level is for level_input"
    number = functools.partial(
        Embedding, config.widths[0], config.time_width, activation, dtype
    )
    emb = number(name="time_embedding")(time)
    if level is not None:
        emb = emb + number(name="class_embedding")(level)
    pool = TextPool(config.time_width, config.pool_heads, dtype, name="add_embedding")
    emb = emb + pool(text, mask)
    project = nn.Dense(config.cross_width, dtype=dtype, name="encoder_hid_proj")
    # The published networks activate in each block or once here: the same function.
    return ACTIVATIONS[activation](emb), project(text)
