"""What makes work on a CPU faster; set before jax meets a device."""

import ctypes
import importlib.util
import sys
from collections.abc import MutableMapping

# The convolutions of the library that XLA prefers, YNNPACK, are slower than those of
# Eigen, most of all their gradients. With this a training step of toybox's base stage
# takes 0.79 of the time, and one of a small IF-I 0.85 (jax 0.10.2, AMD EPYC).
_CONVOLUTIONS = "xla_cpu_experimental_ynn_fusion_type"
_BY_EIGEN = f"--{_CONVOLUTIONS}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
_ACCELERATORS = "libtpu", "jax_plugins"  # what their support is installed as

# Of glibc's mallopt, by their numbers in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def prefer_speed(environment: MutableMapping[str, str]) -> None:
    """All that this module knows, unless support for an accelerator is installed.

    Not every compiler that reads ``XLA_FLAGS`` knows our flag, and the memory of a
    host is of less account.

    Args:
        environment: ``os.environ``.
    """
    if any(map(importlib.util.find_spec, _ACCELERATORS)):
        return
    prefer_fast_convolutions(environment)
    keep_memory()


def prefer_fast_convolutions(environment: MutableMapping[str, str]) -> None:
    """Adds to ``XLA_FLAGS``, unless that says something of the matter already.

    Args:
        environment: ``os.environ``.
    """
    said = environment.get("XLA_FLAGS", "")
    if _CONVOLUTIONS not in said:
        environment["XLA_FLAGS"] = f"{said} {_BY_EIGEN}".strip()


def keep_memory() -> bool:
    """Freed memory stays with the process, which will soon ask for as much again.

    A step of a large network takes and gives back gigabytes. The system takes them
    away page by page and fills them with zeros anew: a fifth of the time of a training
    step of IF-I-M. The peak stays what it was.

    Returns:
        Whether the C library was told so; only glibc can be.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Only the first arena grows without bounds; others ask the system each time.
    settings = (_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)
    return all(mallopt(*setting) == 1 for setting in settings)
