"""The mesh, and the one rule that shards parameters over it.

The batch is split over both axes of the mesh.  Every large array is split along
its largest divisible dimension over ``fsdp`` (ZeRO-3); small ones are copies.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_booth.errors import InputError

AXES = ("data", "fsdp")
SMALL = 2**16  # elements; below this a copy is cheaper than gathering


def make_mesh(
    data: int = -1, fsdp: int = 1, among: Sequence[Any] | None = None
) -> Mesh:
    """A ``('data', 'fsdp')`` mesh over all devices.

    Args:
        data: copies of the parameters; -1 for whatever the other leaves.
        fsdp: devices that share one copy; -1 for whatever the other leaves.
        among: the devices; None for those that there are.

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    devices = len(jax.devices() if among is None else among)
    if data == -1 and fsdp > 0 and devices % fsdp == 0:
        data = devices // fsdp
    elif fsdp == -1 and data > 0 and devices % data == 0:
        fsdp = devices // data
    if data < 1 or fsdp < 1 or data * fsdp != devices:
        raise InputError(
            f"config.mesh=(data={data}, fsdp={fsdp}) does not use the {devices} "
            "devices there are; give two sizes whose product is that number, or -1 "
            "for one of them"
        )
    # Explicit axes, jax's default, refuse the U-Nets' convolutions.
    return jax.make_mesh(
        (data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=among
    )


def spec_of(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where an array of this shape is cut: the largest dimension that divides."""
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1 or int(np.prod(shape)) < SMALL:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda a: shape[a], reverse=True):
        if shape[axis] % fsdp == 0:
            return PartitionSpec(*([None] * axis), "fsdp")
    return PartitionSpec()


def tree_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Shardings for a tree of shapes, by ``spec_of``."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec_of(leaf.shape, mesh)), abstract
    )


def rows(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def copies(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_rows(local: Any, mesh: Mesh) -> Any:
    """This process's rows (numpy, first axis) to global arrays over the mesh."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(rows(mesh), leaf), local
    )


def put_copies(tree: Any, mesh: Mesh) -> Any:
    """Small arrays, the same on every process, to every device."""
    return jax.device_put(tree, copies(mesh))


def fetch(array: jax.Array) -> np.ndarray:
    """A global array as numpy on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
