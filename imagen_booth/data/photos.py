"""The subject's photos: which can be used, for which stage, and as which pixels.

`inspect` looks at a folder before anything else of a run starts and says by name what
it uses, refuses and skips. `load` turns one file into upright sRGB pixels, `square`
into the square that training sees.
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

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
_MOST_CUT = 0.4  # warn where a crop drops more than this share of the picture

# On 52 photos of ten DreamBooth subjects: two different photos differ in 13 or more of
# the 128 bits, a copy at a third of the size in 3 at most, a JPEG of quality 40 in 5.
_ALIKE_BITS = 10
# Deviation of grey levels (the same photos: 18.9 or more) and of their Laplacian at
# 256 px (12.0 or more; blurred by a Gaussian of 1 % of the width, 2.5 at most).
_LEAST_CONTRAST = 8.0
_LEAST_SHARPNESS = 3.0


@dataclass(frozen=True)
class Crop:
    """How a photo becomes square.

    Attributes:
        mode: 'centre' cuts the longer side, 'pad' adds background to the shorter one.
        shift: (x, y) in [-1, 1]: where in the spare room the square, or the padded
            photo, lies. 0 is the middle, -1 the left or top end, 1 the right or bottom.
    """

    mode: str = "centre"
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        if self.mode not in ("centre", "pad"):
            raise InputError(
                f"config.subject.crop is {self.mode!r}; use 'centre' or 'pad'"
            )
        if len(self.shift) != 2 or any(not -1 <= s <= 1 for s in self.shift):
            raise InputError(
                f"config.subject.shift is {self.shift}; use two numbers from -1 to 1"
            )


@dataclass(frozen=True)
class Photo:
    """A photo that can be used.

    Attributes:
        name: file name in the folder.
        path: full path, for `load`.
        sha256: of the file's bytes, hexadecimal.
        width, height: pixels, after orientation.
        format: as the content says, whatever the suffix: 'JPEG', 'PNG', ...
        stages: names of the stages it can teach, in the cascade's order.
        notes: what was done to read it ('EXIF orientation 6 applied', ...).
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
    """An entry of the folder that is not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class CheckedPhotos:
    """What a folder of photos holds.

    Attributes:
        photos: the good ones, sorted by name.
        refused: pictures by name that cannot be used; the user meant them.
        skipped: stray files that nobody meant as photos.
        warnings: sentences for the user; none stops the run.
    """

    folder: str
    photos: tuple[Photo, ...]
    refused: tuple[Rejected, ...]
    skipped: tuple[Rejected, ...]
    warnings: tuple[str, ...]

    def teaching(self, stage: str) -> tuple[Photo, ...]:
        """The photos large enough for a stage."""
        return tuple(photo for photo in self.photos if stage in photo.stages)


class NoGoodPhotos(InputError):
    """Every picture of the folder was refused; `intake` lists them for the report."""

    def __init__(self, intake: CheckedPhotos):
        lines = [
            f"config.subject.photos={intake.folder} holds no photo that can be used; "
            "3 to 5 sharp JPEG or PNG photos of the subject are enough"
        ]
        lines += [f"  refused {r.name}: {r.reason}" for r in intake.refused]
        lines += [f"  skipped {s.name}: {s.reason}" for s in intake.skipped]
        super().__init__("\n".join(lines))
        self.intake = intake


def inspect(
    folder: str,
    stage_resolutions: Mapping[str, int],
    crop: Crop,
    background: tuple[int, int, int],
) -> CheckedPhotos:
    """Reads every entry of a folder and says what it is good for.

    A photo can teach a stage if the side of its square (the shorter side under
    'centre', the longer one under 'pad') is at least the stage's resolution: an
    enlarged photo would teach blur. The stage named 'base' learns from every photo.

    Args:
        folder: local or gs:// folder; sub-folders are not entered.
        stage_resolutions: pixels by stage name, {'base': 64, 'sr256': 256, ...}.
        crop: how photos will be made square.
        background: RGB 0..255 that lies under transparency.

    Raises:
        InputError: the folder is missing, a file, empty, or cannot be listed.
        NoGoodPhotos: none of its pictures can be used.
    """
    if len(background) != 3 or any(not 0 <= value <= 255 for value in background):
        raise InputError(
            f"config.subject.background is {background}; use three values from 0 to 255"
        )
    photos, refused, skipped, remarks, hashes = [], [], [], [], []
    for path in _entries(folder):
        reason = _stray(path)
        if reason:
            skipped.append(Rejected(path.name, reason))
            continue
        try:
            data = path.read_bytes()
            pixels, format_, notes = decode(data, background)
        except (InputError, OSError) as error:
            refused.append(Rejected(path.name, str(error)))
            continue
        height, width, _ = pixels.shape
        side = min(width, height) if crop.mode == "centre" else max(width, height)
        photo = Photo(
            name=path.name,
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
        photos.append(photo)
        hashes.append(_fingerprint(pixels))
        remarks += _remarks(photo, pixels, stage_resolutions, crop)
    remarks += _alike(photos, hashes)
    remarks += _counts(photos, stage_resolutions)
    intake = CheckedPhotos(
        folder=str(folder),
        photos=tuple(photos),
        refused=tuple(refused),
        skipped=tuple(skipped),
        warnings=tuple(remarks),
    )
    if not photos:
        raise NoGoodPhotos(intake)
    return intake


def load(path: epath.PathLike, background: tuple[int, int, int]) -> np.ndarray:
    """Reads one photo as a person would see it.

    EXIF orientation is applied, a colour profile is turned into sRGB, transparency is
    laid over `background`, 16-bit values are scaled to 8, other colour modes become
    RGB, and of an animated file the first frame is taken. HEIC needs pillow-heif.

    Returns:
        uint8 [H,W,3], sRGB.

    Raises:
        InputError: naming the file and why it cannot be used.
    """
    try:
        return decode(epath.Path(path).read_bytes(), background)[0]
    except (InputError, OSError) as error:
        raise InputError(f"photo {path}: {error}") from error


def square(
    image: np.ndarray, size: int, crop: Crop, background: tuple[int, int, int]
) -> np.ndarray:
    """Makes a photo square without squashing it.

    Scaling is Lanczos, widened on the way down so that nothing aliases. A photo that is
    too small is enlarged: callers leave it out by `Photo.stages` for every stage but
    the base.

    Args:
        image: uint8 [H,W,3].
        size: pixels of the result's side.
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
    # Scaled first and laid on the background after, so that no edge rings into it.
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


