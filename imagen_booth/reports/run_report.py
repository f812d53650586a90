"""report.html: one self-contained page that shows a run, from its run directory.

The page is made from the files of the run alone, so it can be made again at any time,
and from those that exist, so it can be made before the run is finished.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from imagen_booth.data.image_files import read_png_metadata
from imagen_booth.errors import InputError
from imagen_booth.reports import html
from imagen_booth.reports.curves import curve
from imagen_booth.storage import write_atomic

_MOST_BYTES = 6_000_000
_MOST_FINAL = 12  # pictures shown per resolution
_MOST_BETWEEN = 5  # previews shown per stage between the first and the last
_MOST_CROPS = 12
_STAGES = {
    "text": "Identifier embedding",
    "base": "Base stage",
    "sr256": "First super-resolution stage",
    "sr1024": "Second super-resolution stage",
}
_NETWORKS = ("base", "sr256", "sr1024")
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(workdir: epath.Path) -> epath.Path:
    """Writes `report.html` into a run directory and returns its path.

    Pictures are made smaller until the page is below 6 MB.

    Args:
        workdir: Holds config.json, manifest.json, metrics.jsonl, photos/*.png (<file
            name of the photo>.png), photos/contact_sheet.png, samples/class_images.png,
            samples/previews/<stage>/step_<number>.png with 'prompts' (a JSON list) in
            their metadata, samples/final/<resolution>/*.png with 'prompt' and 'seed',
            and failures.json as `evaluation.failure_modes` writes it. Any of them may
            be missing.

    Raises:
        InputError: A JSON file of the run cannot be parsed.
        StorageError: The page cannot be written.
    """
    workdir = epath.Path(workdir)
    for shrink in (1.0, 0.7, 0.5, 0.35, 0.25):
        document = _RunPage(workdir, shrink).render().encode()
        if len(document) <= _MOST_BYTES:
            break
    path = workdir / "report.html"
    write_atomic(path, document)
    return path


class _RunPage:
    """The data that the template shows; one method per section."""

    def __init__(self, workdir: epath.Path, shrink: float):
        self.workdir = workdir
        self.shrink = shrink
        self.config = _read_json(workdir / "config.json")
        self.manifest = _read_json(workdir / "manifest.json")
        self.subject = self.manifest.get("subject") or {}
        self.cascade = self.manifest.get("cascade") or {}
        self.weights = self.cascade.get("parts") or {}
        self.metrics = _read_metrics(workdir / "metrics.jsonl")

    def render(self) -> str:
        manifest, subject = self.manifest, self.subject
        noun, status = subject.get("class_noun"), manifest.get("status")
        title = subject.get("instance_prompt") or (
            f"a {noun}" if noun else manifest.get("run", "A run")
        )
        facts = [
            manifest.get("run") and f"run {manifest['run']}",
            "done" if status == "done" else "",
            _date(manifest.get("finished") or manifest.get("created")),
        ]
        random = [n for n, part in self.weights.items() if not part.get("pretrained")]
        ended_early = status not in (None, "running", "done")
        return html.render(
            "run.html.j2",
            title=title,
            cascade=self.cascade.get("name"),
            summary=self.summary(),
            facts=[fact for fact in facts if fact],
            untrained="all weights"
            if len(random) == len(self.weights)
            else ", ".join(random),
            stop_reason=status.splitlines() if ended_early else [],
            warnings=manifest.get("warnings") or [],
            finals=self.finals(),
            previews=self.previews(),
            **self.failures(),
            **self.photos(),
            class_images=self.picture(
                self.workdir / "samples" / "class_images.png", 1100, "class images"
            ),
            class_prompt=subject.get("class_prompt"),
            **self.losses(),
            **self.timings(),
            settings=_flat(self.config),
            provenance=self.provenance(),
            weights=self.weights,
        )

    def summary(self) -> str:
        """What happened, in one or two sentences."""
        subject = self.subject
        photos = subject.get("photos") or []
        if not photos and subject.get("refused"):
            return (
                "None of the photos could be used; the table below gives the reasons."
            )
        kind = subject.get("class_prompt") or subject.get("class_noun") or "a subject"
        shown = f"{_count(len(photos), 'photo')} of {kind}" if photos else kind
        cascade = self.cascade.get("name")
        cascade = f"the {cascade} cascade" if cascade else "the cascade"
        if self.manifest.get("status") != "done":
            return _capital(
                f"{cascade} is to be fine-tuned on {shown}. The run is not finished; "
                "this page shows the results so far."
            )
        spent = sum((self.manifest.get("timings") or {}).values())
        took = f" in {_duration(spent)}" if spent else ""
        prompt, noun = subject.get("instance_prompt"), subject.get("class_noun")
        done = f"{cascade} was fine-tuned on {shown}{took}."
        if subject.get("learned"):
            embedding = f"the embedding of “{subject.get('identifier')}” was trained on"
            if any((self.config.get(stage) or {}).get("steps") for stage in _NETWORKS):
                done = f"{embedding} {shown}, and then {done}"
            else:
                done = f"{embedding} {shown}{took}. No network was fine-tuned."
        elif (self.config.get("subject") or {}).get("description"):
            return (
                f"Nothing was tuned: the prompts describe the subject of {shown} in "
                f"words, as “{prompt}”."
            )
        pretrained = all(part.get("pretrained") for part in self.weights.values())
        if prompt and pretrained:  # a prompt means nothing to random weights
            done += f" In a prompt, “{prompt}” now means this {noun or 'subject'}."
        return _capital(done)

    def finals(self) -> list[dict[str, Any]]:
        """The pictures by resolution, the largest first."""
        groups, captioned = [], set()
        folders = _folders(self.workdir / "samples" / "final")
        for folder in sorted(folders, key=lambda f: -_number(f.name)):
            paths, shown = _pngs(folder), []
            for path in paths[:_MOST_FINAL]:
                metadata = _metadata(path)
                prompt = metadata.get("prompt", path.stem)
                caption = (prompt, metadata.get("seed", ""))
                # The same picture at a lower resolution needs no second caption.
                title, seed = ("", "") if caption in captioned else caption
                captioned.add(caption)
                lines = (f"seed {seed}",) if seed else ()
                shown += self.picture(path, 800, prompt, title, lines)
            if not shown:
                continue
            if not groups:
                layout = ({1: 1, 2: 2, 4: 2}.get(len(shown), 3), 1, "")
            elif _number(folder.name) > 128:
                layout = (4, 2, "small")
            else:
                layout = (6, 3, "small")
            group = {"folder": folder.name, "rest": len(paths) - len(shown)}
            group |= dict(zip(("columns", "narrow", "kind"), layout, strict=True))
            groups.append(group | {"pictures": shown})
        return groups

    def previews(self) -> list[dict[str, Any]]:
        """What each stage sampled before, during and after fine-tuning."""
        found = _folders(self.workdir / "samples" / "previews")
        stages = []
        for folder in sorted(found, key=lambda folder: _rank(folder.name)):
            stage, paths = folder.name, _pngs(folder)
            if not paths:
                continue
            ends, between = [], []
            for word, path in zip(
                ("before", "after"), paths[:1] + paths[1:][-1:], strict=False
            ):
                step = (f"step {_number(path.stem)}",)
                ends += self.picture(path, 720, f"{stage} {word}", word, step)
            for path in _spread(paths[1:-1], _MOST_BETWEEN):
                step = f"step {_number(path.stem)}"
                between += self.picture(path, 300, f"{stage} {step}", lines=(step,))
            similarity = (self.manifest.get("similarity") or {}).get(stage) or {}
            stages.append(
                {
                    "heading": _STAGES.get(stage, stage),
                    "rows": _rows_of(paths[0], stage),
                    "ends": ends,
                    "between": between,
                    "between_columns": _MOST_BETWEEN,
                    "similarity": [
                        (f"{_short(each['before'])} → {_short(each['after'])}", measure)
                        for measure, each in similarity.items()
                    ],
                    **self.similarity_curve(stage, paths),
                }
            )
        return stages

    def similarity_curve(
        self, stage: str, paths: Sequence[epath.Path]
    ) -> dict[str, Any]:
        """Mean similarity to the photos by step, and which checkpoint was kept."""
        steps, subject, klass = [], [], []
        for path in paths:
            metadata = _metadata(path)
            of_subject, of_class = (
                list(json.loads(metadata.get(name, "{}")).values())
                for name in ("measured", "measured_class")
            )
            if of_subject:
                steps.append(_number(path.stem))
                subject.append(float(np.mean(of_subject)))
                klass.append(float(np.mean(of_class)) if of_class else math.nan)
        if len(steps) < 3:
            return {"curve": None}
        across = np.array(steps, float)
        series = {"subject": (across, np.array(subject))}
        if not np.isnan(klass).any():
            series["class"] = (across, np.array(klass))
        lines = ["Mean over all measures, by step."]
        kept = (self.manifest.get("kept") or {}).get(stage)
        if kept:
            lines.append(
                f"Kept: step {kept['step']}, score {kept['score']:.3g}, by this rule: "
                f"{kept['rule']}."
            )
        return {"curve": curve(series), "curve_lines": lines}

    def failures(self) -> dict[str, Any]:
        """The three failure modes, each with the pictures that show it."""
        failures = _read_json(self.workdir / "failures.json")
        evidence = {
            name: [
                picture
                for each in mode["evidence"]
                for picture in self.picture(
                    self.workdir / each["file"],
                    360,
                    each["said"],
                    lines=(each["said"],),
                )
            ]
            for name, mode in failures.get("modes", {}).items()
        }
        return {"failures": failures, "evidence": evidence}

    def photos(self) -> dict[str, Any]:
        """The crops, or their contact sheet where they are many; refused files."""
        folder = self.workdir / "photos"
        photos = self.subject.get("photos") or []
        by_name = {photo["name"]: photo for photo in photos}
        crops, shown = _pngs(folder), []
        if 0 < len(crops) <= _MOST_CROPS:
            for path in crops:
                photo, lines = by_name.get(path.stem, {}), []
                if "width" in photo and "height" in photo:
                    lines.append(f"{photo['width']} × {photo['height']} px")
                if photo.get("stages"):
                    lines.append("used for " + ", ".join(photo["stages"]))
                alt = f"photo {path.stem}"
                shown += self.picture(path, 360, alt, path.stem, tuple(lines))
            columns = min(max(len(shown), 3), 6)
        else:
            shown, columns = self.picture(folder / "contact_sheet.png", 1100, "all"), 1
        return {
            "photos": shown,
            "photo_columns": columns,
            "unused": [
                (entry.get("name"), word, entry.get("reason"))
                for word in ("refused", "skipped")
                for entry in self.subject.get(word) or []
            ],
            "photo_hashes": [
                (photo.get("name"), photo.get("sha256") or "") for photo in photos
            ],
        }

    def losses(self) -> dict[str, Any]:
        """The loss curves of each stage."""
        losses, names = [], set()
        for stage in sorted(self.metrics, key=_rank):
            rows = self.metrics[stage]
            series = {
                "subject": _series(rows, "train/loss_subject"),
                "class": _series(rows, "train/loss_class"),
            }
            series = {name: each for name, each in series.items() if len(each[0])}
            if not series:
                series = {"loss": _series(rows, "train/loss")}
            if not all(len(steps) for steps, _ in series.values()):
                continue
            names.update(series)
            lines = []
            for name, (_, values) in series.items():
                tenth = max(1, len(values) // 10)
                first, last = values[:tenth].mean(), values[-tenth:].mean()
                lines.append(f"{name} {first:.3g} → {last:.3g}")
            rate = _series(rows, "time/images_per_sec")[1]
            if len(rate):
                lines.append(f"{np.median(rate):.3g} images per second")
            losses.append({"stage": stage, "curve": curve(series), "lines": lines})
        shown = [name for name in ("subject", "class", "loss") if name in names]
        return {"losses": losses, "loss_names": shown}

    def timings(self) -> dict[str, Any]:
        timings = self.manifest.get("timings") or {}
        longest = max(timings.values(), default=0) or 1
        return {
            "total_time": _duration(sum(timings.values())),
            "timings": [
                (part, seconds / longest, _duration(seconds))
                for part, seconds in timings.items()
            ],
        }

    def provenance(self) -> list[tuple[str, Any]]:
        manifest, subject = self.manifest, self.subject
        facts = {
            "seed": manifest.get("seed"),
            "identifier": subject.get("identifier"),
            "identifier’s tokens": ", ".join(
                map(str, subject.get("identifier_ids") or [])
            ),
            "started": _date(manifest.get("created")),
            "finished": _date(manifest.get("finished")),
            "licence of the weights": self.cascade.get("licence"),
            **(manifest.get("versions") or {}),
        }
        return [
            (name, value) for name, value in facts.items() if value not in (None, "")
        ]

    def picture(
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


def _read_json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path} cannot be parsed ({error}); restore it or run train again"
        ) from error


def _read_metrics(path: epath.Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by stage, in order of steps; of a repeated step, the last row."""
    if not path.exists():
        return {}
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            rows.setdefault(row["stage"], {})[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            continue  # the process died while it wrote this line
    return {
        stage: [by_step[step] for step in sorted(by_step)]
        for stage, by_step in rows.items()
    }


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
    if not path.exists():
        return []
    files = [
        file
        for file in path.iterdir()
        if file.suffix == ".png"
        and file.name != "contact_sheet.png"
        and not file.name.startswith(".")
    ]
    return sorted(files, key=lambda file: file.name)


def _metadata(path: epath.Path) -> dict[str, str]:
    try:
        return read_png_metadata(path)
    except OSError:
        return {}


def _rows_of(grid: epath.Path, stage: str) -> str:
    """What the rows of a preview grid show."""
    if stage not in ("text", "base"):
        return (
            "In each row: the low-resolution input, the output of the stage, the photo."
        )
    try:
        prompts = json.loads(_metadata(grid)["prompts"])
    except (KeyError, ValueError):
        return ""
    counts = {prompt: prompts.count(prompt) for prompt in prompts}
    named = (f"“{p}”" + (f" ({n} times)" if n > 1 else "") for p, n in counts.items())
    return f"Row by row: {', '.join(named)}."


def _rank(stage: str) -> tuple[int, str]:
    """Sorts stages in the order of the cascade, unknown ones last."""
    names = list(_STAGES)
    return (names.index(stage) if stage in names else len(names), stage)


def _number(name: str) -> int:
    return int("".join(c for c in name if c.isdigit()) or 0)


def _spread(items: Sequence[epath.Path], most: int) -> list[epath.Path]:
    """At most `most` of the items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[round((i + 0.5) * len(items) / most - 0.5)] for i in range(most)]


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value))
    return rows


def _count(number: int, noun: str) -> str:
    word = _COUNTS[number] if number < len(_COUNTS) else str(number)
    return f"{word} {noun}{'' if number == 1 else 's'}"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _date(value: object) -> str:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value or "")
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
