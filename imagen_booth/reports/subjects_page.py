"""index.html of a job of many subjects, from their run directories."""

import dataclasses
import functools
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from imagen_booth.data import similarity
from imagen_booth.reports import html
from imagen_booth.storage import read_json, write_atomic

PAGE = "index.html"
_CELL = 160  # pixels of a picture
_PHOTOS, _BEST = 6, 4  # pictures shown


@dataclasses.dataclass(frozen=True)
class _Card:
    """What the page shows of one subject.

    Attributes:
        name: Its name.
        facts: Its class, state, seconds and scores.
        page: Address of its report; empty where there is none yet.
        rows: Its photos, and the best pictures of it.
    """

    name: str
    facts: tuple[str, ...]
    page: str
    rows: tuple[list[html.Picture], ...]


def write(
    folder: epath.Path,
    names: Sequence[str],
    refused: Sequence[str],
    failed: Mapping[str, str],
    costs: Sequence[tuple[str, str, str]],
) -> epath.Path:
    """Writes the page into the folder of the job and returns its path.

    Args:
        names: Names of the subjects, which are folders there.
        refused: Why others are not trained, one sentence each.
        failed: Why some of them failed, by name.
        costs: The table of ``subject_costs.table``.

    Raises:
        StorageError: It cannot be written.
    """
    manifests = {
        name: read_json(folder / name / "manifest.json", None) for name in names
    }
    states = {name: _state(manifests[name], failed.get(name, "")) for name in names}
    counts = Counter(state.partition(":")[0] for state in states.values())
    page = html.render(
        "subjects.html.j2",
        title=f"{len(names)} subject{'s' * (len(names) != 1)}",
        counts=[f"{count} {state}" for state, count in counts.items()],
        failed=[
            f"{name}: {state.partition(': ')[2]}"
            for name, state in states.items()
            if state.startswith("failed")
        ],
        refused=list(refused),
        cards=[_card(folder, name, manifests[name], states[name]) for name in names],
        costs=list(costs),
    )
    path = folder / PAGE
    write_atomic(path, page.encode())
    return path


def _state(manifest: Mapping[str, Any], failure: str) -> str:
    """``done``, ``running``, ``stopped``, ``waiting``, or ``failed: WHY``."""
    status = failure or manifest.get("status", "waiting")
    if status.startswith("Stopped: "):
        return "stopped"
    return status if status in ("done", "running", "waiting") else f"failed: {status}"


def _card(
    folder: epath.Path, name: str, manifest: Mapping[str, Any], state: str
) -> _Card:
    subject, timings = manifest.get("subject") or {}, manifest.get("timings") or {}
    facts = [subject.get("class_noun", ""), state.partition(":")[0]]
    if timings:
        facts.append(f"{sum(timings.values()):.0f} s")
    for measure, ends in ((manifest.get("similarity") or {}).get("base") or {}).items():
        facts.append(f"{measure} {ends['before']:.2f} → {ends['after']:.2f}")
    work = folder / name
    has_page = (work / "report.html").exists()
    return _Card(
        name,
        tuple(fact for fact in facts if fact),
        f"{name}/report.html" if has_page else "",
        _rows(work, str(manifest.get("finished", ""))) if subject else (),
    )


@functools.lru_cache(maxsize=4096)
def _rows(work: epath.Path, finished: str) -> tuple[list[html.Picture], ...]:
    """Photos and best pictures of a run, which do not change once it is finished."""
    photos = _images(work / "photos", _PHOTOS)
    sizes = [each for each in _paths(work / "samples" / "final") if each.name.isdigit()]
    finals: list[np.ndarray] = []
    if finished and sizes:
        finals = _images(max(sizes, key=lambda path: int(path.name)))
    # Those that look most like the photos.
    finals.sort(
        key=lambda image: (
            -sum(similarity.to_photos([image], photos).values()) if photos else 0
        )
    )
    return tuple(
        [html.picture(Image.fromarray(image), alt, quality=80) for image in images]
        for images, alt in ((photos, "photo"), (finals[:_BEST], "picture"))
    )


def _paths(folder: epath.Path) -> list[epath.Path]:
    found = folder.iterdir() if folder.exists() else ()
    return sorted(found, key=lambda path: path.name)


def _images(folder: epath.Path, most: int | None = None) -> list[np.ndarray]:
    """The pictures of a folder, made small."""
    images = []
    paths = [path for path in _paths(folder) if path.suffix == ".png"]
    for path in [path for path in paths if path.name != "contact_sheet.png"][:most]:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            small = image.convert("RGB").resize((_CELL, _CELL), Image.Resampling.BOX)
            images.append(np.asarray(small))
    return images
