"""Chooses the mesh where the config leaves it open, and checks the sharding rules.

Both use shapes only; nothing is computed or allocated.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_booth import train_state
from imagen_booth.cascade import Cascade
from imagen_booth.config import schema as jobs
from imagen_booth.config.schema import OptimConfig
from imagen_booth.distributed import device_memory
from imagen_booth.training import optimizers
from imagen_booth.weights.placement import Shapes, choose_mesh


def mesh_to_tune(
    cascade: Cascade,
    job: jobs.Job,
    among: Sequence[Any] | None = None,
    memory: int | None = None,
) -> Mesh:
    """The mesh of a run, with room for the largest part that is on it at one time.

    This is the text encoder by itself, or a stage with its optimizer state, average
    and gradients beside the parameters of the stages before it.

    Args:
        among: Devices, which may be absent; None for those of this machine.
        memory: Bytes of one of them, given with ``among``.

    Raises:
        InputError: The sizes do not match the devices, or a rule is not valid.
    """

    def need(shapes: Shapes) -> int:
        most, before = device_memory.size(shapes["text"]), 0
        for stage in cascade.stages:
            tuning, params = job.tuning(stage.name), shapes[stage.name]
            most = max(
                most, before + _training(params, tuning.optim, max(tuning.steps, 1))
            )
            before += device_memory.size(params)
        return most

    return choose_mesh(cascade, job.mesh, need, among, memory)


def mesh_to_pretrain(cascade: Cascade, job: jobs.Pretraining) -> Mesh:
    """The mesh for pretraining a stage, and a text encoder beside it.

    Raises:
        InputError: as ``mesh_to_tune``.
    """

    def need(shapes: Shapes) -> int:
        trained = {"unet": shapes[job.stage]}
        if not job.text:
            trained["text"] = shapes["text"]
        beside = device_memory.size(shapes["text"]) if job.text else 0
        return beside + _training(trained, job.optim, job.steps)

    return choose_mesh(cascade, job.mesh, need)


def _training(params: Any, config: OptimConfig, steps: int) -> int:
    """Bytes of parameters, gradients, optimizer state and average, counted once."""
    held = training_shapes(params, config, steps)
    return device_memory.size(held) + device_memory.size(params)


def training_shapes(unet: Any, config: OptimConfig, steps: int) -> Any:
    """The ``TrainState`` of a stage, as shapes.

    Args:
        unet: Shapes of its parameters.
        steps: Steps of the training.

    Raises:
        InputError: The optimizer or its decay is not known.
    """
    optimizer = optimizers.build(config, steps)
    return jax.eval_shape(
        lambda unet: train_state.create(
            {"unet": unet}, ("unet/.*",), optimizer, config.ema > 0
        ),
        unet,
    )
