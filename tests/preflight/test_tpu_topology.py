"""Names of TPUs, and the errors of wrong ones."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from paths import ROOT

from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.preflight import aot_compile, tpu_topology

LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize(
    ("name", "shape", "chips"),
    [
        ("v4:1x1x1", "v4:1x1x1", 1),
        ("v4:2x2x1", "v4:2x2x1", 4),
        ("v4-8", "v4:2x2x1", 4),
        ("v4-32", "v4:2x2x4", 16),
        ("v4-128", "v4:4x4x4", 64),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5e-1", "v5e:1x1", 1),
        ("v5e-4", "v5e:2x2", 4),
        ("v5litepod-16", "v5e:4x4", 16),
        ("V6E-1", "v6e:1x1", 1),
        ("v6e-256", "v6e:16x16", 256),
    ],
)
def test_names_as_sold_and_shapes(name, shape, chips):
    found = tpu_topology.parse(name)
    assert (found.name, found.chips) == (shape, chips)
    assert tpu_topology.parse(found.name) == found


def test_every_name_as_sold_has_its_number_of_chips():
    for kind, chip in tpu_topology.CHIPS.items():
        sizes = [1, 4, 8, 16, 32, 64, 128, 256]
        if chip.dimensions == 3:
            sizes = [*sizes[1:], 512, 1024, 2048]
        for chips in sizes:
            found = tpu_topology.parse(f"{kind}-{chips * chip.cores}")
            assert found.chips == chips
            assert len(found.shape) == chip.dimensions


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("v9-8", "v4, v5e, v5p, v6e"),
        ("tpu", "v4:2x2x1"),
        ("v4", "v4-8"),
        ("v4-7", "two a chip"),
        ("v4-2", "v4:1x1x1"),
        ("v5e-3", "v5e-4"),
        ("v4:2x2", "3 dimensions"),
        ("v5e:2x2x1", "2 dimensions"),
        ("v5e:0x4", "1 or more"),
        ("v4:2x2x1-8", "v4-8"),
    ],
)
def test_wrong_names_list_the_right_ones(name, why):
    with pytest.raises(InputError, match=f"--topology={name}") as caught:
        tpu_topology.parse(name)
    assert why in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_mesh_over_some_devices():
    some = jax.devices()[:2]
    mesh = sharding.make_mesh(-1, 2, some)
    assert mesh.shape == {"data": 1, "fsdp": 2}
    assert set(mesh.devices.flat) == set(some)
    with pytest.raises(InputError, match="the 2 devices there are"):
        sharding.make_mesh(1, 3, some)


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed here, and would be used")
def test_missing_compiler_is_one_sentence():
    before = jax.config.values["jax_enable_compilation_cache"]
    with pytest.raises(InputError, match=r"pip install 'imagen_booth\[tpu\]'"):
        tpu_topology.prepare()
    assert jax.config.values["jax_enable_compilation_cache"] == before


def test_command_ends_with_one_sentence():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "imagen_booth.doctor",
            "--config=configs/dog.py:imagen",
            "--topology=v4-9",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert "v4-9 is not sold" in sentence


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
class TestCompiler:
    """Figures of the TPU compiler, which needs no TPU."""

    @pytest.mark.parametrize("kind", tpu_topology.CHIPS)
    def test_usable_memory(self, kind):
        """A program far too large is refused, and the message has the figure."""
        tpu_topology.prepare()
        chip = tpu_topology.CHIPS[kind]
        topology = tpu_topology.Topology(kind, (1,) * chip.dimensions)
        mesh = sharding.make_mesh(1, 1, tpu_topology.devices(topology))
        huge = jax.ShapeDtypeStruct(
            (2**32, 2**10), jnp.float32, sharding=sharding.copies(mesh)
        )
        with pytest.raises(jax.errors.JaxRuntimeError) as caught:
            jax.jit(lambda x: x + 1.0).lower(huge).compile()
        usable = aot_compile.parse_refusal(str(caught.value)).usable
        assert usable / 2**30 == pytest.approx(chip.memory, abs=0.01)

    @pytest.mark.parametrize("name", ["v4-8", "v4-32", "v5e-16", "v6e-8"])
    def test_chips_of_what_is_sold(self, name):
        tpu_topology.prepare()
        wanted = tpu_topology.parse(name)
        assert len(tpu_topology.devices(wanted)) == wanted.chips

    def test_shape_that_the_compiler_refuses(self):
        tpu_topology.prepare()
        with pytest.raises(InputError, match="v4:3x3x3 is refused"):
            tpu_topology.devices(tpu_topology.parse("v4:3x3x3"))
