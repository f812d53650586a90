"""Which process of a job this is, how processes find each other, and collectives.

This is the only module that asks jax about processes: code elsewhere takes (host,
hosts).
"""

import contextlib
import glob
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from imagen_booth import errors
from imagen_booth.errors import BoothError, InputError, StorageError
from imagen_booth.storage import write_atomic

# Heartbeat timeout in seconds. A process silent for this long is treated as lost and
# the job ends; a finished process waits this long for the others. A connection that
# breaks is noticed at once.
SILENCE = 60

# Parts of the messages that a collective operation raises when a host is gone.
LOST_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "heartbeat",
    "unhealthy",
    "UNAVAILABLE",
)


def start(coordinator: str = "", processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a job. Call it before jax initialises its devices.

    Without arguments it looks for a cluster, see ``cluster``; where there is none,
    this process works alone. With ``processes=1`` alone it does so in a cluster too.

    Args:
        coordinator: ``HOST:PORT`` of process 0, which every process can reach.
        processes: Number of processes in the job.
        process_id: Number of this process, from 0.

    Raises:
        InputError: The arguments are incomplete or wrong, or the cluster does not
            answer.
    """
    given = (bool(coordinator), processes != 0, process_id != -1)
    if given == (False, True, False) and processes == 1:
        return
    if any(given):
        if not all(given):
            raise InputError(
                "--coordinator, --processes and --process_id go together; give all "
                "three, or none on a TPU VM, on GKE and under Slurm"
            )
        _check_arguments(coordinator, processes, process_id)
        _initialize(
            coordinator,
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process_id,
            cluster_detection_method="deactivate",
        )
    elif kind := cluster(os.environ, _has_chips()):
        _initialize(f"this cluster ({kind})", cluster_detection_method=kind)


def _check_arguments(coordinator: str, processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(
            f"--coordinator={coordinator} should be HOST:PORT of process 0, such as "
            "10.0.0.2:8476"
        )
    if not 0 <= process_id < processes:
        raise InputError(
            f"--process_id={process_id} of --processes={processes} should be from 0 to "
            f"{processes - 1}"
        )


def _initialize(name: str, **settings: Any) -> None:
    """Connects to the other processes.

    Args:
        name: Name of the job's place, for the error.
        settings: Arguments of ``jax.distributed.initialize``.
    """
    # jax's own preemption service would catch every SIGTERM and no SIGINT, and orbax
    # queries it from its own thread with the steps of a stage, which must not go back.
    # The loop itself compares all hosts between steps, see ``any_host``.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **settings,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the processes of {name} did not find each other: {reason}. Start the "
            "same command on every host, or give --coordinator, --processes and "
            "--process_id"
        ) from error


def may_be_several(coordinator: str, processes: int, process_id: int) -> bool:
    """Whether ``start`` would look for other processes; wrong arguments look for none.

    Args:
        coordinator, processes, process_id: As in ``start``.
    """
    if coordinator or processes or process_id != -1:
        return bool(coordinator) and 0 <= process_id < processes and processes > 1
    return cluster(os.environ, _has_chips()) is not None


def is_lost_host(error: BaseException) -> bool:
    """Whether an error means that another process is lost."""
    text = str(error)
    return (
        isinstance(error, RuntimeError | ValueError)
        and jax.distributed.is_initialized()
        and count() > 1
        and any(sign in text for sign in LOST_SIGNS)
    )


def cluster(environ: Mapping[str, str], chips: bool) -> str | None:
    """The cluster that this process is part of, by jax's name; None if it is alone.

    Args:
        environ: Environment of the process.
        chips: Whether this machine has TPU chips of its own.
    """
    if _is_slurm_task(environ):
        return "slurm"
    # GKE sets these, and so do hosted notebooks, where they name a single worker.
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if name in environ:
            several = int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1
            return "gketpu" if several or "," in environ[name] else None
    # Only its metadata server knows whether a TPU VM is one of several.
    if chips and "TPU_SKIP_MDS_QUERY" not in environ:
        return "gcetpu"
    return None


def _is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Whether Slurm started this process as one of several tasks of a step.

    SLURM_NTASKS alone is not enough: in the shell of ``salloc -n2`` it is the size of
    the allocation, while the shell is the only task of its step.
    """
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    sizes = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")  # jax reads the second one
    return all(name in environ for name in needed) and all(
        environ.get(name, "").isdecimal() and int(environ[name]) > 1 for name in sizes
    )


def _has_chips() -> bool:
    devices = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def index() -> int:
    """Index of this process, from 0."""
    return jax.process_index()


def count() -> int:
    """Number of processes in the job."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0, which writes the files that a job has once."""
    return index() == 0


def wait(name: str) -> None:
    """Blocks until every process has reached the point called ``name``."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def any_host(flag: bool) -> bool:
    """True on every process if ``flag`` is true on at least one."""
    if count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(flag).any())


def least(number: int) -> int:
    """The smallest ``number`` that any process gives, on every process."""
    if count() == 1:
        return number
    given = multihost_utils.process_allgather(np.asarray([number], np.float32))
    return int(np.min(given))


def check_shared(name: str, folder: epath.PathLike) -> None:
    """Checks that all hosts see the same folder.

    Process 0 writes a file there and the others look for it.

    Args:
        name: Name of the setting, for errors.
        folder: Local or ``gs://`` folder; created if it is missing.

    Raises:
        InputError: A host sees another folder. Raised on every process.
        StorageError: Process 0 cannot write there. Raised on every process.
    """
    if count() == 1:
        return
    mark = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(8), np.uint32))
    file = epath.Path(folder) / f".hosts-{np.asarray(mark).tobytes().hex()}"
    if is_first():
        # If this fails the file is missing, and every process raises the error below.
        with contextlib.suppress(StorageError):
            write_atomic(file, b"seen by every host")
    wait(f"mark in {name}")
    seen = np.asarray(multihost_utils.process_allgather(np.asarray(file.exists())))
    if is_first():
        file.unlink(missing_ok=True)
    if not seen[0]:
        raise StorageError(f"{name}={folder} cannot be written by host 0")
    if not seen.all():
        raise InputError(
            f"{name}={folder} is not one folder for all hosts: {_hosts(~seen)} cannot "
            "see what host 0 writes there; give a gs:// folder or one on a shared disk"
        )


def check_same_files(name: str, folder: epath.PathLike) -> None:
    """Checks that a folder holds the same files, by hash, on every host.

    Args:
        name: Name of the setting, for errors.
        folder: Local or ``gs://`` folder; a missing one counts as empty.

    Raises:
        InputError: A host has other files. Raised on every process.
    """
    if count() == 1:
        return
    path, whole = epath.Path(folder), hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else []:
        if file.is_file():
            whole.update(file.name.encode() + b"\0")
            whole.update(hashlib.sha256(file.read_bytes()).digest())
    mine = np.frombuffer(whole.digest(), np.uint32)
    digests = np.asarray(multihost_utils.process_allgather(mine))
    differs = (digests != digests[:1]).any(axis=1)
    if differs.any():
        raise InputError(
            f"{name}={folder} does not hold the same files on every host: "
            f"{_hosts(differs)} and host 0 differ; copy one set to all, or give a "
            "gs:// folder"
        )


def _hosts(which: np.ndarray) -> str:
    numbers = [str(number) for number in np.flatnonzero(which)]
    return f"host {numbers[0]}" if len(numbers) == 1 else f"hosts {', '.join(numbers)}"


def decide(choose: Callable[[], Any]) -> Any:
    """What process 0 finds, on every process.

    Where hosts look for themselves, a write between two looks gives two answers, and
    the hosts then wait for each other forever.

    Args:
        choose: Gives a value that JSON can hold; called on process 0 alone.

    Raises:
        BoothError: What ``choose`` raises, on every process.
        StorageError: ``choose`` raises an OSError.
    """
    if count() == 1:
        return choose()
    answer, raised = {}, None
    if is_first():
        try:
            answer = {"value": choose()}
        except (BoothError, OSError) as error:
            known = isinstance(error, BoothError)
            raised = error if known else StorageError(str(error))
            answer = {"error": type(raised).__name__, "text": str(raised)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(broadcast(np.asarray([text.size], np.int32))[0])
    text = broadcast(text if is_first() else np.zeros(size, np.uint8))
    answer = json.loads(text.astype(np.uint8).tobytes())
    if raised is not None:
        raise raised
    if "error" in answer:
        raise getattr(errors, answer["error"], StorageError)(answer["text"])
    return answer["value"]


def broadcast(array: np.ndarray) -> np.ndarray:
    """The array of process 0, on every process; all give one shape and dtype."""
    if count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))
