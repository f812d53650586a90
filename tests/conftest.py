"""Runs the suite on four fake CPU devices with strict promotion.

TEST_PLATFORMS=cuda,cpu and JAX_DEFAULT_MATMUL_PRECISION=highest run it on a GPU.
"""

import os
import tempfile

import jax
import pytest
from absl import flags

# Programs are compiled once per session; the commands that tests start share them.
_programs = tempfile.TemporaryDirectory()
_settings = {
    "jax_platforms": os.environ.get("TEST_PLATFORMS", "cpu"),
    "jax_num_cpu_devices": 4,
    "jax_compilation_cache_dir": _programs.name,
    "jax_persistent_cache_min_compile_time_secs": 0.3,
    # Compiling takes most of the time: programs are small and run a few times.
    "jax_disable_most_optimizations": True,
}
for _name, _value in _settings.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)
# Where others may write, no stored program is read: tests replace functions that one
# would hold as they were.
os.mkdir(os.path.join(_programs.name, "programs"))
os.chmod(os.path.join(_programs.name, "programs"), 0o777)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# grain's workers and etils read absl flags, which only app.run would parse.
flags.FLAGS(["pytest"], known_only=True)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """A module's programs leave memory with it."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)
