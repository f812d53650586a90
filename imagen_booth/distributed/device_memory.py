"""How much memory a device has, and how many bytes arrays take on each."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from imagen_booth.distributed import sharding


def size(tree: Any) -> int:
    """Bytes of a tree of shapes, counted once."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def size_per_device(
    tree: Any,
    mesh: jax.sharding.Mesh,
    rules: Sequence[sharding.Rule] = (),
    part: str = "",
) -> int:
    """Bytes of a tree of shapes on each device, placed as parameters are.

    Args:
        rules, part: as ``sharding.tree_shardings`` takes them.
    """
    return held(sharding.laid(tree, mesh, rules, part))


def held(tree: Any) -> int:
    """Bytes on each device of a tree of shapes that have their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def available() -> int | None:
    """Bytes that one device may use, or None where the backend does not tell.

    The devices of a CPU share the machine's memory.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
        return pages * os.sysconf("SC_PAGE_SIZE")
    return (device.memory_stats() or {}).get("bytes_limit")
