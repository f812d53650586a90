"""Runs the suite on four fake CPU devices with strict promotion."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs are compiled once per session; the commands that tests start share them.
_programs = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

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
