"""Compiled programs on disk: a later start of a job neither traces nor compiles them.

jax's own persistent cache saves the compiler's work, but a program must be traced and
lowered to be found in it. Here the name of a file follows from what the program is made
of: the source files of this package, versions, devices, settings of jax, the arguments'
shapes and shardings, and a description by the caller.

Loading a program unpickles it, and so could run any code. Programs are therefore read
from a local folder alone, beside jax's cache, that belongs to this user and that nobody
else can write. Files from a bucket or of another user are never read.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import pickle
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import jax
from jax.experimental import serialize_executable

import imagen_booth
from imagen_booth import storage
from imagen_booth.distributed import processes
from imagen_booth.errors import StorageError

log = logging.getLogger(__name__)

FOLDER = "programs"  # in the folder of jax's persistent cache
HIT = "/jax/compilation_cache/cache_hits"  # jax's event where its own cache has it
# Settings of jax that name folders or logs and change no program.
ELSEWHERE = ("dir", "log", "dump", "cache", "traceback", "explain")


# Programs by name while a job shares them in memory, else None.
_shared: dict[str, Callable[..., Any]] | None = None


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Lets functions that are made in this context share their programs in memory.

    Functions with equal descriptions then trace and compile once for each kind of
    arguments, however often they are made, and on several hosts too.
    """
    global _shared
    before, _shared = _shared, {} if _shared is None else _shared
    try:
        yield
    finally:
        _shared = before


class StoredProgram:
    """A jitted function whose programs are stored, one for each kind of arguments.

    Args:
        jitted: The function.
        made_from: Everything that it is made of besides its arguments and the sources
            of this package, see ``describe``. Functions with equal descriptions are
            taken to be equal; programs without one are neither stored nor shared.
    """

    def __init__(self, jitted: Any, made_from: str):
        self._jitted, self._made_from = jitted, made_from
        in_memory = _shared if made_from else None
        self._shares = in_memory is not None
        self._programs = {} if in_memory is None else in_memory
        self.lower, self.__wrapped__ = jitted.lower, jitted.__wrapped__

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self._folder() is None and not self._shares:
            return self._jitted(*inputs, **named)
        return self.compile(*inputs, **named)(*inputs, **named)

    def compile(self, *inputs: Any, **named: Any) -> Callable[..., Any]:
        """The program for these arguments: from memory, from disk, or compiled."""
        name = self._find(inputs, named)
        if name not in self._programs:
            lowered = self._jitted.lower(*inputs, **named)
            self._programs[name] = self._make(name, lowered)
        return self._programs[name]

    def begin_compiling(
        self, *inputs: Any, **named: Any
    ) -> Callable[[], Callable[..., Any]]:
        """As ``compile``, with the compiler at work in a thread of its own.

        Returns:
            A function that waits for the program and returns it.
        """
        name = self._find(inputs, named)
        if name not in self._programs:
            lowered = self._jitted.lower(*inputs, **named)
            making = _compilers().submit(self._make, name, lowered)

        def finish() -> Callable[..., Any]:
            if name not in self._programs:
                self._programs[name] = making.result()
            return self._programs[name]

        return finish

    def _find(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> str:
        """The program's name, after a look for it on disk."""
        name = _name(self._made_from, inputs, named)
        if name not in self._programs:
            stored = self._read(name, _devices((inputs, named)))
            if stored is not None:
                self._programs[name] = stored
        return name

    def _folder(self) -> pathlib.Path | None:
        return folder() if self._made_from else None

    def _make(self, name: str, lowered: Any) -> Callable[..., Any]:
        place = self._folder()
        if place is None:
            return lowered.compile()
        program, fresh = _compile_afresh(lowered)
        if fresh:
            try:
                parts = serialize_executable.serialize(program)
                storage.write_atomic(place / name, pickle.dumps(parts))
                (place / name).chmod(0o600)  # a umask may leave it open to a group
            except (
                OSError,
                ValueError,
                TypeError,
                RuntimeError,
                StorageError,
            ) as error:
                # Some backends cannot serialise some programs; the run continues.
                log.debug("the program %s is not stored: %s", name, error)
        return program

    def _read(self, name: str, devices: list[Any]) -> Callable[..., Any] | None:
        place = self._folder()
        path = None if place is None else place / name
        if path is None or not path.exists() or not storage.belongs_to_user(path):
            return None
        try:
            parts = pickle.loads(path.read_bytes())
            return serialize_executable.deserialize_and_load(
                *parts, execution_devices=devices
            )
        except Exception as error:  # damaged, or of a runtime that reads it no longer
            log.warning("%s cannot be read and is compiled again: %s", path, error)
            return None


def describe(*parts: Any) -> str:
    """What a function is made of, as text; empty where that cannot be known.

    Args:
        parts: Frozen dataclasses and plain values that the function closes over. A
            function among them has no text but its address, which identifies nothing.
    """
    text = repr(parts)
    return "" if " at 0x" in text else text


def folder() -> pathlib.Path | None:
    """The folder of stored programs; None where there is none that may be read.

    Programs of several hosts are not stored: each would hold only its own part.
    """
    place = jax.config.values["jax_compilation_cache_dir"]
    if not place or storage.is_object_store(place) or processes.count() > 1:
        return None
    path = pathlib.Path(place) / FOLDER
    return path if storage.make_private(path) else None


def _compile_afresh(lowered: Any) -> tuple[Any, bool]:
    """Compiles a program, and returns whether the compiler made it.

    A CPU program from jax's own cache cannot be serialised again: it loses its code. So
    programs that are stored here are not put there.
    """
    thread, hits = threading.get_ident(), 0

    def count(event: str, **_: Any) -> None:
        nonlocal hits
        hits += event == HIT and threading.get_ident() == thread

    with _NotInJaxCache():
        jax.monitoring.register_event_listener(count)
        try:
            program = lowered.compile()
        finally:
            jax.monitoring.unregister_event_listener(count)
    return program, hits == 0


class _NotInJaxCache:
    """Keeps what is compiled in this context out of jax's own cache.

    The setting is one for all threads, so the first that enters changes it, and the
    last that leaves restores it.
    """

    _SETTING = "jax_persistent_cache_min_compile_time_secs"
    _lock, _inside, _before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        kind = type(self)
        with kind._lock:
            if kind._inside == 0:
                kind._before = jax.config.values[kind._SETTING]
                jax.config.update(kind._SETTING, float(10**9))
            kind._inside += 1

    def __exit__(self, *_: object) -> None:
        kind = type(self)
        with kind._lock:
            kind._inside -= 1
            if kind._inside == 0:
                jax.config.update(kind._SETTING, kind._before)


@functools.cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="compiler")


