"""What a job costs, told from shapes alone: bytes on each device, and arithmetic."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from imagen_booth import optim, sharding, state, steps
from imagen_booth.cascade import Cascade
from imagen_booth.job import Tuning
from imagen_booth.stage import Stage
from imagen_booth.weights.load import network, shapes
from imagen_booth.work import flops

Shapes = dict[str, jax.ShapeDtypeStruct]

BACKWARD = 2  # the backward pass does twice the arithmetic of the forward one


@dataclasses.dataclass(frozen=True)
class StageCost:
    """One stage by its shapes.

    Attributes:
        params: parameter tree of shapes.
        training: ``TrainState`` of shapes; None where it is not tuned.
        batch: shapes of the rows of one step; empty where it is not tuned.
        row_flops: of one forward pass on one image at the stage's resolution.
        step_flops: of one optimizer step; 0 where it is not tuned.
    """

    params: state.Params
    training: Any
    batch: Shapes
    row_flops: float
    step_flops: float


def stage_cost(
    cascade: Cascade, stage: Stage, tuning: Tuning, devices: int
) -> StageCost:
    """Shapes and arithmetic of a stage; nothing is computed or allocated.

    The loss is traced as a step traces it, so settings that a step would refuse are
    refused here.

    Args:
        tuning: 0 steps leave the stage as it came.
        devices: what the rows of a batch are divided over.

    Raises:
        InputError: an optimizer, rate or loss weighting that is not known.
    """
    _, apply = network(cascade, stage.name, jnp.float32)
    params = shapes(cascade, stage.name)
    training = training_shapes(params, tuning.optim, tuning.steps)
    config = steps.LossConfig(tuning.weighting, tuning.hybrid)

    def loss(params: state.Params, batch: steps.Batch) -> Any:
        return steps.batch_loss(
            stage, apply, None, config, params, batch, jax.random.key(0)
        )

    one = batch_shapes(cascade, stage, 1)
    forward = flops(loss, {"unet": params}, one)
    row_flops = forward * (stage.resolution / stage.train_size) ** 2
    if tuning.steps == 0:
        return StageCost(params, None, {}, row_flops, 0.0)
    multiple = devices * tuning.accumulate
    rows = -(-(tuning.subject_rows + tuning.class_rows) // multiple) * multiple
    return StageCost(
        params,
        training,
        batch_shapes(cascade, stage, rows),
        row_flops,
        forward * rows * (1 + BACKWARD + stage.model.remat),
    )


def training_shapes(unet: Any, config: optim.OptimConfig, steps: int) -> Any:
    """The ``TrainState`` of a stage, as shapes.

    Args:
        unet: shapes of its parameters.
        steps: of the training.

    Raises:
        InputError: an optimizer or rate that is not known.
    """
    optimizer = optim.build(config, steps)
    return jax.eval_shape(
        lambda unet: state.create(
            {"unet": unet}, ("unet/.*",), optimizer, config.ema > 0
        ),
        unet,
    )


def batch_shapes(cascade: Cascade, stage: Stage, rows: int) -> Shapes:
    """A training batch as shapes, f32 images and text."""
    text, size = cascade.text, stage.train_size
    entries: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((rows, size, size, 3), jnp.float32),
        "text": ((rows, text.length, stage.model.text_width), jnp.float32),
        "text_mask": ((rows, text.length), jnp.bool),
        "weight": ((rows,), jnp.float32),
        "group": ((rows,), jnp.int32),
    }
    if stage.low_resolution is not None:
        low = size // stage.scale
        entries["low"] = ((rows, low, low, 3), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype) in entries.items()
    }


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


def device_memory() -> int | None:
    """Bytes that one device may use, or None where the backend does not tell.

    The devices of a CPU share the machine's memory.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
        return pages * os.sysconf("SC_PAGE_SIZE")
    return (device.memory_stats() or {}).get("bytes_limit")
