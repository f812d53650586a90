"""evaluation.html: every system's scores in one table, the paper's beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from imagen_booth import storage
from imagen_booth.evaluation import image_sets, paper_tables
from imagen_booth.evaluation.image_sets import GeneratedImage, ImageSet
from imagen_booth.evaluation.preprocess import Preprocessing
from imagen_booth.evaluation.protocol import METRICS, PHOTOS
from imagen_booth.reports import html

SIDE = 200  # pixels of a thumbnail
SHOWN = 6  # pictures of a subject by each system
SUBJECTS = 10  # subjects shown
PROMPT_TEXT = (
    "CLIP-T reads each prompt without the identifier: “a [V] dog in the snow” counts "
    "as “a dog in the snow”. The paper does not say whether [V] was left in."
)
UNSAID = (
    "The paper does not name its CLIP nor LPIPS’s backbone; here they are those named "
    "below, ViT-B/32 and AlexNet unless others were asked for."
)


def write(
    to: epath.Path,
    results: Mapping[str, Any],
    systems: Mapping[str, Sequence[ImageSet]],
) -> epath.Path:
    """Writes the page and returns its path.

    Args:
        results: as ``evaluation.json`` has them.
        systems: what was scored, for pictures of it.

    Raises:
        StorageError: it cannot be written.
    """
    sections = [
        ("Scores", _scores(results)),
        ("Beside the paper", _beside(results)),
        ("Pictures", _pictures(systems)),
        ("Subjects", _subjects(results)),
        ("Protocol", _protocol(results)),
    ]
    path = to / "evaluation.html"
    document = html.page("Scores", _header(results), sections)
    storage.write_atomic(path, document.encode())
    return path


def _header(results: Mapping[str, Any]) -> str:
    systems = results["systems"]
    count = sum(each["pictures"] for each in systems.values())
    lead = (
        f"{_number(len(systems) - 1, 'system')}, "
        f"{_number(len(results['subjects']), 'subject')}, {_number(count, 'picture')}."
    )
    parts = [
        '<p class="eyebrow">imagen_booth, DreamBooth’s protocol</p><h1>Scores</h1>',
        f'<p class="lead">{html.text(lead)}</p>',
        f'<p class="facts">{html.text(results["made"])}</p>',
    ]
    parts.append(html.note("Worth knowing.", results["warnings"]))
    return "".join(parts)


def _scores(results: Mapping[str, Any]) -> str:
    systems = results["systems"]
    metrics = [
        metric
        for metric in METRICS
        if any(metric in each["scores"] for each in systems.values())
    ]
    head = ["", *(_heading(metric, results) for metric in metrics), *_COUNTS]
    rows = []
    for name, each in systems.items():
        cells = [_score(each["scores"].get(metric)) for metric in metrics]
        counts = [_count(name, each, key) for key in _COUNTS.values()]
        rows.append([f"<b>{html.text(name)}</b>", *cells, *counts])
    level = results["bootstrap"]["level"]
    said = (
        f"Means with {level:.0%} bootstrap intervals over subjects, or over the "
        "prompts of a single subject. With few of them the intervals are too narrow. "
        f"“{PHOTOS}” are the photos among themselves."
    )
    missing = [
        f"{METRICS[metric][0]}: not measured"
        for metric in METRICS
        if metric not in metrics and not metric.startswith("judge")
    ]
    facts = f'<p class="facts">{html.text("; ".join(missing))}</p>' if missing else ""
    return f"<p>{html.text(said)}</p>{html.table(head, rows)}{facts}"


_COUNTS = {
    "subjects": "subjects",
    "prompts": "prompts",
    "pictures": "pictures",
    "of the class": "class_pictures",
}


def _count(name: str, system: Mapping[str, Any], key: str) -> str:
    if name != PHOTOS:
        return str(system[key])
    return str(len(system["by_subject"])) if key == "subjects" else ""


def _heading(metric: str, results: Mapping[str, Any]) -> str:
    name, through, _ = METRICS[metric]
    return f"{name} — RANDOM WEIGHTS" if through in results["untrained"] else name


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "–"
    mean, low, high = (f"{score[key]:.3f}" for key in ("mean", "low", "high"))
    return f"{mean}<br>[{low}, {high}]"


def _beside(results: Mapping[str, Any]) -> str:
    """Ours over the paper's, in the columns of its tables."""
    parts = [
        "<p>Figures of the same metrics can be compared where pictures are photographs "
        "of the same subjects for the same prompts, and weights are the public ones. "
        "Scores of the toybox’s judge are on a scale of their own and stand in no "
        "column here.</p>"
    ]
    for title, columns, table in (
        ("Table 1", ("dino", "clip_i", "clip_t"), paper_tables.TABLE_1),
        ("Table 3", ("pres", "div", "dino", "clip_i", "clip_t"), paper_tables.TABLE_3),
    ):
        head = ["", *(_heading(metric, results) for metric in columns)]
        ours = [
            [f"<b>{html.text(name)}</b>"]
            + [_score(each["scores"].get(metric)) for metric in columns]
            for name, each in results["systems"].items()
            if each["scores"].keys() & set(columns)
        ]
        theirs = [
            [f"{html.text(name)}, the paper"]
            + [f"{row[m]:.3f}" if m in row else "–" for m in columns]
            for name, row in table.items()
        ]
        parts.append(f"<h3>{title}</h3>{html.table(head, ours + theirs)}")
    return "".join(parts)


