"""The run directory: its files, its manifest, and what has become stale."""

import dataclasses
import datetime
import glob
import json
import logging
import os
import platform
from importlib import metadata
from typing import Any

import jax
from etils import epath

from imagen_booth.distributed import processes
from imagen_booth.errors import InputError, StorageError
from imagen_booth.storage import is_object_store, read_json, write_atomic

log = logging.getLogger(__name__)

TRAINED = ("text", "base", "sr256", "sr1024")
PARTS = (*TRAINED, "samples")
PREVIEWS = "previews"  # in samples, but part of the stage that sampled them

# What to do about a damaged config.json or manifest.json.
TRAIN_AGAIN = "restore it, or delete it and run train again, which writes it again"


class RunDirectory:
    """One run's directory; only the first process writes.

    Args:
        path: Local or ``gs://``.
        overwrite: Parts to redo, of ``PARTS``, or ``all``.

    Raises:
        InputError: ``overwrite`` names something else.
    """

    def __init__(self, path: epath.PathLike, overwrite: frozenset[str] = frozenset()):
        self.path = epath.Path(path)
        unknown = overwrite - set(PARTS) - {"all"}
        if unknown:
            raise InputError(
                f"--overwrite={','.join(sorted(unknown))} is not a part of a run; use "
                f"{', '.join(PARTS)} or all"
            )
        self._overwrite: set[str] = set(PARTS) if "all" in overwrite else set(overwrite)
        if self._overwrite & set(TRAINED):
            self._overwrite.add("samples")  # made by the stages that are redone
        file = self.path / "manifest.json"
        self.manifest: dict[str, Any] = read_json(file, TRAIN_AGAIN)

    def photo_setting(self, subject: str) -> str:
        """``config.SUBJECT.photos`` of the run as it was begun; "" if unknown."""
        config = read_json(self.path / "config.json", None)
        return (config.get(subject) or {}).get("photos") or ""

    def record(self, **entries: Any) -> None:
        """Adds entries to the manifest and stores it; nested dicts are merged."""
        _merge(self.manifest, entries)
        self.write_json("manifest.json", self.manifest)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run, whole or not at all."""
        if processes.is_first():
            text = json.dumps(value, indent=1, default=str)
            write_atomic(self.path / name, text.encode())

    def holds(self, part: str) -> bool:
        """Whether a part was begun before and is not to be redone."""
        return part not in self._overwrite and (self._recipe_file(part)).exists()

    def latest_step(self, part: str) -> int:
        """Step of the newest checkpoint of a part that can be resumed; 0 if none."""
        folder = self.path / part
        if part in self._overwrite or not folder.is_dir():
            return 0
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        return max(steps, default=0)

    def check(self, part: str, recipe: dict[str, Any]) -> None:
        """Checks that what is there of a part was made with the same settings.

        Args:
            part: One of ``PARTS``.
            recipe: Every setting the part depends on, JSON values.

        Raises:
            InputError: The part was made with other settings and is not to be redone.
            StorageError: Its record of settings is damaged.
        """
        if not self.holds(part):
            return
        recipe = json.loads(json.dumps(recipe, default=str))
        file = self._recipe_file(part)
        redo = f"restore it, or give --overwrite={part} to redo this part"
        changed = differences(read_json(file, redo), recipe)
        if changed:
            raise InputError(
                f"{file.parent} was made with other settings: "
                f"{'; '.join(changed[:6])}. Give --overwrite={part} to redo it, or "
                "another --workdir"
            )

    def claim(self, part: str, recipe: dict[str, Any]) -> epath.Path:
        """The directory of a part, for work with these settings.

        Args, Raises:
            As ``check``.
        """
        folder = self.path / part
        processes.decide(lambda: self.check(part, recipe))
        if part in self._overwrite:
            self._overwrite.remove(part)
            if processes.is_first() and folder.exists():
                _clear(folder, "" if part in TRAINED else PREVIEWS)
        processes.wait(f"claim {part}")
        self.write_json(f"{part}/recipe.json", recipe)
        return folder

    def _recipe_file(self, part: str) -> epath.Path:
        return self.path / part / "recipe.json"


def finished_in(flag: str, folder: epath.PathLike) -> list[epath.Path]:
    """The run directories of finished runs in a folder, in order of their names.

    Args:
        flag: Name of its flag, for errors.

    Raises:
        InputError: There is none.
    """
    place = epath.Path(folder)

    def states() -> dict[str, str]:
        inside = sorted(place.iterdir()) if place.is_dir() else []
        files = [path / "manifest.json" for path in inside]
        return {
            file.parent.name: str(read_json(file, None).get("status"))
            for file in files
            if file.exists()
        }

    found = processes.decide(states)
    done = [place / name for name, state in found.items() if state == "done"]
    if not done:
        raise InputError(
            f"{flag}={folder} holds no finished run; give the folder of the run "
            "directories, such as --workdir of a job of many subjects"
        )
    for name, state in found.items():
        if state != "done":
            log.warning("%s is not finished and is left out", place / name)
    return done


def check_workdir(path: epath.PathLike) -> None:
    """Checks that a run directory can be made or written; writes nothing.

    Raises:
        InputError: As ``check_folder``; or its path has characters that orbax reads as
            a pattern, so that checkpoints there could not be read again.
        StorageError: As ``check_folder``.
    """
    whole = os.fspath(path) if is_object_store(path) else os.path.abspath(path)
    if glob.has_magic(whole):
        raise InputError(
            f"--workdir={whole} holds one of the characters * ? [ and checkpoints "
            "there could not be read again; give a path without them"
        )
    check_folder("--workdir", path)


def check_folder(name: str, path: epath.PathLike) -> epath.Path:
    """Checks that a folder can be made or written; writes nothing.

    Args:
        name: Name of its flag or setting, for errors.

    Returns:
        The folder itself, or the nearest one above it that exists.

    Raises:
        InputError: It is a file, or inside one.
        StorageError: It cannot be written.
    """
    if is_object_store(path):
        return epath.Path(path)
    place = epath.Path(os.path.abspath(path))
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(
            f"{name}={path}: {place} is a file, not a folder; give another path"
        )
    if not os.access(place, os.W_OK):
        raise StorageError(f"{name}={path}: {place} cannot be written; give another")
    return place


def _clear(folder: epath.Path, stays: str) -> None:
    for inner in folder.iterdir():
        if inner.name == stays:
            continue
        if inner.is_dir():
            inner.rmtree()
        else:
            inner.unlink()


def versions() -> dict[str, str]:
    """Versions of what computes, and its devices, for the manifest."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "imagen_booth": metadata.version("imagen_booth"),
        "jax": jax.__version__,
        "device": f"{len(devices)} x {devices[0].device_kind}",
    }


