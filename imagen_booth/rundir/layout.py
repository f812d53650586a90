"""The work directory of a run: its files, its manifest, and what has become stale."""

import dataclasses
import datetime
import json
from typing import Any

import jax
from etils import epath

from imagen_booth.distributed import processes
from imagen_booth.errors import InputError
from imagen_booth.storage import write_atomic

TUNED = ("text", "base", "sr256", "sr1024")
PARTS = (*TUNED, "samples")
PREVIEWS = "previews"  # in samples, but a part of the tuning that drew them


class RunDirectory:
    """One run's directory; only the first process writes.

    Args:
        path: local or ``gs://``.
        overwrite: parts to redo, of ``PARTS``, or ``all``.

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
        if self._overwrite & set(TUNED):
            self._overwrite.add("samples")  # drawn by the stages before them
        self.manifest: dict[str, Any] = {}
        file = self.path / "manifest.json"
        if file.exists():
            self.manifest = json.loads(file.read_text())

    def record(self, **entries: Any) -> None:
        """Adds entries to the manifest and stores it; nested dicts are merged."""
        _merge(self.manifest, entries)
        self.write_json("manifest.json", self.manifest)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run, whole or not at all."""
        if processes.is_first():
            text = json.dumps(value, indent=1, default=str)
            write_atomic(self.path / name, text.encode())

    def claim(self, part: str, recipe: dict[str, Any]) -> epath.Path:
        """The directory of a part, after a look at what made what is there.

        Args:
            part: one of ``PARTS``.
            recipe: every setting the part depends on, JSON values.

        Raises:
            InputError: the part was made with other settings and is not to be redone.
        """
        folder = self.path / part
        file = folder / "recipe.json"
        recipe = json.loads(json.dumps(recipe, default=str))
        if part in self._overwrite:
            self._overwrite.remove(part)
            if processes.is_first() and folder.exists():
                _clear(folder, "" if part in TUNED else PREVIEWS)
        elif file.exists():
            changed = differences(json.loads(file.read_text()), recipe)
            if changed:
                raise InputError(
                    f"{folder} was made with other settings: {'; '.join(changed[:6])}. "
                    f"Give --overwrite={part} to redo it, or another --workdir"
                )
        processes.wait(f"claim {part}")
        self.write_json(f"{part}/recipe.json", recipe)
        return folder


def _clear(folder: epath.Path, stays: str) -> None:
    for inner in folder.iterdir():
        if inner.name == stays:
            continue
        if inner.is_dir():
            inner.rmtree()
        else:
            inner.unlink()


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


# Settings of a tuning that can change without making its result another one.
LOOP_SETTINGS = ("log_every", "save_every", "preview_every", "remat")


def cache_folder(cache: str, workdir: epath.Path) -> epath.Path:
    """The folder shared by runs, with compiled programs in it from now on.

    Those stay where the user has put them, by ``JAX_COMPILATION_CACHE_DIR``.

    Args:
        cache: as a job says it; empty for ``cache`` beside the work directory.
    """
    folder = epath.Path(cache) if cache else workdir.parent / "cache"
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    return folder