def _entries(folder: str) -> list[epath.Path]:
    if not folder:
        raise InputError(
            "config.subject.photos is not set; name the folder that holds the photos: "
            "--config.subject.photos=DIR"
        )
    named = f"config.subject.photos={folder}"
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
    """Why an entry was never meant as a photo, or None where it was."""
    if path.is_dir():
        return "a sub-folder; photos are read from the folder itself only"
    if path.name.startswith("."):
        return "a hidden file"
    if path.name.lower() in _SYSTEM_FILES:
        return "a file that Windows leaves in folders"
    if path.suffix.lower() not in SUFFIXES:
        return f"its suffix {path.suffix!r} is not one of a photo; save it as JPEG"
    return None


def _remarks(
    photo: Photo, pixels: np.ndarray, stage_resolutions: Mapping[str, int], crop: Crop
) -> list[str]:
    remarks = []
    for stage, resolution in stage_resolutions.items():
        if stage not in photo.stages:
            side = (min if crop.mode == "centre" else max)(photo.width, photo.height)
            remarks.append(
                f"{photo.name} ({photo.width} x {photo.height}): a {side} px photo "
                f"cannot teach the {resolution} stage; {stage} trains without it"
            )
    cut = 1 - min(photo.width, photo.height) / max(photo.width, photo.height)
    if crop.mode == "centre" and cut > _MOST_CUT:
        remarks.append(
            f"{photo.name} ({photo.width} x {photo.height}): the crop drops {cut:.0%} "
            "of it; if the subject is cut, use crop 'pad' or a shift"
        )
    image = Image.fromarray(pixels).convert("L")
    # Aspect does not matter to these two measures, so the photo may be squashed here.
    size = (min(256, image.width), min(256, image.height))
    grey = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)
    edges = 4 * grey[1:-1, 1:-1]
    edges -= grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    if grey.std() < _LEAST_CONTRAST:
        remarks.append(f"{photo.name}: almost no contrast; is the subject to be seen?")
    elif edges.std() < _LEAST_SHARPNESS:
        remarks.append(f"{photo.name}: looks blurred; the cascade will learn the blur")
    return remarks


def _fingerprint(pixels: np.ndarray) -> np.ndarray:
    """Difference hash, bool [128]: is each of 9 x 9 cells brighter than the last?"""
    image = Image.fromarray(pixels).convert("L")
    cells = np.asarray(image.resize((9, 9), Image.Resampling.LANCZOS))
    across = cells[:8, 1:] > cells[:8, :-1]
    down = cells[1:, :8] > cells[:-1, :8]
    return np.concatenate([across.ravel(), down.ravel()])


def _alike(photos: list[Photo], hashes: list[np.ndarray]) -> list[str]:
    remarks = []
    for i, j in itertools.combinations(range(len(photos)), 2):
        first, second = photos[i], photos[j]
        if first.sha256 == second.sha256:
            remarks.append(
                f"{first.name} and {second.name} are the same file; "
                "remove one, or that photo counts twice"
            )
        elif np.count_nonzero(hashes[i] != hashes[j]) <= _ALIKE_BITS:
            remarks.append(
                f"{first.name} and {second.name} look almost the same; "
                "different views of the subject teach more"
            )
    return remarks


def _counts(photos: list[Photo], stage_resolutions: Mapping[str, int]) -> list[str]:
    remarks = []
    if 0 < len(photos) < _FEW:
        remarks.append(
            f"only {len(photos)} usable photo{'s' * (len(photos) > 1)}; "
            "the method is made for 3 to 5, and with fewer it repeats the photo"
        )
    if len(photos) > _MANY:
        remarks.append(
            f"{len(photos)} photos; the method is made for 3 to 5, "
            "and many more need more steps"
        )
    for stage, resolution in stage_resolutions.items():
        if photos and not any(stage in photo.stages for photo in photos):
            remarks.append(
                f"no photo is large enough for the {resolution} stage: "
                f"{stage} keeps its weights as they are"
            )
    return remarks
