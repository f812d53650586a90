"""The networks, by configuration. The only part of the package that imports flax."""

import jax.numpy as jnp
from flax import linen as nn

from imagen_booth.models import efficient_unet, residual_unet, unet
from imagen_booth.models.efficient_unet import EfficientUNet, EfficientUNetConfig
from imagen_booth.models.layers import Dtype
from imagen_booth.models.residual_unet import ResidualUNet, ResidualUNetConfig
from imagen_booth.models.t5 import T5Config, T5Encoder
from imagen_booth.models.unet import UNet, UNetConfig

NetworkConfig = UNetConfig | EfficientUNetConfig | ResidualUNetConfig
SIZES: dict[str, NetworkConfig] = (
    unet.SIZES | efficient_unet.SIZES | residual_unet.SIZES
)


def build(config: NetworkConfig | T5Config, dtype: Dtype = jnp.float32) -> nn.Module:
    """Returns the module that a configuration describes, computing in `dtype`."""
    networks = {
        UNetConfig: UNet,
        EfficientUNetConfig: EfficientUNet,
        ResidualUNetConfig: ResidualUNet,
        T5Config: T5Encoder,
    }
    return networks[type(config)](config, dtype)
