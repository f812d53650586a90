"""The pages of a batch job: thumbnails that lead to the pictures."""

import base64
import hashlib
import io
import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from imagen_booth import storage
from imagen_booth.data import image_files
from imagen_booth.reports import html

THUMBNAIL = 176  # pixels
CAPTION = 140  # characters of a prompt


def write(
    folder: epath.Path,
    entries: Sequence[Mapping[str, Any]],
    story: Mapping[str, str],
    place: tuple[int, int],
) -> None:
    """Writes one page, unless it is there as it would be now.

    Args:
        folder: of the job; the pictures are in it.
        entries: what the page shows, as ``index.jsonl`` has it.
        story: ``job``, ``run``, ``cascade`` and ``licence``.
        place: (number of the page, how many there are), from 1 on.

    Raises:
        StorageError: it cannot be written.
    """
    path = folder / _name(place[0])
    shown = json.dumps([entries, story, place])
    mark = f"<!-- {hashlib.sha256(shown.encode()).hexdigest()} -->\n"
    if path.exists() and path.read_text().endswith(mark):
        return
    sections = [
        (family.capitalize() or "Pictures", _grid(folder, list(some)))
        for family, some in itertools.groupby(entries, lambda each: each["family"])
    ]
    page = html.page(story["job"], _header(story, len(entries), place), sections)
    storage.write_atomic(path, (page + mark).encode())


def _name(number: int) -> str:
    return "index.html" if number == 1 else f"index_{number}.html"


def _header(story: Mapping[str, str], count: int, place: tuple[int, int]) -> str:
    number, pages = place
    links = [
        f'<a href="{_name(to)}">{text}</a>'
        for to, text in ((number - 1, "page before"), (number + 1, "next page"))
        if 1 <= to <= pages
    ]
    facts = " · ".join([f"page {number} of {pages}", f"{count} pictures", *links])
    return (
        f'<p class="eyebrow">{html.text(story["run"])} · {html.text(story["cascade"])}'
        f" · licence: {html.text(story['licence'])}</p>"
        f'<h1>{html.text(story["job"])}</h1><p class="facts">{facts}</p>'
    )


def _grid(folder: epath.Path, entries: Sequence[Mapping[str, Any]]) -> str:
    return html.grid([_figure(folder, each) for each in entries], 6, 2, "small")


def _figure(folder: epath.Path, entry: Mapping[str, Any]) -> str:
    image = Image.fromarray(image_files.load_png(folder / _source(entry["files"])))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=75)
    uri = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    prompt = textwrap.shorten(entry["prompt"], CAPTION, placeholder="…")
    said = f"<b>{html.text(prompt)}</b><br>seed {entry['seed']}"
    if entry["negative_prompt"]:
        negative = textwrap.shorten(entry["negative_prompt"], CAPTION, placeholder="…")
        said += f", not {html.text(negative)}"
    figure = html.figure(uri, image.size, prompt, said)
    return f'<a href="{html.text(entry["file"])}">{figure}</a>'


def _source(files: Sequence[str]) -> str:
    """The smallest picture that has enough pixels; decoding 1024 px takes long."""
    large = [file for file in files if int(file.partition("/")[0]) >= THUMBNAIL]
    return (large or files[-1:])[0]
