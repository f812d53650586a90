"""Imagen's Efficient U-Net, the network of its two super-resolution stages.

Source: Imagen (arXiv 2205.11487, appendix B.1, F.2, F.3). Against the U-Net of ADM:
most blocks sit at the coarse resolutions, the way down changes resolution before
its blocks and the way up after them, and sums of a path and its shortcut are divided
by sqrt(2).

The paper does not say how a skip joins (here: by addition, so that all blocks of a
level have one shape), how wide the time embedding is, what follows the last block
(here: the sum with the output of the first convolution, GroupNorm, swish, a dense
layer), and whether the way up has attention where the way down does (here: yes).
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from imagen_booth.models import layers
from imagen_booth.models.convolution import Conv, UpsampleConv
from imagen_booth.models.hint import hint


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientUNetConfig:
    """Shape of one Efficient U-Net; tuples run from the finest level to the coarsest.

    Attributes:
      widths: Channels of each level; each level starts by halving height and width.
      blocks: Residual blocks of each level on the way down, and as many going up.
      attention: Whether each level ends in attention to the text.
      self_attention: Whether the image attends to itself as well as to the text.
      heads: Heads of each attention; its inner width is twice the level's.
      in_channels: 6: x_t, then the low-resolution picture.
      out_channels: 3.
      level_input: Whether the noise level of the low-resolution input is an input.
      text_width: Width of the text encoder's output.
      cross_width: Width of the text sequence inside the network.
      time_width: Width of the time embedding.
      pool_heads: Heads of the attention that pools the text.
      norm_groups: Groups of every GroupNorm.
      patch: Side of the square of pixels folded into channels at the input and
        unfolded at the output. Above 1 the first convolution is 1 x 1.
      remat: Whether the backward pass recomputes each block instead of storing it.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    self_attention: bool
    heads: int = 8
    in_channels: int = 6
    out_channels: int = 3
    level_input: bool = True
    text_width: int
    cross_width: int
    time_width: int
    pool_heads: int
    norm_groups: int = 32
    patch: int = 1
    remat: bool = False


def _imagen(self_attention: bool) -> EfficientUNetConfig:
    return EfficientUNetConfig(
        widths=(128, 256, 512, 1024),
        blocks=(2, 4, 8, 8),
        attention=(False, False, False, True),
        self_attention=self_attention,
        text_width=4096,
        cross_width=1024,
        time_width=512,
        pool_heads=64,
    )


def _tiny(patch: int, self_attention: bool) -> EfficientUNetConfig:
    """A small network for tests, with random weights."""
    return EfficientUNetConfig(
        widths=(16,),
        blocks=(1,),
        attention=(True,),
        self_attention=self_attention,
        heads=2,
        text_width=32,
        cross_width=16,
        time_width=16,
        pool_heads=2,
        norm_groups=4,
        patch=patch,
    )


SIZES = {
    "imagen_sr256": _imagen(self_attention=True),  # "600M" in the paper
    "imagen_sr1024": _imagen(self_attention=False),  # "400M" in the paper
    # Ours: trained within hours, and sampled within seconds, on two CPU cores.
    "toybox_sr256": EfficientUNetConfig(
        widths=(64, 96, 128),
        blocks=(1, 1, 1),
        attention=(False, False, True),
        self_attention=True,
        heads=4,
        text_width=128,
        cross_width=128,
        time_width=128,
        pool_heads=4,
        patch=4,
    ),
    "toybox_sr1024": EfficientUNetConfig(
        widths=(32, 64),
        blocks=(1, 1),
        attention=(False, True),
        self_attention=False,
        heads=4,
        text_width=128,
        cross_width=128,
        time_width=128,
        pool_heads=4,
        norm_groups=16,
        patch=4,
    ),
    "tiny_sr256": _tiny(patch=8, self_attention=True),
    "tiny_sr1024": _tiny(patch=16, self_attention=False),
}


class Level(nn.Module):
    """The residual blocks of one resolution, then attention to the text."""

    config: EfficientUNetConfig
    features: int
    blocks: int
    attends: bool
    dtype: layers.Dtype

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "B H W C"],
        emb: Float[Array, "B E"],
        text: Float[Array, "B L X"],
        mask: Bool[Array, "B L"] | None,
    ) -> Float[Array, "B H W C"]:
        config, features, dtype = self.config, self.features, self.dtype
        again = nn.remat if config.remat else lambda kind: kind
        for i in range(self.blocks):
            block = again(layers.ResBlock)(
                features=features,
                groups=config.norm_groups,
                activation="swish",
                scale=math.sqrt(2),
                dtype=dtype,
                name=f"resnets_{i}",
            )
            h = hint(block(h, emb))
        if self.attends:
            attend = again(layers.Attention)(
                heads=config.heads,
                inner=2 * features,
                groups=config.norm_groups,
                text_norm="layer",
                self_attention=config.self_attention,
                dtype=dtype,
                name="attentions_0",
            )
            h = hint(attend(h, text, mask))
        return h


class EfficientUNet(nn.Module):
    """Maps a noisy picture, a low-resolution one, time and text to a prediction.

    Args of the call:
      x: [B, H, W, in_channels], x_t and then the low-resolution picture resized to
        H x W, which are multiples of patch * 2^levels.
      time: [B] f32, the argument of the sinusoid (1000 t).
      text: [B, L, text_width].
      text_mask: [B, L] bool, True on real tokens, at least one per row; None attends
        to all.
      level: [B] f32, the noise level, an argument of a sinusoid; if `level_input`.

    Returns:
      [B, H, W, out_channels] f32.
    """

    config: EfficientUNetConfig
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
        config, dtype = self.config, self.dtype
        emb, text = layers.condition(
            config, time, level, text, text_mask, "swish", dtype
        )

        def conv(features, kernel, name, strides=1):
            return Conv(features, kernel, strides, dtype=dtype, name=name)

        def part(i, name):
            return Level(
                config,
                config.widths[i],
                config.blocks[i],
                config.attention[i],
                dtype,
                name=name,
            )

        kernel = (3, 3) if config.patch == 1 else (1, 1)
        h = layers.space_to_depth(x, config.patch)
        h = hint(conv(config.widths[0], kernel, "conv_in")(h))
        skips = []
        for i, width in enumerate(config.widths):
            skips.append(h)
            h = conv(width, (3, 3), f"downsamplers_{i}", strides=2)(h)
            h = part(i, f"down_blocks_{i}")(h, emb, text, text_mask)
        for i in reversed(range(len(config.widths))):
            h = part(i, f"up_blocks_{i}")(h, emb, text, text_mask)
            skip = skips.pop()
            name = f"upsamplers_{i}"
            h = UpsampleConv(skip.shape[-1], (3, 3), dtype=dtype, name=name)(h)
            h = (h + skip) / math.sqrt(2)
        h = layers.GroupNorm(config.norm_groups, name="conv_norm_out")(h)
        out = nn.Dense(
            config.out_channels * config.patch**2,
            dtype=jnp.float32,
            kernel_init=layers.ZEROS,
            name="conv_out",
        )
        return layers.depth_to_space(out(nn.swish(h.astype(jnp.float32))), config.patch)
