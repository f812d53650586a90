"""evaluation.html: the scores of every system in one table, beside the paper's."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from imagen_booth import storage
from imagen_booth.evaluation import image_sets, paper_tables
from imagen_booth.evaluation.image_sets import GeneratedImage, ImageSet
from imagen_booth.evaluation.protocol import METRICS, PHOTOS
from imagen_booth.reports import html
from imagen_booth.reports.curves import scatter

SIDE = 200  # pixels of a thumbnail
SHOWN = 6  # pictures shown of a subject by each system
SUBJECTS = 10  # subjects shown
DRIFT = (("dino", "pres"), ("judge_subject", "judge_pres"))  # similarity, drift
PAPER = (
    ("Table 1", ("dino", "clip_i", "clip_t"), paper_tables.TABLE_1),
    ("Table 3", ("pres", "div", "dino", "clip_i", "clip_t"), paper_tables.TABLE_3),
)


def write(
    to: epath.Path,
    results: Mapping[str, Any],
    systems: Mapping[str, Sequence[ImageSet]],
) -> epath.Path:
    """Writes the page and returns its path.

    Args:
        to: Folder that the page is written to.
        results: The content of ``evaluation.json``.
        systems: The image sets that were scored; the page shows some of their pictures.

    Raises:
        StorageError: The page cannot be written.
    """
    every = results["systems"].values()
    headings = {
        metric: f"{name} — RANDOM WEIGHTS" if network in results["untrained"] else name
        for metric, (name, network, _) in METRICS.items()
    }
    subjects = _subjects(systems)
    document = html.render(
        "evaluation.html.j2",
        title="Scores",
        results=results,
        photos_name=PHOTOS,
        count=sum(each["pictures"] for each in every),
        metrics=[m for m in METRICS if any(m in each["scores"] for each in every)],
        headings=headings,
        definitions={name: what for name, _, what in METRICS.values()},
        not_measured=[
            name
            for metric, (name, _, _) in METRICS.items()
            if not metric.startswith("judge")
            and not any(metric in each["scores"] for each in every)
        ],
        paper=PAPER,
        drift=_drift(results["systems"]),
        subjects=subjects[:SUBJECTS],
        subjects_left_out=len(subjects[SUBJECTS:]),
        columns=SHOWN,
        skipped=[file for each in every for file in each["skipped"]],
    )
    path = to / "evaluation.html"
    storage.write_atomic(path, document.encode())
    return path


def _drift(systems: Mapping[str, Any]) -> dict[str, Any] | None:
    """Similarity over drift of every subject; None where neither pair is measured."""
    for up, across in DRIFT:
        groups = {
            name: {
                subject: (
                    max(scores[across]["mean"], 0.0),
                    max(scores[up]["mean"], 0.0),
                )
                for subject, scores in system["by_subject"].items()
                if up in scores and across in scores
            }
            for name, system in systems.items()
        }
        groups = {name: points for name, points in groups.items() if points}
        if groups:
            return {
                "chart": scatter(groups),
                "up": METRICS[up].title,
                "across": METRICS[across].title,
                "legend": [f"{name}: {len(each)}" for name, each in groups.items()],
            }
    return None


def _subjects(
    systems: Mapping[str, Sequence[ImageSet]],
) -> list[dict[str, Any]]:
    """Every subject with its photos and some pictures of each system."""
    found: dict[str, tuple[Any, dict[str, list[GeneratedImage]]]] = {}
    for system, image_sets_of_it in systems.items():
        for each in image_sets_of_it:
            _, shots = found.setdefault(each.subject.name, (each.subject, {}))
            shots.setdefault(system, []).extend(_spread(each))
    shown = []
    for name, (subject, by_system) in found.items():
        # Pictures of the subjects that the page leaves out are not decoded.
        rows = {}
        if len(shown) < SUBJECTS:
            rows["photos"] = [_thumbnail(f, f.stem) for f in subject.photos[:SHOWN]]
            for system, shots in by_system.items():
                rows[system] = [
                    _thumbnail(shot.file, shot.prompt or shot.file.name)
                    for shot in shots[:SHOWN]
                ]
        shown.append({"name": name, "rows": rows})
    return shown


def _spread(images: ImageSet) -> list[GeneratedImage]:
    """The first picture of some prompts; of a single prompt, some of its pictures."""
    firsts = [images.pictures[group[0]] for group in images.by_prompt().values()]
    shots = firsts if len(firsts) > 1 else list(images.pictures)
    return shots[:: max(1, len(shots) // SHOWN)]


def _thumbnail(file: epath.Path, caption: str) -> html.Picture:
    image = Image.fromarray(image_sets.read(file))
    return html.picture(image, caption, lines=(caption,), side=SIDE)
