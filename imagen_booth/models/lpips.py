"""LPIPS v0.1 on AlexNet: a perceptual distance of pictures.

Each picture passes the five convolutions of AlexNet. After each convolution, the
channels at a position are scaled to length 1. The squared difference of two pictures,
weighted per channel by learned non-negative numbers, is averaged over positions and
summed over the five layers.

Source: Zhang et al., arXiv 1801.03924.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Pictures in [-1, 1] to the mean and deviation that AlexNet was trained on.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
# Kernel, stride and padding of each convolution, and whether max pooling (3 x 3, stride
# 2) comes before it.
_CONVOLUTIONS = (
    (11, 4, 2, False),
    (5, 1, 2, True),
    (3, 1, 1, True),
    (3, 1, 1, False),
    (3, 1, 1, False),
)


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
    """Channels after each of AlexNet's five convolutions."""

    widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)


def _layer_distances(
    x: Float[Array, "N H W C"], weights: Float[Array, " C"]
) -> Float[Array, "N N"]:
    """The distance of all pairs in one layer."""
    length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
    x = x / (length + 1e-10)

    def from_one(one: Float[Array, "H W C"]) -> Float[Array, " N"]:
        squares = jnp.square(x - one[None])
        return jnp.einsum("nhwc,c->nhw", squares, weights).mean((1, 2))

    # One picture against all at a time, so that memory grows with N and not with N^2.
    return jax.lax.map(from_one, x)


class LPIPS(nn.Module):
    """Pictures to the distances between them."""

    config: LPIPSConfig = LPIPSConfig()

    @nn.compact
    def __call__(self, pixels: Float[Array, "N H W 3"]) -> Float[Array, "N N"]:
        """Distances of all pairs of pictures in [-1, 1], at least 31 pixels a side."""
        x = (pixels - _SHIFT[None, None, None]) / _SCALE[None, None, None]
        total = jnp.zeros((len(pixels), len(pixels)), jnp.float32)
        layers = zip(self.config.widths, _CONVOLUTIONS, strict=True)
        for i, (width, (kernel, stride, padding, pooled)) in enumerate(layers):
            if pooled:
                x = nn.max_pool(x, (3, 3), (2, 2))
            conv = nn.Conv(
                width,
                (kernel, kernel),
                strides=(stride, stride),
                padding=padding,
                name=f"conv_{i}",
            )
            x = nn.relu(conv(x))
            init = nn.initializers.uniform(1 / width)
            total = total + _layer_distances(
                x, self.param(f"linear_{i}", init, (width,))
            )
        return total
