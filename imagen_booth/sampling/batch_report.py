"""The pages of a batch job: thumbnails that link to the pictures."""

import hashlib
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
    metadata: Mapping[str, str],
    place: tuple[int, int],
) -> None:
    """Writes one page, unless it exists with the same content.

    Args:
        folder: Folder of the job, which holds the pictures.
        entries: The pictures of the page, as in ``index.jsonl``.
        metadata: ``job``, ``run``, ``cascade`` and ``licence``.
        place: Number of the page, from 1 on, and the number of pages.

    Raises:
        StorageError: The page cannot be written.
    """
    number, pages = place
    path = folder / _name(number)
    shown = json.dumps([entries, metadata, place])
    mark = f"<!-- {hashlib.sha256(shown.encode()).hexdigest()} -->\n"
    if path.exists() and path.read_text().endswith(mark):
        return
    page = html.render(
        "batch.html.j2",
        title=metadata["job"],
        metadata=metadata,
        number=number,
        pages=pages,
        count=len(entries),
        previous=_name(number - 1) if number > 1 else "",
        following=_name(number + 1) if number < pages else "",
        families=[
            (family.capitalize() or "Pictures", [_picture(folder, e) for e in group])
            for family, group in itertools.groupby(entries, lambda e: e["family"])
        ],
    )
    storage.write_atomic(path, (page + mark).encode())


def _name(number: int) -> str:
    return "index.html" if number == 1 else f"index_{number}.html"


def _picture(folder: epath.Path, entry: Mapping[str, Any]) -> html.Picture:
    image = Image.fromarray(image_files.load_png(folder / _source(entry["files"])))
    prompt = textwrap.shorten(entry["prompt"], CAPTION, placeholder="…")
    lines = [f"seed {entry['seed']}"]
    if entry["negative_prompt"]:
        negative = textwrap.shorten(entry["negative_prompt"], CAPTION, placeholder="…")
        lines.append(f"negative prompt: {negative}")
    return html.picture(
        image,
        alt=prompt,
        title=prompt,
        lines=tuple(lines),
        side=THUMBNAIL,
        link=entry["file"],
        quality=75,
    )


def _source(files: Sequence[str]) -> str:
    """The smallest picture of at least a thumbnail's size: 1024 px decode slowly."""
    large = [file for file in files if int(file.partition("/")[0]) >= THUMBNAIL]
    return (large or files[-1:])[0]
