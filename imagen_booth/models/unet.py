"""The U-Net of ADM with text: Imagen's base network and DeepFloyd IF stages I, II.

Source: ADM (arXiv 2105.05233), Imagen (arXiv 2205.11487, appendix F.1), and the
configuration files of the public IF weights. Parameter paths are the names of those
weights with "_" before a number, so `down_blocks.0.resnets.1.norm1.weight` is
`down_blocks_0/resnets_1/norm1/scale`, and `to_out.0` is `to_out`.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from imagen_booth.models import layers
from imagen_booth.models.convolution import Conv
from imagen_booth.models.hint import hint


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of one U-Net; tuples run from the finest level to the coarsest.

    Attributes:
      widths: Channels of each level; each level halves height and width.
      blocks: Residual blocks of each level on the way down (one more going up).
      attention: Whether each level attends to text and image. The middle does.
      in_channels: 3, or 6 with a low-resolution image after x_t.
      out_channels: 3, or 6 with the learned variance of IF.
      level_input: Whether the noise level of the low-resolution input is an input.
      text_width: Width of the text encoder's output.
      cross_width: Width of the text sequence inside the network.
      time_width: Width of the time embedding.
      head_width: Width of one attention head.
      pool_heads: Heads of the attention that pools the text.
      text_norm: 'layer' as in Imagen, or 'group' as in IF: statistics over 32 groups
        of channels and all tokens, which needs unmasked text of fixed length.
      self_attention: Whether the image attends to itself as well as to the text.
      activation: 'swish', or 'gelu' (exact).
      residual_scale: Divisor of each residual block's sum.
      norm_groups: Groups of every GroupNorm.
      patch: Side of the square of pixels folded into channels at the input and
        unfolded at the output.
      remat: Whether the backward pass recomputes each block instead of storing it.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    in_channels: int = 3
    out_channels: int = 3
    level_input: bool = False
    text_width: int
    cross_width: int
    time_width: int
    head_width: int = 64
    pool_heads: int
    text_norm: str = "layer"
    self_attention: bool = True
    activation: str = "swish"
    residual_scale: float = 1.0
    norm_groups: int = 32
    patch: int = 1
    remat: bool = False


def _if_stage_1(width: int) -> UNetConfig:
    return UNetConfig(
        widths=(width, 2 * width, 3 * width, 4 * width),
        blocks=(3, 3, 3, 3),
        attention=(False, True, True, True),
        out_channels=6,
        text_width=4096,
        cross_width=4 * width,
        time_width=4 * width,
        pool_heads=64,
        text_norm="group",
        activation="gelu",
    )


def _if_stage_2(widths: tuple[int, ...], blocks: tuple[int, ...]) -> UNetConfig:
    return UNetConfig(
        widths=widths,
        blocks=blocks,
        attention=(False, False, False, True, True),
        in_channels=6,
        out_channels=6,
        level_input=True,
        text_width=4096,
        cross_width=widths[-1],
        time_width=widths[-1],
        pool_heads=64,
        text_norm="group",
        activation="gelu",
        residual_scale=1 / 0.7071,  # the published constant, not sqrt(2)
    )


SIZES = {
    # Imagen F.1: "2B" parameters; 2.3B with IF's definition of every block.
    "imagen_base": UNetConfig(
        widths=(512, 1024, 1536, 2048),
        blocks=(3, 3, 3, 3),
        attention=(False, True, True, True),
        text_width=4096,
        cross_width=2048,
        time_width=2048,
        pool_heads=64,
    ),
    "if_i_m": _if_stage_1(192),
    "if_i_l": _if_stage_1(320),
    "if_i_xl": _if_stage_1(704),
    "if_ii_m": _if_stage_2((128, 256, 512, 768, 768), (2, 2, 3, 4, 2)),
    "if_ii_l": _if_stage_2((160, 320, 640, 960, 1280), (2, 2, 3, 5, 5)),
    # Ours: fine-tuned within minutes, and sampled within seconds, on two CPU cores.
    "toybox_base": UNetConfig(
        widths=(48, 96, 160),
        blocks=(0, 1, 2),
        attention=(False, False, True),
        text_width=128,
        cross_width=128,
        time_width=256,
        head_width=32,
        pool_heads=4,
        norm_groups=16,
        patch=2,
    ),
    "tiny_base": UNetConfig(  # for tests, with random weights
        widths=(16,),
        blocks=(1,),
        attention=(False,),
        text_width=32,
        cross_width=16,
        time_width=16,
        head_width=8,
        pool_heads=2,
        norm_groups=4,
        patch=4,
    ),
}


def _res_block(
    config: UNetConfig,
    features: int,
    dtype: layers.Dtype,
    name: str,
    resample: str | None = None,
) -> layers.ResBlock:
    return layers.ResBlock(
        features=features,
        groups=config.norm_groups,
        activation=config.activation,
        scale=config.residual_scale,
        resample=resample,
        dtype=dtype,
        name=name,
    )


def _attention(
    config: UNetConfig, features: int, dtype: layers.Dtype, name: str
) -> layers.Attention:
    return layers.Attention(
        heads=features // config.head_width,
        inner=features,
        groups=config.norm_groups,
        text_norm=config.text_norm,
        self_attention=config.self_attention,
        dtype=dtype,
        name=name,
    )


class Level(nn.Module):
    """The blocks of one resolution on the way down or up, then the change to the next.

    On the way up, each block takes one skip, concatenated to its input on channels; on
    the way down the skips are None. Returns the output of every block, and of the
    change of resolution.
    """

    config: UNetConfig
    features: int
    attends: bool
    dtype: layers.Dtype
    resample: str | None  # 'down' or 'up', after the blocks

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "B H W C"],
        skips: list,
        emb: Float[Array, "B E"],
        text: Float[Array, "B L X"],
        mask: Bool[Array, "B L"] | None,
    ) -> list[Float[Array, "B _ _ D"]]:
        config, features, dtype = self.config, self.features, self.dtype
        attends = self.attends

        def layer(module, h, skip, emb, text, mask, i):
            if skip is not None:
                h = jnp.concatenate([h, skip], axis=-1)
            h = _res_block(config, features, dtype, f"resnets_{i}")(h, emb)
            if attends:
                attend = _attention(config, features, dtype, f"attentions_{i}")
                h = attend(h, text, mask)
            return hint(h)

        def change(module, h, emb, resample):
            name = f"{resample}samplers_0"
            return hint(_res_block(config, features, dtype, name, resample)(h, emb))

        if config.remat:
            layer = nn.remat(layer, static_argnums=(6,))
            change = nn.remat(change, static_argnums=(3,))
        hs = []
        for i, skip in enumerate(skips):
            h = layer(self, h, skip, emb, text, mask, i)
            hs.append(h)
        if self.resample is not None:
            hs.append(change(self, h, emb, self.resample))
        return hs


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    config: UNetConfig
    dtype: layers.Dtype

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "B H W C"],
        emb: Float[Array, "B E"],
        text: Float[Array, "B L X"],
        mask: Bool[Array, "B L"] | None,
    ) -> Float[Array, "B H W C"]:
        common = self.config, self.config.widths[-1], self.dtype
        h = _res_block(*common, "resnets_0")(h, emb)
        h = _attention(*common, "attentions_0")(h, text, mask)
        return hint(_res_block(*common, "resnets_1")(h, emb))


class UNet(nn.Module):
    """Maps a noisy picture, its time and a text to a prediction.

    Args of the call:
      x: [B, H, W, in_channels], x_t, then the low-resolution image if there is one.
        H and W are multiples of patch * 2^(levels - 1).
      time: [B] f32, the argument of the sinusoid (0..999 or 1000 t).
      text: [B, L, text_width].
      text_mask: [B, L] bool, True on real tokens, at least one per row; None attends
        to all.
      level: [B] f32, the noise level, an argument of a sinusoid; if `level_input`.

    Returns:
      [B, H, W, out_channels] f32.
    """

    config: UNetConfig
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
            config, time, level, text, text_mask, config.activation, dtype
        )
        h = layers.space_to_depth(x, config.patch)
        h = Conv(config.widths[0], (3, 3), dtype=dtype, name="conv_in")(h)
        skips = [hint(h)]
        levels = list(zip(config.widths, config.blocks, config.attention, strict=True))
        for i, (width, blocks, attends) in enumerate(levels):
            resample = None if i == len(levels) - 1 else "down"
            part = Level(
                config, width, attends, dtype, resample, name=f"down_blocks_{i}"
            )
            skips += part(skips[-1], [None] * blocks, emb, text, text_mask)
        middle = nn.remat(Middle) if config.remat else Middle
        h = middle(config, dtype, name="mid_block")(skips[-1], emb, text, text_mask)
        for i, (width, blocks, attends) in enumerate(reversed(levels)):
            resample = None if i == len(levels) - 1 else "up"
            part = Level(config, width, attends, dtype, resample, name=f"up_blocks_{i}")
            popped = [skips.pop() for _ in range(blocks + 1)]
            h = part(h, popped, emb, text, text_mask)[-1]
        h = layers.GroupNorm(config.norm_groups, name="conv_norm_out")(h)
        h = layers.ACTIVATIONS[config.activation](h.astype(jnp.float32))
        out = Conv(
            config.out_channels * config.patch**2,
            (3, 3),
            dtype=jnp.float32,
            kernel_init=layers.ZEROS,
            name="conv_out",
        )
        return layers.depth_to_space(out(h), config.patch)
