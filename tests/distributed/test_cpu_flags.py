"""Flags of XLA and the C library: applied where they help, never over the user's."""

import os
import platform
import subprocess
import sys

import pytest

from imagen_booth.distributed import cpu_flags

OURS = (
    "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, OURS),
        (
            "--xla_cpu_enable_fast_math=false",
            f"--xla_cpu_enable_fast_math=false {OURS}",
        ),
        ("--xla_cpu_experimental_ynn_fusion_type=", None),
    ],
)
def test_the_flag_is_added_to_the_users_flags(before, after):
    environment = {} if before is None else {"XLA_FLAGS": before}
    cpu_flags.prefer_fast_convolutions(environment)
    assert environment["XLA_FLAGS"] == (before if after is None else after)
    cpu_flags.prefer_fast_convolutions(environment)
    assert environment["XLA_FLAGS"] == (before if after is None else after)


def test_an_accelerator_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu_flags, "_ACCELERATORS", ("json",))
    monkeypatch.setattr(cpu_flags, "keep_memory", lambda: pytest.fail("was called"))
    monkeypatch.setattr(
        cpu_flags, "run_in_the_calling_thread", lambda _: pytest.fail("was called")
    )
    environment = {}
    cpu_flags.prefer_speed(environment)
    assert environment == {}


# Allocates and frees 512 MiB three times; prints the page faults of the last time.
THRICE = """
import resource
import numpy as np
from imagen_booth.distributed import cpu_flags

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {keep}:
    assert cpu_flags.keep_memory()
for _ in range(3):
    before = faults()
    np.ones(2**29, np.uint8)
    last = faults() - before
print(last)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has it")
def test_memory_stays_with_the_process():
    def faults(keep):
        done = subprocess.run(
            [sys.executable, "-c", THRICE.format(keep=keep)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    assert faults(keep=True) * 2 < faults(keep=False)


# Runs a program with 256 MiB of intermediates three times; prints as above.
PRODUCT = "lambda x: (jnp.sin(jnp.outer(x, x)) @ x).sum()", (2**13,)
ATTENTION = "lambda x: layers.attend(x, x, x, None).sum()", (8, 2048, 2, 64)
PROGRAM = """
import os, resource
import jax, jax.numpy as jnp
from imagen_booth.distributed import cpu_flags
from imagen_booth.models import layers

cpu_flags.keep_memory()
cpu_flags.run_in_the_calling_thread(os.environ)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

step = jax.jit({program})
for _ in range(3):
    before = faults()
    step(jnp.ones({shape})).block_until_ready()
    last = faults() - before
print(last)
"""


def faults(program, shape, **users):
    """Pages that the third run of a program gets from the system."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(program=program, shape=shape)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | users,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


PAGES = 2**28 // os.sysconf("SC_PAGE_SIZE")
ON_GLIBC = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc has it"
)


@ON_GLIBC
def test_the_memory_of_a_program_stays_with_the_process():
    # On a busy machine another thread takes the work in one process of five.
    assert min(faults(*PRODUCT) for _ in range(3)) < PAGES / 10
    # The user's own word is kept, and shows what the setting is for.
    assert faults(*PRODUCT, JAX_CPU_ENABLE_ASYNC_DISPATCH="true") > PAGES / 2


@ON_GLIBC
def test_attention_takes_no_memory_from_the_system():
    assert faults(*ATTENTION) < PAGES / 10


def test_this_jax_knows_the_flag():
    # XLA ends the process that names a flag it does not know.
    program = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    environment = os.environ | {"XLA_FLAGS": OURS, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
