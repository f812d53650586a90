"""Chooses the mesh where the config leaves it open, and checks the sharding rules.

Both use shapes only; nothing is computed or allocated.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_booth import train_state
from imagen_booth.cascade import Cascade
from imagen_booth.config import schema as jobs
from imagen_booth.config.schema import FineTuning, OptimConfig
from imagen_booth.distributed import device_memory
from imagen_booth.training import adapters, optimizers
from imagen_booth.weights.load import to_frozen
from imagen_booth.weights.placement import Shapes, activation_dtype, choose_mesh


def finetuning_mesh(
    cascade: Cascade,
    job: jobs.Job,
    among: Sequence[Any] | None = None,
    memory: int | None = None,
) -> Mesh:
    """The mesh of a run, with room for the largest part that is on it at one time.

    This is the text encoder by itself, or a stage with its optimizer state, average,
    gradients and frozen copy beside the frozen parameters of the stages before it.

    Args:
        among: Devices, which may be absent; None for those of this machine.
        memory: Bytes of one of them, given with ``among``.

    Raises:
        InputError: The sizes do not match the devices, or a rule is not valid.
    """

    dtype = activation_dtype(job.dtype, None if among is None else True)

    def frozen(params: Any) -> int:
        shapes = jax.eval_shape(functools.partial(to_frozen, dtype=dtype), params)
        return device_memory.size(shapes)

    def need(shapes: Shapes) -> int:
        most, before = frozen(shapes["text"]), 0
        for stage in cascade.stages:
            tuning, params = job.finetuning(stage.name), shapes[stage.name]
            tuning = dataclasses.replace(tuning, steps=max(tuning.steps, 1))
            state = training_shapes(stage.name, params, tuning, dtype)
            held = before + _size(state)
            if job.frozen_prior(stage.name) is not None and not tuning.adapts:
                held += frozen(params)
            most = max(most, held)
            before += frozen(params)
        return most

    return choose_mesh(cascade, job.mesh, need, among, memory)


def pretraining_mesh(cascade: Cascade, job: jobs.Pretraining) -> Mesh:
    """The mesh for pretraining a stage, and a text encoder beside it.

    Raises:
        InputError: As ``finetuning_mesh``.
    """

    def need(shapes: Shapes) -> int:
        trained = {"unet": shapes[job.stage]}
        if not job.text:
            trained["text"] = shapes["text"]
        beside = device_memory.size(shapes["text"]) if job.text else 0
        return beside + _size(_state(trained, (".*",), job.optim, job.steps))

    return choose_mesh(cascade, job.mesh, need)


def _size(state: Any) -> int:
    """Bytes of parameters, gradients, optimizer state and average, counted once."""
    return device_memory.size(state) + device_memory.size(state.trainable)


def training_shapes(name: str, unet: Any, tuning: FineTuning, dtype: Any) -> Any:
    """The ``TrainState`` of a stage, as shapes.

    Args:
        name: Name of the stage, for messages.
        unet: Shapes of the network's f32 parameters.
        tuning: Settings of fine-tuning.
        dtype: Dtype of the activations.

    Raises:
        InputError: The optimizer or its decay is not known, or the rank of an adapter
            is too large.
    """
    params = adapters.param_shapes(name, unet, tuning, dtype)
    return _state(params, adapters.trainable(tuning), tuning.optim, tuning.steps)


def _state(
    params: Any, trainable: tuple[str, ...], config: OptimConfig, steps: int
) -> Any:
    optimizer = optimizers.build(config, steps)
    return jax.eval_shape(
        lambda params: train_state.create(params, trainable, optimizer, config.ema > 0),
        params,
    )