def _pictures(systems: Mapping[str, Sequence[ImageSet]]) -> str:
    parts, seen = [], {}
    for system, some in systems.items():
        for work in some:
            seen.setdefault(work.subject.name, (work.subject, {}))[1].setdefault(
                system, []
            ).extend(_spread(work.by_prompt().values(), work))
    for name, (subject, by_system) in list(seen.items())[:SUBJECTS]:
        parts.append(f"<h3>{html.text(name)}, photos</h3>")
        photos = [_thumbnail(file, file.stem) for file in subject.photos[:SHOWN]]
        parts.append(html.grid(photos, SHOWN, 3, "small"))
        for system, shots in by_system.items():
            figures = [
                _thumbnail(shot.file, shot.prompt or shot.file.name)
                for shot in shots[:SHOWN]
            ]
            parts.append(f"<h3>{html.text(name)}, {html.text(system)}</h3>")
            parts.append(html.grid(figures, SHOWN, 3, "small"))
    if len(seen) > SUBJECTS:
        parts.append(f"<p>{len(seen) - SUBJECTS} subjects more are not shown.</p>")
    return "".join(parts)


def _spread(groups: Any, work: ImageSet) -> list[GeneratedImage]:
    """The first picture of some prompts, or some pictures where there is one."""
    firsts = [work.pictures[group[0]] for group in groups]
    shots = firsts if len(firsts) > 1 else list(work.pictures)
    return shots[:: max(1, len(shots) // SHOWN)]


def _thumbnail(file: epath.Path, caption: str) -> str:
    image = Image.fromarray(image_sets.read(file))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return html.picture(image, caption, html.text(caption))


def _subjects(results: Mapping[str, Any]) -> str:
    """Every subject's means, for who wants to see what the intervals are over."""
    parts = []
    for name, each in results["systems"].items():
        metrics = [metric for metric in METRICS if metric in each["scores"]]
        rows = [
            [html.text(subject)]
            + [f"{found[m]['mean']:.3f}" if m in found else "–" for m in metrics]
            for subject, found in each["by_subject"].items()
        ]
        if not metrics:
            continue
        head = ["subject", *(_heading(metric, results) for metric in metrics)]
        parts.append(html.details(name, html.table(head, rows)))
    return "".join(parts)


def _protocol(results: Mapping[str, Any]) -> str:
    defined = [
        [f"<b>{html.text(name)}</b>", html.text(f"{what[:1].upper()}{what[1:]}.")]
        for name, _, what in METRICS.values()
    ]
    rows = []
    for kind, each in results["instruments"].items():
        if kind == "judge":
            about = "64 px, by the mean over the area of each pixel"
            measured = each.get("held_out", {}).get("words", {})
            right = ", ".join(
                f"{name} {found['right']:.1%}" for name, found in measured.items()
            )
            about += f"; right on renders it never saw: {right}" if right else ""
            source, digest = "the toybox’s own", each.get("sha256", "")
        else:
            about = _preparation(Preprocessing(**each["preparation"]))
            source, digest = each["source"], each["sha256"]
        rows.append(
            [
                html.text(kind),
                html.text(each["name"]),
                html.text(source),
                html.text(each.get("licence", "")),
                html.text(about),
                f"<code>{html.text(digest[:16])}</code>",
            ]
        )
    head = ["", "network", "weights", "licence", "pictures as it sees them", "digest"]
    sizes = [
        [html.text(name), html.text(", ".join(each["sizes"]))]
        for name, each in results["systems"].items()
        if each["sizes"]
    ]
    skipped = [file for each in results["systems"].values() for file in each["skipped"]]
    said = f"Files that are no pictures: {', '.join(skipped)}." if skipped else ""
    return (
        f"{html.table([], defined)}<p>{html.text(PROMPT_TEXT)} {html.text(UNSAID)}</p>"
        f"{html.table(head, rows)}<p>Pictures are read upright, in sRGB, on white; of "
        "runs, the photos are the square crops that training saw. A file that cannot "
        "be read ends the work; nothing is left out silently.</p>"
        f"{html.table(['system', 'sizes in pixels'], sizes)}"
        f"<p>{html.text(said)}</p>"
    )


def _preparation(recipe: Preprocessing) -> str:
    mean, std = (
        ", ".join(f"{value:g}" for value in each) for each in (recipe.mean, recipe.std)
    )
    return (
        f"shorter side {recipe.resize} px by Pillow’s bicubic filter, the middle "
        f"{recipe.crop} px, less ({mean}), over ({std})"
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
