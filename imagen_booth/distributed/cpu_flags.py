"""Settings that make a CPU faster. Apply them before jax initialises its devices."""

import ctypes
import importlib.util
import sys
from collections.abc import MutableMapping

# XLA prefers the convolutions of YNNPACK. Those of Eigen are faster, above all their
# gradients: a training step of toybox's base stage takes 0.79 of the time, and one of
# a small IF-I 0.85 (jax 0.10.2, AMD EPYC).
_CONVOLUTIONS = "xla_cpu_experimental_ynn_fusion_type"
_BY_EIGEN = f"--{_CONVOLUTIONS}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
_ACCELERATORS = "libtpu", "jax_plugins"  # packages that support TPUs and GPUs

# Parameters of glibc's mallopt, with their numbers in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def prefer_speed(environment: MutableMapping[str, str]) -> None:
    """Applies all settings, unless support for an accelerator is installed.

    Not every compiler that reads ``XLA_FLAGS`` knows our flag, and on an accelerator
    the memory of the host matters less.

    Args:
        environment: ``os.environ``.
    """
    if any(map(importlib.util.find_spec, _ACCELERATORS)):
        return
    prefer_fast_convolutions(environment)
    keep_memory()
    run_in_the_calling_thread(environment)


def prefer_fast_convolutions(environment: MutableMapping[str, str]) -> None:
    """Adds our flag to ``XLA_FLAGS``, unless the user has set that flag.

    Args:
        environment: ``os.environ``.
    """
    given = environment.get("XLA_FLAGS", "")
    if _CONVOLUTIONS not in given:
        environment["XLA_FLAGS"] = f"{given} {_BY_EIGEN}".strip()


def keep_memory() -> bool:
    """Makes the C library keep freed memory for the next allocation.

    A step of a large network allocates and frees gigabytes. Returning them to the
    system and getting them back, page by page and zeroed, takes a fifth of the time of
    a training step of IF-I-M. The peak does not change.

    The threads keep heaps of their own (glibc's arenas): in one heap for all of them,
    the pieces that the compiler leaves behind are searched, under one lock, at each
    allocation of a step.

    Returns:
        Whether the setting was applied; only glibc has it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)
    return all(mallopt(*setting) == 1 for setting in settings)


def run_in_the_calling_thread(environment: MutableMapping[str, str]) -> None:
    """Has jax run a program in the thread that calls it, unless the user said how.

    glibc keeps an array of more than 64 MiB for the next allocation in the heap of the
    main thread alone. In a thread that jax dispatches to, the memory of each step would
    come from the system anew.

    Args:
        environment: ``os.environ``.
    """
    import jax  # not at the top: it refuses a wrong environment when it is imported

    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in environment:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
