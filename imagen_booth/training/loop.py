"""The training loop: batch -> step -> metrics, previews, checkpoints.

DreamBooth, super-resolution and pretraining differ in their step function, their
batches and their hooks, which are arguments here.
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

StepFunction = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The length of training and its intervals, in steps.

    Attributes:
        steps: Length of the stage.
        log_every: Steps between rows of metrics.
        save_every: Steps between checkpoints.
        preview_every: Steps between previews; 0 makes only the first and the last.
        always_usable: Stores inference parameters in every checkpoint instead of only
            in the last, for long training whose weights are used meanwhile.
    """

    steps: int
    log_every: int = 10
    save_every: int = 100
    preview_every: int = 0
    always_usable: bool = False

    def preview_due(self, step: int) -> bool:
        """Whether a preview is made at ``step``, which is not the last."""
        return bool(self.preview_every) and step % self.preview_every == 0


class InitialState(NamedTuple):
    """The start of training where there is no checkpoint.

    Attributes:
        abstract: Shapes, dtypes and shardings of the state.
        make: Makes the state at step 0; called only when needed.
    """

    abstract: TrainState
    make: Callable[[], TrainState]


@dataclasses.dataclass(frozen=True)
class LoopHooks:
    """What a kind of training does besides its steps.

    Attributes:
        learning_rate: Gives the learning rate at a step, for the metrics.
        preview: Makes and stores the preview of a state at a step. A resumed run may
            ask again for a step that has one.
        inference: Gives the parameters to store for use.
        diagnose: Names the tensors that are not finite in the step that would follow.
        ends: Says whether training ends at a step, by the previews up to it. Where this
            is not None, a preview is made before the checkpoint of its step, which is
            the last one if training ends.
    """

    learning_rate: Callable[[int], Any]
    preview: Callable[[TrainState, int], None]
    inference: Callable[[TrainState], Any]
    diagnose: Callable[[TrainState, Any], list[str]]
    ends: Callable[[int], bool] | None = None


def jit_step(step_fn: Callable[..., Any], abstract: TrainState) -> Any:
    """Jits the step; the state is donated and keeps its sharding.

    Args:
        step_fn: Pure ``(state, batch) -> (state, metrics)``.
        abstract: The state's shapes with their shardings.
    """
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(step_fn, donate_argnums=0, out_shardings=(placement, None))


def train(
    name: str,
    start: InitialState,
    step_fn: StepFunction,
    data: Iterator[Any],
    config: LoopConfig,
    hooks: LoopHooks,
    *,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    metrics: MetricWriter,
    stop: StopRequest,
    profile: epath.Path | None = None,
) -> TrainState:
    """Trains from the newest checkpoint, or from ``start``, to ``config.steps``.

    It ends earlier where ``hooks.ends`` says so.

    Args:
        name: The stage, for messages and rows of metrics.
        start: The state at step 0 and its shardings.
        step_fn: The pure step; it is jitted here, with the state donated.
        data: A grain iterator of batches: numpy rows of this process, and the
            entries of ``train_step.SHARED``, which have no row axis.
        profile: Folder for a trace of a few early steps of the first process.

    Returns:
        The state after the last step.

    Raises:
        Stopped: A signal came; the state is saved.
        NotFinite: A loss or gradient is not finite; the last good state is saved.
        StorageError: A checkpoint cannot be written.
    """
    state = _restore_or_start(name, start, data, config, hooks, checkpoints, metrics)
    step, jitted, program = int(state.step), jit_step(step_fn, start.abstract), None
    if hooks.ends is not None and checkpoints.is_usable(step) and hooks.ends(step):
        return state
    bar = tqdm.tqdm(total=config.steps, initial=step, desc=f"{name:>7}", unit="step")
    trace = Trace(profile if processes.is_first() else None, step, config.steps)
    timer = _StepTimer(step)
    with bar, trace:
        while step < config.steps:
            trace.before(step)
            timer.start_step()
            batch = _place(next(data), mesh)
            if program is None:
                # Compiled ahead: a batch of another shape is an error, not a wait.
                program = jitted.lower(state, batch).compile()
                timer.leave_out_compilation()
            with jax.profiler.StepTraceAnnotation(name, step_num=step):
                state, values = program(state, batch)
                timer.step_sent()
                # Waits for the devices; grain reads ahead meanwhile.
                finite = bool(values["finite"])
            timer.end_step(batch["image"].shape[0])
            trace.after(step)
            if not finite:
                checkpoints.save(step, state, data, wait=True)
                raise NotFinite(_not_finite(name, step, hooks.diagnose(state, batch)))
            step += 1
            bar.update()

            last, due = step == config.steps, config.preview_due(step)
            if due and not last and hooks.ends is not None:
                hooks.preview(state, step)
                timer.leave_out_preview()
                last, due = hooks.ends(step), False
            if step % config.log_every == 0 or last:
                rate = float(hooks.learning_rate(step - 1))
                row = _metric_row(values) | {"train/lr": rate} | timer.rates(step)
                bar.set_postfix(loss=f"{row['train/loss']:.4f}", refresh=False)
                metrics.write(name, step, row | _device_memory())
                timer.restart(step)
            if step == config.steps:
                hooks.preview(state, step)  # before the save, which may depend on it
            stopping = processes.any_host(stop.asked) and not last
            if last or stopping or step % config.save_every == 0:
                usable = last or config.always_usable
                params = hooks.inference(state) if usable else None
                checkpoints.save(step, state, data, params, wait=last or stopping)
            if stopping:
                raise Stopped(
                    f"{name}: saved at step {step} of {config.steps} and stopped; "
                    "run the same command again to resume"
                )
            if last:
                break
            if due:
                hooks.preview(state, step)
                timer.leave_out_preview()
    return state


