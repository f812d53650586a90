"""Memory and minutes of a job on chips that need not be there.

Memory is what the compiler reports for each program, and what a run holds beside it.
Minutes are at the roofline: a program takes as long as its FLOPs at the chip's peak, or
as its memory traffic at the full bandwidth, whichever is longer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from imagen_booth.cascade import Cascade
from imagen_booth.config import fast
from imagen_booth.config.schema import FROZEN_MODEL, Job
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import device_memory
from imagen_booth.errors import InputError
from imagen_booth.preflight import aot_compile
from imagen_booth.preflight.aot_compile import MemoryFigures, Program
from imagen_booth.preflight.jaxpr_cost import Cost
from imagen_booth.preflight.tpu_topology import Chip
from imagen_booth.sampling import text_embeddings
from imagen_booth.sampling.cascade_sampler import rows_at
from imagen_booth.training import frozen_targets, mesh_choice, previews
from imagen_booth.weights.load import frozen_shapes


@dataclasses.dataclass(frozen=True)
class Machine:
    """The chips that a job is planned for.

    Attributes:
        name: Name of the topology.
        chip: Kind of each device.
        devices: Devices of all hosts.
        usable: Bytes of one device that a program may use.
        dtype: Dtype of the activations.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    usable: int
    dtype: Any

    def mesh(self, cascade: Cascade, job: Job) -> jax.sharding.Mesh:
        """The mesh that a run of a job would have.

        Raises:
            InputError: The job's mesh does not use these devices.
        """
        return mesh_choice.finetuning_mesh(cascade, job, self.devices, self.usable)

    def seconds(self, work: Cost, reached: float = 1.0) -> float:
        """Seconds that one device takes at the roofline.

        Args:
            reached: Share of the peak FLOP/s; good programs reach 0.5.
        """
        arithmetic = work.flops / (reached * self.chip.flops)
        return max(arithmetic, work.bytes / self.chip.bandwidth)


@dataclasses.dataclass(frozen=True)
class Task:
    """Calls of one program in a run.

    Attributes:
        what: Name of the work, for people.
        part: Name of the program, such as ``base.train``.
        calls: Number of calls.
        sampler: Settings of a sampling program.
        rows: Images per call of a sampling program.
    """

    what: str
    part: str
    calls: int
    sampler: SamplerConfig | None = None
    rows: int = 0


@dataclasses.dataclass(frozen=True)
class ProgramEstimate:
    """One program on a machine, per device.

    Attributes:
        part: Name of the program.
        parameters: Bytes of its parameters.
        optimizer: Bytes of its optimizer state.
        resident: Bytes that a run holds besides while the program runs.
        figures: Figures of the compiler.
    """

    part: str
    parameters: int
    optimizer: int
    resident: int
    figures: MemoryFigures

    @property
    def peak(self) -> int:
        """Peak bytes in use on each device."""
        return self.figures.peak + self.resident

    @property
    def fits(self) -> bool:
        """Whether a device has that much."""
        return not self.figures.refused and self.peak <= self.figures.usable


@dataclasses.dataclass(frozen=True)
class TaskTime:
    """Time of one task.

    Attributes:
        task: The task.
        flops: FLOPs on all devices.
        minutes: Minutes at the roofline.
        at_half: Minutes at half of the peak FLOP/s.
    """

    task: Task
    flops: float
    minutes: float
    at_half: float