def utc_now() -> str:
    """The time, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def recipe(value: Any, *leave_out: str) -> dict[str, Any]:
    """A frozen dataclass as a recipe entry, without the fields named."""
    return {
        name: inner
        for name, inner in dataclasses.asdict(value).items()
        if name not in leave_out
    }


def _merge(into: dict[str, Any], entries: dict[str, Any]) -> None:
    for name, value in entries.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """``a.b: 1 -> 2`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            inner = f"{where}.{name}" if where else name
            found += differences(old.get(name), new.get(name), inner)
        return found
    return [] if old == new else [f"{where}: {old} -> {new}"]


# Settings of fine-tuning that may change, because its result does not depend on them.
LOOP_SETTINGS = ("log_every", "save_every", "preview_every", "remat")


def cache_folder(cache: str, workdir: epath.Path) -> epath.Path:
    """The folder shared by runs, with compiled programs in it from now on.

    Those stay where the user has put them, by ``JAX_COMPILATION_CACHE_DIR``.

    Args:
        cache: ``config.cache`` of a job; empty for ``cache`` beside the run directory.
    """
    folder = epath.Path(cache) if cache else workdir.parent / "cache"
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
        # Small programs too: jax's own limit is a second, and a start has several.
        least = "jax_persistent_cache_min_compile_time_secs"
        if least.upper() not in os.environ:
            jax.config.update(least, 0.1)
    return folder
