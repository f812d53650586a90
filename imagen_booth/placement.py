"""Which mesh a job gets where its config leaves that open, and whether rules fit it.

Told from shapes alone; nothing is computed or allocated.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_booth import budget, hosts, optim, sharding, state
from imagen_booth import job as jobs
from imagen_booth.cascade import Cascade
from imagen_booth.errors import InputError
from imagen_booth.weights.load import kind_of, shapes

Shapes = Mapping[str, state.Params]


def mesh_to_tune(
    cascade: Cascade,
    job: jobs.Job,
    among: Sequence[Any] | None = None,
    memory: int | None = None,
) -> Mesh:
    """The mesh of a run, with room for the largest of what is on it at a time.

    That is the text encoder by itself, or a stage with its optimizer state, average
    and gradients beside the parameters of the stages before it.

    Args:
        among: devices that need not be there; None for those that there are.
        memory: bytes of one of them, given with ``among``.

    Raises:
        InputError: sizes that the devices do not make up, or a rule that cannot be.
    """

    def need(shapes: Shapes) -> int:
        most, before = budget.size(shapes["text"]), 0
        for stage in cascade.stages:
            tuning, params = job.tuning(stage.name), shapes[stage.name]
            most = max(
                most, before + _training(params, tuning.optim, max(tuning.steps, 1))
            )
            before += budget.size(params)
        return most

    return _mesh(cascade, job.mesh, need, among, memory)


def mesh_to_draw(cascade: Cascade, job: jobs.Job) -> Mesh:
    """The mesh for a finished run, with room for the parameters of all its parts.

    Raises:
        InputError: as ``mesh_to_tune``.
    """
    return _mesh(cascade, job.mesh, budget.size)


def mesh_to_pretrain(cascade: Cascade, job: jobs.Pretraining) -> Mesh:
    """The mesh for pretraining a stage, and a text encoder beside it.

    Raises:
        InputError: as ``mesh_to_tune``.
    """

    def need(shapes: Shapes) -> int:
        trained = {"unet": shapes[job.stage]}
        if not job.text:
            trained["text"] = shapes["text"]
        beside = budget.size(shapes["text"]) if job.text else 0
        return beside + _training(trained, job.optim, job.steps)

    return _mesh(cascade, job.mesh, need)


def _training(params: Any, config: optim.OptimConfig, steps: int) -> int:
    """Bytes of parameters, gradients, optimizer state and average, counted once."""
    held = budget.training_shapes(params, config, steps)
    return budget.size(held) + budget.size(params)


def _mesh(
    cascade: Cascade,
    mesh: jobs.Mesh,
    need: Any,
    among: Sequence[Any] | None = None,
    memory: int | None = None,
) -> Mesh:
    devices = jax.device_count() if among is None else len(among)
    open_ = mesh.fsdp == 0 and mesh.data < 1 and devices > 1
    if open_ and among is None:
        # One answer for all hosts, or each would make another mesh.
        memory = hosts.least(budget.device_memory() or 0) or None
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


def shapes_of(cascade: Cascade) -> dict[str, state.Params]:
    """Parameters of every part of a cascade as shapes."""
    names = ["text", *(stage.name for stage in cascade.stages)]
    return {name: shapes(cascade, name) for name in names}


def check_rules(shapes: Shapes, mesh: Mesh, rules: tuple[sharding.Rule, ...]) -> None:
    """Makes sure that every rule is of use and every parameter can follow them.

    Raises:
        InputError: a pattern that matches no parameter of any part, or a shape that
            a rule does not fit.
    """
    paths = [
        f"{kind_of(name)}/{path}"
        for name, tree in shapes.items()
        for path in state.flatten(tree)
    ]
    for number, (pattern, spec) in enumerate(rules):
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise InputError(
                f"config.mesh.rules[{number}]={(pattern, spec)!r} matches no "
                f"parameter; whole paths look like {paths[0]!r} and {paths[-1]!r}"
            )
    for name, tree in shapes.items():
        sharding.tree_shardings(tree, mesh, rules, kind_of(name))
