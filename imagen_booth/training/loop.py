"""The one training loop: data -> step -> log, picture, save.

DreamBooth, super-resolution and pretraining differ in their step function and
their batches, which are arguments here.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import tqdm
from etils import epath

from imagen_booth.distributed import processes, sharding
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import NotFinite, Stopped
from imagen_booth.rundir.checkpoints import Checkpoints
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.rundir.profiling import Trace
from imagen_booth.train_state import TrainState
from imagen_booth.training import train_step


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """When the loop does what, in steps.

    Attributes:
        steps: length of the stage.
        log_every: steps between metric rows.
        save_every: steps between checkpoints.
        preview_every: steps between preview grids; 0 for only first and last.
        always_usable: store inference parameters in every checkpoint, not only in
            the last; for long training that others draw from meanwhile.
    """

    steps: int
    log_every: int = 10
    save_every: int = 100
    preview_every: int = 0
    always_usable: bool = False


class InitialState(NamedTuple):
    """Where training begins if there is no checkpoint.

    Attributes:
        abstract: shapes, dtypes and shardings of the state.
        make: the state at step 0; called only when needed.
    """

    abstract: TrainState
    make: Callable[[], TrainState]


def jit_step(step_fn: Callable[..., Any], abstract: TrainState) -> Any:
    """The step as it is compiled: the state is given away and stays where it is.

    Args:
        step_fn: pure ``(state, batch) -> (state, metrics)``.
        abstract: the state with its shardings.
    """
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(step_fn, donate_argnums=0, out_shardings=(placement, None))


def train(
    name: str,
    start: InitialState,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    data: Iterator[Any],
    config: LoopConfig,
    *,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    metrics: MetricWriter,
    learning_rate: Callable[[int], Any],
    preview: Callable[[TrainState, int], None],
    inference: Callable[[TrainState], Any],
    diagnose: Callable[[TrainState, Any], list[str]],
    stop: StopRequest,
    profile: epath.Path | None = None,
) -> TrainState:
    """Trains from the newest checkpoint, or from ``start``, to ``config.steps``.

    Every ``log_every`` steps a row of metrics is written. Its times are means over
    the steps since the row before, in milliseconds a step: ``time/host_ms`` is the
    host's own work, which is to get the batch, to put it on the devices and to send
    the step off; ``time/device_ms`` is what it then waits until the devices are done.
    Compiling, previews and saves are in neither.

    Args:
        name: the stage, for messages and metric rows.
        start: the state at step 0 and its place on the mesh.
        step_fn: the pure step; jitted here, with the state donated.
        data: grain iterator of batches, numpy rows of this process, with entries
            named ``shared`` that are the same for every row.
        learning_rate: rate at a step, for the log.
        preview: draws and stores a picture of a state; may be asked for a step again
            where a run goes on from it.
        inference: parameters to store when the stage is finished.
        diagnose: names the tensors that are not finite in the next step.
        profile: where the first process leaves a trace of a few early steps.

    Returns:
        The state after the last step.

    Raises:
        Stopped: a signal came; the state is saved.
        NotFinite: a loss or gradient is not finite; the last good state is saved.
        StorageError: a checkpoint cannot be written.
    """
    jitted = jit_step(step_fn, start.abstract)
    if checkpoints.latest() is None:
        state = start.make()
    else:
        state = checkpoints.restore(start.abstract, data)
    step = int(state.step)
    metrics.rewind(name, step)
    if step == 0:
        # A rehearsal: storage that cannot be written fails now, not after hours.
        checkpoints.save(0, state, data, wait=True)
        preview(state, 0)
    elif step < config.steps and _due(config, step):
        preview(state, step)  # it may have ended between a save and this

    bar = tqdm.tqdm(total=config.steps, initial=step, desc=f"{name:>7}", unit="step")
    since, images, program = time.perf_counter(), 0, None
    host, device, logged = 0.0, 0.0, step
    trace = Trace(profile if processes.is_first() else None, step, config.steps)
    with bar, trace:
        while step < config.steps:
            trace.before(step)
            begun = time.perf_counter()
            batch = _place(next(data), mesh)
            if program is None:
                # Compiled ahead: a batch of another shape is an error, not a wait.
                program = jitted.lower(state, batch).compile()
                since = begun = time.perf_counter()
            with jax.profiler.StepTraceAnnotation(name, step_num=step):
                state, values = program(state, batch)
                sent = time.perf_counter()
                # Here the devices are waited for; grain reads ahead meanwhile.
                finite = bool(values["finite"])
            host, device = host + sent - begun, device + time.perf_counter() - sent
            trace.after(step)
            if not finite:
                checkpoints.save(step, state, data, wait=True)
                raise NotFinite(_not_finite(name, step, diagnose(state, batch)))
            step += 1
            images += batch["image"].shape[0]
            bar.update()

            last = step == config.steps
            if step % config.log_every == 0 or last:
                seconds = time.perf_counter() - since
                numbers = {
                    f"train/{key}": float(value)
                    for key, value in values.items()
                    if key != "finite"
                }
                bar.set_postfix(loss=f"{numbers['train/loss']:.4f}", refresh=False)
                numbers["train/lr"] = float(learning_rate(step - 1))
                numbers["time/images_per_sec"] = images / seconds
                numbers["time/host_ms"] = 1e3 * host / (step - logged)
                numbers["time/device_ms"] = 1e3 * device / (step - logged)
                metrics.write(name, step, numbers | _device_memory())
                since, images = time.perf_counter(), 0
                host, device, logged = 0.0, 0.0, step
            if last:
                preview(state, step)  # before the save, which may depend on it
            stopping = processes.any_host(stop.asked) and not last
            if last or stopping or step % config.save_every == 0:
                usable = last or config.always_usable
                checkpoints.save(
                    step,
                    state,
                    data,
                    inference(state) if usable else None,
                    wait=last or stopping,
                )
            if stopping:
                raise Stopped(
                    f"{name}: saved at step {step} of {config.steps} and stopped; "
                    "run the same command again to go on"
                )
            if not last and _due(config, step):
                preview(state, step)
                since = time.perf_counter()
    return state


def _due(config: LoopConfig, step: int) -> bool:
    """Whether a preview is drawn at a step that is not the last."""
    return bool(config.preview_every) and step % config.preview_every == 0


def _place(batch: dict[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Rows over the mesh; the null text, the same for every row, as copies."""
    shared = {name: batch[name] for name in train_step.SHARED if name in batch}
    rows = {name: leaf for name, leaf in batch.items() if name not in shared}
    return sharding.put_rows(rows, mesh) | sharding.put_copies(shared, mesh)


def _not_finite(name: str, step: int, found: list[str]) -> str:
    tensors = ", ".join(found[:8]) or "the loss alone"
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return (
        f"{name}: step {step + 1} is not finite, in: {tensors}{more}. The state before "
        f"it is saved. A lower config.{name}.optim.lr or a smaller "
        f"config.{name}.optim.clip usually mends this"
    )


def _device_memory() -> dict[str, float]:
    """Peak bytes in use on the first local device, where the backend tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return {}
    return {"memory/peak_gib": stats["peak_bytes_in_use"] / 2**30}
