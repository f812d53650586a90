"""The estimated cost of the studies, shown before they begin."""

import functools
import time
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp

from imagen_booth.cascade import Stage
from imagen_booth.config.schema import Job
from imagen_booth.diffusion import sampler
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.plan import Run, Study, distinct_runs
from imagen_booth.preflight import aot_compile, jaxpr_cost, memory
from imagen_booth.weights.load import network, shapes

BASE = "base"
ROWS, TIMES = 8, 3  # batch and repetitions of the forward pass that is timed


def run_flops(store: ImageStore, run: Run, measured: int) -> float:
    """Operations of a run, without its class images.

    Args:
        store: The cascade and the mesh.
        run: The run.
        measured: Pictures that measuring samples with a fine-tuned base stage, besides
            those of the run itself.
    """
    total, pictures = 0.0, run.job.pictures
    for stage in store.cascade.stages:
        cost = _cost(store, stage, run.job)
        tuning = run.job.finetuning(stage.name)
        total += cost.step_flops * tuning.steps
        count = len(pictures.prompts) * pictures.seeds
        if stage.name == BASE and run.job.uses_identifier(BASE, tuning.steps):
            count += measured
        config = getattr(pictures, stage.name)
        calls = sampler.network_calls(stage.schedule, config)
        total += count * calls * cost.row_flops
    return total + inversion_flops(store, run.job)


def inversion_flops(store: ImageStore, job: Job) -> float:
    """Operations of Textual Inversion: a forward and a backward pass for each row.

    A backward pass through frozen weights costs as much as the forward pass.
    """
    if job.text.steps == 0:
        return 0.0
    forward = _cost(store, store.cascade.stage(BASE), job).row_flops
    _, encoder = network(store.cascade, "text", jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, store.cascade.text.length), jnp.int32)
    forward += jaxpr_cost.count_flops(encoder, shapes(store.cascade, "text"), tokens)
    multiple = store.mesh.size * job.text.accumulate
    rows = -(-job.text.subject_rows // multiple) * multiple
    return 2 * forward * rows * job.text.steps


def class_image_flops(store: ImageStore, job: Job) -> float:
    """Operations of a set of class images at the base resolution."""
    stage = store.cascade.stage(BASE)
    calls = sampler.network_calls(stage.schedule, job.class_images.sampler)
    return job.class_images.count * calls * _cost(store, stage, job).row_flops


def training_memory(store: ImageStore, job: Job) -> tuple[float, float]:
    """Memory of a step of the base stage on this machine, and size of its export.

    Returns:
        The compiler's peak in MiB on each device, and the megabytes in bfloat16 of the
        parameters that train.
    """
    stage, tuning = store.cascade.stage(BASE), job.finetuning(BASE)
    step = aot_compile.train_step(
        store.cascade, stage, tuning, store.mesh, store.dtype, job.mesh.rules
    )
    device = store.mesh.devices.flat[0].device_kind
    figures = aot_compile.compile_program(step, store.mesh, 0, store.cache, device)
    state, *_ = step.inputs
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    return figures.peak / 2**20, 2 * trained / 1e6


def measure_speed(store: ImageStore) -> tuple[float, float]:
    """Times a forward pass of the base network on this machine.

    Returns:
        Operations per second, and seconds per picture.
    """
    stage, part = store.cascade.stage(BASE), store.pretrained_part(BASE)
    text = store.cascade.text
    size = stage.train_size
    inputs = (
        jnp.zeros((ROWS, size, size, 3)),
        jnp.zeros((ROWS,)),
        jnp.zeros((ROWS, text.length, stage.model.text_width)),
        jnp.ones((ROWS, text.length), bool),
        None,
    )
    forward = jax.jit(part.apply)
    jax.block_until_ready(forward(part.params, *inputs))  # compiles
    start = time.perf_counter()
    for _ in range(TIMES):
        jax.block_until_ready(forward(part.params, *inputs))
    seconds = (time.perf_counter() - start) / (TIMES * ROWS)
    return _cost(store, stage, store.job).row_flops / seconds, seconds


def cost_table(
    store: ImageStore,
    studies: Sequence[Study],
    finished: Collection[str],
    speed: tuple[float, float],
    measured: int,
) -> str:
    """A text table of the studies, their runs, and the minutes still to go.

    A run that several studies share counts in the first of them.

    Args:
        store: The cascade and the mesh.
        studies: The studies.
        finished: Names of the finished runs.
        speed: As ``measure_speed`` returns it.
        measured: Pictures per run, see ``run_flops``.
    """
    per_second, seconds = speed
    lines = [f"{'study':<12}{'runs':>6}{'done':>6}{'minutes':>9}"]
    seen, class_sets, total = set(), set(), 0.0
    for study in studies:
        runs = [run for run in distinct_runs([study]) if run.name not in seen]
        seen |= {run.name for run in runs}
        minutes, done = 0.0, 0
        for run in runs:
            if run.name in finished:
                done += 1
                continue
            minutes += run_flops(store, run, measured) / per_second / 60
            job = run.job
            class_set = (job.subject.class_noun, job.seed, job.class_images)
            needed = job.uses_class_images("base")
            if needed and class_set not in class_sets:
                class_sets.add(class_set)
                minutes += class_image_flops(store, run.job) / per_second / 60
        total += minutes
        lines.append(f"{study.name:<12}{len(runs):>6}{done:>6}{minutes:>9.0f}")
    lines.append(
        f"{len(seen)} runs, about {total:.0f} minutes to go: one forward pass of the "
        f"base stage takes {1000 * seconds:.0f} ms a picture on this machine, and the "
        "minutes are estimated from it. Compiling, rendering and pictures of the "
        "super-resolution stages come on top. Stop at any time; the same command "
        "resumes."
    )
    return "\n".join(lines)


def _cost(store: ImageStore, stage: Stage, job: Job) -> memory.StageCost:
    tuning = job.finetuning(stage.name)
    prior = job.frozen_prior(stage.name)
    return _traced(store.cascade, stage, tuning, store.mesh.size, prior=prior)


# Few arms differ in cost, so each distinct stage is traced once.
_traced = functools.lru_cache(memory.stage_cost)
