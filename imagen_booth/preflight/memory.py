"""Shapes and FLOPs of a stage; nothing is computed or allocated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_booth import train_state
from imagen_booth.cascade import Cascade, Stage
from imagen_booth.config.schema import FineTuning, FrozenModel
from imagen_booth.preflight.jaxpr_cost import count_flops
from imagen_booth.training import train_step
from imagen_booth.training.mesh_choice import training_shapes
from imagen_booth.weights.load import frozen_shapes, network, shapes

Shapes = dict[str, jax.ShapeDtypeStruct]

BACKWARD = 2  # FLOPs of the backward pass, in forward passes


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Shapes and FLOPs of one stage.

    Attributes:
        params: Parameter tree of shapes, as the stage holds them after fine-tuning.
        training: ``TrainState`` of shapes; None if the stage is not fine-tuned.
        batch: Shapes of the rows of one step; empty if the stage is not fine-tuned.
        row_flops: FLOPs of a forward pass on one image at the stage's resolution.
        step_flops: FLOPs of one optimizer step; 0 if the stage is not fine-tuned.
    """

    params: train_state.Params
    training: Any
    batch: Shapes
    row_flops: float
    step_flops: float


def stage_cost(
    cascade: Cascade,
    stage: Stage,
    tuning: FineTuning,
    devices: int,
    dtype: Any = jnp.float32,
    prior: FrozenModel | None = None,
) -> StageCost:
    """Shapes and FLOPs of a stage.

    The loss is traced as in a training step, so this refuses the settings that a step
    would refuse.

    Args:
        tuning: Settings of fine-tuning; with 0 steps the stage stays as it is.
        devices: Number of devices that share the rows of a batch.
        dtype: Dtype of the activations, and so of frozen parameters.
        prior: How the frozen model gives the class rows their targets, if it does.

    Raises:
        InputError: The optimizer, learning rate or loss weighting is not known, or the
            rank of an adapter is too large.
    """
    _, apply = network(cascade, stage.name, jnp.float32)
    params = shapes(cascade, stage.name)
    training = training_shapes(stage.name, params, tuning, dtype)
    config = train_step.LossConfig(tuning.weighting, tuning.hybrid)

    def loss(params: train_state.Params, batch: train_step.Batch) -> Any:
        return train_step.batch_loss(
            stage, apply, None, config, params, batch, jax.random.key(0)
        )

    one = batch_shapes(cascade, stage, 1)
    forward = count_flops(loss, {"unet": params}, one)
    row_flops = forward * (stage.resolution / stage.train_size) ** 2
    if tuning.steps == 0:
        frozen = frozen_shapes(cascade, stage.name, dtype)
        return StageCost(frozen, None, {}, row_flops, 0.0)
    multiple = devices * tuning.accumulate
    rows = -(-(tuning.subject_rows + tuning.class_rows) // multiple) * multiple
    passes = rows * (1 + BACKWARD + stage.model.remat)
    if prior is not None:
        passes += tuning.class_rows * prior.calls
    return StageCost(
        frozen_shapes(cascade, stage.name, dtype),
        training,
        batch_shapes(cascade, stage, rows),
        row_flops,
        forward * passes,
    )


def batch_shapes(cascade: Cascade, stage: Stage, rows: int) -> Shapes:
    """Shapes of a training batch with f32 images and text."""
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
