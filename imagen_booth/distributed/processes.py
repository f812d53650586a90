"""Which process this is, how the processes of a job find each other, and what only
one of them may do.

No other module asks jax about processes: code elsewhere takes (host, hosts).
"""

import contextlib
import glob
import hashlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from imagen_booth.errors import InputError, StorageError
from imagen_booth.storage import write_atomic

# Seconds after which a process that says nothing counts as dead, which ends the
# others, and that a process which is done waits for the others.  A connection that
# breaks is noticed at once.
SILENCE = 60

# What an operation over several hosts says when one of them is gone.
LOST_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "heartbeat",
    "unhealthy",
    "UNAVAILABLE",
)


def start(coordinator: str = "", processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a job; comes before jax meets any device.

    Without arguments the cluster is looked for, see ``cluster``; where there is none
    this process works alone.

    Args:
        coordinator: ``HOST:PORT`` of process 0, reached by all.
        processes: how many there are.
        process_id: which of them this is, from 0.

    Raises:
        InputError: arguments that do not go together, or a cluster that does not
            answer.
    """
    given = (bool(coordinator), processes != 0, process_id != -1)
    if any(given) and not all(given):
        raise InputError(
            "--coordinator, --processes and --process_id go together; give all three, "
            "or none on a TPU VM, on GKE and under Slurm"
        )
    if all(given):
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(
                f"--coordinator={coordinator} should be HOST:PORT of process 0, such "
                "as 10.0.0.2:8476"
            )
        if not 0 <= process_id < processes:
            raise InputError(
                f"--process_id={process_id} of --processes={processes} should be "
                f"from 0 to {processes - 1}"
            )
        known: dict[str, Any] = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
        where = coordinator
    else:
        kind = cluster(os.environ, _has_chips())
        if kind is None:
            return
        known, where = {"cluster_detection_method": kind}, f"this cluster ({kind})"
    # jax's own service would take every SIGTERM for itself and know no SIGINT, and
    # orbax asks it from a thread of its own with a stage's steps, which must not go
    # back; the loop asks all hosts itself between steps, see ``any_host``.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **known,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the processes of {where} did not find each other: {reason}. Start the "
            "same command on every host, or give --coordinator, --processes and "
            "--process_id"
        ) from error


def may_be_several(coordinator: str, processes: int, process_id: int) -> bool:
    """Whether ``start`` would look for other processes; wrong arguments look for none.

    Args:
        coordinator, processes, process_id: as for ``start``.
    """
    if coordinator or processes or process_id != -1:
        return bool(coordinator) and 0 <= process_id < processes and processes > 1
    return cluster(os.environ, _has_chips()) is not None


def is_lost_host(error: BaseException) -> bool:
    """Whether an error comes from another process that is gone."""
    text = str(error)
    return (
        isinstance(error, RuntimeError | ValueError)
        and jax.distributed.is_initialized()
        and count() > 1
        and any(sign in text for sign in LOST_SIGNS)
    )


def cluster(environ: Mapping[str, str], chips: bool) -> str | None:
    """Where this process runs, by jax's name for it; None if it is alone.

    Args:
        environ: of the process.
        chips: whether this machine has TPU chips of its own.
    """
    if "SLURM_STEP_NODELIST" in environ and int(environ.get("SLURM_NTASKS", 1)) > 1:
        return "slurm"
    # Set on GKE, and on hosted notebooks, where it names a single worker.
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if name in environ:
            several = int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1
            return "gketpu" if several or "," in environ[name] else None
    # Only its metadata server knows whether a TPU VM is one of several.
    if chips and "TPU_SKIP_MDS_QUERY" not in environ:
        return "gcetpu"
    return None


def _has_chips() -> bool:
    devices = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def index() -> int:
    """Index of this process, 0 for the one that writes what is single."""
    return jax.process_index()


def count() -> int:
    """Number of processes in the job."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return index() == 0


def wait(name: str) -> None:
    """Holds every process until all have come to the point called ``name``."""
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
    """Makes sure that all hosts see one and the same folder.

    Process 0 leaves a file there and the others look for it.

    Args:
        name: of the setting, for errors.
        folder: local or ``gs://``; made if it is missing.

    Raises:
        InputError: some host sees another folder.
        StorageError: process 0 cannot write there.

    Both are raised on every process, whichever found the fault.
    """
    if count() == 1:
        return
    mark = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(8), np.uint32))
    file = epath.Path(folder) / f".hosts-{np.asarray(mark).tobytes().hex()}"
    if is_first():
        # Where this fails the file is missing, which is told below on every process.
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
    """Makes sure that a folder holds the same files, by hash, on every host.

    Args:
        name: of the setting, for errors.
        folder: local or ``gs://``; one that is missing counts as empty.

    Raises:
        InputError: some host has other files; raised on every process.
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


def broadcast(array: np.ndarray) -> np.ndarray:
    """The array of process 0, on every process; all give one shape and dtype."""
    if count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))
