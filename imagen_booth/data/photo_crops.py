"""Crops of large photographs, to train a super-resolution stage.

A folder of photographs, with or without a table ``SOURCES.csv`` of credits, captions
and split. A record is a whole photograph; ``degraded_crop`` cuts a random part of
random scale and makes the low-resolution input that a cascade will give the stage: the
clean reduction, or one with the mild blur, noise and compression of generated pictures.
"""

import collections
import csv
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from etils import epath
from PIL import Image, ImageFilter

from imagen_booth.data import decoding, photos
from imagen_booth.data.pipeline import Example
from imagen_booth.errors import InputError

TABLE = "SOURCES.csv"
COLUMNS = ("file", "author", "licence", "caption", "split")
EVERY = 10  # without a table, every tenth photograph is held out
MAX_SHRINK = 2.5  # a crop shows a part of the photograph up to this many times its side
_KERNELS = (
    Image.Resampling.BOX,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


class PhotoFolder:
    """Random access to the photographs of one split of a folder.

    Decoded photographs stay in memory: about 6 MB each at 1600 x 1280 px.

    Args:
        folder: A folder of photographs. With ``SOURCES.csv`` in it, its rows are read
            (columns file, author, licence, caption, split); otherwise every photograph,
            without captions, and every tenth is ``held_out``.
        split: ``train`` or ``held_out``, or another word of the column.
        least: Least length of the shorter side in pixels; others are left out.

    Raises:
        InputError: No such folder, a table without these columns, a file that is
            missing or damaged, or no photograph that is large enough.
    """

    def __init__(self, folder: str, split: str, *, least: int) -> None:
        self._folder, where = epath.Path(folder), f"config.data_dir={folder}"
        if not folder or not self._folder.exists():
            raise InputError(f"{where} is not a folder of photographs")
        rows = self._table(where) or self._listed()
        chosen = [row for row in rows if row["split"] == split]
        if not chosen:
            there = ", ".join(sorted({row["split"] for row in rows})) or "none at all"
            raise InputError(
                f"{where} has no photographs of split {split!r}; it has {there}. "
                f"Without a table, {TABLE}, every {EVERY}th is held out: give {EVERY} "
                "or more"
            )
        self.rows = [row for row in chosen if self._size(row) >= least]
        if not self.rows:
            raise InputError(
                f"{where}: all {len(chosen)} photographs of split {split!r} are too "
                f"small; the shorter side needs {least} px or more"
            )
        self._pixels = functools.lru_cache(maxsize=None)(self._read)

    def _table(self, where: str) -> list[dict[str, str]]:
        path = self._folder / TABLE
        if not path.exists():
            return []
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        missing = [name for name in COLUMNS if not rows or name not in rows[0]]
        if missing:
            raise InputError(f"{where}/{TABLE} lacks the columns {', '.join(missing)}")
        return rows

    def _listed(self) -> list[dict[str, str]]:
        names = sorted(
            path.name
            for path in self._folder.iterdir()
            if path.suffix.lower() in photos.SUFFIXES and not path.name.startswith(".")
        )
        return [
            {
                "file": name,
                "author": "",
                "licence": "not stated",
                "caption": "",
                "split": "held_out" if index % EVERY == EVERY - 1 else "train",
            }
            for index, name in enumerate(names)
        ]

    def _size(self, row: Mapping[str, str]) -> int:
        """Shorter side in pixels, from the header alone."""
        path = self._folder / row["file"]
        try:
            with path.open("rb") as file, Image.open(file) as image:
                return min(image.size)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error})") from error

    def _read(self, index: int) -> np.ndarray:
        path = self._folder / self.rows[index]["file"]
        try:
            return decoding.decode(path.read_bytes(), (255, 255, 255))[0]
        except (InputError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error})") from error

    @property
    def origin(self) -> dict[str, Any]:
        """What the photographs are, for the manifest of weights trained on them."""
        licences = collections.Counter(row["licence"] for row in self.rows)
        return {"photographs": len(self.rows), "licences": dict(licences)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """A record: ``image`` uint8 [H, W, 3] and ``caption``."""
        number = index.__index__()
        return {"image": self._pixels(number), "caption": self.rows[number]["caption"]}


class PhotoRows:
    """Whole photographs as rows of a batch, before ``degraded_crop``."""

    def __init__(self, records: PhotoFolder, text: Callable[[str], Example]) -> None:
        self.records, self._text = records, text

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        return {"image": record["image"], **self._text(record["caption"])}


def degraded_crop(
    size: int, scale: int
) -> Callable[[Example, np.random.Generator], Example]:
    """A function that makes ``image`` and ``low`` from a whole photograph.

    ``image`` is a random square, mirrored in half of the cases, that shows up to
    ``MAX_SHRINK`` times ``size`` pixels of the photograph reduced to ``size``. ``low``
    is its reduction by ``scale``; half of them are degraded further.

    Args:
        size: Side of the crop in pixels; a multiple of ``scale``.
        scale: Ratio of the sides of ``image`` and ``low``.
    """

    def crop(example: Example, rng: np.random.Generator) -> Example:
        photo = example["image"]
        height, width = photo.shape[:2]
        most = min(MAX_SHRINK, min(height, width) / size)
        side = round(size * np.exp(rng.uniform(0.0, np.log(most))))
        top = rng.integers(0, height - side + 1)
        left = rng.integers(0, width - side + 1)
        cut = Image.fromarray(photo[top : top + side, left : left + side])
        if side != size:
            cut = cut.resize((size, size), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        kernel = _KERNELS[rng.integers(len(_KERNELS))]
        low = cut.resize((size // scale, size // scale), kernel)
        if rng.random() < 0.5:
            low = degrade(low, rng)
        return example | {"image": np.asarray(cut), "low": np.asarray(low)}

    return crop


def degrade(low: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A low-resolution picture as a generator might have made it.

    Blur with a standard deviation of up to 1 pixel, noise of up to 8 of 255 grey
    levels, and in half of the cases JPEG compression of quality 50 to 95.
    """
    low = low.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 1.0)))
    noise = rng.normal(0.0, rng.uniform(0.0, 8.0), np.asarray(low).shape)
    noisy = np.asarray(low, np.float32) + noise.astype(np.float32)
    low = Image.fromarray(np.rint(noisy.clip(0, 255)).astype(np.uint8))
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        low.save(buffer, "JPEG", quality=int(rng.integers(50, 96)))
        low = Image.open(buffer).convert("RGB")
    return low


def centre_crops(
    records: PhotoFolder, count: int, size: int, scale: int
) -> Sequence[Example]:
    """Clean pairs from the middle of the first photographs, for previews.

    Returns:
        ``count`` rows, or as many as there are photographs, with ``image`` [size, size,
        3] and ``low``, uint8.
    """
    rows = []
    for index in range(min(count, len(records))):
        photo = records[index]["image"]
        top, left = ((side - size) // 2 for side in photo.shape[:2])
        image = photo[top : top + size, left : left + size]
        small = Image.fromarray(image).reduce(scale)
        rows.append({"image": image, "low": np.asarray(small)})
    return rows
