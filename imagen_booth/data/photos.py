"""The subject's photos: checks, loading and cropping.

`inspect` checks a folder before the rest of a run starts and reports by name what it
uses, refuses and skips. `load` turns one file into upright sRGB pixels, `square` makes
the square that training reads.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from imagen_booth.data.decoding import decode
from imagen_booth.errors import InputError

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".hif",
    ".avif", ".gif", ".tif", ".tiff", ".bmp",
})  # fmt: skip
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})

_FEW, _MANY = 3, 30
_MOST_CUT = 0.4  # warn where a crop drops more than this share of the photo
_MOST_NAMED = 5  # photos with a warning of their own; beyond this, one for all

# On 52 photos of ten DreamBooth subjects: two different photos differ in 13 or more of
# the 128 bits, a copy at a third of the size in 3 at most, a JPEG of quality 40 in 5.
_ALIKE_BITS = 10
# Standard deviation of grey levels (18.9 or more in the same photos) and of their
# Laplacian at 256 px (12.0 or more; 2.5 at most after a Gaussian blur of 1 % of the
# width).
_LEAST_CONTRAST = 8.0
_LEAST_SHARPNESS = 3.0


@dataclass(frozen=True)
class Crop:
    """How a photo becomes square.

    Attributes:
        mode: 'centre' cuts the longer side, 'pad' adds background to the shorter one.
        shift: Position (x, y) in [-1, 1] of the cut square, or of the padded photo,
            within the spare space: 0 is the middle, -1 the left or top end, 1 the right
            or bottom end.
    """

    mode: str = "centre"
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        if self.mode not in ("centre", "pad"):
            raise InputError(
                f"config.subject.crop is {self.mode!r}; use 'centre' or 'pad'"
            )


SETTING = "config.subject.photos"


@dataclass(frozen=True)
class Photo:
    """A photo that can be used.

    Attributes:
        name: File name, with bytes that are not UTF-8 escaped.
        path: Full path, for `load`.
        sha256: Hash of the file's bytes, hexadecimal.
        width, height: Size in pixels, after orientation.
        format: Format of the content, whatever the suffix: 'JPEG', 'PNG', ...
        stages: Names of the stages it is large enough for, in the cascade's order.
        notes: Changes made while reading ('EXIF orientation 6 applied', ...).
    """

    name: str
    path: str
    sha256: str
    width: int
    height: int
    format: str
    stages: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """An entry of the folder that is not used, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class CheckedPhotos:
    """The contents of a folder of photos.

    Attributes:
        folder: The folder, with bytes that are not UTF-8 escaped.
        photos: The photos that can be used, sorted by name.
        refused: Images that cannot be used, though their name is that of a photo.
        skipped: Other files.
        warnings: Sentences for the user; none stops the run.
    """

    folder: str
    photos: tuple[Photo, ...]
    refused: tuple[Rejected, ...]
    skipped: tuple[Rejected, ...]
    warnings: tuple[str, ...]

    def large_enough_for(self, stage: str) -> tuple[Photo, ...]:
        """The photos large enough for a stage."""
        return tuple(photo for photo in self.photos if stage in photo.stages)


class NoGoodPhotos(InputError):
    """Every image of the folder was refused; `intake` lists them for the report."""

    def __init__(self, intake: CheckedPhotos, setting: str = SETTING):
        lines = [
            f"{setting}={intake.folder} holds no photo that can be used; "
            "3 to 5 sharp JPEG or PNG photos of the subject are enough"
        ]
        for verb, entries in (("refused", intake.refused), ("skipped", intake.skipped)):
            by_reason: dict[str, list[str]] = {}
            for entry in entries:
                by_reason.setdefault(entry.reason, []).append(entry.name)
            lines += [
                f"  {verb} {_listed(names)}: {reason}"
                for reason, names in by_reason.items()
            ]
        super().__init__("\n".join(lines))
        self.intake = intake


def inspect(
    folder: str,
    stage_resolutions: Mapping[str, int],
    crop: Crop,
    background: tuple[int, int, int],
    setting: str = SETTING,
) -> CheckedPhotos:
    """Reads every entry of a folder and checks which stages it can train.

    A photo can train a stage if the side of its square (the shorter side under
    'centre', the longer one under 'pad') is at least the stage's resolution: an
    enlarged photo would train blur. The stage named 'base' uses every photo.

    Args:
        folder: Local or gs:// folder; sub-folders are not entered.
        stage_resolutions: Pixels by stage name, {'base': 64, 'sr256': 256, ...}.
        crop: How photos become square.
        background: RGB 0..255 under transparent pixels.
        setting: Name of the setting that names the folder, for errors.

    Raises:
        InputError: The folder is missing, a file, empty, or cannot be listed.
        NoGoodPhotos: None of its images can be used.
    """
    photos, refused, skipped, remarks, hashes = [], [], [], [], []
    for path in _entries(folder, setting):
        name, reason = _printable(path.name), _stray(path)
        if reason:
            skipped.append(Rejected(name, reason))
            continue
        try:
            photo, pixels = _read_photo(path, stage_resolutions, crop, background)
        except (InputError, OSError) as error:
            refused.append(Rejected(name, _printable(str(error))))
            continue
        photos.append(photo)
        hashes.append(_fingerprint(pixels))
        remarks += _remarks(photo, pixels, stage_resolutions, crop)
    intake = CheckedPhotos(
        folder=_printable(str(folder)),
        photos=tuple(photos),
        refused=tuple(refused),
        skipped=tuple(skipped),
        warnings=(
            *_summarised(remarks),
            *_alike(photos, hashes),
            *_counts(photos, stage_resolutions),
        ),
    )
    if not photos:
        raise NoGoodPhotos(intake, setting)
    return intake


