"""Compiled programs on disk: a later start of a job neither traces nor compiles them.

jax's own persistent cache saves the compiler's work, but a program must be traced and
lowered to be found in it. Here the name of a file follows from what the program is made
of: the source files of this package, versions, devices, settings of jax, the arguments'
shapes and shardings, and a description by the caller. Other values that take long to
trace are kept beside the programs, see ``remember``.

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
from concurrent.futures import Future, ThreadPoolExecutor
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
        self._begun: dict[str, Future[Any]] = {}
        self.lower, self.__wrapped__ = jitted.lower, jitted.__wrapped__

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self._folder() is None and not self._shares:
            return self._jitted(*inputs, **named)
        return self.compile(*inputs, **named)(*inputs, **named)

    def compile(self, *inputs: Any, **named: Any) -> Callable[..., Any]:
        """The program for these arguments: from memory, from disk, or compiled."""
        name = _name(self._made_from, inputs, named)
        if begun := self._begun.pop(name, None):
            self._keep(name, begun.result())
        if name not in self._programs and (path := self._stored(name)):
            self._keep(name, _read_program(path, _devices((inputs, named))))
        if name not in self._programs:
            lowered = self._jitted.lower(*inputs, **named)
            self._keep(name, self._make(name, lowered))
        return self._programs[name]

    def begin_compiling(self, *inputs: Any, **named: Any) -> None:
        """Has a thread do the work of ``compile``, which then waits for it."""
        name = _name(self._made_from, inputs, named)
        if name in self._programs or name in self._begun:
            return
        if path := self._stored(name):
            devices = _devices((inputs, named))
            work = functools.partial(_read_program, path, devices)
        else:
            lowered = self._jitted.lower(*inputs, **named)
            work = functools.partial(self._make, name, lowered)
        self._begun[name] = _compilers().submit(work)

    def _keep(self, name: str, program: Callable[..., Any] | None) -> None:
        if program is not None:
            self._programs[name] = program

    def _stored(self, name: str) -> pathlib.Path | None:
        return _stored_in(self._folder(), name)

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
            except (ValueError, TypeError, RuntimeError) as error:
                # Some backends cannot serialise some programs; the run continues.
                log.debug("the program %s is not stored: %s", name, error)
            else:
                _store(place / name, parts)
        return program


def _read_program(path: pathlib.Path, devices: list[Any]) -> Callable[..., Any] | None:
    """A stored program, loaded onto these devices; None where it cannot be read."""
    try:
        parts = pickle.loads(path.read_bytes())
        return serialize_executable.deserialize_and_load(
            *parts, execution_devices=devices
        )
    except Exception as error:  # damaged, or of a runtime that reads it no longer
        log.warning("%s cannot be read and is compiled again: %s", path, error)
        return None


def remember(compute: Callable[[], Any], made_from: str) -> Any:
    """What ``compute`` returns, or returned in an earlier start of a job.

    For what takes long to trace. It is stored beside the programs.

    Args:
        compute: Makes a value that can be pickled, alike on every machine.
        made_from: Everything that the value is made of besides the sources of this
            package, see ``describe``; nothing is stored without it.
    """
    place = folder() if made_from else None
    name = _digest(sources(), *_versions(), made_from)
    if path := _stored_in(place, name):
        try:
            return pickle.loads(path.read_bytes())
        except Exception as error:  # damaged
            log.warning("%s cannot be read and is made again: %s", path, error)
    value = compute()
    if place is not None:
        _store(place / name, value)
    return value


def _stored_in(place: pathlib.Path | None, name: str) -> pathlib.Path | None:
    """The file of this name, if it is there and may be read."""
    path = None if place is None else place / name
    if path is None or not path.exists() or not storage.belongs_to_user(path):
        return None
    return path


def _store(path: pathlib.Path, value: Any) -> None:
    """Stores a value for a later start; one that cannot be stored is left out."""
    try:
        storage.write_atomic(path, pickle.dumps(value))
        path.chmod(0o600)  # a umask may leave it open to a group
    except (OSError, ValueError, TypeError, StorageError) as error:
        log.debug("%s is not stored: %s", path, error)


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
    return _digest(sources(), _machine(), settings, mesh, made_from, tree, kinds)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


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
def _versions() -> tuple[str, ...]:
    """Versions of the language and of the libraries that make programs."""
    libraries = "jax", "jaxlib", "flax", "optax"
    return platform.python_version(), *map(metadata.version, libraries)


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
        *_versions(),
        platform.machine(),
        sorted(set(flags)),
        devices[0].client.platform_version,
        [(device.id, device.device_kind) for device in devices],
        {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
    )
