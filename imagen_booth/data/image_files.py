"""Image files of a run: PNG files with metadata, contact sheets."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from imagen_booth.storage import write_atomic

# A dark sheet suits light and dark pages.
_SHEET = (24, 24, 27)
_INK = (214, 214, 219)


def save_png(
    path: epath.PathLike,
    picture: np.ndarray | Image.Image,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a PNG file with metadata in text chunks.

    Args:
        path: Local or gs:// file.
        picture: uint8 [H,W,3] or [H,W], or a PIL image.
        metadata: Names (1 to 79 Latin-1 characters) and values (any text).

    Raises:
        StorageError: The file cannot be written.
    """
    if not isinstance(picture, Image.Image):
        assert picture.dtype == np.uint8, picture.dtype
        picture = Image.fromarray(picture)
    chunks = PngImagePlugin.PngInfo()
    for name, value in (metadata or {}).items():
        chunks.add_text(name, value)
    data = io.BytesIO()
    picture.save(data, "PNG", pnginfo=chunks)
    write_atomic(path, data.getvalue())


def read_png_metadata(path: epath.PathLike) -> dict[str, str]:
    """The metadata that `save_png` wrote into a PNG file."""
    with Image.open(io.BytesIO(epath.Path(path).read_bytes())) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile), f"{path} is no PNG"
        return {name: str(value) for name, value in image.text.items()}


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    cell: int = 256,
) -> Image.Image:
    """Arranges images in rows, each whole and in its own aspect.

    An image larger than the cell is scaled down (Lanczos); a smaller one is enlarged by
    a whole factor without smoothing, so that its pixels stay visible.

    Args:
        images: uint8 [H,W,3] each, of any sizes; at least one.
        captions: One line per image, shortened to the width of its cell.
        columns: Images per row, at most.
        cell: Side in pixels of the square that holds an image.
    """
    assert images, "a contact sheet needs an image"
    assert captions is None or len(captions) == len(images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap = max(1, cell // 64)
    letter = max(10, cell // 16)
    band = 0 if captions is None else round(1.6 * letter)
    pitch_x, pitch_y = cell + gap, cell + band + gap
    sheet = Image.new("RGB", (columns * pitch_x - gap, rows * pitch_y - gap), _SHEET)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=letter)
    for index, array in enumerate(images):
        picture = _fit(Image.fromarray(array), cell)
        left, top = index % columns * pitch_x, index // columns * pitch_y
        spare_x, spare_y = cell - picture.width, cell - picture.height
        sheet.paste(picture, (left + spare_x // 2, top + spare_y // 2))
        if captions is not None:
            line = _shorten(captions[index], lambda s: draw.textlength(s, font), cell)
            middle = (left + cell // 2, top + cell + band // 2)
            draw.text(middle, line, fill=_INK, font=font, anchor="mm")
    return sheet


def _fit(image: Image.Image, cell: int) -> Image.Image:
    longer = max(image.size)
    if longer <= cell:
        factor = cell // longer
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    width, height = (max(1, round(side * cell / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _shorten(line: str, length, limit: int) -> str:
    line = " ".join(line.split())
    if length(line) <= limit:
        return line
    while line and length(line + "…") > limit:
        line = line[:-1]
    return line.rstrip() + "…"


def load_png(path: epath.PathLike) -> np.ndarray:
    """Reads an image that `save_png` wrote, uint8 [H,W,3]."""
    with Image.open(io.BytesIO(epath.Path(path).read_bytes())) as image:
        return np.asarray(image.convert("RGB"))
