"""The runs below the root, read from their files alone."""

import dataclasses
import functools
import json
import pathlib
import shutil
import statistics
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imagen_booth.cascade import CASCADES
from imagen_booth.data.image_files import read_png_metadata
from imagen_booth.errors import InputError
from imagen_booth.rundir import lock
from imagen_booth.rundir.metrics import read_rows
from imagen_booth.storage import open_atomic, read_json, write_atomic
from imagen_booth.text import prompts
from imagen_booth.web.jobs import DONE, FAILED, QUEUED, RUNNING, STOPPED, Queue

_MARKS = ("manifest.json", "config.json", "metrics.jsonl", "report.html", "source")
_SHEET = "contact_sheet.png"
NOT_STARTED = "not started"
PREPARING = "First come the prompts, the class images and a preview."


@dataclasses.dataclass(frozen=True)
class StageProgress:
    """How far the fine-tuning of one stage is.

    Attributes:
        name: ``base``, ``sr256``, ``sr1024`` or ``text``.
        step, steps: Steps done, and in all; 0 of 0 for a stage that is not fine-tuned.
        seconds_left: Estimate from the last steps; None before there are two.
    """

    name: str
    step: int
    steps: int
    seconds_left: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        name: Name of its folder below the root.
        path: The folder.
        manifest, config: Its JSON files; empty before they are written.
        status: ``not started``, ``waiting``, ``running``, ``stopped``, ``failed`` or
            ``done``.
        sentence: What there is to say of the status, with the fix of a failure.
    """

    name: str
    path: pathlib.Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    status: str
    sentence: str

    @property
    def noun(self) -> str:
        """The class noun."""
        return (self.manifest.get("subject") or {}).get("class_noun", "")

    @property
    def cascade(self) -> str:
        """Name of the cascade, or ""."""
        return self.config.get("cascade", "")

    def filled(self, prompt: str) -> str:
        """A prompt with the run's identifier and class noun in it."""
        subject = self.manifest.get("subject") or {}
        if not subject.get("identifier"):
            return prompt
        return prompts.fill(
            prompt,
            subject["identifier"],
            subject["class_noun"],
            alone=subject.get("alone", False),
            second=prompts.second_naming(self.manifest),
        )


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a run.

    Attributes:
        path: The file.
        caption: Its prompt and seed.
    """

    path: pathlib.Path
    caption: str


class Runs:
    """The runs of a root folder.

    Args:
        root: The folder, on a local disk.
        queue: The jobs of the same root.
    """

    def __init__(self, root: pathlib.Path, queue: Queue):
        self.root, self.queue = root, queue

    def names(self) -> list[str]:
        """Names of all runs, the one that changed last first."""
        found = {}
        for path in self.root.iterdir() if self.root.exists() else ():
            plain = path.is_dir() and not path.is_symlink() and path.name[0] != "."
            if plain and any((path / mark).exists() for mark in _MARKS):
                found[path.name] = _changed(path)
        return sorted(found, key=lambda name: -found[name])

    def folder(self, name: str) -> pathlib.Path:
        """The folder of a run.

        Raises:
            InputError: There is no run of this name below the root.
        """
        if name not in self.names():
            raise InputError(f"there is no run {name!r} in {self.root}; choose another")
        return self.root / name

    def open(self, name: str) -> Run:
        """Reads a run.

        Raises:
            InputError: There is no run of this name below the root.
        """
        path = self.folder(name)
        manifest = read_json(path / "manifest.json", None)
        status, sentence = self._status(name, path, manifest)
        config = read_json(path / "config.json", None)
        return Run(name, path, manifest, config, status, sentence)

    def _status(
        self, name: str, path: pathlib.Path, manifest: Mapping[str, Any]
    ) -> tuple[str, str]:
        job = self.queue.latest(name, "train")
        recorded = str(manifest.get("status", ""))
        if job is not None and job.state == QUEUED:
            return QUEUED, "It starts when the jobs before it have ended."
        if job is not None and job.state == RUNNING:
            if self.queue.is_stopping(job):
                return RUNNING, "It saves its state and stops."
            begun = (path / "metrics.jsonl").exists()
            return RUNNING, "" if begun else PREPARING
        if owner := lock.owner(path):
            return RUNNING, f"It was started on the command line: {owner}."
        if recorded == DONE:
            return DONE, "Sample more pictures in the gallery."
        if job is not None and job.state == FAILED:
            lines = self.queue.log(job)
            return FAILED, lines[-1] if lines else "It ended without a message."
        if job is not None and job.state == STOPPED:
            return STOPPED, "Its state is saved; resume it at any time."
        kind, _, message = recorded.partition(": ")
        if message:
            stopped = kind == "Stopped"
            return (STOPPED if stopped else FAILED), message
        if recorded:
            return STOPPED, "It ended before it was done; resume it."
        return NOT_STARTED, "Start it from its photos."

    def stages(self, run: Run) -> list[StageProgress]:
        """The progress of each stage; empty before the run has written its settings."""
        rows = read_rows(run.path)
        if not run.cascade:
            return []
        names = [stage.name for stage in CASCADES[run.cascade].stages]
        if (run.config.get("text") or {}).get("steps"):
            names.insert(0, "text")
        return [
            _progress(name, run.config[name]["steps"], rows.get(name, []))
            for name in names
        ]

    def previews(self, run: Run) -> dict[str, list[Picture]]:
        """The previews of each stage that has some, in order of steps."""
        found = {}
        for stage in ("text", "base", "sr256", "sr1024"):
            folder = run.path / "samples" / "previews" / stage
            pictures = [
                Picture(path, f"{stage}, step {int(path.stem.removeprefix('step_'))}")
                for path in sorted(folder.glob("step_*.png"))
            ]
            if pictures:
                found[stage] = pictures
        return found

    def pictures(self, run: Run, favourites: bool = False) -> list[Picture]:
        """The finished pictures of a run at their largest size, the newest first."""
        files = [
            path
            for folder in _folders(run.path / "samples")
            if folder.name != "previews"
            for path in _largest(folder)
        ]
        if favourites:
            chosen = self.favourites(run)
            files = [path for path in files if _relative(path, run) in chosen]
        files.sort(key=lambda path: (-path.stat().st_mtime_ns, path.name))
        return [Picture(path, _caption(path)) for path in files]

    def favourites(self, run: Run) -> list[str]:
        """Paths of the favourites, relative to the run."""
        return read_json(run.path / "favourites.json", None).get("pictures", [])

    def toggle_favourite(self, run: Run, picture: pathlib.Path) -> bool:
        """Makes a picture a favourite, or an ordinary one; returns which it is now."""
        name, chosen = _relative(picture, run), self.favourites(run)
        is_new = name not in chosen
        chosen = (
            [*chosen, name] if is_new else [each for each in chosen if each != name]
        )
        text = json.dumps({"pictures": chosen}, indent=1)
        write_atomic(run.path / "favourites.json", text.encode())
        return is_new

    def archive(self, run: Run, pictures: Sequence[Picture]) -> pathlib.Path:
        """Writes a zip file of pictures, whose metadata is inside them.

        Raises:
            InputError: There are none.
        """
        if not pictures:
            raise InputError(f"{run.name} has no pictures yet; sample some first")
        target = run.path / "downloads" / f"{run.name}.zip"
        with open_atomic(target) as file, zipfile.ZipFile(file, "w") as archive:
            for picture in pictures:
                archive.write(picture.path, _relative(picture.path, run))
            listed = {
                _relative(each.path, run): read_png_metadata(each.path)
                for each in pictures
            }
            archive.writestr("metadata.json", json.dumps(listed, indent=1))
        return target

    def delete(self, name: str) -> None:
        """Deletes a run, its photos and its jobs' records.

        Raises:
            InputError: There is no such run, or one of its jobs waits or runs.
        """
        run = self.open(name)
        if run.status == RUNNING:
            raise InputError(f"{name} is running; stop it before you delete it")
        self.queue.forget(name)
        shutil.rmtree(run.path)


def _progress(
    name: str, steps: int, rows: Sequence[Mapping[str, Any]]
) -> StageProgress:
    step = min(rows[-1]["step"], steps) if rows else 0
    recent = rows[-20:]
    paces = [
        (later["wall"] - earlier["wall"]) / (later["step"] - earlier["step"])
        for earlier, later in zip(recent, recent[1:], strict=False)
    ]
    left = (steps - step) * statistics.median(paces) if paces else None
    return StageProgress(name, step, steps, left)


def _changed(path: pathlib.Path) -> float:
    """Time at which a file of the run was written last, in seconds."""
    places = (path, path / "metrics.jsonl", path / "manifest.json", path / "samples")
    return max(each.stat().st_mtime for each in places if each.exists())


def _folders(path: pathlib.Path) -> Iterator[pathlib.Path]:
    yield from (each for each in sorted(path.glob("*")) if each.is_dir())


def _largest(folder: pathlib.Path) -> list[pathlib.Path]:
    """The pictures of a folder ``samples/NAME`` at the largest size that has any."""
    sizes = [each for each in _folders(folder) if each.name.isdecimal()]
    for size in sorted(sizes, key=lambda each: -int(each.name)):
        if files := [each for each in size.glob("*.png") if each.name != _SHEET]:
            return files
    return []


def _relative(path: pathlib.Path, run: Run) -> str:
    return str(path.relative_to(run.path))


def _caption(path: pathlib.Path) -> str:
    entries = metadata(path)
    return f"{entries.get('prompt', path.stem)} · seed {entries.get('seed', '?')}"


def metadata(path: pathlib.Path) -> dict[str, str]:
    """The metadata of a picture; empty if it cannot be read."""
    try:
        return _metadata(path, path.stat().st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(2000)
def _metadata(path: pathlib.Path, _: int) -> dict[str, str]:
    return read_png_metadata(path)
