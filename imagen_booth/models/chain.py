"""Blocks in a row: one after the other, or those that are alike as one loop.

A loop is compiled once however long it is. Its blocks' parameters are stacked on a
leading axis: `layers_1_3/resnets` holds `resnets_1`, `resnets_2` and `resnets_3`.
"""

import itertools
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Layer = Callable[[str, jax.Array, jax.Array | None, Any], jax.Array]


def chain(
    module: nn.Module,
    layer: Layer,
    h: jax.Array,
    skips: Sequence[jax.Array | None],
    context: Any,
    *,
    features: int,
    scan: bool,
    remat: bool,
) -> list[jax.Array]:
    """Applies a layer once per skip, each time to the output of the time before.

    Args:
      module: whose compact `__call__` this is.
      layer: layer(suffix, h, skip, context) -> h of `features` channels. It makes its
        own submodules, whose names end in `suffix`.
      h: input of the first layer.
      skips: what each layer is given besides, or Nones.
      context: pytree of arrays that every layer sees.
      features: channels of each layer's output.
      scan: make runs of layers with equal input shapes one loop.
      remat: recompute each layer in the backward pass instead of storing it.

    Returns:
      The output of every layer.
    """
    channels = [h.shape[-1]] + [features] * (len(skips) - 1)
    shapes = [
        (c, None if skip is None else skip.shape)
        for c, skip in zip(channels, skips, strict=True)
    ]
    outputs = []
    for first, last in _runs(shapes):
        if scan and first < last:
            step = nn.remat(_Step, prevent_cse=False) if remat else _Step
            loop = nn.scan(
                step,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=last - first + 1,
            )(layer, name=f"layers_{first}_{last}")
            run = [skip for skip in skips[first : last + 1] if skip is not None]
            h, hs = loop(h, jnp.stack(run) if run else None, context)
            outputs.extend(hs)
            continue
        for i in range(first, last + 1):

            def apply(module, h, skip, context, i=i):
                return layer(f"_{i}", h, skip, context)

            h = (nn.remat(apply) if remat else apply)(module, h, skips[i], context)
            outputs.append(h)
    return outputs


class _Step(nn.Module):
    """A layer as a module of its own; its output twice, as `nn.scan` wants it."""

    layer: Layer

    @nn.compact
    def __call__(self, h: jax.Array, skip: jax.Array | None, context: Any):
        h = self.layer("", h, skip, context)
        return h, h


def _runs(shapes: Sequence) -> Iterator[tuple[int, int]]:
    """First and last index of each longest run of equal items."""
    for _, group in itertools.groupby(range(len(shapes)), lambda i: shapes[i]):
        indices = list(group)
        yield indices[0], indices[-1]


def stack(params: dict, like: dict) -> dict:
    """Params of a network without `scan` -> those of the same one with it.

    Args:
      params: nested dict of arrays.
      like: nested dict with the names wanted, such as `jax.eval_shape` of the other
        network's init gives; its leaves are not read.
    """
    stacked = {}
    for name, node in like.items():
        if indices := _indices(name):
            for kind in node:
                parts = [params[f"{kind}_{i}"] for i in indices]
                loop = stacked.setdefault(name, {})
                loop[kind] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        elif isinstance(node, dict):
            stacked[name] = stack(params[name], node)
        else:
            stacked[name] = params[name]
    return stacked


def unstack(params: dict) -> dict:
    """Inverse of `stack`."""
    plain = {}
    for name, node in params.items():
        if indices := _indices(name):
            for (n, i), (kind, leaves) in itertools.product(
                enumerate(indices), node.items()
            ):
                plain[f"{kind}_{i}"] = jax.tree.map(operator.itemgetter(n), leaves)
        else:
            plain[name] = unstack(node) if isinstance(node, dict) else node
    return plain


def _indices(name: str) -> range:
    """The layers that a loop's name stands for; none for another name."""
    match = re.fullmatch(r"layers_(\d+)_(\d+)", name)
    return range(int(match[1]), int(match[2]) + 1) if match else range(0)
