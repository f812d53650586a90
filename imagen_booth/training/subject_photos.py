"""The photos of the subject: checked, and cropped as training sees them."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import numpy as np
from etils import epath

from imagen_booth import storage
from imagen_booth.cascade import Cascade
from imagen_booth.config.schema import (
    CLASS_IMAGES,
    FROZEN_MODEL,
    SUBJECT,
    Job,
    Subject,
)
from imagen_booth.data import image_files, photos
from imagen_booth.data.photos import CheckedPhotos
from imagen_booth.distributed import processes
from imagen_booth.errors import InputError
from imagen_booth.reports import run_report
from imagen_booth.rundir.layout import RunDirectory, cache_folder, utc_now
from imagen_booth.rundir.programs import sources
from imagen_booth.text import people, prompts
from imagen_booth.toybox import subjects as toys
from imagen_booth.toybox.subjects import ToyboxSubject

TOYBOX_PREFIX = "toybox:"
TOYBOX_PHOTOS = 5
TOYBOX_PHOTO_SIZE = 1024  # pixels of a rendered photo
CROP_SIZE = 512  # pixels of a crop kept for the report


def resolutions(job: Job, cascade: Cascade) -> dict[str, int]:
    """Resolution in pixels of every stage that trains on photos.

    These are the stages that the job fine-tunes, and the base stage for Textual
    Inversion.
    """
    return {
        stage.name: stage.resolution
        for stage in cascade.stages
        if job.finetuning(stage.name).steps > 0
        or (stage.low_resolution is None and job.text.steps > 0)
    }


def save_crops(subject: Subject, checked: CheckedPhotos, workdir: epath.Path) -> None:
    """Writes the photos as training sees them into a folder, for the report."""
    if processes.is_first():
        crops = [crop_photo(subject, photo, CROP_SIZE) for photo in checked.photos]
        names = [photo.name for photo in checked.photos]
        for name, image in zip(names, crops, strict=True):
            image_files.save_png(workdir / "photos" / f"{name}.png", image)
        sheet = image_files.contact_sheet(crops, names)
        image_files.save_png(workdir / "photos" / "contact_sheet.png", sheet)


def check_class_nouns(job: Job) -> None:
    """Checks the class noun of every subject, as ``check_class_noun``."""
    for name, subject in job.subjects.items():
        check_class_noun(subject, job.prior, name)


def check_class_noun(
    subject: Subject, prior: str = CLASS_IMAGES, name: str = SUBJECT
) -> None:
    """Checks the class noun.

    Args:
        prior: Targets of the prior term, which the class prompt is for.
        name: Setting of the subject, for errors.

    Raises:
        InputError: It is empty or a prompt, or names a person and ``consent`` is not
            set.
    """
    noun = subject.class_noun
    if not noun.strip():
        needed = ""
        if prior == FROZEN_MODEL:
            needed = f", but config.prior={prior!r} predicts images of a class prompt"
        raise InputError(
            f"config.{name}.class_noun is empty{needed}; name what the subject is, "
            f"e.g. --config.{name}.class_noun=dog"
        )
    alone = prompts.noun_of(noun)
    if alone != " ".join(noun.split()):
        hint = f"; give --config.{name}.class_noun={alone!r}" if alone else ""
        raise InputError(
            f"config.{name}.class_noun={noun!r} is a prompt; prompts are made from "
            f"the noun alone, such as 'a [V] dog' from 'dog'{hint}"
        )
    if people.is_person(noun) and not subject.consent:
        raise InputError(
            f"config.{name}.class_noun={noun!r} is a person: photos of a person "
            "need that person's consent, and photos of a child a parent's; if you have "
            f"it, give --config.{name}.consent=true"
        )


def notices(job: Job) -> list[str]:
    """What a user should know about photos on this cascade, before the work."""
    if "shipped" not in pathlib.PurePath(job.weights.base).parts:
        return []
    return [
        "the shipped weights have only seen rendered toys. Real photographs of "
        f"{subject.class_noun or 'a subject'!r} come out as blurred, toy-like "
        "shapes: expect to see how the method works, not a likeness. For real pictures "
        "use weights that have seen photographs: python -m imagen_booth.convert fetch "
        "if_m, then train --config=configs/subject.py:if_m with the flags that it "
        "prints"
        for subject in job.subjects.values()
        if not subject.photos.startswith(TOYBOX_PREFIX)
    ]


def inspect_photos(
    job: Job, cascade: Cascade, folder: str, name: str = SUBJECT
) -> CheckedPhotos:
    """Checks the photos of a folder for the stages of a job; writes nothing.

    Args:
        name: Setting of the subject.

    Raises:
        InputError: As ``photos.inspect``.
    """
    subject = job.subjects[name]
    return photos.inspect(
        folder,
        resolutions(job, cascade),
        crop_settings(subject),
        subject.background,
        f"config.{name}.photos",
    )


def folder_of(name: str, workdir: epath.Path) -> epath.Path:
    """Where a run has the files of a subject: in itself, or in ``second/``."""
    return workdir if name == SUBJECT else workdir / name


def photo_folder(job: Job, work: RunDirectory, name: str = SUBJECT) -> str:
    """The folder of a subject's photos; those of a toy are put into the run first.

    Args:
        work: The run directory; a toy's photos go to ``source/`` in the subject's
            folder.
        name: Setting of the subject.
    """
    setting = job.subjects[name].photos
    if not setting.startswith(TOYBOX_PREFIX):
        return setting
    folder = folder_of(name, work.path) / "source"
    files = [f"{index:02d}.png" for index in range(TOYBOX_PHOTOS)]
    toy = toybox_subject(setting, name)
    if processes.is_first() and not (
        (folder / files[-1]).exists() and work.photo_setting(name) in ("", setting)
    ):
        # Rendering takes seconds. Other sources of the package may render other photos.
        cache = cache_folder(job.cache, work.path) / "toybox_photos"
        rendered = cache / f"{toy.noun}_{toy.seed}_{sources()[:12]}"
        render_photos(toy, rendered, TOYBOX_PHOTOS)
        for file in files:
            storage.write_atomic(folder / file, (rendered / file).read_bytes())
    processes.wait(f"rendered photos {name}")
    return str(folder)


def render_photos(toy: ToyboxSubject, folder: epath.Path, count: int) -> None:
    """Renders a toy's photos into a folder, unless they are there: 00.png, 01.png, ...

    Args:
        count: Number of photos, 1 to 6.
    """
    files = [folder / f"{index:02d}.png" for index in range(count)]
    if files[-1].exists():
        return
    images = toys.photos(toy, count, size=TOYBOX_PHOTO_SIZE)
    for file, image in zip(files, images, strict=True):
        image_files.save_png(file, image)


def toybox_subject(setting: str, name: str = SUBJECT) -> ToyboxSubject:
    """The subject that ``toybox:CLASS/SEED`` names.

    Args:
        name: Setting of the subject, for errors.

    Raises:
        InputError: It names none.
    """
    noun, _, seed = setting.removeprefix(TOYBOX_PREFIX).partition("/")
    if not seed.isdecimal():
        raise InputError(
            f"config.{name}.photos={setting} should read {TOYBOX_PREFIX}NOUN/NUMBER, "
            f"such as {TOYBOX_PREFIX}dog/7"
        )
    return ToyboxSubject(noun, int(seed))


def crop_settings(subject: Subject) -> photos.Crop:
    """The settings that make this subject's photos square."""
    return photos.Crop(subject.crop, subject.shift)


def crop_photo(subject: Subject, photo: photos.Photo, size: int) -> np.ndarray:
    """One photo as training sees it, uint8 [size, size, 3]."""
    image = photos.load(photo.path, subject.background)
    return photos.square(image, size, crop_settings(subject), subject.background)


def photo_manifest(intake: CheckedPhotos) -> dict[str, Any]:
    """The photos, for the manifest."""
    return {
        "photos": [
            {
                "name": photo.name,
                "sha256": photo.sha256,
                "width": photo.width,
                "height": photo.height,
                "stages": list(photo.stages),
                "notes": list(photo.notes),
            }
            for photo in intake.photos
        ],
        "refused": [dataclasses.asdict(each) for each in intake.refused],
        "skipped": [dataclasses.asdict(each) for each in intake.skipped],
    }


def report_refusal(workdir: epath.Path, error: photos.NoGoodPhotos) -> None:
    """Writes a report that names each photo, where there is no run yet."""
    if not processes.is_first() or (workdir / "manifest.json").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        RunDirectory(folder).record(
            status=f"InputError: {error}",
            created=utc_now(),
            subject=photo_manifest(error.intake),
        )
        page = run_report.write(epath.Path(folder)).read_bytes()
    storage.write_atomic(workdir / "report.html", page)
