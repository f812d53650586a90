"""report.html: one self-contained page that shows a run, from its run directory.

The page is made from the files of the run alone, so it can be made again at any time,
and from those that exist, so it can be made before the run is finished.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from imagen_booth.config.build import flat
from imagen_booth.data.image_files import read_png_metadata
from imagen_booth.reports import html
from imagen_booth.reports.curves import Curve, curve
from imagen_booth.rundir.metrics import read_rows
from imagen_booth.storage import read_json, write_atomic

_MOST_BYTES = 6_000_000
FIX = "restore it or run train again"  # a damaged file
_MOST_FINAL = 12  # pictures shown per resolution
_BETWEEN = 5  # previews shown per stage between the first and the last
_MOST_CROPS = 12
_STAGES = {
    "text": "Identifier embedding",
    "base": "Base stage",
    "sr256": "First super-resolution stage",
    "sr1024": "Second super-resolution stage",
}
_NETWORKS = ("base", "sr256", "sr1024")


def write(workdir: epath.Path) -> epath.Path:
    """Writes `report.html` into a run directory and returns its path.

    Pictures are made smaller until the page is below 6 MB.

    Args:
        workdir: Holds config.json, manifest.json, metrics.jsonl, photos/*.png (<file
            name of the photo>.png), photos/contact_sheet.png, samples/class_images.png,
            samples/previews/<stage>/step_<number>.png with 'prompts' (a JSON list) in
            their metadata, samples/final/<resolution>/*.png with 'prompt' and 'seed',
            and failures.json as `evaluation.failure_modes` writes it; photos and class
            images of a second subject are in second/. Any of them may be missing.

    Raises:
        StorageError: A JSON file of the run is damaged, or the page cannot be written.
    """
    workdir = epath.Path(workdir)
    for shrink in (1.0, 0.7, 0.5, 0.35, 0.25):
        run = _Run(workdir, shrink)
        document = html.render(
            "run.html.j2", run=run, duration=_duration, part_label=html.part_label
        ).encode()
        if len(document) <= _MOST_BYTES:
            break
    path = workdir / "report.html"
    write_atomic(path, document)
    return path


class _Run:
    """What the template shows of a run, from files that may be missing."""

    def __init__(self, workdir: epath.Path, shrink: float):
        self.workdir = workdir
        self.shrink = shrink
        self.manifest = read_json(workdir / "manifest.json", FIX)
        self.subject = self.manifest.get("subject") or {}
        self.second = self.manifest.get("second") or {}
        self.subjects = [self.subject, *([self.second] if self.second else [])]
        self.cascade = self.manifest.get("cascade") or {}
        self.weights = self.cascade.get("parts") or {}
        self.config = flat(read_json(workdir / "config.json", FIX))
        self.failures = read_json(workdir / "failures.json", None)

    @property
    def title(self) -> str:
        noun = self.subject.get("class_noun")
        prompts = [each.get("instance_prompt") for each in self.subjects]
        return " and ".join(filter(None, prompts)) or (
            f"a {noun}" if noun else self.manifest.get("run", "A run")
        )

    def summary(self) -> str:
        """What happened, in one or two sentences."""
        subject = self.subject
        if not subject.get("photos") and subject.get("refused"):
            return (
                "None of the photos could be used; the table below gives the reasons."
            )
        photos = " and ".join(_counted_photos(each) for each in self.subjects)
        cascade = " ".join(filter(None, ("The", self.cascade.get("name"), "cascade")))
        if self.manifest.get("status") != "done":
            return (
                f"{cascade} is being fine-tuned on {photos}. The run is not finished; "
                "this page shows the results so far."
            )
        seconds = sum((self.manifest.get("timings") or {}).values())
        took = f" in {_duration(seconds)}" if seconds else ""
        prompt, noun = subject.get("instance_prompt"), subject.get("class_noun")
        done = f"{cascade} was fine-tuned on {photos}{took}."
        if subject.get("learned"):
            done = f"The embedding of “{subject.get('identifier')}” was trained on "
            if any(self.config.get(f"{stage}.steps") for stage in _NETWORKS):
                done += f"{photos}; then the cascade was fine-tuned on them{took}."
            else:
                done += f"{photos}{took}. No network was fine-tuned."
        elif self.config.get("subject.description"):
            return (
                f"No network was fine-tuned: prompts describe the subject of {photos} "
                f"in words, as “{prompt}”."
            )
        pretrained = all(part.get("pretrained") for part in self.weights.values())
        if prompt and pretrained:  # a prompt means nothing to random weights
            done += f" In a prompt, “{prompt}” now means this {noun or 'subject'}"
            if self.second:
                done += f", “{self.second['instance_prompt']}” this "
                done += self.second["class_noun"]
            done += "."
        return done

    def finals(self) -> Iterator[dict[str, Any]]:
        """The pictures by resolution, the largest first."""
        captioned = set()
        folders = _folders(self.workdir / "samples" / "final")
        for folder in sorted(folders, key=lambda f: -_number(f.name)):
            paths, shown = _pngs(folder), []
            large = not captioned
            for path in paths[:_MOST_FINAL]:
                metadata = _metadata(path)
                prompt = metadata.get("prompt", path.stem)
                caption = (prompt, metadata.get("seed", ""))
                # The same picture at a lower resolution needs no second caption.
                title, seed = ("", "") if caption in captioned else caption
                captioned.add(caption)
                lines = (f"seed {seed}",) if seed else ()
                shown += self.pictures(path, 800, prompt, title, lines)
            if not shown:
                continue
            columns = 4 if _number(folder.name) > 128 else 6
            if large:
                columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
            yield {
                "folder": folder.name,
                "rest": len(paths) - len(shown),
                "pictures": shown,
                "large": large,
                "columns": columns,
            }

    def previews(self) -> Iterator[dict[str, Any]]:
        """What each stage sampled before, during and after fine-tuning."""
        found = _folders(self.workdir / "samples" / "previews")
        for folder in sorted(found, key=lambda folder: _rank(folder.name)):
            stage, paths = folder.name, _pngs(folder)
            if not paths:
                continue
            ends, between = [], []
            for word, path in zip(
                ("before", "after"), paths[:: len(paths) - 1 or 1], strict=False
            ):
                step = (f"step {_number(path.stem)}",)
                ends += self.pictures(path, 720, f"{stage} {word}", word, step)
            inner = paths[1:-1]
            count = min(len(inner), _BETWEEN)
            for i in range(count):
                path = inner[(2 * i + 1) * len(inner) // (2 * count)]
                step = f"step {_number(path.stem)}"
                between += self.pictures(path, 300, f"{stage} {step}", lines=(step,))
            yield {
                "heading": _STAGES.get(stage, stage),
                "is_super_resolution": stage not in ("text", "base"),
                "prompts": Counter(_metadata_list(paths[0], "prompts")),
                "ends": ends,
                "between": between,
                "similarity": (self.manifest.get("similarity") or {}).get(stage) or {},
                "curve": _similarity_curve(paths),
                "kept": (self.manifest.get("kept") or {}).get(stage),
            }

    def evidence(self, mode: Mapping[str, Any]) -> list[html.Picture]:
        """The pictures that show a failure mode."""
        return [
            picture
            for each in mode["evidence"]
            for picture in self.pictures(
                self.workdir / each["file"], 360, each["said"], lines=(each["said"],)
            )
        ]

    def crops(self) -> list[html.Picture]:
        """The crops of all photos."""
        return [
            picture
            for folder, subject in zip(self._folders(), self.subjects, strict=False)
            for picture in self._crops(folder / "photos", subject)
        ]

    def class_prompts(self) -> list[str]:
        """The class prompt of each class."""
        prompts = [each.get("class_prompt") for each in self.subjects]
        return list(dict.fromkeys(filter(None, prompts)))

    def class_images(self) -> list[html.Picture]:
        """The sheet of class images of each class."""
        return [
            picture
            for folder, _ in zip(self._folders(), self.subjects, strict=False)
            for picture in self.pictures(
                folder / "samples" / "class_images.png", 1100, "class images"
            )
        ]

    def _folders(self) -> tuple[epath.Path, epath.Path]:
        """Where the files of the first and of a second subject are."""
        return self.workdir, self.workdir / "second"

    def _crops(
        self, folder: epath.Path, subject: Mapping[str, Any]
    ) -> list[html.Picture]:
        """The crops of a subject's photos, or a sheet of them where they are many."""
        photos = {photo["name"]: photo for photo in subject.get("photos") or []}
        paths, shown = _pngs(folder), []
        if not 0 < len(paths) <= _MOST_CROPS:
            return self.pictures(folder / "contact_sheet.png", 1100, "all photos")
        for path in paths:
            photo, lines = photos.get(path.stem, {}), ()
            if "width" in photo and "height" in photo:
                lines = (f"{photo['width']} × {photo['height']} px",)
            if photo.get("stages"):
                lines += ("used for " + ", ".join(photo["stages"]),)
            alt = f"photo {path.stem}"
            shown += self.pictures(path, 360, alt, path.stem, lines)
        return shown

    def losses(self) -> Iterator[tuple[str, Curve, list[str]]]:
        """Each stage's name, loss curve, and the curve's caption."""
        metrics = read_rows(self.workdir)
        for stage in sorted(metrics, key=_rank):
            rows, lines = metrics[stage], []
            series = {
                "subject": _series(rows, "train/loss_subject"),
                "class": _series(rows, "train/loss_class"),
            }
            if not any(len(steps) for steps, _ in series.values()):
                series = {"loss": _series(rows, "train/loss")}
            series = {name: each for name, each in series.items() if len(each[0])}
            for name, (_, values) in series.items():
                tenth = max(1, len(values) // 10)
                first, last = values[:tenth].mean(), values[-tenth:].mean()
                lines.append(f"{name} {first:.3g} → {last:.3g}")
            rate = _series(rows, "time/images_per_sec")[1]
            if len(rate):
                lines.append(f"{np.median(rate):.3g} images per second")
            if series:
                yield stage, curve(series), lines

    def pictures(
        self,
        path: epath.Path,
        side: int,
        alt: str,
        title: str = "",
        lines: tuple[str, ...] = (),
    ) -> list[html.Picture]:
        """The picture of a file as a list of one; empty where it cannot be read."""
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as opened:
                image = opened.convert("RGB")
        except OSError:
            return []
        return [html.picture(image, alt, title, lines, side=round(side * self.shrink))]

    def date(self, key: str) -> str:
        """A time of the manifest, or "" where it has none."""
        value = str(self.manifest.get(key) or "")
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return value
        return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _counted_photos(subject: Mapping[str, Any]) -> str:
    """The number of a subject's photos and its class, such as ``5 photos of a dog``."""
    count = len(subject.get("photos") or [])
    of = subject.get("class_prompt") or subject.get("class_noun") or "a subject"
    return f"{count} photo{'s' * (count > 1)} of {of}" if count else of


def _similarity_curve(paths: Sequence[epath.Path]) -> Curve | None:
    """Mean similarity of previews to the photos by step, from three previews on."""
    points: dict[str, list[tuple[int, float]]] = {"subject": [], "class": []}
    for path in paths:
        metadata = _metadata(path)
        for name, key in (("subject", "measured"), ("class", "measured_class")):
            values = list(json.loads(metadata.get(key, "{}")).values())
            if values:
                points[name].append((_number(path.stem), float(np.mean(values))))
    if len(points["subject"]) < 3:
        return None
    if len(points["class"]) < len(points["subject"]):
        del points["class"]
    return curve(
        {name: tuple(np.array(each, float).T) for name, each in points.items()}
    )


def _series(rows: Sequence[Mapping[str, Any]], name: str):
    """(steps, values) of the rows where `name` is a finite number."""
    points = [
        (row["step"], row[name])
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _folders(path: epath.Path) -> list[epath.Path]:
    return [p for p in path.iterdir() if p.is_dir()] if path.exists() else []


def _pngs(path: epath.Path) -> list[epath.Path]:
    """The pictures of a folder, by name; contact sheets would show them twice."""
    files = [f for f in path.iterdir() if f.suffix == ".png"] if path.exists() else []
    hidden = (".", "contact_sheet.png")
    return sorted(
        (file for file in files if not file.name.startswith(hidden)),
        key=lambda file: file.name,
    )


def _metadata(path: epath.Path) -> dict[str, str]:
    try:
        return read_png_metadata(path)
    except OSError:
        return {}


def _metadata_list(path: epath.Path, key: str) -> list[str]:
    try:
        return json.loads(_metadata(path)[key])
    except (KeyError, ValueError):
        return []


def _rank(stage: str) -> tuple[int, str]:
    """Sorts stages in the order of the cascade, unknown ones last."""
    names = list(_STAGES)
    return (names.index(stage) if stage in names else len(names), stage)


def _number(name: str) -> int:
    return int("".join(c for c in name if c.isdigit()) or 0)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
