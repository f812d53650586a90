"""Checkpoints of a stage: the only place that knows orbax.

A checkpoint holds ``state`` (everything a step changes), ``data`` (the position
of the batch iterator) and, when a stage is finished, ``params`` (what sampling
uses).  Orbax writes beside and renames, so a half-written one is never found; one
that was damaged later is passed over for the one before.
"""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from imagen_booth.distributed import processes
from imagen_booth.errors import StorageError
from imagen_booth.storage import free_space, is_object_store
from imagen_booth.train_state import Params, TrainState

log = logging.getLogger(__name__)

KEEP = 2  # the newest, and one to fall back on


class Checkpoints:
    """The checkpoints in one directory; a context manager that waits for saves.

    Args:
        frozen: Returns the parameters that never change; they are then left out of the
            files, and put back into what is restored.
        keep: Number of checkpoints that are kept, the newest ones.
    """

    def __init__(
        self,
        directory: epath.Path,
        frozen: Callable[[], Params] | None = None,
        keep: int = KEEP,
    ):
        self.directory = _absolute(directory)
        self._frozen, self._keep = frozen, keep
        self._ocp = self._open()

    def _open(self) -> Any:
        try:
            return ocp.training.Checkpointer(
                self.directory,
                preservation_policy=_newest(self._keep),
                cleanup_tmp_directories=True,
            )
        except (OSError, ValueError) as error:
            raise _storage(self.directory, error) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if error is not None and processes.is_lost_host(error):
            return  # closing would wait for those that are gone
        try:
            self._ocp.close()
        except (OSError, ValueError) as failed:
            if kind is None:
                raise _storage(self.directory, failed) from failed
            # The first error decides; this one is often its consequence.
            log.warning("%s: a save did not end: %s", self.directory, failed)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return max(self._steps(), default=None)

    def is_usable(self, step: int) -> bool:
        """Whether the checkpoint of a step holds parameters for use."""
        return processes.decide((self.directory / str(step) / "params").exists)

    def save(
        self,
        step: int,
        state: TrainState,
        data: Any,
        params: Any = None,
        *,
        wait: bool = False,
    ) -> None:
        """Starts writing a checkpoint; an earlier one still in flight is awaited.

        Args:
            step: Steps taken; a step already saved is left as it is.
            data: A grain iterator.
            params: Inference parameters, at the end of a stage.
            wait: Whether to return only when it is stored.

        Raises:
            StorageError: It cannot be written.
        """
        if step in self._steps():
            return
        items: dict[str, Any] = {"state": self._without_frozen(state), "data": data}
        if params is not None:
            items["params"] = params
        self._save(step, items, wait)

    def _steps(self) -> list[int]:
        """Steps of the complete checkpoints, as process 0 sees them."""
        return processes.decide(lambda: [one.step for one in self._ocp.checkpoints])

    def save_params(self, step: int, params: Any) -> None:
        """Writes parameters alone, and returns when they are on disk.

        Raises:
            StorageError: They cannot be written.
        """
        if step not in self._steps():
            self._save(step, {"params": params}, wait=True)

    def _save(self, step: int, items: dict[str, Any], wait: bool) -> None:
        try:
            # Forced: when to save is the loop's decision, not a policy's.
            response = self._ocp.save_checkpointables_async(step, items, force=True)
            if wait and response is not None:
                response.result()
        except (OSError, ValueError) as error:
            raise _storage(self.directory, error) from error

    def restore(self, abstract: TrainState, data: Any) -> TrainState:
        """The newest state that can be read; moves ``data`` along with it.

        Those that cannot be read are deleted, so that they can be written again.

        Args:
            abstract: Shapes, dtypes and shardings of the state.

        Raises:
            StorageError: None can be read; they are all left as they are.
        """
        wanted = self._without_frozen(abstract)
        broken: list[int] = []
        for step in sorted(self._steps(), reverse=True):
            state, reason = None, ""
            try:
                # That of process 0 holds for all: the number of processes may change.
                [position] = (self.directory / str(step) / "data").glob("process_0-*")
                data.set_state(json.loads(position.read_text()))
                state = self._ocp.load_checkpointables(step, {"state": wanted})["state"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                if processes.is_lost_host(error):
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            # One answer for all hosts, whichever of them could not read it.
            failed = processes.any_host(state is None)
            if state is not None and not failed:
                self._drop(broken)
                return self._with_frozen(state)
            broken.append(step)
            log.warning("%s/%d cannot be read: %s", self.directory, step, reason)
        raise StorageError(
            f"no checkpoint in {self.directory} can be read; delete that folder to "
            "begin again, or bring the files back"
        )

    def _without_frozen(self, state: TrainState) -> TrainState:
        if self._frozen is None:
            return state
        return dataclasses.replace(state, frozen={})

    def _with_frozen(self, state: TrainState) -> TrainState:
        if self._frozen is None:
            return state
        return dataclasses.replace(state, frozen=self._frozen())

    def _drop(self, damaged: list[int]) -> None:
        if not damaged:
            return
        self._ocp.close()
        if processes.is_first():
            for step in damaged:
                (self.directory / str(step)).rmtree()
        processes.wait("damaged checkpoints")
        self._ocp = self._open()


def read_params(directory: epath.Path) -> tuple[Any, int]:
    """Inference parameters of the newest checkpoint that has them, as numpy.

    Returns:
        The tree ``{"unet", "text"?}``, and the step it was saved at.

    Raises:
        FileNotFoundError: No checkpoint in ``directory`` has them.
        StorageError: They are damaged.
    """
    directory = _absolute(directory)
    with ocp.training.Checkpointer(directory) as reader:
        steps = [known.step for known in reader.checkpoints]
    for step in reversed(steps):
        if (directory / str(step) / "params").exists():
            try:
                return _as_numpy(directory / str(step)), step
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise StorageError(
                    f"the parameters in {directory / str(step)} cannot be read: "
                    f"{reason[:300]}; bring the files back, or delete that folder and "
                    "run train again"
                ) from error
    raise FileNotFoundError(str(directory))


def _as_numpy(checkpoint: epath.Path) -> Any:
    # Of this item alone: for ``data`` orbax has none and would warn.
    metadata = ocp.metadata(checkpoint, "params").metadata
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
    return ocp.load(checkpoint, abstract, checkpointable_name="params")


def _absolute(directory: epath.PathLike) -> epath.Path:
    """As orbax wants it; ``gs://`` paths are so already."""
    path = os.fspath(directory)
    return epath.Path(path if is_object_store(path) else os.path.abspath(path))


def _newest(count: int) -> Any:
    # Orbax declares its policies with another type than the one it accepts.
    return ocp.training.preservation_policies.LatestN(count)


def _storage(directory: epath.Path, error: OSError | ValueError) -> Exception:
    """The error for the user; tensorstore reports a full disk as a ValueError.

    Its text begins with the name of a status, such as ``RESOURCE_EXHAUSTED``; any
    other ValueError is a fault of the program and returned as it is.
    """
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ValueError) and not re.match("[A-Z]+(_[A-Z]+)*: ", text):
        return error
    return StorageError(
        f"cannot write a checkpoint in {directory}: {text[:300]}{free_space(directory)}"
        "; free some space or give another --workdir, then run the same command again"
    )
