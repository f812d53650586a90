"""How fast the small cascade is on this machine: steps, commands, the default job.

    python benchmarks/bench_booth.py           steps and commands, minutes
    python benchmarks/bench_booth.py --job     the default job, and its parts

Each figure is the median of three runs.  Operations are those of matrix products and
convolutions, counted in the traced program (``jaxpr_cost``).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from imagen_booth import train_state
from imagen_booth.cascade import by_name
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth
from imagen_booth.denoiser import condition, guided_denoiser
from imagen_booth.preflight import jaxpr_cost, memory
from imagen_booth.sampling.cascade_sampler import rows_at
from imagen_booth.training import optimizers
from imagen_booth.training import train_step as steps
from imagen_booth.weights.load import network

ROOT = pathlib.Path(__file__).parent.parent
RUNS = 3
# A small process between: a child's peak memory counts from that of its parent.
WATCH = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
code = subprocess.run(sys.argv[1:], **quiet).returncode
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime
print(json.dumps([code, wall, cpu, used.ru_maxrss / 1024]))
"""
COMMANDS = ("train", "sample", "pretrain", "convert", "doctor")


def seconds(function, *inputs):
    """Median time of a call, after one that compiles."""
    jax.block_until_ready(function(*inputs))
    spent = []
    for _ in range(RUNS):
        start = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def measure(*arguments):
    """Wall seconds, processor seconds and peak MiB of a command in its own process."""
    answer = subprocess.run(
        [sys.executable, "-c", WATCH, sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    code, *used = json.loads(answer.stdout)
    if code:
        sys.exit(f"{' '.join(arguments)} ended with {code}")
    return used


def matmul_peak():
    """Largest rate of a square float32 matrix product, operations per second."""
    rates = []
    for size in (1024, 1536, 2048):
        a = jnp.ones((size, size), jnp.float32)
        rates.append(2 * size**3 / seconds(jax.jit(jnp.matmul), a, a))
    return max(rates)


def batch_of(cascade, stage, rows):
    """A batch of noise."""
    shapes = memory.batch_shapes(cascade, stage, rows)
    batch = {
        name: jax.random.normal(jax.random.key(0), leaf.shape).astype(leaf.dtype)
        for name, leaf in shapes.items()
    }
    return batch | {"weight": jnp.full(rows, 1 / rows)}


def train_step(cascade, stage, tuning):
    """The step function, its inputs and its rows."""
    init, apply = network(cascade, stage.name, jnp.float32)
    optimizer = optimizers.build(tuning.optim, tuning.steps)
    params = {"unet": jax.jit(init)(jax.random.key(0))}
    start = train_state.create(params, ("unet/.*",), optimizer, False)

    def loss(params, batch, key):
        config = steps.LossConfig(level=(tuning.level, tuning.level))
        return steps.batch_loss(stage, apply, None, config, params, batch, key)

    rows = tuning.subject_rows + tuning.class_rows
    step = steps.make_step(loss, optimizer, seed=0)
    return step, (start, batch_of(cascade, stage, rows)), rows


def sampling_step(cascade, stage, config, rows):
    """One call of the denoiser, at the stage's full resolution, and its inputs."""
    init, apply = network(cascade, stage.name, jnp.float32)
    params = jax.jit(init)(jax.random.key(0))
    batch = batch_of(cascade, stage, rows)
    size = stage.resolution
    noise = jax.random.normal(jax.random.key(0), (rows, size, size, 3))
    low = jnp.zeros((rows, size // stage.scale, size // stage.scale, 3))
    text, mask = batch["text"], batch["text_mask"]

    def step(params, noise, low):
        cond = None
        if stage.low_resolution is not None:
            cond = condition(stage, low, jnp.full(rows, 1e-3), noise)
        denoise = guided_denoiser(
            stage,
            lambda *inputs: apply(params, *inputs),
            *(text, mask, text, mask),
            cond,
            config,
        )
        return denoise(noise, jnp.float32(0.5))[0]

    return step, (params, noise, low)


def print_steps():
    cascade, job = by_name("toybox"), to_job(dreambooth("toybox"))
    table, peak = [], matmul_peak()
    for stage in cascade.stages:
        step, inputs, rows = train_step(cascade, stage, job.finetuning(stage.name))
        table.append((f"{stage.name} train step", rows, *timed(step, inputs)))
        sampler = getattr(job.pictures, stage.name)
        rows = rows_at(stage, job.pictures.batch)
        step, inputs = sampling_step(cascade, stage, sampler, rows)
        table.append((f"{stage.name} sampling step", rows, *timed(step, inputs)))
        # Again, because other work on the machine hides the peak now and then.
        peak = max(peak, matmul_peak())
    device = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    print(f"{device}, {os.cpu_count()} cores; matmul peak {peak / 1e9:.0f} GFLOP/s\n")
    print(f"{'toybox, random weights':26}{'rows':>5}{'ms':>8}{'images/s':>10}", end="")
    print(f"{'GFLOP':>8}{'GFLOP/s':>9}{'of peak':>9}")
    for name, rows, spent, work in table:
        print(f"{name:26}{rows:>5}{spent * 1e3:>8.0f}{rows / spent:>10.1f}", end="")
        rate = work / spent
        print(f"{work / 1e9:>8.1f}{rate / 1e9:>9.1f}{rate / peak:>9.0%}")


def timed(function, inputs):
    """Seconds and operations of a function."""
    return seconds(jax.jit(function), *inputs), jaxpr_cost.count_flops(
        function, *inputs
    )


def print_commands():
    print(f"\n{'command':26}{'wall s':>8}{'cpu s':>8}{'peak MiB':>10}")
    calls = [(name, "--help") for name in COMMANDS]
    calls.append(("doctor", "--config=configs/dog.py:tiny"))
    for name, argument in calls:
        runs = [measure(f"imagen_booth.{name}", argument) for _ in range(RUNS)]
        wall, cpu, peak = (statistics.median(each) for each in zip(*runs, strict=True))
        shown = f"{name} {argument.removeprefix('--config=configs/')}"
        print(f"{shown:26}{wall:>8.2f}{cpu:>8.2f}{peak:>10.0f}")


def print_job(config):
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "dog"
        wall, cpu, peak = measure(
            "imagen_booth.train", f"--config={config}", f"--workdir={workdir}"
        )
        timings = json.loads((workdir / "manifest.json").read_text())["timings"]
    timings["all else"] = wall - sum(timings.values())
    print(f"train --config={config}: {wall:.0f} s, {cpu:.0f} s of processor, ", end="")
    print(f"peak {peak:.0f} MiB\n")
    for part, spent in timings.items():
        print(f"{part:26}{spent:>8.1f} s{spent / wall:>7.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--job",
        nargs="?",
        const="configs/dog.py",
        metavar="CONFIG",
        help="run a whole job, by default configs/dog.py",
    )
    chosen = parser.parse_args().job
    if chosen:
        print_job(chosen)
    else:
        print_steps()
        print_commands()
