"""The networks, by configuration. The only part of the package that imports flax."""

import jax.numpy as jnp
from flax import linen as nn

from imagen_booth.models import efficient_unet, unet
from imagen_booth.models.efficient_unet import EfficientUNet, EfficientUNetConfig
from imagen_booth.models.layers import Dtype
from imagen_booth.models.t5 import T5Config, T5Encoder
from imagen_booth.models.unet import UNet, UNetConfig

SIZES: dict[str, UNetConfig | EfficientUNetConfig] = unet.SIZES | efficient_unet.SIZES


def build(
    config: UNetConfig | EfficientUNetConfig | T5Config, dtype: Dtype = jnp.float32
) -> nn.Module:
    """Returns the module that a configuration describes, computing in `dtype`."""
    networks = {
        UNetConfig: UNet,
        EfficientUNetConfig: EfficientUNet,
        T5Config: T5Encoder,
    }
    return networks[type(config)](config, dtype)
