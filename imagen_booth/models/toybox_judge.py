"""The judge: a small network that reads what a 64 px picture of the toybox shows."""

import dataclasses
import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagen_booth.models.convolution import Conv
from imagen_booth.models.layers import GroupNorm


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Shape of the network, and the words it knows.

    Attributes:
        words: Words of each attribute, in the order of its logits.
        widths: Channels of the levels; each halves height and width.
        refined: Number of levels, the last ones, that have a residual convolution.
        hidden: Width of the layer below words and subject embedding.
        subject: Width of the subject embedding.
        groups: Groups of every GroupNorm.
        size: Side of the pictures in pixels.
    """

    words: tuple[tuple[str, tuple[str, ...]], ...]
    widths: tuple[int, ...] = (32, 64, 96, 128)
    refined: int = 3
    hidden: int = 192
    subject: int = 64
    groups: int = 8
    size: int = 64


class Judge(nn.Module):
    """Strided convolutions down to 4 x 4, a hidden layer, and the outputs.

    The first level has no norm, because brightness separates black from grey.
    """

    config: JudgeConfig

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W 3"]
    ) -> tuple[dict[str, Array], Float[Array, "B E"], Float[Array, "B D"]]:
        """Reads pictures in [-1, 1].

        Returns:
            Logits [B, words] by attribute; unit-length embeddings of the subject
            [B, E], close for pictures of one individual; and unit-length descriptions
            [B, D] of the whole picture. Half the squared distance of two descriptions
            is one minus the cosine of their features, averaged over positions and then
            over the levels after the first. This is the distance of LPIPS (arXiv
            1801.03924) without learned weights.
        """
        config = self.config
        x, seen = image, []
        plain = len(config.widths) - config.refined
        for level, width in enumerate(config.widths):
            x = Conv(width, (3, 3), (2, 2), name=f"down_{level}")(x)
            if level > 0:
                x = GroupNorm(config.groups, name=f"norm_{level}")(x)
            x = nn.swish(x)
            if level >= plain:
                h = Conv(width, (3, 3), name=f"conv_{level}")(x)
                x = x + nn.swish(GroupNorm(config.groups, name=f"refine_{level}")(h))
            if level > 0:
                share = x.shape[1] * x.shape[2] * (len(config.widths) - 1)
                seen.append(unit(x).reshape(x.shape[0], -1) / math.sqrt(share))
        x = nn.swish(nn.Dense(config.hidden, name="hidden")(x.reshape(x.shape[0], -1)))
        logits = {
            name: nn.Dense(len(words), name=name)(x) for name, words in config.words
        }
        subject = nn.Dense(config.subject, name="subject")(x)
        return logits, unit(subject), jnp.concatenate(seen, axis=-1)


def unit(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Vectors scaled to length 1; zero vectors stay zero."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-12))
