"""The training state, and the one rule for which parameters train.

Parameters are a plain nested dict ``{"unet": ..., "text": ...?}``.  What trains
is a choice of paths; the optimizer and the moving average hold only those.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array

from imagen_booth.errors import InputError

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step changes, and the frozen parameters beside it.

    Attributes:
        step: [] int32, steps taken.
        trainable: the part of the parameter tree that is trained.
        frozen: the rest of the tree; disjoint paths from ``trainable``.
        opt_state: the optimizer's state over ``trainable`` alone.
        ema: raw moving sum over ``trainable`` (see ``ema_params``), or None.
    """

    step: Array
    trainable: Params
    frozen: Params
    opt_state: Any
    ema: Params | None


def flatten(tree: Params) -> dict[str, Any]:
    """Nested dict to ``{"a/b/c": leaf}``."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> Params:
    """Inverse of ``flatten``."""
    return traverse_util.unflatten_dict(flat, sep="/")


def split(params: Params, patterns: tuple[str, ...]) -> tuple[Params, Params]:
    """Splits a tree into (trainable, frozen) by full-match path patterns.

    Args:
        params: nested dict of arrays or shapes.
        patterns: regular expressions over paths such as ``unet/.*``.

    Raises:
        InputError: a pattern matches no parameter.
    """
    flat = flatten(params)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in flat):
            raise InputError(
                f"trainable pattern {pattern!r} matches no parameter; paths look like "
                f"{sorted(flat)[0]!r}"
            )
    chosen = {
        path
        for path in flat
        if any(re.fullmatch(pattern, path) for pattern in patterns)
    }
    return (
        unflatten({path: leaf for path, leaf in flat.items() if path in chosen}),
        unflatten({path: leaf for path, leaf in flat.items() if path not in chosen}),
    )


def merge(trainable: Params, frozen: Params) -> Params:
    """Inverse of ``split``."""
    return unflatten(flatten(trainable) | flatten(frozen))


def create(
    params: Params,
    patterns: tuple[str, ...],
    optimizer: optax.GradientTransformation,
    ema: bool,
) -> TrainState:
    """State at step 0; works on arrays and under ``jax.eval_shape``."""
    trainable, frozen = split(params, patterns)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=frozen,
        opt_state=optimizer.init(trainable),
        ema=jax.tree.map(jnp.zeros_like, trainable) if ema else None,
    )


def ema_params(state: TrainState, decay: float) -> Params:
    """The parameters to use for inference.

    With a moving average, the bias-corrected mean of the weights so far,
    ``ema / (1 - decay^step)`` (the correction of Adam, Kingma & Ba 2015, sec. 3):
    without it a thousand steps at 0.9999 would leave 90 % of the starting zeros.
    Without one, the parameters themselves.
    """
    if state.ema is None:
        return merge(state.trainable, state.frozen)
    # expm1, because 1 - decay^step loses digits where decay is near 1.
    steps = state.step.astype(jnp.float32)
    correction = -jnp.expm1(steps * math.log(decay))
    mean = jax.tree.map(lambda leaf: (leaf / correction).astype(leaf.dtype), state.ema)
    return merge(mean, state.frozen)
