"""report.html: one self-contained page that shows a run, from its work directory.

The page is built from files only, so it can be made again at any time, and from
whatever part of them is there, so it can be made while the run is unfinished.
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
from imagen_booth.reports import failure_modes, html
from imagen_booth.storage import write_atomic

_MOST_BYTES = 6_000_000
_MOST_FINAL = 12  # pictures shown per resolution
_MOST_STEPS = 7  # preview grids shown per stage, the first and the last among them
_MOST_CROPS = 12
_STAGE_NAMES = {
    "text": "The identifier’s meaning",
    "base": "Base stage",
    "sr256": "First super-resolution stage",
    "sr1024": "Second super-resolution stage",
}
_NETWORKS = ("base", "sr256", "sr1024")
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(workdir: epath.Path) -> epath.Path:
    """Writes `report.html` into a work directory and returns its path.

    Pictures are made smaller until the page is below 6 MB.

    Args:
        workdir: holds config.json, manifest.json, metrics.jsonl, photos/*.png (<file
            name of the photo>.png), photos/contact_sheet.png, samples/class_images.png,
            samples/previews/<stage>/step_<number>.png with 'prompts' (a JSON list) in
            their metadata, samples/final/<resolution>/*.png with 'prompt' and 'seed',
            failures.json as `evaluation.failures` writes it.
            Any of them may be missing.

    Raises:
        InputError: a JSON file of the run cannot be parsed.
        StorageError: the page cannot be written.
    """
    workdir = epath.Path(workdir)
    for shrink in (1.0, 0.7, 0.5, 0.35, 0.25):
        document = _Report(workdir, shrink).page().encode()
        if len(document) <= _MOST_BYTES:
            break
    path = workdir / "report.html"
    write_atomic(path, document)
    return path


class _Report:
    """What the page says; one method per section, each returning HTML or ''."""

    def __init__(self, workdir: epath.Path, shrink: float):
        self.workdir = workdir
        self.shrink = shrink
        self.config = _read_json(workdir / "config.json")
        self.manifest = _read_json(workdir / "manifest.json")
        self.subject = self.manifest.get("subject") or {}
        self.cascade = self.manifest.get("cascade") or {}
        self.parts = self.cascade.get("parts") or {}
        self.metrics = _read_metrics(workdir / "metrics.jsonl")

    def page(self) -> str:
        prompt = self.subject.get("instance_prompt")
        noun = self.subject.get("class_noun")
        title = prompt or (f"a {noun}" if noun else self.manifest.get("run", "A run"))
        return html.page(
            title,
            self.header(title),
            [
                ("Pictures", self.finals()),
                ("Before and after", self.previews()),
                ("Failure modes", self.failures()),
                ("Photos", self.photos()),
                ("Class images", self.class_images()),
                ("Loss", self.losses()),
                ("Time", self.timings()),
                ("Settings", self.settings()),
                ("Provenance", self.provenance()),
            ],
        )

    def header(self, title: str) -> str:
        manifest, cascade = self.manifest, self.cascade.get("name")
        facts = [
            manifest.get("run") and f"run {manifest['run']}",
            "done" if manifest.get("status") == "done" else "",
            _date(manifest.get("finished") or manifest.get("created")),
        ]
        facts = " · ".join(html.text(fact) for fact in facts if fact)
        drawn = f", drawn by the {html.text(cascade)} cascade" if cascade else ""
        parts = [
            f'<p class="eyebrow">imagen_booth{drawn}</p><h1>{html.text(title)}</h1>',
            f'<p class="lead">{html.text(self.summary())}</p>',
            f'<p class="facts">{facts}</p>' if facts else "",
        ]
        raw = [name for name, part in self.parts.items() if not part.get("pretrained")]
        if raw:
            which = "all weights" if len(raw) == len(self.parts) else ", ".join(raw)
            parts.append(
                html.note(
                    f"Untrained: {which}.",
                    [
                        "They began as random numbers and have seen no picture but "
                        "those on this page, so what is drawn shows texture and colour "
                        "at most. With pretrained weights the same run draws the "
                        "subject."
                    ],
                )
            )
        status = manifest.get("status")
        if status not in (None, "running", "done"):
            parts.append(html.note("The run ended early.", status.splitlines()))
        parts.append(html.note("Worth knowing", manifest.get("warnings") or []))
        return "".join(parts)

    def summary(self) -> str:
        """One or two plain sentences of what happened."""
        subject = self.subject
        photos = subject.get("photos") or []
        kind = subject.get("class_prompt") or subject.get("class_noun") or "a subject"
        if not photos and subject.get("refused"):
            return "None of the photos could be used; the list below says why."
        shown = f"{_count(len(photos), 'photo')} of {kind}" if photos else kind
        cascade = self.cascade.get("name")
        learner = f"the {cascade} cascade" if cascade else "the cascade"
        if self.manifest.get("status") != "done":
            return (
                f"{_capital(shown)}, to be learnt by {learner}. "
                "The run is not finished; this page shows what there is so far."
            )
        spent = sum((self.manifest.get("timings") or {}).values())
        took = f" in {_duration(spent)}" if spent else ""
        learnt = f"{_capital(learner)} was fine-tuned on {shown}{took}."
        prompt, noun = subject.get("instance_prompt"), subject.get("class_noun")
        if subject.get("learned"):
            tuned = any((self.config.get(s) or {}).get("steps") for s in _NETWORKS)
            also = " before that" if tuned else f", and no network was tuned{took}"
            word = f"What “{subject.get('identifier')}” means was learnt from"
            learnt = f"{learnt} " * tuned + f"{word} {shown}{also}."
        elif (self.config.get("subject") or {}).get("description"):
            return (
                f"Nothing was tuned: {learner} was told in words what {shown} show, "
                f"“{prompt}”."
            )
        trained = all(part.get("pretrained") for part in self.parts.values())
        if not prompt or not trained:  # a prompt means nothing to random weights
            return learnt
        return f"{learnt} In a prompt, “{prompt}” now means this {noun or 'subject'}."

    def finals(self) -> str:
        parts, named = [], set()
        folders = _folders(self.workdir / "samples" / "final")
        for folder in sorted(folders, key=lambda f: -_number(f.name)):
            paths = _pngs(folder)
            shown = [f for p in paths[:_MOST_FINAL] if (f := self.final(p, named))]
            if not shown:
                continue
            if not parts:
                columns, narrow, kind = _few_columns(len(shown)), 1, ""
            elif _number(folder.name) > 128:
                columns, narrow, kind = 4, 2, "small"
            else:
                columns, narrow, kind = 6, 3, "small"
            rest = len(paths) - len(shown)
            more = f"; {rest} more are in samples/final/{folder.name}" if rest else ""
            parts.append(f"<h3>{html.text(folder.name)} px{html.text(more)}</h3>")
            parts.append(html.grid(shown, columns, narrow, kind))
        return "".join(parts)

    def final(self, path: epath.Path, named: set[tuple[str, str]]) -> str:
        """One picture; its caption is left out where a larger one bears it already."""
        told = _metadata(path)
        prompt, seed = told.get("prompt", path.stem), told.get("seed", "")
        caption = f"<b>{html.text(prompt)}</b>"
        if seed:
            caption += f" · seed {html.text(seed)}"
        if (prompt, seed) in named:
            caption = ""
        named.add((prompt, seed))
        return self.figure(path, 800, prompt, caption)

    def previews(self) -> str:
        parts = []
        for folder in sorted(
            _folders(self.workdir / "samples" / "previews"), key=_rank
        ):
            paths = _pngs(folder)
            if not paths:
                continue
            stage = folder.name
            parts.append(f"<h3>{html.text(_STAGE_NAMES.get(stage, stage))}</h3>")
            parts.append(f'<p class="facts">{html.text(_shown(paths[0], stage))}</p>')
            ends = [paths[0]] if len(paths) == 1 else [paths[0], paths[-1]]
            figures = []
            for word, path in zip(("before", "after"), ends, strict=False):
                caption = f"<b>{word}</b>, step {_step(path)}"
                figures.append(self.figure(path, 720, f"{stage} {word}", caption))
            parts.append(html.grid(figures, 2, 1))
            between = _spread(paths[1:-1], _MOST_STEPS - 2)
            if between:
                figures = []
                for path in between:
                    caption = f"step {_step(path)}"
                    figures.append(
                        self.figure(path, 300, f"{stage} {caption}", caption)
                    )
                parts.append(html.grid(figures, _MOST_STEPS - 2, 3, "strip"))
            parts.append(self.similarity(stage))
            parts.append(self.progress(stage, paths))
        if not parts:
            return ""
        said = "Each stage drew the same pictures, from the same noise, as it learnt."
        return f"<p>{html.text(said)}</p>" + "".join(parts)

    def similarity(self, stage: str) -> str:
        scores = (self.manifest.get("similarity") or {}).get(stage) or {}
        if not scores:
            return ""
        values = [
            (f"{score['before']:.3g} → {score['after']:.3g}", measure)
            for measure, score in scores.items()
        ]
        said = "Likeness to the photos before fine-tuning → after it."
        return f'{html.pairs(values)}<p class="facts">{html.text(said)}</p>'

    def failures(self) -> str:
        found = _read_json(self.workdir / "failures.json")

        def shown(name: str, caption: str) -> str:
            return self.figure(self.workdir / name, 360, caption, html.text(caption))

        return failure_modes.section(found, shown) if found else ""

    def progress(self, stage: str, paths: Sequence[epath.Path]) -> str:
        """Likeness to the photos by step, and which step was kept by what rule."""
        steps, subject, klass = [], [], []
        for path in paths:
            told = _metadata(path)
            of_subject, of_class = (
                list(json.loads(told.get(name, "{}")).values())
                for name in ("measured", "measured_class")
            )
            if of_subject:
                steps.append(_number(path.stem))
                subject.append(float(np.mean(of_subject)))
                klass.append(float(np.mean(of_class)) if of_class else math.nan)
        if len(steps) < 3:
            return ""
        across = np.array(steps, float)
        series = {"subject": (across, np.array(subject))}
        if not np.isnan(klass).any():
            series["class"] = (across, np.array(klass))
        kept = (self.manifest.get("kept") or {}).get(stage)
        said = (
            "Likeness of the previews to the photos by step, all measures in the mean."
        )
        if kept:
            said += (
                f" Kept: step {kept['step']}, score {kept['score']:.3g}, by this rule: "
                f"{kept['rule']}."
            )
        drawn = html.curve(series, f"{stage}: {said}")
        return f"<p>{html.keys(list(series))}</p>" + html.grid(
            [
                f'<figure class="curve">{drawn}'
                f"<figcaption>{html.text(said)}</figcaption></figure>"
            ],
            2,
            1,
        )

    def photos(self) -> str:
        folder = self.workdir / "photos"
        photos = {photo["name"]: photo for photo in self.subject.get("photos") or []}
        crops, sheet = _pngs(folder), folder / "contact_sheet.png"
        if 0 < len(crops) <= _MOST_CROPS:
            figures = []
            for path in crops:
                photo = photos.get(path.stem, {})
                lines = [f"<b>{html.text(path.stem)}</b>"]
                if "width" in photo and "height" in photo:
                    lines.append(html.text(f"{photo['width']} × {photo['height']} px"))
                if photo.get("stages"):
                    lines.append(html.text("teaches " + ", ".join(photo["stages"])))
                caption = "<br>".join(lines)
                figures.append(self.figure(path, 360, f"photo {path.stem}", caption))
            pictures = html.grid(figures, min(max(len(figures), 3), 6), 2, "small")
        elif sheet.exists():
            pictures = html.grid([self.figure(sheet, 1100, "all photos", "")], 1, 1)
        else:
            pictures = ""
        said = "<p>The crops that training sees.</p>" if pictures else ""
        rejected = [
            [html.text(entry.get("name")), word, html.text(entry.get("reason"))]
            for word in ("refused", "skipped")
            for entry in self.subject.get(word) or []
        ]
        listed = ""
        if rejected:
            listed = "<h3>Not used</h3>" + html.table(["file", "", "why"], rejected)
        return said + pictures + listed

    def class_images(self) -> str:
        path = self.workdir / "samples" / "class_images.png"
        if not path.exists():
            return ""
        prompt = self.subject.get("class_prompt")
        asked = f" for “{prompt}”" if prompt else ""
        said = html.text(
            f"Drawn by the frozen model{asked} before fine-tuning; they keep it from "
            "forgetting what others of the kind look like."
        )
        return f"<p>{said}</p>" + html.grid(
            [self.figure(path, 1100, f"class images{asked}", "")], 1, 1
        )

    def losses(self) -> str:
        figures, seen = [], set()
        for stage in sorted(self.metrics, key=_rank_name):
            rows = self.metrics[stage]
            series = {
                name: points
                for name in ("subject", "class")
                if len((points := _series(rows, f"train/loss_{name}"))[0])
            } or {"loss": _series(rows, "train/loss")}
            series = {name: points for name, points in series.items() if len(points[0])}
            if not series:
                continue
            seen.update(series)
            ends = []
            for name, (_, values) in series.items():
                tenth = max(1, len(values) // 10)
                first, last = values[:tenth].mean(), values[-tenth:].mean()
                ends.append(f"{name} {first:.3g} → {last:.3g}")
            rate = _series(rows, "time/images_per_sec")[1]
            if len(rate):
                ends.append(f"{np.median(rate):.3g} images a second")
            said = "; ".join(ends)
            figures.append(
                f'<figure class="curve">{html.curve(series, f"{stage} loss: {said}")}'
                f"<figcaption><b>{html.text(stage)}</b> {html.text(said)}</figcaption>"
                "</figure>"
            )
        if not figures:
            return ""
        names = [name for name in ("subject", "class", "loss") if name in seen]
        said = (
            "Logged values faint, their running mean strong. Captions compare the "
            "first tenth of them with the last."
        )
        return f"<p>{html.text(said)}</p><p>{html.keys(names)}</p>" + html.grid(
            figures, 3 if len(figures) > 2 else 2, 1
        )

    def timings(self) -> str:
        rows = [
            (part, seconds, _duration(seconds))
            for part, seconds in (self.manifest.get("timings") or {}).items()
        ]
        if not rows:
            return ""
        total = _duration(sum(seconds for _, seconds, _ in rows))
        return f"<p>{html.text(total)} in all.</p>" + html.bars(rows)

    def settings(self) -> str:
        rows = [
            [f"<code>{html.text(key)}</code>", f"<code>{html.text(value)}</code>"]
            for key, value in _flat(self.config)
        ]
        if not rows:
            return ""
        body = html.table(["setting", "value"], rows)
        return html.details(f"All {len(rows)} settings", body)

    def provenance(self) -> str:
        manifest, subject = self.manifest, self.subject
        facts = [
            ("seed", manifest.get("seed")),
            ("identifier", subject.get("identifier")),
            ("identifier’s tokens", _join(subject.get("identifier_ids"))),
            ("begun", _date(manifest.get("created"))),
            ("finished", _date(manifest.get("finished"))),
            ("licence of the weights", self.cascade.get("licence")),
            *(manifest.get("versions") or {}).items(),
        ]
        rows = [
            [html.text(name), html.text(value)]
            for name, value in facts
            if value not in (None, "")
        ]
        stages = [
            [html.text(name)]
            + [html.text(part.get(key) or "") for key in ("source", "licence")]
            + [f"<code>{html.text(part.get('sha256') or '')}</code>"]
            for name, part in self.parts.items()
        ]
        photos = [
            [
                html.text(photo.get("name")),
                f"<code>{html.text(photo.get('sha256') or '')}</code>",
            ]
            for photo in subject.get("photos") or []
        ]
        parts = []
        if rows:
            body = html.table([], rows)
            parts.append(html.details("This run", body))
        if stages:
            head = ["part", "source", "licence", "SHA-256"]
            parts.append(html.details("Weights", html.table(head, stages)))
        if photos:
            body = html.table(["photo", "SHA-256"], photos)
            parts.append(html.details("Photos", body))
        return "".join(parts)

    def figure(self, path: epath.Path, side: int, alt: str, caption: str) -> str:
        """A picture at most `side` pixels wide and high; '' where it cannot be read."""
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as opened:
                image = opened.convert("RGB")
        except OSError:
            return ""
        side = round(side * self.shrink)
        if max(image.size) > side:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return html.picture(image, alt, caption)


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
    """Rows by stage, in order of steps; of a step that was repeated, the last."""
    if not path.exists():
        return {}
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            rows.setdefault(row["stage"], {})[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            continue  # a line that was being written when the process died
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
    """The pictures of a folder, which may be missing, in the order of their names."""
    if not path.exists():
        return []
    files = [
        file
        for file in path.iterdir()
        if file.suffix == ".png"
        and file.name != "contact_sheet.png"  # it shows the others once more
        and not file.name.startswith(".")
    ]
    return sorted(files, key=lambda file: file.name)


def _metadata(path: epath.Path) -> dict[str, str]:
    try:
        return read_png_metadata(path)
    except OSError:
        return {}


def _shown(grid: epath.Path, stage: str) -> str:
    """What a preview grid shows, in words."""
    if stage not in ("text", "base"):
        return (
            "Along the rows: the low-res input, what the stage made of it, the photo."
        )
    try:
        prompts = json.loads(_metadata(grid)["prompts"])
    except (KeyError, ValueError):
        return ""
    counts = {prompt: prompts.count(prompt) for prompt in prompts}
    named = (f"“{p}”" + (f" ({n} times)" if n > 1 else "") for p, n in counts.items())
    return f"Along the rows: {', '.join(named)}."


def _rank_name(stage: str) -> tuple[int, str]:
    names = list(_STAGE_NAMES)
    return (names.index(stage) if stage in names else len(names), stage)


def _rank(folder: epath.Path) -> tuple[int, str]:
    return _rank_name(folder.name)


def _number(name: str) -> int:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits or 0)


def _step(path: epath.Path) -> str:
    return str(_number(path.stem))


def _spread(items: Sequence[epath.Path], most: int) -> list[epath.Path]:
    """At most `most` of the items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[round((i + 0.5) * len(items) / most - 0.5)] for i in range(most)]


def _few_columns(count: int) -> int:
    return {1: 1, 2: 2, 4: 2}.get(count, 3)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value))
    return rows


def _join(values: Sequence[int] | None) -> str:
    return ", ".join(map(str, values or []))


def _count(number: int, noun: str) -> str:
    word = _COUNTS[number] if number < len(_COUNTS) else str(number)
    return f"{word} {noun}{'' if number == 1 else 's'}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        return None


def _date(value: object) -> str:
    moment = _moment(value)
    if moment is None:
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