def _restore_or_start(
    name: str,
    start: InitialState,
    data: Iterator[Any],
    config: LoopConfig,
    hooks: LoopHooks,
    checkpoints: Checkpoints,
    metrics: MetricWriter,
) -> TrainState:
    """The state to go on from, with the metrics and previews that belong to it."""
    if checkpoints.latest() is None:
        state = start.make()
    else:
        state = checkpoints.restore(start.abstract, data)
    step = int(state.step)
    metrics.rewind(name, step)
    if step == 0:
        # Storage that cannot be written fails now, not after hours of training.
        checkpoints.save(0, state, data, wait=True)
        hooks.preview(state, 0)
    elif step < config.steps and config.preview_due(step):
        hooks.preview(state, step)  # the run may have ended between save and preview
    return state


class _StepTimer:
    """Times the steps since the last row of metrics.

    ``time/host_ms`` is the host's own work per step: to get the batch, to put it on
    the devices and to dispatch the step. ``time/device_ms`` is the wait for the
    devices after that. Compilation, previews and saves are in neither.
    """

    def __init__(self, step: int):
        self.restart(step)

    def restart(self, step: int) -> None:
        self._since, self._images = time.perf_counter(), 0
        self._host, self._device, self._logged = 0.0, 0.0, step

    def start_step(self) -> None:
        self._begun = time.perf_counter()

    def leave_out_compilation(self) -> None:
        self._since = self._begun = time.perf_counter()

    def leave_out_preview(self) -> None:
        self._since = time.perf_counter()

    def step_sent(self) -> None:
        self._sent = time.perf_counter()

    def end_step(self, images: int) -> None:
        self._host += self._sent - self._begun
        self._device += time.perf_counter() - self._sent
        self._images += images

    def rates(self, step: int) -> dict[str, float]:
        """Images per second, and milliseconds per step up to ``step``."""
        seconds, steps = time.perf_counter() - self._since, step - self._logged
        return {
            "time/images_per_sec": self._images / seconds,
            "time/host_ms": 1e3 * self._host / steps,
            "time/device_ms": 1e3 * self._device / steps,
        }


def _metric_row(values: dict[str, jax.Array]) -> dict[str, float]:
    """The step's own metrics as numbers."""
    return {
        f"train/{key}": float(value) for key, value in values.items() if key != "finite"
    }


def _place(batch: dict[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Puts rows over the mesh, and copies of the entries that have no row axis."""
    shared = {name: batch[name] for name in train_step.SHARED if name in batch}
    rows = {name: leaf for name, leaf in batch.items() if name not in shared}
    return sharding.put_rows(rows, mesh) | sharding.put_copies(shared, mesh)


def _not_finite(name: str, step: int, paths: list[str]) -> str:
    tensors = ", ".join(paths[:8]) or "the loss alone"
    more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    return (
        f"{name}: step {step + 1} is not finite, in: {tensors}{more}. The state before "
        f"it is saved. Try a lower config.{name}.optim.lr or a smaller "
        f"config.{name}.optim.clip"
    )


def _device_memory() -> dict[str, float]:
    """Peak bytes in use on the first local device, where the backend reports it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return {}
    return {"memory/peak_gib": stats["peak_bytes_in_use"] / 2**30}