def _devices(arguments: Any) -> list[Any]:
    """The devices that a program with these arguments runs on, in its order."""
    for leaf in jax.tree.leaves(arguments):
        if isinstance(getattr(leaf, "sharding", None), jax.sharding.NamedSharding):
            return list(leaf.sharding.mesh.devices.flat)
    return [jax.devices()[0]]


def _name(made_from: str, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    """The name of a program's file."""
    leaves, tree = jax.tree.flatten((inputs, dict(named)))
    kinds = [
        (leaf.shape, str(leaf.dtype), repr(getattr(leaf, "sharding", None)))
        for leaf in leaves
    ]
    mesh = jax.sharding.get_abstract_mesh()
    settings = {
        name: value
        for name, value in sorted(jax.config.values.items())
        if not any(word in name for word in ELSEWHERE)
    }
    whole = repr((sources(), _machine(), settings, mesh, made_from, tree, kinds))
    return hashlib.sha256(whole.encode()).hexdigest()[:40]


@functools.cache
def sources() -> str:
    """Digest of the source files of this package."""
    digest = hashlib.sha256()
    for root in imagen_booth.__path__:
        for path in sorted(pathlib.Path(root).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _machine() -> tuple[Any, ...]:
    """Versions, devices, and what else decides which code a compiler makes."""
    devices = jax.devices()
    cpu = pathlib.Path("/proc/cpuinfo")
    flags = [
        line
        for line in (cpu.read_text().splitlines() if cpu.exists() else ())
        if line.startswith(("flags", "Features", "model name"))
    ]
    return (
        platform.python_version(),
        platform.machine(),
        sorted(set(flags)),
        [metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")],
        devices[0].client.platform_version,
        [(device.id, device.device_kind) for device in devices],
        {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
    )
