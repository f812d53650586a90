"""What is settled before any device works: the photos and the words."""

import dataclasses
import tempfile
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth import hosts, report
from imagen_booth.cascade import Cascade
from imagen_booth.data import photos, pictures
from imagen_booth.data.toybox import subjects as toys
from imagen_booth.embed import Embedding, embed, tokenizer
from imagen_booth.errors import InputError
from imagen_booth.job import Job, Subject
from imagen_booth.text import identifier, prompts
from imagen_booth.workdir import Workdir, now

TOY = "toybox:"
TOY_SIZE = 1024  # pixels of a rendered photo
SHOWN_SIZE = 512  # pixels of a crop kept for the report


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a run and their embeddings.

    Attributes:
        identifier: text that stands for [V].
        ids: its tokens.
        instance, klass: instance prompt and class prompt.
        pictures: prompts of the final pictures, filled in.
        plain: the same without the identifier, for stages that do not know it.
        found: {prompt: embedding}; "" is the null text.
        encoder: origin of the text encoder.
        warnings: what is wrong with the user's identifier.
    """

    identifier: str
    ids: tuple[int, ...]
    instance: str
    klass: str
    pictures: tuple[str, ...]
    plain: tuple[str, ...]
    found: dict[str, Embedding]
    encoder: dict[str, Any]
    warnings: tuple[str, ...]


def resolutions(job: Job, cascade: Cascade) -> dict[str, int]:
    """Resolution in pixels of every stage that the job tunes."""
    return {
        stage.name: stage.resolution
        for stage in cascade.stages
        if job.tuning(stage.name).steps > 0
    }


def check_photos(job: Job, cascade: Cascade, work: Workdir) -> photos.Intake:
    """Looks at every photo, and keeps the crops for the report.

    Raises:
        InputError: no class noun, no folder, or no photo that can be used; in the
            last case a report that names each is all that is written.
    """
    subject = job.subject
    if not subject.class_noun.strip():
        raise InputError(
            "config.subject.class_noun is empty; say what the subject is, "
            "e.g. --config.subject.class_noun=dog"
        )
    folder = photo_folder(subject.photos, work.path)
    try:
        intake = photos.inspect(
            folder, resolutions(job, cascade), crop_of(subject), subject.background
        )
    except photos.NoGoodPhotos as error:
        _report_refusal(work, error)
        raise
    if hosts.is_first():
        crops = [square(subject, photo, SHOWN_SIZE) for photo in intake.photos]
        names = [photo.name for photo in intake.photos]
        for name, image in zip(names, crops, strict=True):
            pictures.save_png(work.path / "photos" / f"{name}.png", image)
        sheet = pictures.contact_sheet(crops, names)
        pictures.save_png(work.path / "photos" / "contact_sheet.png", sheet)
    return intake


def photo_folder(setting: str, work: epath.Path) -> str:
    """The folder of the photos; a toy subject's are rendered into it first.

    Args:
        setting: a folder, or ``toybox:CLASS/SEED``.
        work: rendered photos go to ``source/`` in here.
    """
    if not setting.startswith(TOY):
        return setting
    folder = work / "source"
    if hosts.is_first():
        images = toys.photos(_toy(setting), size=TOY_SIZE)
        for index, image in enumerate(images):
            pictures.save_png(folder / f"{index:02d}.png", image)
    hosts.wait("rendered photos")
    return str(folder)


def _toy(setting: str) -> toys.Subject:
    noun, _, seed = setting.removeprefix(TOY).partition("/")
    if not seed.isdecimal():
        raise InputError(
            f"config.subject.photos={setting} should read {TOY}NOUN/NUMBER, "
            f"such as {TOY}dog/7"
        )
    return toys.Subject(noun, int(seed))


def crop_of(subject: Subject) -> photos.Crop:
    """How this subject's photos become square."""
    return photos.Crop(subject.crop, subject.shift)


def square(subject: Subject, photo: photos.Photo, size: int) -> np.ndarray:
    """One photo as training sees it, uint8 [size, size, 3]."""
    image = photos.load(photo.path, subject.background)
    return photos.square(image, size, crop_of(subject), subject.background)


def photo_entries(intake: photos.Intake) -> dict[str, Any]:
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


def _report_refusal(work: Workdir, error: photos.NoGoodPhotos) -> None:
    if not hosts.is_first():
        return
    with tempfile.TemporaryDirectory() as folder:
        Workdir(folder).record(
            status=f"InputError: {error}",
            created=now(),
            subject=photo_entries(error.intake),
        )
        page = report.write(epath.Path(folder)).read_bytes()
    pictures.write_atomic(work.path / "report.html", page)


def choose_words(
    job: Job, cascade: Cascade, cache: epath.Path, mesh: jax.sharding.Mesh, dtype: Any
) -> Words:
    """Chooses or checks the identifier, and embeds every prompt of the run.

    Raises:
        InputError: the identifier cannot be tokenised, or weights are missing.
    """
    text, noun = cascade.text, job.subject.class_noun
    pieces = tokenizer(cascade, job.weights.vocabulary)
    # IF's users meet its caption cleaner, so an identifier has to survive that too.
    clean = prompts.clean_caption if text.lower else None
    warnings: list[str] = []
    if job.subject.identifier:
        name = job.subject.identifier
        ids = tuple(pieces.pieces(name))
        warnings = identifier.check(name, pieces, text.rare, noun, clean)
    else:
        drawn = identifier.draw(
            pieces, text.rare, noun, job.subject.tokens, job.seed, clean
        )
        name, ids = drawn.text, tuple(drawn.ids)
    instance = prompts.instance_prompt(name, noun)
    klass = prompts.class_prompt(noun)
    filled = tuple(prompts.fill(each, name, noun) for each in job.pictures.prompts)
    plain = tuple(prompts.fill(each, "", noun) for each in job.pictures.prompts)
    found, origin = embed(
        cascade,
        [instance, klass, *filled, *plain],
        weights=job.weights.text,
        vocabulary=job.weights.vocabulary,
        cache=cache,
        mesh=mesh,
        dtype=dtype,
    )
    return Words(
        name, ids, instance, klass, filled, plain, found, origin, tuple(warnings)
    )
