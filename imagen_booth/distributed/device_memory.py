"""Memory of a device, and the bytes that arrays take on it."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from imagen_booth.distributed import sharding


def size(tree: Any) -> int:
    """Bytes of one copy of a tree of shapes."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def size_per_device(
    tree: Any,
    mesh: jax.sharding.Mesh,
    rules: Sequence[sharding.Rule] = (),
    part: str = "",
) -> int:
    """Bytes on each device of a tree of shapes that is sharded like parameters.

    Args:
        rules, part: As in ``sharding.tree_shardings``.
    """
    return held(sharding.sharded_shapes(tree, mesh, rules, part))


def held(tree: Any) -> int:
    """Bytes on each device of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def available() -> int | None:
    """Bytes that one device may use; None if the backend does not report it.

    The devices of a CPU share the machine's memory.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
        return pages * os.sysconf("SC_PAGE_SIZE")
    return (device.memory_stats() or {}).get("bytes_limit")
