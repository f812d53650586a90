"""TPUs by name: chips, their number and shape, and devices to compile for.

The compiler for TPUs comes with libtpu and runs on any machine: it compiles a program,
or refuses it, for chips that need not be there.
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


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, with its maker's figures.

    Attributes:
        flops: Peak bf16 FLOP/s.
        bandwidth: Memory bandwidth in bytes/s.
        memory: GiB that a program may use, as the compiler of libtpu 0.0.42 reports it.
        dimensions: Dimensions of the torus that chips form, 2 or 3.
        cores: Cores a chip in the number of a name such as v4-8; v5e and v6e count
            chips.
        options: What libtpu needs besides a shape.
    """

    flops: float
    bandwidth: float
    memory: float
    dimensions: int
    cores: int
    options: tuple[tuple[str, Any], ...] = ()


# Source: the pages of Google Cloud's TPU documentation on each generation, table
# "key specifications" (docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e).
CHIPS = {
    "v4": Chip(275e12, 1200e9, 30.75, 3, 2, (("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 819e9, 15.75, 2, 1),
    "v5p": Chip(459e12, 2765e9, 95.74, 3, 2, (("chip_config_name", "megacore"),)),
    "v6e": Chip(918e12, 1638e9, 31.25, 2, 1),
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}

# Shapes that are sold, by the dimensions of the torus.
SHAPES = {
    2: "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    3: "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of chips in a shape.

    Attributes:
        kind: Name in ``CHIPS``.
        shape: Chips along each dimension.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """The kind of its chips."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """Name that libtpu uses: ``v4:2x2x1``."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def sold(kind: str) -> dict[str, Topology]:
    """Topologies of a kind of chip by the name under which they are sold, ``v4-8``."""
    found = {}
    for shape in SHAPES[CHIPS[kind].dimensions].split():
        topology = Topology(kind, _sides(shape))
        found[f"{kind}-{topology.chips * CHIPS[kind].cores}"] = topology
    return found


def parse(name: str) -> Topology:
    """A topology by its shape (``v4:2x2x1``) or by the name that is sold (``v4-8``).

    Raises:
        InputError: There is no such generation, size or shape.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)*)|-(\d+))", name.strip().lower())
    kind = ALIASES.get(match[1], match[1]) if match else ""
    if not match or kind not in CHIPS:
        raise InputError(
            f"--topology={name} is not known; give one of {', '.join(CHIPS)} with a "
            "shape, such as v4:2x2x1, or a name as sold, such as v4-8 or v5e-4"
        )
    dimensions, cores = CHIPS[kind].dimensions, CHIPS[kind].cores
    if match[2]:
        shape = _sides(match[2])
        if len(shape) != dimensions or 0 in shape:
            raise InputError(
                f"--topology={name} has {len(shape)} dimensions; {kind} chips form "
                f"{dimensions} dimensions of 1 or more, such as "
                f"{kind}:{SHAPES[dimensions].split()[-1]}"
            )
        return Topology(kind, shape)
    found = sold(kind).get(f"{kind}-{int(match[3])}")
    if found is None:
        single = f"; a single chip is {kind}:1x1x1" if dimensions == 3 else ""
        raise InputError(
            f"--topology={name} is not sold: {kind} comes as {', '.join(sold(kind))}, "
            f"which counts {'cores, two a chip' if cores == 2 else 'chips'}{single}"
        )
    return found


def _sides(shape: str) -> tuple[int, ...]:
    return tuple(map(int, shape.split("x")))


def prepare() -> None:
    """Restricts jax to the CPU and keeps libtpu from looking for a TPU.

    Call it before jax initialises its devices.

    Raises:
        InputError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "--topology needs the TPU compiler, libtpu, which is not installed; "
            "pip install 'imagen_booth[tpu]', no TPU is needed"
        )
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Otherwise libtpu queries a metadata server, which is missing, and complains.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    # Its lock keeps two programs from using one TPU; here no TPU is used.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    jax.config.update("jax_platforms", "cpu")
    # A program compiled for absent chips cannot be loaded from the cache.
    jax.config.update("jax_enable_compilation_cache", False)


def devices(topology: Topology) -> list[Any]:
    """The chips of a topology, as devices to compile for.

    Raises:
        InputError: The compiler knows no such topology.
    """
    options: dict[str, Any] = dict(topology.chip.options)
    if topology.chips == 1:
        # Otherwise the shape has to fill a host of four.
        options |= {"chips_per_host_bounds": (1, 1, 1), "num_slices": 1}
    try:
        return list(
            topologies.get_topology_desc(
                platform="tpu", topology_name=topology.name, **options
            ).devices
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise InputError(
            f"--topology={topology.name} is refused by the TPU compiler: {reason}"
        ) from error
