"""Flags of XLA: only where they help, and never against the user's own."""

import os
import subprocess
import sys

import pytest

from imagen_booth import cpu

OURS = (
    "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
)


@pytest.fixture
def bare(monkeypatch):
    """As if support for no accelerator were installed."""
    monkeypatch.setattr(cpu, "_ACCELERATORS", ("a_module_that_is_not_there",))


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
def test_the_flag_joins_what_the_user_said(bare, before, after):
    environment = {} if before is None else {"XLA_FLAGS": before}
    cpu.prefer_fast_convolutions(environment)
    assert environment["XLA_FLAGS"] == (before if after is None else after)
    cpu.prefer_fast_convolutions(environment)
    assert environment["XLA_FLAGS"] == (before if after is None else after)


def test_an_accelerator_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu, "_ACCELERATORS", ("json",))
    environment = {}
    cpu.prefer_fast_convolutions(environment)
    assert environment == {}


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
