"""Chooses the mesh and dtype of a job, and checks its sharding rules."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_booth import train_state
from imagen_booth.cascade import Cascade
from imagen_booth.config import schema as jobs
from imagen_booth.distributed import device_memory, processes, sharding
from imagen_booth.errors import InputError
from imagen_booth.weights.load import kind_of, shapes

Shapes = Mapping[str, train_state.Params]


def sampling_mesh(cascade: Cascade, job: jobs.Job) -> Mesh:
    """Chooses the mesh for sampling, with memory for the parameters of all parts.

    Raises:
        InputError: The mesh does not fit the devices, or a rule is wrong.
    """
    return choose_mesh(cascade, job.mesh, device_memory.size)


def choose_mesh(
    cascade: Cascade,
    mesh: jobs.Mesh,
    need: Any,
    among: Sequence[Any] | None = None,
    memory: int | None = None,
) -> Mesh:
    """Chooses the mesh for a job.

    Args:
        cascade: The cascade.
        mesh: Settings of the job.
        need: Function from the shapes of all parts to the bytes that have to fit.
        among: Devices to use; None for all.
        memory: Bytes of memory per device with ``among``; otherwise it is measured.

    Raises:
        InputError: The mesh does not fit the devices, or a rule is wrong.
    """
    devices = jax.device_count() if among is None else len(among)
    open_ = mesh.fsdp == 0 and mesh.data < 1 and devices > 1
    if open_ and among is None:
        # All hosts use the same number, or they would choose different meshes.
        memory = processes.least(device_memory.available() or 0) or None
    parts = shapes_of(cascade) if open_ or mesh.rules else {}
    chosen = sharding.make_mesh(
        mesh.data,
        mesh.fsdp,
        among,
        need=need(parts) if open_ else 0,
        memory=memory if open_ else None,
    )
    if mesh.rules:
        check_rules(parts, chosen, mesh.rules)
    return chosen


def shapes_of(cascade: Cascade) -> dict[str, train_state.Params]:
    """Returns the parameter shapes of every part of a cascade."""
    names = ["text", *(stage.name for stage in cascade.stages)]
    return {name: shapes(cascade, name) for name in names}


def check_rules(shapes: Shapes, mesh: Mesh, rules: tuple[sharding.Rule, ...]) -> None:
    """Checks that every rule matches a parameter and fits its shape.

    Raises:
        InputError: A pattern matches no parameter, or a rule does not fit a shape.
    """
    paths = [
        f"{kind_of(name)}/{path}"
        for name, tree in shapes.items()
        for path in train_state.flatten(tree)
    ]
    for number, (pattern, spec) in enumerate(rules):
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise InputError(
                f"config.mesh.rules[{number}]={(pattern, spec)!r} matches no "
                f"parameter; whole paths look like {paths[0]!r} and {paths[-1]!r}"
            )
    for name, tree in shapes.items():
        sharding.tree_shardings(tree, mesh, rules, kind_of(name))


def activation_dtype(name: str, accelerated: bool | None = None) -> Any:
    """Returns bfloat16 on an accelerator and float32 on a CPU, or the named dtype.

    Args:
        name: ``float32``, ``bfloat16``, or empty for the default.
        accelerated: Whether the job runs on an accelerator; None to detect it.

    Raises:
        InputError: The name is unknown.
    """
    if name not in ("", "float32", "bfloat16"):
        raise InputError(
            f"config.dtype={name!r} is not known; use 'float32', 'bfloat16' or ''"
        )
    if accelerated is None:
        accelerated = jax.default_backend() != "cpu"
    return jnp.dtype(name or ("bfloat16" if accelerated else "float32"))
