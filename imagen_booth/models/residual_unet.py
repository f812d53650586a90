"""A small U-Net that enlarges photographs: it models what bilinear enlargement misses.

A four times enlarged photograph differs from the true one by a residual of about a
tenth of the picture's range. So the noisy picture is centred on the low-resolution
input, scaled to unit variance, and the output is the best linear estimate plus a
correction of unit size (the preconditioning of EDM, applied to the residual):

    base = low / sqrt(1 - a)                  low has noise of variance a, its level
    y    = x_t - alpha base                   = alpha r + sigma eps
    V    = alpha^2 d^2 + sigma^2              d^2 = residual_std^2 + a
    z    = y / sqrt(V)
    x0   = base + alpha d^2 / V y + sigma d / sqrt(V) F(z, base, t, a)
    F    = R + G z                            R and G, per value, are the outputs

The gate G passes or stops noise pixel by pixel, which saves the narrow network from
carrying it: in a smooth area the residual is far smaller than d, and z is all noise.

With F = 0, the start of training, x0 is the bilinear picture at pure noise and x_t at
none. Normalisation is over the channels of each position and there is no attention, so
the network computes the same on a crop as on the whole picture, away from borders.

Source: EDM, arXiv 2206.00364, section 5, for the preconditioning; SR3, arXiv
2104.07636, for the conditioning by concatenation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from imagen_booth.models import layers
from imagen_booth.models.convolution import Conv
from imagen_booth.models.hint import hint


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualUNetConfig:
    """Shape of one network; tuples run from the finest level to the coarsest.

    Attributes:
      widths: Channels of each level; each level after the first halves height and
        width.
      blocks_down: Residual blocks of each level on the way down.
      blocks_up: Residual blocks of each level on the way up.
      patch: Side of the square of pixels folded into channels at the input and
        unfolded at the output.
      time_width: Width of the embedding of time and level.
      residual_std: Standard deviation of the picture minus its bilinear enlargement.
      shift: Shift of the stage's cosine schedule, from which alpha and sigma follow.
      text_width: Width of the text encoder's output.
      reads_text: Whether the pooled text is added to the embedding.
      pool_heads: Heads of the attention that pools the text.
      level_input: Whether the noise level of the low-resolution input is an input.
      in_channels: 6: x_t, then the low-resolution picture.
      out_channels: 3.
      remat: Whether the backward pass recomputes each block instead of storing it.
    """

    widths: tuple[int, ...]
    blocks_down: tuple[int, ...]
    blocks_up: tuple[int, ...]
    patch: int
    time_width: int
    residual_std: float
    shift: float
    text_width: int
    reads_text: bool = False
    pool_heads: int = 64
    level_input: bool = True
    in_channels: int = 6
    out_channels: int = 3
    remat: bool = False


SIZES = {
    # Ours: a 1024 px picture in 8 steps within half a minute on two CPU cores.
    "photo_sr1024": ResidualUNetConfig(
        widths=(64, 128, 256),
        blocks_down=(2, 2, 4),
        blocks_up=(2, 2, 0),
        patch=4,
        time_width=256,
        residual_std=0.1,
        shift=4.6,  # at t = 1/2 noise is as strong as the residual: 2 log 10
        text_width=4096,
    ),
}


def _scales(time: Float[Array, " B"], shift: float) -> tuple[Array, Array]:
    """Alpha and sigma of `diffusion.schedule.CosineSchedule` with this shift."""
    t = jnp.clip(time / 1000.0, 0.0, 1.0)  # rounding must not leave the range
    half = 0.5 * np.pi
    logsnr = 2.0 * (jnp.log(jnp.sin(half * (1.0 - t))) - jnp.log(jnp.sin(half * t)))
    logsnr = jnp.clip(logsnr + shift, -20.0, 20.0)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


class Block(nn.Module):
    """A normalised, modulated pair of convolutions beside a shortcut."""

    features: int
    dtype: layers.Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"]
    ) -> Float[Array, "B H W C"]:
        modulation = layers.ScaleAndShift(
            self.features, self.dtype, name="time_emb_proj"
        )(emb)
        scale, shift = (half[:, None, None, :] for half in modulation)
        h = layers.LayerNorm(name="norm")(x) * (1.0 + scale) + shift
        h = Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(h)
        h = nn.swish(h)
        conv2 = Conv(
            self.features,
            (3, 3),
            dtype=self.dtype,
            kernel_init=layers.ZEROS,
            name="conv2",
        )
        return hint(x + conv2(h))


class ResidualUNet(nn.Module):
    """Maps a noisy picture and a low-resolution one to the clean picture x0.

    Args of the call:
      x: [B, H, W, 6], x_t and then the enlarged, noised low-resolution picture; H and
        W are multiples of patch * 2^(levels - 1).
      time: [B] f32, 1000 t on the configured schedule.
      text: [B, L, text_width]; not read unless `reads_text`.
      text_mask: [B, L] bool, True on real tokens; None attends to all.
      level: [B] f32, 1000 times Imagen's aug_level (`augment.level_to_time`).

    Returns:
      x0, [B, H, W, 3] f32.
    """

    config: ResidualUNetConfig
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, " B"],
        text: Float[Array, "B L D"],
        text_mask: Bool[Array, "B L"] | None = None,
        level: Float[Array, " B"] | None = None,
    ) -> Float[Array, "B H W O"]:
        config = self.config
        assert level is not None, "the network divides by the scale of its level"
        emb = self._embed(time, level, text, text_mask)

        def rows(number: Array) -> Array:
            return number[:, None, None, None]

        variance = jnp.square(jnp.sin(level * (0.5 * np.pi / 1000.0)))
        alpha, sigma = (rows(x) for x in _scales(time, config.shift))
        xt, low = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        base = low / rows(jnp.sqrt(1.0 - variance))
        spread = rows(config.residual_std**2 + variance)
        total = jnp.square(alpha) * spread + jnp.square(sigma)
        y = xt - alpha * base
        z = y * (total**-0.5)
        out = self._network(jnp.concatenate([z, base], axis=-1), emb)
        residual, gate = jnp.split(out, 2, axis=-1)
        correction = residual + gate * z
        linear = base + alpha * spread / total * y
        return linear + sigma * jnp.sqrt(spread / total) * correction

    def _embed(
        self, time: Array, level: Array, text: Array, mask: Array | None
    ) -> Float[Array, "B E"]:
        config, dtype = self.config, self.dtype

        def number(name: str) -> layers.Embedding:
            return layers.Embedding(
                config.widths[0], config.time_width, "swish", dtype, name=name
            )

        emb = number("time_embedding")(time) + number("class_embedding")(level)
        if config.reads_text:
            pool = layers.TextPool(
                config.time_width, config.pool_heads, dtype, name="add_embedding"
            )
            emb = emb + pool(text, mask)
        return nn.swish(emb)

    def _network(
        self, inputs: Float[Array, "B H W 6"], emb: Float[Array, "B E"]
    ) -> Float[Array, "B H W 6"]:
        """R and G of the module's docstring."""
        config, dtype = self.config, self.dtype
        block = nn.remat(Block) if config.remat else Block
        h = layers.space_to_depth(inputs, config.patch)
        h = Conv(config.widths[0], (3, 3), dtype=dtype, name="conv_in")(h)
        skips = []
        for i, width in enumerate(config.widths):
            if i:
                name = f"downsamplers_{i}"
                h = Conv(width, (3, 3), strides=2, dtype=dtype, name=name)(h)
            for j in range(config.blocks_down[i]):
                h = block(width, dtype, name=f"down_blocks_{i}_{j}")(h, emb)
            skips.append(h)
        for i in reversed(range(len(config.widths))):
            width = config.widths[i]
            skip = skips.pop()
            if i < len(config.widths) - 1:
                h = nn.Dense(width, dtype=dtype, name=f"upsamplers_{i}")(h)
                h = layers.nearest_upsample(h) + skip
            for j in range(config.blocks_up[i]):
                h = block(width, dtype, name=f"up_blocks_{i}_{j}")(h, emb)
        h = nn.swish(layers.LayerNorm(name="conv_norm_out")(h).astype(jnp.float32))
        out = Conv(
            2 * config.out_channels * config.patch**2,
            (3, 3),
            dtype=jnp.float32,
            kernel_init=layers.ZEROS,
            name="conv_out",
        )
        return layers.depth_to_space(out(h), config.patch)