def _printable(text: str) -> str:
    """A file name or path with the bytes that are not UTF-8 escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence, shortened beyond ``_MOST_NAMED``."""
    *most, last = names
    if len(names) > _MOST_NAMED:
        most, last = names[:3], f"{len(names) - 3} more"
    return f"{', '.join(most)} and {last}" if most else last


def _read_photo(
    path: epath.Path,
    stage_resolutions: Mapping[str, int],
    crop: Crop,
    background: tuple[int, int, int],
) -> tuple[Photo, np.ndarray]:
    data = path.read_bytes()
    pixels, format_, notes = decode(data, background)
    height, width, _ = pixels.shape
    side = min(width, height) if crop.mode == "centre" else max(width, height)
    photo = Photo(
        name=_printable(path.name),
        path=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        width=width,
        height=height,
        format=format_,
        stages=tuple(
            stage
            for stage, resolution in stage_resolutions.items()
            if stage == "base" or side >= resolution
        ),
        notes=notes,
    )
    return photo, pixels


def load(path: epath.PathLike, background: tuple[int, int, int]) -> np.ndarray:
    """Reads one photo as a viewer shows it.

    Applies EXIF orientation, converts colour profiles to sRGB and other colour modes to
    RGB, puts transparent pixels over `background`, scales 16-bit values to 8, and reads
    the first frame of an animation. HEIC needs pillow-heif.

    Returns:
        uint8 [H,W,3], sRGB.

    Raises:
        InputError: The file cannot be used; names the file and the reason.
    """
    try:
        return decode(epath.Path(path).read_bytes(), background)[0]
    except (InputError, OSError) as error:
        raise InputError(_printable(f"photo {path}: {error}")) from error


def square(
    image: np.ndarray, size: int, crop: Crop, background: tuple[int, int, int]
) -> np.ndarray:
    """Makes a photo square without changing its aspect.

    Scaling is Lanczos with antialiasing. A photo that is too small is enlarged; callers
    exclude such photos by `Photo.stages` from all stages but the base.

    Args:
        image: uint8 [H,W,3].
        size: Side of the result in pixels.
        crop: How the photo becomes square.
        background: RGB 0..255 beside a padded photo.

    Returns:
        uint8 [size,size,3].
    """
    height, width, _ = image.shape
    whole = Image.fromarray(image)
    if crop.mode == "centre":
        side = min(width, height)
        left, top = _offsets(width - side, height - side, crop)
        box = (left, top, left + side, top + side)
        return np.array(whole.resize((size, size), Image.Resampling.LANCZOS, box))
    side = max(width, height)
    # Scaled before it is padded, so that its edges do not ring into the background.
    inner = (max(1, round(size * width / side)), max(1, round(size * height / side)))
    canvas = Image.new("RGB", (size, size), tuple(background))
    canvas.paste(
        whole.resize(inner, Image.Resampling.LANCZOS),
        _offsets(size - inner[0], size - inner[1], crop),
    )
    return np.array(canvas)


def _offsets(spare_x: int, spare_y: int, crop: Crop) -> tuple[int, int]:
    x, y = crop.shift
    return round(spare_x * (1 + x) / 2), round(spare_y * (1 + y) / 2)


def _entries(folder: str, setting: str) -> list[epath.Path]:
    if not folder:
        raise InputError(
            f"{setting} is not set; name the folder that holds the photos: "
            f"--{setting}=DIR"
        )
    named = _printable(f"{setting}={folder}")
    try:
        path = epath.Path(folder).expanduser()
        if not path.exists():
            raise InputError(f"{named} does not exist; name a folder of photos")
        if not path.is_dir():
            raise InputError(f"{named} is a file; name the folder that holds it")
        entries = sorted(path.iterdir(), key=lambda entry: entry.name)
    except (OSError, ImportError) as error:
        raise InputError(
            f"{named} cannot be listed ({error}); check its permissions and, for "
            "gs://, that imagen_booth[gcs] is installed"
        ) from error
    if not entries:
        raise InputError(f"{named} is empty; put 3 to 5 photos of the subject there")
    return entries


def _stray(path: epath.Path) -> str | None:
    """Why an entry is not a photo by its name, or None if it is."""
    if path.is_dir():
        return "a sub-folder; photos are read from the folder itself only"
    if path.name.startswith("."):
        return "a hidden file"
    if path.name.lower() in _SYSTEM_FILES:
        return "a Windows system file"
    if path.suffix.lower() not in SUFFIXES:
        suffix = _printable(path.suffix)
        return f"the suffix {suffix!r} is not that of a photo; save it as JPEG"
    return None


