"""Uploaded photos: checked as ``doctor`` checks them, then stored with a run."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from imagen_booth.cascade import by_name
from imagen_booth.config import presets
from imagen_booth.config.build import to_job
from imagen_booth.config.schema import Job
from imagen_booth.data import photos
from imagen_booth.errors import InputError
from imagen_booth.storage import write_atomic
from imagen_booth.training import subject_photos

MAX_PHOTOS = 50
MAX_FILE = "20mb"
CROP = 256  # pixels of a crop on the page
ALL = "all photos"


@dataclasses.dataclass(frozen=True)
class CropChoice:
    """How the page's user makes the photos square, see ``config.subject``."""

    mode: str
    right: float
    down: float


@dataclasses.dataclass(frozen=True)
class CheckedUpload:
    """What ``doctor`` finds in uploaded photos.

    Attributes:
        crops: The square that training sees of each usable photo, with a caption.
        rows: (photo, verdict, sentence) of every finding.
        usable: Paths of the usable photos, in the order of ``crops``.
    """

    crops: tuple[tuple[np.ndarray, str], ...]
    rows: tuple[tuple[str, str, str], ...]
    usable: tuple[str, ...]


def check(files: Sequence[str], cascade: str, choice: CropChoice) -> CheckedUpload:
    """Checks uploaded files, and crops them as training on a cascade would.

    The files are checked under numbers, so the names that they came with are text to
    show and never paths.

    Raises:
        InputError: There are too many.
    """
    if len(files) > MAX_PHOTOS:
        raise InputError(
            f"{len(files)} photos are uploaded; give {MAX_PHOTOS} or fewer, 3 to 5 "
            "are enough"
        )
    if not files:
        return CheckedUpload((), (), ())
    job = _job(cascade, choice)
    with tempfile.TemporaryDirectory() as folder:
        given = {}
        for number, file in enumerate(files, 1):
            name = _stored_name(number, file)
            given[name] = file
            (pathlib.Path(folder) / name).symlink_to(file)
        try:
            found = subject_photos.inspect_photos(job, by_name(cascade), folder)
        except photos.NoGoodPhotos as error:
            found = error.intake
        crops = [
            subject_photos.crop_photo(job.subject, photo, CROP)
            for photo in found.photos
        ]
    rows = [
        (
            _shown(given, photo.name),
            "ok",
            f"{photo.width} x {photo.height} {photo.format}, used for "
            + ", ".join((", ".join(photo.stages), *photo.notes)),
        )
        for photo in found.photos
    ]
    rows += [
        (_shown(given, each.name), "refused", each.reason)
        for each in (*found.refused, *found.skipped)
    ]
    rows += [(ALL, "warning", sentence) for sentence in found.warnings]
    captions = [_shown(given, photo.name) for photo in found.photos]
    return CheckedUpload(
        tuple(zip(crops, captions, strict=True)),
        tuple(rows),
        tuple(given[photo.name] for photo in found.photos),
    )


def store(files: Sequence[str], folder: pathlib.Path) -> None:
    """Stores photos under numbers as their names, in place of what is there.

    Raises:
        InputError: An upload is no longer there.
        StorageError: They cannot be written.
    """
    try:
        contents = [pathlib.Path(file).read_bytes() for file in files]
    except OSError as error:
        raise InputError(
            "the uploaded photos have expired; upload them again"
        ) from error
    for old in folder.glob("*"):
        old.unlink()
    for number, (file, data) in enumerate(zip(files, contents, strict=True), 1):
        write_atomic(folder / _stored_name(number, file), data)


def _job(cascade: str, choice: CropChoice) -> Job:
    config = presets.dreambooth(cascade)
    config.subject.crop = choice.mode
    config.subject.shift = (choice.right, choice.down)
    return to_job(config)


def _stored_name(number: int, file: str) -> str:
    suffix = pathlib.Path(file).suffix.lower()
    return f"{number:02d}{suffix[:8] if suffix.isascii() else ''}"


def _shown(given: dict[str, str], name: str) -> str:
    """A photo's number and the name that it was uploaded with."""
    return f"{name} ({pathlib.Path(given[name]).name})"
