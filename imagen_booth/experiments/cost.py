"""What the studies will take, told before they begin."""

import functools
import time
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp

from imagen_booth.cascade import Stage
from imagen_booth.config.schema import Job
from imagen_booth.diffusion import sampler
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.plan import Run, Study
from imagen_booth.preflight import jaxpr_cost, memory
from imagen_booth.weights.load import network, shapes

BASE = "base"
ROWS, TIMES = 8, 3  # of the forward pass that is timed


def run_flops(studio: ImageStore, run: Run, measured: int) -> float:
    """Arithmetic of a run, without its class images.

    Args:
        measured: pictures drawn with a tuned base stage besides the run's own.
    """
    total, pictures = 0.0, run.job.pictures
    for stage in studio.cascade.stages:
        cost = _cost(studio, stage, run.job)
        tuning = run.job.tuning(stage.name)
        total += cost.step_flops * tuning.steps
        drawn = len(pictures.prompts) * pictures.seeds
        if stage.name == BASE and run.job.names(BASE, tuning.steps):
            drawn += measured
        calls = _calls(stage, getattr(pictures, stage.name))
        total += drawn * calls * cost.row_flops
    return total + inversion_flops(studio, run.job)


def inversion_flops(studio: ImageStore, job: Job) -> float:
    """Arithmetic of Textual Inversion: the whole way there and back for each row.

    Back through weights that do not change costs as much as the way there.
    """
    if job.text.steps == 0:
        return 0.0
    forward = _cost(studio, studio.cascade.stage(BASE), job).row_flops
    _, encoder = network(studio.cascade, "text", jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, studio.cascade.text.length), jnp.int32)
    forward += jaxpr_cost.count_flops(encoder, shapes(studio.cascade, "text"), tokens)
    multiple = studio.mesh.size * job.text.accumulate
    rows = -(-job.text.subject_rows // multiple) * multiple
    return 2 * forward * rows * job.text.steps


def class_flops(studio: ImageStore, job: Job) -> float:
    """Arithmetic of a set of class images at the base resolution."""
    stage = studio.cascade.stage(BASE)
    calls = _calls(stage, job.class_images.sampler)
    return job.class_images.count * calls * _cost(studio, stage, job).row_flops


def rate(studio: ImageStore) -> tuple[float, float]:
    """Times a forward pass of the base network on this machine.

    Returns:
        Arithmetic per second, and seconds per picture.
    """
    stage, part = studio.cascade.stage(BASE), studio.part(BASE)
    text = studio.cascade.text
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
    return _cost(studio, stage, studio.job).row_flops / seconds, seconds


def table(
    studio: ImageStore,
    studies: Sequence[Study],
    finished: Collection[str],
    speed: tuple[float, float],
    measured: int,
) -> str:
    """The plan in words: studies, their runs, and minutes still to go.

    A run that several studies share counts with the first of them.

    Args:
        finished: names of the runs that are there already.
        speed: as ``rate`` gives it.
        measured: pictures per run, see ``run_flops``.
    """
    per_second, seconds = speed
    lines = [f"{'study':<12}{'runs':>6}{'done':>6}{'minutes':>9}"]
    seen, sets, total = set(), set(), 0.0
    for study in studies:
        runs = [run for some in study.arms.values() for run in some]
        runs = list({run.name: run for run in runs if run.name not in seen}.values())
        seen |= {run.name for run in runs}
        minutes, done = 0.0, 0
        for run in runs:
            if run.name in finished:
                done += 1
                continue
            minutes += run_flops(studio, run, measured) / per_second / 60
            shared = (
                *(run.job.subject.class_noun, run.job.seed),
                run.job.class_images,
            )
            if run.job.base.steps and run.job.base.class_rows and shared not in sets:
                sets.add(shared)
                minutes += class_flops(studio, run.job) / per_second / 60
        total += minutes
        lines.append(f"{study.name:<12}{len(runs):>6}{done:>6}{minutes:>9.0f}")
    lines.append(
        f"{len(seen)} runs, about {total:.0f} minutes to go: one forward pass of the "
        f"base stage takes {1000 * seconds:.0f} ms a picture here, and everything is "
        "counted in its arithmetic. Compiling, rendering and measured pictures of "
        "the upper stages come on top. Stop at any time; the same command goes on."
    )
    return "\n".join(lines)


def _cost(studio: ImageStore, stage: Stage, job: Job) -> memory.StageCost:
    tuning = job.tuning(stage.name)
    return _traced(studio.cascade, stage, tuning, studio.mesh.size)


# Arms differ in few ways that show here, and each is traced once.
_traced = functools.lru_cache(memory.stage_cost)


def _calls(stage: Stage, config: SamplerConfig) -> int:
    """How often the network sees a row while it draws a picture."""
    times = len(sampler.plan(stage.schedule, config).t)
    return times * (1 if config.guidance == 1.0 else 2)
