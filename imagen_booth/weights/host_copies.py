"""Loads each part of a cascade once in a job of many runs.

Training consumes the arrays of a part that it loads. So a copy of them stays in the
memory of each host, shard by shard, and every later run places that on its devices.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from imagen_booth.cascade import Cascade
from imagen_booth.distributed import sharding
from imagen_booth.weights.load import Part, load


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


class HostCopies:
    """The parts that a job has loaded, in the memory of this host."""

    def __init__(self) -> None:
        self._parts: dict[Any, Part] = {}

    def load(
        self,
        cascade: Cascade,
        name: str,
        source: str,
        mesh: jax.sharding.Mesh,
        dtype: Any,
        rules: Sequence[sharding.Rule] = (),
        *,
        train: bool = True,
    ) -> Part:
        """As ``weights.load.load``; files are read the first time alone."""
        key = (cascade, name, source, mesh, dtype, tuple(rules), train)
        held = self._parts.get(key)
        if held is None:
            part = load(cascade, name, source, mesh, dtype, rules, train=train)
            copies = jax.tree.map(_to_host, part.params)
            self._parts[key] = dataclasses.replace(part, params=copies)
            return part
        params = jax.tree.map(_HostArray.placed, held.params)
        return dataclasses.replace(held, params=params)


def _to_host(array: jax.Array) -> _HostArray:
    shards = {}
    for shard in array.addressable_shards:
        if str(shard.index) not in shards:
            shards[str(shard.index)] = np.array(shard.data)
    return _HostArray(array.shape, array.sharding, shards)
