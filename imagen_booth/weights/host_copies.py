"""Lets a job of many runs read each part of a cascade once.

Training consumes the arrays of a part that it loads. So a copy of them stays in the
memory of each host, shard by shard, and every later run places that on its devices.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# Loaded parts by what they were loaded from, while a job shares them, else None.
_shared: dict[Any, Any] | None = None


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Lets ``weights.load.load`` read the same part once in this context."""
    global _shared
    before, _shared = _shared, {} if _shared is None else _shared
    try:
        yield
    finally:
        _shared = before


def through(key: Any, read: Callable[[], Any]) -> Any:
    """A part with its parameters on the devices; from the copy if there is one.

    Args:
        key: What the part is loaded from.
        read: Reads it.
    """
    if _shared is None:
        return read()
    if key not in _shared:
        part = read()
        copies = jax.tree.map(_to_host, part.params)
        _shared[key] = dataclasses.replace(part, params=copies)
        return part
    part = _shared[key]
    params = jax.tree.map(_HostArray.placed, part.params)
    return dataclasses.replace(part, params=params)


@dataclasses.dataclass(frozen=True, eq=False)
class _HostArray:
    """An array's shards on this host, by their place in it."""

    shape: tuple[int, ...]
    sharding: jax.sharding.Sharding
    shards: dict[str, np.ndarray]

    def placed(self) -> jax.Array:
        # Copied, because jax may use the memory of numpy arrays that it is given.
        return jax.make_array_from_callback(
            self.shape, self.sharding, lambda index: self.shards[str(index)].copy()
        )


def _to_host(array: jax.Array) -> _HostArray:
    shards = {}
    for shard in array.addressable_shards:
        if str(shard.index) not in shards:
            shards[str(shard.index)] = np.array(shard.data)
    return _HostArray(array.shape, array.sharding, shards)
