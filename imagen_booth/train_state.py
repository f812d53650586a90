"""The training state, and the one rule for which parameters train.

Parameters are a plain nested dict ``{"unet": ..., "text": ...?, "adapter": ...?}``.
Patterns over paths choose what trains; the optimizer and the moving average hold only
that part.
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
    """Everything a step changes, and the frozen parameters.

    Attributes:
        step: Steps taken, [] int32.
        trainable: The part of the parameter tree that is trained.
        frozen: The rest of the tree; its paths are disjoint from ``trainable``.
        opt_state: The optimizer's state over ``trainable`` alone.
        ema: Uncorrected moving sum over ``trainable`` (see ``ema_params``), or None.
    """

    step: Array
    trainable: Params
    frozen: Params
    opt_state: Any
    ema: Params | None


def flatten(tree: Params) -> dict[str, Any]:
    """Turns a nested dict into ``{"a/b/c": leaf}``."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> Params:
    """Inverse of ``flatten``."""
    return traverse_util.unflatten_dict(flat, sep="/")


def split(params: Params, patterns: tuple[str, ...]) -> tuple[Params, Params]:
    """Splits a tree into (trainable, frozen) by full-match path patterns.

    Args:
        params: Nested dict of arrays or shapes.
        patterns: Regular expressions over paths, such as ``unet/.*``.

    Raises:
        InputError: A pattern matches no parameter.
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
    """Inverse of ``split``: one tree of trainable and frozen parameters."""
    return unflatten(flatten(trainable) | flatten(frozen))


def create(
    params: Params,
    patterns: tuple[str, ...],
    optimizer: optax.GradientTransformation,
    ema: bool,
) -> TrainState:
    """Makes the state at step 0; works on arrays and under ``jax.eval_shape``.

    Args:
        params: All parameters, ``{"unet": ..., "text": ...?, "adapter": ...?}``.
        patterns: Regular expressions over the paths that train, see ``split``.
        optimizer: Its state covers the trainable parameters alone.
        ema: Whether to keep a moving average of the trainable parameters.

    Raises:
        InputError: A pattern matches no parameter.
    """
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

    With a moving average, these are the bias-corrected mean of the weights so far,
    ``ema / (1 - decay^step)`` (the correction of Adam, Kingma & Ba 2015, sec. 3).
    Without the correction, a thousand steps at 0.9999 would leave 90 % of the
    starting zeros. At step 0, and without an average, these are the parameters.

    Args:
        state: The state, at any step.
        decay: Decay of the average, in (0, 1); unused where there is none.
    """
    if state.ema is None:
        return merge(state.trainable, state.frozen)
    # expm1, because 1 - decay^step loses digits where decay is near 1.
    steps = state.step.astype(jnp.float32)
    correction = -jnp.expm1(steps * math.log(decay))
    mean = jax.tree.map(
        lambda leaf, param: jnp.where(
            state.step == 0, param, (leaf / correction).astype(leaf.dtype)
        ),
        state.ema,
        state.trainable,
    )
    return merge(mean, state.frozen)
