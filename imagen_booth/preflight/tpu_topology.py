"""TPUs by name: how many chips, of what kind, and a mesh over chips that are not there.

The compiler for TPUs comes with libtpu and runs on any machine: a program can be
compiled, and refused, for chips that nobody has yet paid for.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from imagen_booth.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, by its maker's figures.

    Attributes:
        flops: peak bf16 FLOP/s.
        bandwidth: of its memory, bytes/s.
        memory: of HBM, in GiB; a program may use a little less.
        dimensions: of the torus that chips form, 2 or 3.
        cores: what the number in a name such as v4-8 counts per chip.
        options: what libtpu needs to be told besides a shape.
    """

    flops: float
    bandwidth: float
    memory: int
    dimensions: int
    cores: int
    options: tuple[tuple[str, Any], ...] = ()


# Source: the pages of Google Cloud's TPU documentation on each generation, table
# "key specifications" (docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e).
CHIPS = {
    "v4": Chip(275e12, 1200e9, 32, 3, 2, (("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 819e9, 16, 2, 1),
    "v5p": Chip(459e12, 2765e9, 95, 3, 2, (("chip_config_name", "megacore"),)),
    "v6e": Chip(918e12, 1638e9, 32, 2, 1),
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}

# Shapes in which a number of chips is sold.
SLICES = {
    2: {
        1: (1, 1),
        4: (2, 2),
        8: (2, 4),
        16: (4, 4),
        32: (4, 8),
        64: (8, 8),
        128: (8, 16),
        256: (16, 16),
    },
    3: {
        4: (2, 2, 1),
        8: (2, 2, 2),
        16: (2, 2, 4),
        32: (2, 4, 4),
        64: (4, 4, 4),
        128: (4, 4, 8),
        256: (4, 8, 8),
        512: (8, 8, 8),
        1024: (8, 8, 16),
        2048: (8, 16, 16),
    },
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of chips in a shape.

    Attributes:
        kind: name in ``CHIPS``.
        shape: chips along each dimension.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What one of the chips can do."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """As libtpu calls it: ``v4:2x2x1``."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def parse(name: str) -> Topology:
    """A topology by its shape (``v4:2x2x1``) or as it is sold (``v4-8``).

    The number in a name that is sold counts cores for v4 and v5p, which have two on a
    chip, and chips for v5e and v6e.

    Raises:
        InputError: no such generation, size or shape.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)*)|-(\d+))", name.strip().lower())
    kind = ALIASES.get(match[1], match[1]) if match else ""
    if not match or kind not in CHIPS:
        raise InputError(
            f"--topology={name} is not known; give one of {', '.join(CHIPS)} with a "
            "shape, as in v4:2x2x1, or as it is sold, as in v4-8 or v5e-4"
        )
    chip = CHIPS[kind]
    if match[2]:
        shape = tuple(int(side) for side in match[2].split("x"))
        if len(shape) != chip.dimensions or 0 in shape:
            example = "x".join(map(str, SLICES[chip.dimensions][4]))
            raise InputError(
                f"--topology={name} has a shape of {len(shape)} sides; {kind} chips "
                f"form {chip.dimensions} dimensions of 1 or more, as in "
                f"{kind}:{example}"
            )
        return Topology(kind, shape)
    sizes = {
        chips * chip.cores: shape for chips, shape in SLICES[chip.dimensions].items()
    }
    count = int(match[3])
    if count not in sizes:
        single = f"; one chip alone is {kind}:1x1x1" if chip.dimensions == 3 else ""
        unit = "cores, two a chip" if chip.cores == 2 else "chips"
        raise InputError(
            f"--topology={name} is not sold: {kind} comes as "
            f"{', '.join(f'{kind}-{size}' for size in sizes)}, which counts {unit}"
            f"{single}"
        )
    return Topology(kind, sizes[count])


def prepare() -> None:
    """Lets jax work on the CPU alone, and libtpu look for no TPU.

    Comes before jax meets any device.

    Raises:
        InputError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "--topology needs the TPU compiler, libtpu, which is not installed; "
            "pip install 'imagen_booth[tpu]', no TPU is needed"
        )
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Else it asks a service that is not there what this machine is, and complains.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    # Its lock keeps two programs from one TPU; here there is none to keep them from.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    jax.config.update("jax_platforms", "cpu")
    # What is compiled for chips that are not there cannot be loaded again.
    jax.config.update("jax_enable_compilation_cache", False)


def devices(topology: Topology) -> list[Any]:
    """The chips of a topology, for the compiler to plan with.

    Raises:
        InputError: the compiler knows no such topology.
    """
    options: dict[str, Any] = dict(topology.chip.options)
    if topology.chips == 1:
        # Else the shape is to fill a host of four.
        options |= {"chips_per_host_bounds": (1, 1, 1), "num_slices": 1}
    try:
        return list(
            topologies.get_topology_desc(
                platform="tpu", topology_name=topology.name, **options
            ).devices
        )
    except jax.errors.JaxRuntimeError as error:
        told = str(error).splitlines()[0].partition(": ")[2]
        raise InputError(
            f"--topology={topology.name} is refused by the TPU compiler: {told}"
        ) from error
