"""Runs the suite on four fake CPU devices with strict promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# grain's workers and etils read absl flags, which only app.run would parse.
flags.FLAGS(["pytest"], known_only=True)


@pytest.fixture
def key():
    return jax.random.key(0)