def tasks(job: Job, cascade: Cascade) -> list[Task]:
    """Everything that a run of a job computes on devices, in the order of the run."""
    prompts = len(job.pictures.prompts)
    # The null text, each instance and class prompt; and each prompt with and without
    # the identifier.
    texts = 1 + 2 * len(job.subjects) + 2 * prompts
    found = [Task("prompts", "text", -(-texts // text_embeddings.ROWS))]
    first = cascade.stages[0]
    priors = [
        stage
        for index, stage in enumerate(cascade.stages)
        if any(job.uses_class_images(other.name) for other in cascade.stages[index:])
    ]
    images = prompts * job.pictures.seeds
    pictures = []
    for stage in cascade.stages:
        name, tuning = stage.name, job.finetuning(stage.name)
        config = getattr(job.pictures, name)
        rows = rows_at(stage, job.pictures.batch)
        sample = f"{name}.sample"
        if stage in priors:
            prior = job.class_images.sampler if stage is first else config
            group = job.class_images.group
            calls = job.class_images.count // group * len(job.class_nouns)
            found.append(Task("class images", sample, calls, prior, group))
        if tuning.steps:
            found.append(Task("steps", f"{name}.train", tuning.steps))
            every = tuning.preview_every or tuning.steps
            shown = sum(previews.BASE_PICTURES) if stage is first else 2
            calls = 1 + -(-tuning.steps // every)
            found.append(Task("previews", sample, calls, config, max(rows, shown)))
        pictures.append(Task("pictures", sample, -(-images // rows), config, rows))
    return found + pictures


def parts_of(job: Job, cascade: Cascade, wanted: Sequence[str]) -> list[str]:
    """Names of a job's programs, in the order of a run.

    Args:
        wanted: Names of programs or of stages; empty for all.

    Raises:
        InputError: The job has no program of a wanted name.
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
        prior = frozen_targets.prior_of(job, name, mesh.size, dtype)
        return aot_compile.train_step(
            cascade, stage, job.finetuning(name), mesh, dtype, rules, prior
        )
    assert task.sampler is not None
    tuning = job.finetuning(name)
    train = tuning.steps > 0 and not tuning.adapts
    return aot_compile.sampler(
        cascade, stage, task.sampler, task.rows, mesh, dtype, rules, train=train
    )


def estimate_program(
    part: str, job: Job, cascade: Cascade, machine: Machine, cache: epath.Path
) -> ProgramEstimate:
    """Compiles the program of a part, the one with the most rows.

    A program whose arguments alone exceed the memory is not compiled.

    Args:
        cache: Folder of earlier answers.
    """
    cascade = cascade.rematerialised(job.rematerialised())
    mesh = machine.mesh(cascade, job)
    largest = max(
        (task for task in tasks(job, cascade) if task.part == part),
        key=lambda task: task.rows,
    )
    built = program(largest, job, cascade, mesh, machine.dtype)
    held = built.parameters + built.optimizer
    if held > machine.usable:
        figures = MemoryFigures(
            peak=held,
            usable=machine.usable,
            refused="not compiled: its arguments alone exceed the memory of a device",
        )
    else:
        figures = aot_compile.compile_program(
            built, mesh, machine.usable, cache, machine.name
        )
    return ProgramEstimate(
        part=part,
        parameters=built.parameters,
        optimizer=built.optimizer,
        resident=_resident(part, job, cascade, mesh, machine.dtype),
        figures=figures,
    )


def _resident(
    part: str, job: Job, cascade: Cascade, mesh: jax.sharding.Mesh, dtype: Any
) -> int:
    """Bytes on each device that a run holds while the program of a part runs.

    These are the earlier stages, which wait for the pictures, and during a preview the
    training state of the stage itself, and its frozen copy.
    """
    name, _, kind = part.partition(".")
    if name == "text":
        return 0
    names, rules, held = [stage.name for stage in cascade.stages], job.mesh.rules, 0
    for earlier in names[: names.index(name)]:
        params = frozen_shapes(cascade, earlier, dtype)
        held += device_memory.size_per_device(params, mesh, rules, "unet")
    if kind == "sample" and job.finetuning(name).steps:
        held += aot_compile.beside_preview(
            cascade, cascade.stage(name), job.finetuning(name), mesh, dtype, rules
        )
        if job.frozen_prior(name) is not None and not job.finetuning(name).adapts:
            copy = frozen_shapes(cascade, name, dtype)
            held += device_memory.size_per_device(copy, mesh, rules, "unet")
    return held


def forms(job: Job, cascade: Cascade) -> dict[str, Job]:
    """The job as it is set, and its faster forms, by name."""
    found = {"as set": job}
    if any(job.uses_class_images(stage.name) for stage in cascade.stages):
        found["without class images"] = dataclasses.replace(job, prior=FROZEN_MODEL)
    return found | {"fast": fast.fast(job)}


def minutes(
    job: Job,
    cascade: Cascade,
    machine: Machine,
    counted: dict[Any, Cost] | None = None,
) -> list[TaskTime]:
    """The time of each task of a job. Programs are traced; nothing is compiled.

    Args:
        counted: Work of the programs that were traced before; new ones are added.
    """
    cascade = cascade.rematerialised(job.rematerialised())
    mesh = machine.mesh(cascade, job)
    counted = {} if counted is None else counted  # tasks may share a program
    found = []
    for task in tasks(job, cascade):
        prior = None
        if task.part.endswith(".train"):
            prior = job.frozen_prior(task.part.partition(".")[0])
        key = (task.part, task.sampler, task.rows, prior, *mesh.shape.values())
        if key not in counted:
            built = program(task, job, cascade, mesh, machine.dtype)
            counted[key] = built.work(mesh)
        work = counted[key]
        found.append(
            TaskTime(
                task=task,
                flops=task.calls * work.flops * mesh.size,
                minutes=task.calls * machine.seconds(work) / 60,
                at_half=task.calls * machine.seconds(work, 0.5) / 60,
            )
        )
    return found