class _Remark(NamedTuple):
    """A warning about one photo.

    Attributes:
        name: Name of the photo.
        detail: What is special to this photo, after its name; may be empty.
        text: The warning without the photo's name, the same for all such photos.
    """

    name: str
    detail: str
    text: str


def _remarks(
    photo: Photo, pixels: np.ndarray, stage_resolutions: Mapping[str, int], crop: Crop
) -> list[_Remark]:
    remarks = []
    size = f" ({photo.width} x {photo.height})"
    for stage, resolution in stage_resolutions.items():
        if stage not in photo.stages:
            text = f"too small for the {resolution} px stage; {stage} trains without it"
            remarks.append(_Remark(photo.name, size, text))
    cut = 1 - min(photo.width, photo.height) / max(photo.width, photo.height)
    if crop.mode == "centre" and cut > _MOST_CUT:
        detail = f" ({photo.width} x {photo.height}, {cut:.0%} outside the crop)"
        text = (
            "the crop removes much; if it cuts the subject, set "
            "config.subject.crop='pad' or config.subject.shift"
        )
        remarks.append(_Remark(photo.name, detail, text))
    image = Image.fromarray(pixels).convert("L")
    # These two measures do not depend on the aspect, so the photo may be squashed here.
    small = (min(256, image.width), min(256, image.height))
    grey = np.asarray(image.resize(small, Image.Resampling.LANCZOS), np.float32)
    edges = 4 * grey[1:-1, 1:-1]
    edges -= grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    if grey.std() < _LEAST_CONTRAST:
        text = "almost no contrast: the subject may not be visible"
        remarks.append(_Remark(photo.name, "", text))
    elif edges.std() < _LEAST_SHARPNESS:
        text = "looks blurred; the cascade will learn the blur"
        remarks.append(_Remark(photo.name, "", text))
    return remarks


def _summarised(remarks: Iterable[_Remark]) -> list[str]:
    """A sentence per remark, or per text that many photos share."""
    by_text: dict[str, list[_Remark]] = {}
    for remark in remarks:
        by_text.setdefault(remark.text, []).append(remark)
    sentences = []
    for text, same in by_text.items():
        if len(same) > _MOST_NAMED:
            names = _listed([remark.name for remark in same])
            sentences.append(f"{len(same)} photos ({names}): {text}")
        else:
            sentences += [f"{each.name}{each.detail}: {text}" for each in same]
    return sentences


def _fingerprint(pixels: np.ndarray) -> np.ndarray:
    """Difference hash, bool [128]: which of 9 x 9 cells is brighter than the last."""
    image = Image.fromarray(pixels).convert("L")
    cells = np.asarray(image.resize((9, 9), Image.Resampling.LANCZOS))
    across = cells[:8, 1:] > cells[:8, :-1]
    down = cells[1:, :8] > cells[:-1, :8]
    return np.concatenate([across.ravel(), down.ravel()])


def _alike(photos: Sequence[Photo], hashes: Sequence[np.ndarray]) -> list[str]:
    """One sentence per group of photos that are the same or look almost the same."""
    copies: dict[str, list[int]] = {}
    for row, photo in enumerate(photos):
        copies.setdefault(photo.sha256, []).append(row)
    remarks = [
        f"{_listed([photos[row].name for row in rows])} are the same file; remove all "
        f"but one, or that photo counts {len(rows)} times"
        for rows in copies.values()
        if len(rows) > 1
    ]
    groups: list[list[int]] = []  # of different files, linked by their likeness
    for first, *_ in copies.values():
        linked = [
            group
            for group in groups
            if (_distances(hashes, group, first) <= _ALIKE_BITS).any()
        ]
        groups = [group for group in groups if group not in linked]
        groups.append([*(row for group in linked for row in group), first])
    return remarks + [
        f"{_listed([photos[row].name for row in sorted(rows)])} look almost the same; "
        "different views of the subject give better results"
        for rows in groups
        if len(rows) > 1
    ]


def _distances(hashes: Sequence[np.ndarray], rows: list[int], row: int) -> np.ndarray:
    others = np.stack([hashes[each] for each in rows])
    return np.count_nonzero(others != hashes[row], axis=1)


def _counts(photos: list[Photo], stage_resolutions: Mapping[str, int]) -> list[str]:
    remarks = []
    if 0 < len(photos) < _FEW:
        remarks.append(
            f"only {len(photos)} usable photo{'s' * (len(photos) > 1)}; "
            "the method is made for 3 to 5; with fewer, samples repeat the photos"
        )
    if len(photos) > _MANY:
        remarks.append(
            f"{len(photos)} photos; the method is made for 3 to 5, and this many need "
            "more steps"
        )
    for stage, resolution in stage_resolutions.items():
        if photos and not any(stage in photo.stages for photo in photos):
            remarks.append(
                f"no photo is large enough for the {resolution} px stage: {stage} is "
                "not fine-tuned"
            )
    return remarks
