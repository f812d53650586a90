"""The training loop: batch -> step -> metrics, previews, checkpoints.

DreamBooth, super-resolution and pretraining differ in their step function, their
batches and their hooks, which are arguments here.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from etils import epath

from imagen_booth.distributed import processes, sharding
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import NotFinite, Stopped
from imagen_booth.rundir.checkpoints import Checkpoints
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.rundir.profiling import Trace
from imagen_booth.rundir.programs import StoredProgram
from imagen_booth.train_state import TrainState
from imagen_booth.training import train_step

AGREE_EVERY = 10  # steps, at most, between two times that hosts agree whether to stop

StepFunction = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


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

    @classmethod
    def of(cls, settings: Any, always_usable: bool = False) -> "LoopConfig":
        """The length and the intervals in the settings of a training."""
        every = settings.log_every, settings.save_every, settings.preview_every
        return cls(settings.steps, *every, always_usable)

    @property
    def intervals(self) -> tuple[int, ...]:
        """The intervals at which a step's results are needed at once."""
        every = (self.log_every, self.save_every, self.preview_every)
        return tuple(steps for steps in every if steps)

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
        ends: Returns whether training ends at a step, by the previews up to it. Where
            this is not None, a preview is made before the checkpoint of its step,
            which is the last one if training ends.
    """

    learning_rate: Callable[[int], Any]
    preview: Callable[[TrainState, int], None]
    inference: Callable[[TrainState], Any]
    diagnose: Callable[[TrainState, Any], list[str]]
    ends: Callable[[int], bool] | None = None


def jit_step(step_fn: Callable[..., Any], abstract: TrainState) -> Any:
    """Jits the step; the state is donated and keeps its sharding.

    Args:
        step_fn: Pure ``(state, batch, *fixed, ok) -> (state, metrics)``.
        abstract: The state's shapes with their shardings.
    """
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    metrics = sharding.copies(jax.tree.leaves(placement)[0].mesh)
    return jax.jit(step_fn, donate_argnums=0, out_shardings=(placement, metrics))


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
    fixed: tuple[Any, ...] = (),
    made_from: str = "",
) -> TrainState:
    """Trains from the newest checkpoint, or from ``start``, to ``config.steps``.

    It ends earlier where ``hooks.ends`` is true.

    Args:
        name: The stage, for messages and rows of metrics.
        start: The state at step 0 and its shardings.
        step_fn: The pure step; it is jitted here, with the state donated.
        data: A grain iterator of batches: numpy rows of this process, and the
            entries of ``train_step.SHARED``, which have no row axis.
        profile: Folder for a trace of a few early steps of the first process.
        fixed: Further arguments of the step, which are never donated.
        made_from: What the step is made of, see ``StoredProgram``.

    Returns:
        The state after the last step.

    Raises:
        Stopped: A signal came; the state is saved.
        NotFinite: A loss or gradient is not finite; the last good state is saved.
        StorageError: A checkpoint cannot be written.
    """
    state = _restore_or_start(name, start, data, config, hooks, checkpoints, metrics)
    step, program = int(state.step), None
    if hooks.ends is not None and checkpoints.is_usable(step) and hooks.ends(step):
        return state
    jitted = StoredProgram(jit_step(step_fn, start.abstract), made_from)
    bar = tqdm.tqdm(total=config.steps, initial=step, desc=f"{name:>7}", unit="step")
    trace = Trace(profile if processes.is_first() else None, step, config.steps)
    timer, batches = _StepTimer(step), _Batches(data, mesh)
    ok = sharding.put_copies(np.bool_(True), mesh)
    unseen: list[_Sent] = []  # the steps that are not known to be finite, at most two

    def look(steps: int) -> None:
        """Waits for the earliest ``steps`` steps that were sent."""
        for sent in unseen[:steps]:
            with timer.waiting():
                finite = bool(sent.values["finite"])
            if not finite:
                # The steps after it changed nothing: this is the state before it.
                batches.rewind(sent.position)
                checkpoints.save(sent.step, state, data, wait=True)
                tensors = hooks.diagnose(state, sent.batch)
                raise NotFinite(_not_finite(name, sent.step, tensors))
        del unseen[:steps]

    with bar, trace:
        while step < config.steps:
            trace.before(step)
            timer.start_step()
            batch, position = batches.take()
            if program is None:
                # Compiled ahead: a batch of another shape is an error, not a wait.
                program = jitted.compile(state, batch, *fixed, ok=ok)
                timer.leave_out_compilation()
            with jax.profiler.StepTraceAnnotation(name, step_num=step):
                state, values = program(state, batch, *fixed, ok=ok)
            unseen.append(_Sent(step, batch, position, values))
            ok = values["finite"]
            step += 1
            last = step == config.steps
            if not last and step % config.save_every:  # a save needs the data here
                batches.read_ahead()  # while the devices work
            timer.end_step(batch["image"].shape[0])
            bar.update()

            due = last or any(step % every == 0 for every in config.intervals)
            # Hosts agree at the steps whose results are needed, and now and then.
            agree = processes.count() == 1 or step % AGREE_EVERY == 0
            stopping = agree and not due and processes.any_host(stop.requested)
            # Elsewhere the devices have the next step to do when the host looks at one.
            now = due or stopping or trace.ends_after(step - 1)
            look(2 if now else len(unseen) - 1)
            trace.after(step - 1)
            preview_due = config.preview_due(step)
            if preview_due and not last and hooks.ends is not None:
                hooks.preview(state, step)
                timer.leave_out_preview()
                last, preview_due = hooks.ends(step), False
            if step % config.log_every == 0 or last:
                rate = float(hooks.learning_rate(step - 1))
                row = _metric_row(values) | {"train/lr": rate} | timer.rates(step)
                bar.set_postfix(loss=f"{row['train/loss']:.4f}", refresh=False)
                metrics.write(name, step, row | _device_memory())
                timer.restart(step)
            if due:
                stopping = not last and processes.any_host(stop.requested)
            if step == config.steps:
                hooks.preview(state, step)  # before the save, which may depend on it
            if last or stopping or step % config.save_every == 0:
                usable = last or config.always_usable
                params = hooks.inference(state) if usable else None
                batches.rewind(position)
                checkpoints.save(step, state, data, params, wait=last or stopping)
            if stopping:
                raise Stopped(
                    f"{name}: saved at step {step} of {config.steps} and stopped; "
                    "run the same command again to resume"
                )
            if last:
                break
            if preview_due:
                hooks.preview(state, step)
                timer.leave_out_preview()
    return state


class _Sent(NamedTuple):
    """A step that was sent to the devices.

    Attributes:
        step: Steps taken before it.
        batch: Its batch.
        position: Position of the data after its batch.
        values: Its metrics.
    """

    step: int
    batch: dict[str, Any]
    position: Any
    values: dict[str, jax.Array]


class _Batches:
    """Batches on the devices, one of them read ahead.

    Args:
        data: A grain iterator.
        mesh: The devices.
    """

    def __init__(self, data: Any, mesh: jax.sharding.Mesh):
        self._data, self._mesh = data, mesh
        self._ahead: tuple[dict[str, Any], Any] | None = None

    def take(self) -> tuple[dict[str, Any], Any]:
        """The next batch, and the position of the data after it."""
        batch, self._ahead = self._ahead or self._read(), None
        return batch

    def read_ahead(self) -> None:
        """Reads the batch that ``take`` gives next."""
        self._ahead = self._ahead or self._read()

    def rewind(self, position: Any) -> None:
        """Puts the data back to a position, for a checkpoint of that step."""
        if self._data.get_state() != position:
            self._data.set_state(position)
        self._ahead = None

    def _read(self) -> tuple[dict[str, Any], Any]:
        batch = _place(next(self._data), self._mesh)
        return batch, self._data.get_state()


def _restore_or_start(
    name: str,
    start: InitialState,
    data: Iterator[Any],
    config: LoopConfig,
    hooks: LoopHooks,
    checkpoints: Checkpoints,
    metrics: MetricWriter,
) -> TrainState:
    """The state to start from, with the metrics and previews that belong to it."""
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

    ``time/host_ms`` is the host's own work per step: to get a batch, to put it on the
    devices and to dispatch the step. ``time/device_ms`` is the time that the host waits
    for the devices. Compilation, previews and saves are in neither.
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

    def end_step(self, images: int) -> None:
        self._host += time.perf_counter() - self._begun
        self._images += images

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._device += time.perf_counter() - begun

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


def split_shared(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of a batch that have no row axis, and those that have one."""
    shared = {name: batch[name] for name in train_step.SHARED if name in batch}
    return shared, {name: leaf for name, leaf in batch.items() if name not in shared}


def _place(batch: dict[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Puts rows over the mesh, and copies of the entries that have no row axis."""
    shared, rows = split_shared(batch)
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
