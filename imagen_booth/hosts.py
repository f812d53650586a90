"""Which process this is, and what only one process may do.

No other module asks jax about processes: code elsewhere takes (host, hosts).
"""

import jax
from jax.experimental import multihost_utils


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
