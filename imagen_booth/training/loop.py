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

    def results_due(self, step: int) -> bool:
        """Whether the results of ``step`` are needed at once."""
        every = (self.log_every, self.save_every, self.preview_every)
        return step == self.steps or any(n and step % n == 0 for n in every)

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


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained, on what, and how long.

    Attributes:
        name: The stage, for messages and rows of metrics.
        start: The state at step 0 and its shardings.
        step_fn: The pure step; the loop jits it, with the state donated.
        data: A grain iterator of batches: numpy rows of this process, and the
            entries of ``train_step.SHARED``, which have no row axis.
        config: The length and the intervals.
        hooks: What happens besides the steps.
        fixed: Further arguments of the step, which are never donated.
        made_from: What the step is made of, see ``StoredProgram``.
    """

    name: str
    start: InitialState
    step_fn: StepFunction
    data: Iterator[Any]
    config: LoopConfig
    hooks: LoopHooks
    fixed: tuple[Any, ...] = ()
    made_from: str = ""


@dataclasses.dataclass(frozen=True)
class LoopContext:
    """Where a training runs and where its results go.

    Attributes:
        mesh: The devices.
        checkpoints: Receives the state.
        metrics: Receives the metrics.
        stop: Whether a signal has come.
        profile: Folder for a trace of a few early steps of the first process.
    """

    mesh: jax.sharding.Mesh
    checkpoints: Checkpoints
    metrics: MetricWriter
    stop: StopRequest
    profile: epath.Path | None = None


def jit_step(step_fn: Callable[..., Any], abstract: TrainState) -> Any:
    """Jits the step; the state is donated and keeps its sharding.

    Args:
        step_fn: Pure ``(state, batch, *fixed, ok) -> (state, metrics)``.
        abstract: The state's shapes with their shardings.
    """
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    metrics = sharding.copies(jax.tree.leaves(placement)[0].mesh)
    return jax.jit(step_fn, donate_argnums=0, out_shardings=(placement, metrics))


def train(training: Training, context: LoopContext) -> TrainState:
    """Trains from the newest checkpoint, or from the start, to ``config.steps``.

    It ends earlier where ``hooks.ends`` is true.

    Returns:
        The state after the last step.

    Raises:
        Stopped: A signal came; the state is saved.
        NotFinite: A loss or gradient is not finite; the last good state is saved.
        StorageError: A checkpoint cannot be written.
    """
    state = _restore_or_start(training, context)
    ends, step = training.hooks.ends, int(state.step)
    if ends is not None and context.checkpoints.is_usable(step) and ends(step):
        return state
    return _Loop(training, context, state).run()


class _Loop:
    """A training between its start and its end.

    The host sends a step, and looks at the one before while the devices work.
    """

    def __init__(self, training: Training, context: LoopContext, state: TrainState):
        self._training, self._context = training, context
        self._config, self._hooks = training.config, training.hooks
        self._state, self._step = state, int(state.step)
        step_fn = jit_step(training.step_fn, training.start.abstract)
        self._jitted = StoredProgram(step_fn, training.made_from)
        self._program: Callable[..., Any] | None = None
        self._ok = sharding.put_copies(np.bool_(True), context.mesh)
        self._batches = _Batches(training.data, context.mesh)
        self._unseen: list[_Sent] = []  # not known to be finite, at most two
        self._timer = _StepTimer(self._step)
        folder = context.profile if processes.is_first() else None
        self._trace = Trace(folder, self._step, self._config.steps)
        self._bar = tqdm.tqdm(
            total=self._config.steps,
            initial=self._step,
            desc=f"{training.name:>7}",
            unit="step",
        )

    def run(self) -> TrainState:
        """Trains to the end, and returns the state there."""
        with self._bar, self._trace:
            self._begin()
            while self._step < self._config.steps:
                sent = self._send_step()
                due = self._config.results_due(self._step)
                stopping = not due and self._agree_to_stop()
                # Elsewhere the devices have the next step to do when the host looks.
                now = due or stopping or self._trace.ends_after(sent.step)
                self._look(2 if now else len(self._unseen) - 1)
                self._trace.after(sent.step)
                last, preview_due = self._preview_and_end()
                if self._step % self._config.log_every == 0 or last:
                    self._write_metrics(sent.values)
                if due and not last:
                    stopping = self._any_host_stops()
                self._save(sent.position, last, stopping)
                if last:
                    break
                if preview_due:
                    self._preview()
        return self._state

    def _begin(self) -> None:
        """Makes the preview of the start, or one that an earlier run did not make.

        The step is compiled meanwhile, from a batch that is read ahead.
        """
        if self._step == self._config.steps:
            return
        if self._step == 0 or self._config.preview_due(self._step):
            batch, _ = self._batches.read_ahead()
            self._jitted.begin_compiling(*self._inputs(batch), ok=self._ok)
            self._hooks.preview(self._state, self._step)

    def _inputs(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        return self._state, batch, *self._training.fixed

    def _send_step(self) -> "_Sent":
        """Sends the next step to the devices, and reads the batch after it."""
        training, timer = self._training, self._timer
        self._trace.before(self._step)
        timer.start_step()
        batch, position = self._batches.take()
        inputs = self._inputs(batch)
        program = self._program
        if program is None:
            # For these shapes alone: a batch of another shape is an error, not a wait.
            program = self._program = self._jitted.compile(*inputs, ok=self._ok)
            timer.leave_out_compilation()
        with jax.profiler.StepTraceAnnotation(training.name, step_num=self._step):
            self._state, values = program(*inputs, ok=self._ok)
        sent = _Sent(self._step, batch, position, values)
        self._unseen.append(sent)
        self._ok = values["finite"]
        self._step += 1
        saves = self._step % self._config.save_every == 0  # which needs the data here
        if self._step < self._config.steps and not saves:
            self._batches.read_ahead()  # while the devices work
        timer.end_step(batch["image"].shape[0])
        self._bar.update()
        return sent

    def _look(self, steps: int) -> None:
        """Waits for the earliest ``steps`` steps that were sent.

        Raises:
            NotFinite: One is not finite; the state before it is saved.
        """
        for sent in self._unseen[:steps]:
            with self._timer.waiting():
                finite = bool(sent.values["finite"])
            if not finite:
                # The steps after it changed nothing: this is the state before it.
                self._write_checkpoint(sent.step, sent.position, None, wait=True)
                tensors = self._hooks.diagnose(self._state, sent.batch)
                raise NotFinite(_not_finite(self._training.name, sent.step, tensors))
        del self._unseen[:steps]

    def _agree_to_stop(self) -> bool:
        """Whether hosts agree to stop at a step whose results are not needed."""
        asked = processes.count() == 1 or self._step % AGREE_EVERY == 0
        return asked and self._any_host_stops()

    def _any_host_stops(self) -> bool:
        return processes.any_host(self._context.stop.requested)

    def _preview_and_end(self) -> tuple[bool, bool]:
        """Whether this step is the last, and whether its preview is still to come."""
        last = self._step == self._config.steps
        due = self._config.preview_due(self._step) and not last
        if due and self._hooks.ends is not None:
            self._preview()
            return self._hooks.ends(self._step), False
        return last, due

    def _preview(self) -> None:
        self._hooks.preview(self._state, self._step)
        self._timer.leave_out_preview()

    def _write_metrics(self, values: dict[str, jax.Array]) -> None:
        rate = float(self._hooks.learning_rate(self._step - 1))
        row = _metric_row(values) | {"train/lr": rate} | self._timer.rates(self._step)
        self._bar.set_postfix(loss=f"{row['train/loss']:.4f}", refresh=False)
        row |= _device_memory()
        self._context.metrics.write(self._training.name, self._step, row)
        self._timer.restart(self._step)

    def _save(self, position: Any, last: bool, stopping: bool) -> None:
        """Saves where it is due, with the last preview before the last save.

        Raises:
            Stopped: ``stopping``.
        """
        if self._step == self._config.steps:
            self._hooks.preview(self._state, self._step)  # the save may depend on it
        if last or stopping or self._step % self._config.save_every == 0:
            usable = last or self._config.always_usable
            params = self._hooks.inference(self._state) if usable else None
            wait = last or stopping
            self._write_checkpoint(self._step, position, params, wait=wait)
        if stopping:
            raise Stopped(
                f"{self._training.name}: saved at step {self._step} of "
                f"{self._config.steps} and stopped; run the same command again to "
                "resume"
            )

    def _write_checkpoint(
        self, step: int, position: Any, params: Any, *, wait: bool
    ) -> None:
        """Saves the state, with the data at the position after its batch."""
        self._batches.rewind(position)
        self._context.checkpoints.save(
            step, self._state, self._training.data, params, wait=wait
        )


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

    def read_ahead(self) -> tuple[dict[str, Any], Any]:
        """Reads what ``take`` gives next, and returns it."""
        self._ahead = self._ahead or self._read()
        return self._ahead

    def rewind(self, position: Any) -> None:
        """Puts the data back to a position, for a checkpoint of that step."""
        if self._data.get_state() != position:
            self._data.set_state(position)
        self._ahead = None

    def _read(self) -> tuple[dict[str, Any], Any]:
        batch = _place(next(self._data), self._mesh)
        return batch, self._data.get_state()


def _restore_or_start(training: Training, context: LoopContext) -> TrainState:
    """The state to start from, with the metrics that belong to it."""
    start, data = training.start, training.data
    checkpoints = context.checkpoints
    if checkpoints.latest() is None:
        state = start.make()
    else:
        state = checkpoints.restore(start.abstract, data)
    step = int(state.step)
    context.metrics.rewind(training.name, step)
    if step == 0:
        # Storage that cannot be written fails now, not after hours of training.
        checkpoints.save(0, state, data, wait=True)
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
