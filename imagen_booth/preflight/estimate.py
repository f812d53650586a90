"""What a job takes on chips that need not be there: memory and minutes.

Memory is the compiler's word on each program, and what lies beside it during a run.
Minutes are the roofline's: a program takes as long as its arithmetic at the chip's
peak, or as its memory traffic at the full bandwidth, whichever is longer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from imagen_booth.cascade import Cascade
from imagen_booth.config.schema import Job
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError
from imagen_booth.preflight import aot_compile
from imagen_booth.preflight.aot_compile import MemoryFigures, Program
from imagen_booth.preflight.jaxpr_cost import Cost
from imagen_booth.preflight.tpu_topology import Chip
from imagen_booth.sampling import text_embeddings
from imagen_booth.sampling.cascade_sampler import rows_at
from imagen_booth.training import mesh_choice, previews


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a job is to run.

    Attributes:
        name: of the topology.
        chip: what one device can do.
        devices: of all hosts.
        usable: bytes of one device that a program may use.
        dtype: of activations.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    usable: int
    dtype: Any

    def mesh(self, cascade: Cascade, job: Job) -> jax.sharding.Mesh:
        """The mesh that a run of a job would have.

        Raises:
            InputError: it does not use these devices.
        """
        return mesh_choice.mesh_to_tune(cascade, job, self.devices, self.usable)

    def seconds(self, work: Cost, reached: float = 1.0) -> float:
        """Of one device at the roofline.

        Args:
            reached: share of the peak arithmetic; 0.5 is what good programs reach.
        """
        arithmetic = work.flops / (reached * self.chip.flops)
        return max(arithmetic, work.bytes / self.chip.bandwidth)


@dataclasses.dataclass(frozen=True)
class Task:
    """Calls of one program in a run.

    Attributes:
        what: of the work, for people.
        part: the program's name, ``base.train``.
        calls: how often it runs.
        sampler, rows: of a program that draws.
    """

    what: str
    part: str
    calls: int
    sampler: SamplerConfig | None = None
    rows: int = 0


@dataclasses.dataclass(frozen=True)
class ProgramEstimate:
    """One program on a machine.

    Attributes:
        part: its name.
        parameters, optimizer: bytes on each device.
        beside: bytes on each device of what a run keeps there besides.
        figures: the compiler's.
        work: of one call, on each device.
        seconds: of one call, at the roofline.
        computed: the figures are reckoned from those for another machine.
    """

    part: str
    parameters: int
    optimizer: int
    beside: int
    figures: MemoryFigures
    work: Cost
    seconds: float
    computed: bool = False

    @property
    def peak(self) -> int:
        """Bytes in use on each device while it runs."""
        return self.figures.peak + self.beside

    @property
    def fits(self) -> bool:
        """Whether a device has that much."""
        return not self.figures.refused and self.peak <= self.figures.usable


@dataclasses.dataclass(frozen=True)
class Known:
    """A forecast that others are reckoned from, and what it was made for."""

    forecast: ProgramEstimate
    machine: Machine
    job: Job


def tasks(job: Job, cascade: Cascade) -> list[Task]:
    """Everything that a run of a job computes on devices, in its order."""
    prompts = len(job.pictures.prompts)
    # The null text, the instance and the class prompt; and plain ones for stages that
    # do not know the subject.
    texts = 3 + 2 * prompts
    found = [Task("prompts", "text", -(-texts // text_embeddings.ROWS))]
    first = cascade.stages[0]
    priors = [
        stage
        for index, stage in enumerate(cascade.stages)
        if any(
            job.tuning(other.name).steps and job.tuning(other.name).class_rows
            for other in cascade.stages[index:]
        )
    ]
    images = prompts * job.pictures.seeds
    pictures = []
    for stage in cascade.stages:
        name, tuning = stage.name, job.tuning(stage.name)
        drawn = getattr(job.pictures, name)
        rows = rows_at(stage, job.pictures.batch)
        sample = f"{name}.sample"
        if stage in priors:
            config = job.class_images.sampler if stage is first else drawn
            group = job.class_images.group
            calls = job.class_images.count // group
            found.append(Task("class images", sample, calls, config, group))
        if tuning.steps:
            found.append(Task("steps", f"{name}.train", tuning.steps))
            every = tuning.preview_every or tuning.steps
            shown = sum(previews.BASE_PICTURES) if stage is first else 2
            calls = 1 + -(-tuning.steps // every)
            found.append(Task("previews", sample, calls, drawn, max(rows, shown)))
        pictures.append(Task("pictures", sample, -(-images // rows), drawn, rows))
    return found + pictures


def parts_of(job: Job, cascade: Cascade, wanted: Sequence[str]) -> list[str]:
    """Names of a job's programs, in the order of a run.

    Args:
        wanted: names, or the beginnings of some up to a point; none for all.

    Raises:
        InputError: a name that is none.
    """
    names = list(dict.fromkeys(task.part for task in tasks(job, cascade)))
    order = {"text": 0} | {stage.name: 1 + n for n, stage in enumerate(cascade.stages)}
    names.sort(key=lambda name: (order[name.split(".")[0]], name.endswith(".sample")))
    for one in wanted:
        if not any(one in (name, name.split(".")[0]) for name in names):
            raise InputError(
                f"--parts={one} is no program of this job; it has {', '.join(names)}"
            )
    if not wanted:
        return names
    return [name for name in names if {name, name.split(".")[0]} & set(wanted)]


def program(
    task: Task, job: Job, cascade: Cascade, mesh: jax.sharding.Mesh, dtype: Any
) -> Program:
    """The program that a task runs."""
    rules = job.mesh.rules
    if task.part == "text":
        return aot_compile.text_encoder(cascade, mesh, dtype, rules)
    name, _, kind = task.part.partition(".")
    stage = cascade.stage(name)
    if kind == "train":
        return aot_compile.train_step(
            cascade, stage, job.tuning(name), mesh, dtype, rules
        )
    assert task.sampler is not None
    return aot_compile.sampler(
        cascade, stage, task.sampler, task.rows, mesh, dtype, rules
    )


def estimate_program(
    part: str, job: Job, cascade: Cascade, machine: Machine, cache: epath.Path
) -> ProgramEstimate:
    """Compiles a part's program, that with the most rows, and counts its work.

    Args:
        cache: folder of earlier answers.
    """
    cascade = cascade.rematerialised(job.rematerialised())
    mesh = machine.mesh(cascade, job)
    asked = _asked(part, job, cascade, mesh, machine.dtype)
    held = asked.parameters + asked.optimizer
    if held > machine.usable:
        figures = MemoryFigures(
            arguments=held,
            outputs=0,
            aliased=0,
            temporaries=0,
            peak=held,
            usable=machine.usable,
            refused="not compiled: what it is given is more than a device has",
            seconds=0.0,
        )
    else:
        figures = aot_compile.compile_program(
            asked, mesh, machine.usable, cache, machine.name
        )
    beside = _beside(part, job, cascade, mesh)
    return _forecast(part, asked, beside, figures, machine, mesh)


def computed(
    part: str, job: Job, cascade: Cascade, machine: Machine, known: Known
) -> ProgramEstimate:
    """A part on a machine, reckoned from what was compiled for another one.

    What a program is given is known exactly from its shapes. Of its temporaries, the
    gradients of a train step, at most as large as the parameters, are divided like
    these, and the rest goes with the rows that a device works on. Buffers in which
    parameters are gathered from other devices are not in it.
    """
    cascade = cascade.rematerialised(job.rematerialised())
    mesh, before = machine.mesh(cascade, job), known.machine.mesh(cascade, known.job)
    asked = _asked(part, job, cascade, mesh, machine.dtype)
    first = _asked(part, known.job, cascade, before, machine.dtype)
    figures, train = known.forecast.figures, part.endswith(".train")
    rows = 1.0  # every device encodes all prompts
    if part != "text":
        rows = (asked.rows / mesh.size) / (first.rows / before.size)
    gradients = min(first.parameters, figures.temporaries) if train else 0
    inner = (figures.temporaries - gradients) * rows
    held = asked.parameters + asked.optimizer
    batch = figures.arguments - first.parameters - first.optimizer
    temporaries = int(inner + gradients * asked.parameters / first.parameters)
    figures = dataclasses.replace(
        figures,
        arguments=int(held + batch * rows),
        outputs=0,
        aliased=0,
        temporaries=temporaries,
        peak=int(held + batch * rows) + temporaries,
        usable=machine.usable,
        seconds=0.0,
    )
    beside = _beside(part, job, cascade, mesh)
    made = _forecast(part, asked, beside, figures, machine, mesh)
    return dataclasses.replace(made, computed=True)


def _forecast(
    part: str,
    asked: Program,
    beside: int,
    figures: MemoryFigures,
    machine: Machine,
    mesh: jax.sharding.Mesh,
) -> ProgramEstimate:
    """With the work of the program, which is counted here."""
    done = asked.work(mesh)
    return ProgramEstimate(
        part,
        asked.parameters,
        asked.optimizer,
        beside,
        figures,
        done,
        machine.seconds(done),
    )


def _asked(
    part: str, job: Job, cascade: Cascade, mesh: jax.sharding.Mesh, dtype: Any
) -> Program:
    """The program of a part with the most rows, which needs the most memory."""
    chosen = max(
        (task for task in tasks(job, cascade) if task.part == part),
        key=lambda task: task.rows,
    )
    return program(chosen, job, cascade, mesh, dtype)


def _beside(part: str, job: Job, cascade: Cascade, mesh: jax.sharding.Mesh) -> int:
    """Bytes on each device that a run holds while a part's program runs.

    Stages that are done wait for the pictures, and previews are drawn in the middle of
    training.
    """
    name, _, kind = part.partition(".")
    if name == "text":
        return 0
    names = [stage.name for stage in cascade.stages]
    kept = 0
    for before in names[: names.index(name)]:
        kept += aot_compile.parameters(cascade, before, mesh, job.mesh.rules)
    if kind == "sample" and job.tuning(name).steps:
        stage = cascade.stage(name)
        kept += aot_compile.optimizer_state(
            cascade, stage, job.tuning(name), mesh, job.mesh.rules
        )
    return kept


@dataclasses.dataclass(frozen=True)
class TaskTime:
    """The share of a task in a job.

    Attributes:
        task: what is done.
        flops: of it, on all devices.
        minutes: at the roofline.
        at_half: the same, with half of the peak arithmetic.
    """

    task: Task
    flops: float
    minutes: float
    at_half: float


def minutes(
    job: Job, cascade: Cascade, machine: Machine, counted: dict[Any, Cost] | None = None
) -> list[TaskTime]:
    """How long each task of a job takes; nothing is compiled.

    Args:
        counted: programs whose work is known already, on the same machine; new ones are
            added.
    """
    cascade = cascade.rematerialised(job.rematerialised())
    mesh = machine.mesh(cascade, job)
    counted = {} if counted is None else counted
    found = []
    for task in tasks(job, cascade):
        name, _, kind = task.part.partition(".")
        tuning = job.tuning(name) if kind == "train" else None
        if tuning is not None:  # what is shown is no part of a step
            tuning = dataclasses.replace(tuning, preview_every=0)
        key = (task.part, task.sampler, task.rows, tuning, job.mesh)
        if key not in counted:
            asked = program(task, job, cascade, mesh, machine.dtype)
            counted[key] = asked.work(mesh)
        each = counted[key]
        spent, at_half = (
            task.calls * machine.seconds(each, reached) / 60 for reached in (1.0, 0.5)
        )
        flops = task.calls * each.flops * mesh.size
        found.append(TaskTime(task, flops, spent, at_half))
    return found
