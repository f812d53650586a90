"""The mesh, and the one rule that shards parameters over it.

The batch is split over both axes of the mesh. A large array is split over ``fsdp``
along its largest divisible dimension (ZeRO-3); small ones are replicated. Rules of a
config, ``(pattern, spec)``, come first: the first pattern that matches the path of a
parameter decides how it is split. Its optimizer state and average are split alike.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_booth.errors import InputError

AXES = ("data", "fsdp")
PARTS = ("unet", "text")  # the first name in the path of a parameter
SMALL = 2**16  # elements; below this a copy is cheaper than gathering
ROOM = 0.7  # share of a device's memory for resident arrays; activations use the rest

Rule = tuple[str, tuple[str | None, ...]]


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    among: Sequence[Any] | None = None,
    *,
    need: int = 0,
    memory: int | None = None,
) -> Mesh:
    """A ``('data', 'fsdp')`` mesh over all devices.

    Args:
        data: Copies of the parameters; -1 for devices / fsdp.
        fsdp: Devices that share one copy; -1 for devices / data; 0 for the fewest
            that hold ``need`` in ``ROOM`` of their memory, or all of them.
        among: Devices of the mesh; None for those of this job.
        need: Bytes of one copy of all resident arrays.
        memory: Bytes of one device; None, where unknown, counts as enough.

    Raises:
        InputError: The product of the sizes is not the number of devices.
    """
    devices = len(jax.devices() if among is None else among)
    if fsdp == 0:
        free = devices // data if data > 0 else devices
        sizes = [size for size in range(1, free + 1) if free % size == 0]
        fits = [size for size in sizes if memory and need / size <= ROOM * memory]
        fsdp = free if data > 0 else fits[0] if fits else free if memory else 1
    if data == -1 and fsdp > 0 and devices % fsdp == 0:
        data = devices // fsdp
    elif fsdp == -1 and data > 0 and devices % data == 0:
        fsdp = devices // data
    if data < 1 or fsdp < 1 or data * fsdp != devices:
        raise InputError(
            f"config.mesh=(data={data}, fsdp={fsdp}) does not use the {devices} "
            "devices there are; give two sizes whose product is that number, or -1 "
            "for one of them, or fsdp=0 to choose it automatically"
        )
    # Explicit axes, jax's default, refuse the U-Nets' convolutions.
    return jax.make_mesh(
        (data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=among
    )


def spec_of(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How an array of this shape is split: along its largest divisible dimension."""
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1 or int(np.prod(shape)) < SMALL:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda a: shape[a], reverse=True):
        if shape[axis] % fsdp == 0:
            return PartitionSpec(*([None] * axis), "fsdp")
    return PartitionSpec()


def spec_at(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[Rule] = ()
) -> PartitionSpec:
    """How the parameter at ``path`` is split: by the first rule for it, or ``spec_of``.

    Args:
        path: Path of the parameter, such as ``unet/down_0/conv/kernel``.
        rules: Patterns that match a whole path, each with the mesh axis, or None, that
            each dimension is split over.

    Raises:
        InputError: The shape cannot follow its rule.
    """
    for number, (pattern, spec) in enumerate(rules):
        if not re.fullmatch(pattern, path):
            continue
        where = f"config.mesh.rules[{number}]={(pattern, spec)!r}"
        if len(spec) != len(shape):
            raise InputError(
                f"{where} names {len(spec)} dimensions, but {path} has the shape "
                f"{shape}; name an axis or None for each of them"
            )
        for size, axis in zip(shape, spec, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"{where} splits a dimension of {size} of {path} over {axis}, "
                    f"which has {mesh.shape[axis]} devices; name a dimension that "
                    "they divide"
                )
        while spec and spec[-1] is None:
            spec = spec[:-1]
        return PartitionSpec(*spec)
    return spec_of(shape, mesh)


def tree_shardings(
    abstract: Any, mesh: Mesh, rules: Sequence[Rule] = (), part: str = ""
) -> Any:
    """Shardings for a tree of shapes, by ``spec_at``.

    Optimizer state of a parameter's shape is sharded like the parameter.

    Args:
        abstract: Parameters, or a ``TrainState``.
        part: ``unet`` or ``text`` if the tree holds the parameters of that part alone.

    Raises:
        InputError: A parameter cannot follow its rule.
    """

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [part] if part else []
        names += [str(_name(key)) for key in keys]
        start = next((i for i, name in enumerate(names) if name in PARTS), None)
        path = "" if start is None else "/".join(names[start:])
        try:
            spec = spec_at(path, leaf.shape, mesh, rules if path else ())
        except InputError:
            if "opt_state" not in names[:start]:
                raise
            spec = spec_of(leaf.shape, mesh)  # a factor of its parameter's moments
        return NamedSharding(mesh, spec)

    return jax.tree.map_with_path(place, abstract)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with the shardings of another tree."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        shardings,
    )


def sharded_shapes(
    shapes: Any, mesh: Mesh, rules: Sequence[Rule] = (), part: str = ""
) -> Any:
    """A tree of shapes with the shardings of ``tree_shardings``."""
    return with_shardings(shapes, tree_shardings(shapes, mesh, rules, part))


def _name(key: Any) -> Any:
    """Name of one entry of a tree path: a dict's key, a field, or an index."""
    for kind in ("key", "name", "idx"):
        if hasattr(key, kind):
            return getattr(key, kind)
    raise TypeError(f"{key!r} is not an entry of a tree path")


def rows(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def copies(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def put_rows(local: Any, mesh: Mesh) -> Any:
    """Makes global arrays of this process's rows (numpy, first axis)."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(rows(mesh), leaf), local
    )


def put_copies(tree: Any, mesh: Mesh) -> Any:
    """Copies small arrays, equal on every process, to every device."""
    return jax.device_put(tree, copies(mesh))


def fetch(array: jax.Array) -> np.ndarray:
    """A global array as numpy on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
