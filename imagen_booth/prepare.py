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
from imagen_booth.embed import Embedding, Learned, cleaning_of, embed, tokenizer
from imagen_booth.errors import InputError
from imagen_booth.job import TOYBOX, Job, Subject
from imagen_booth.text import identifier, people, prompts
from imagen_booth.text.tokenizer import Tokenizer
from imagen_booth.weights.load import find
from imagen_booth.workdir import Workdir, now

TOY = "toybox:"
TOY_PHOTOS = 5
TOY_SIZE = 1024  # pixels of a rendered photo
SHOWN_SIZE = 512  # pixels of a crop kept for the report


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a run and their embeddings.

    Attributes:
        identifier: text that stands for [V].
        ids: its tokens.
        alone: it stands for the class noun too.
        instance, klass: instance prompt and class prompt.
        pictures: prompts of the final pictures, filled in.
        plain: the same without the identifier, for stages that do not know it.
        found: {prompt: embedding}; "" is the null text.
        encoder: origin of the text encoder.
        reading: identifies what prompts mean to the networks, for recipes: the
            encoder's fingerprint, the cleaning unless it is the cascade's own, and
            what was learnt of the identifier.
        plain_reading: the same without the last.
        warnings: what is wrong with the user's identifier.
    """

    identifier: str
    ids: tuple[int, ...]
    alone: bool
    instance: str
    klass: str
    pictures: tuple[str, ...]
    plain: tuple[str, ...]
    found: dict[str, Embedding]
    encoder: dict[str, Any]
    reading: str
    plain_reading: str
    warnings: tuple[str, ...]


def resolutions(job: Job, cascade: Cascade) -> dict[str, int]:
    """Resolution in pixels of every stage that looks at photos.

    Those are the stages that the job tunes, and the base stage where words are learnt
    through it.
    """
    return {
        stage.name: stage.resolution
        for stage in cascade.stages
        if job.tuning(stage.name).steps > 0
        or (stage.low_resolution is None and job.text.steps > 0)
    }


def check_photos(job: Job, cascade: Cascade, work: Workdir) -> photos.Intake:
    """Looks at every photo, and keeps the crops for the report.

    Raises:
        InputError: no class noun, no folder, or no photo that can be used; in the
            last case a report that names each is all that is written.
    """
    subject = job.subject
    check_noun(subject)
    folder = photo_folder(subject.photos, work.path)
    try:
        intake = inspect(job, cascade, folder)
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


def sampler_warnings(job: Job, cascade: Cascade) -> list[str]:
    """Where a job draws otherwise than the scheduler files of its weights say.

    The job's settings count: the warnings name both.

    Raises:
        InputError: weights that cannot be read.
    """
    said = []
    for stage in cascade.stages:
        source = getattr(job.weights, stage.name)
        found = find(cascade, stage.name, source)
        told = {} if found is None else found.sampler
        samplers = {f"pictures.{stage.name}": getattr(job.pictures, stage.name)}
        if stage.low_resolution is None:
            samplers["class_images.sampler"] = job.class_images.sampler
        said += [
            f"config.{where}.{field} is {getattr(sampler, field)!r}, but the scheduler "
            f"of config.weights.{stage.name}={source} has {value!r}; the setting counts"
            for where, sampler in samplers.items()
            for field, value in told.items()
            if getattr(sampler, field) != value
        ]
    return said


def check_noun(subject: Subject) -> None:
    """Looks at what the subject is said to be.

    Raises:
        InputError: nothing is said, or a person of whose consent nothing is said.
    """
    noun = subject.class_noun
    if not noun.strip():
        raise InputError(
            "config.subject.class_noun is empty; say what the subject is, "
            "e.g. --config.subject.class_noun=dog"
        )
    if people.is_person(noun) and not subject.consent:
        raise InputError(
            f"config.subject.class_noun={noun!r} is a person: photos of one are used "
            "only with that person's consent, of a child's with a parent's; where you "
            "have it give --config.subject.consent=true"
        )


def inspect(job: Job, cascade: Cascade, folder: str) -> photos.Intake:
    """Looks at the photos of a folder for the stages of a job; writes nothing.

    Raises:
        InputError: as ``photos.inspect``.
    """
    return photos.inspect(
        folder, resolutions(job, cascade), crop_of(job.subject), job.subject.background
    )


def photo_folder(setting: str, work: epath.Path) -> str:
    """The folder of the photos; a toy subject's are rendered into it first.

    Args:
        setting: a folder, or ``toybox:CLASS/SEED``.
        work: rendered photos go to ``source/`` in here.
    """
    if not setting.startswith(TOY):
        return setting
    folder = work / "source"
    last = folder / f"{TOY_PHOTOS - 1:02d}.png"
    if hosts.is_first() and not last.exists():
        images = toys.photos(toy_subject(setting), TOY_PHOTOS, size=TOY_SIZE)
        for index, image in enumerate(images):
            pictures.save_png(folder / f"{index:02d}.png", image)
    hosts.wait("rendered photos")
    return str(folder)


def toy_subject(setting: str) -> toys.Subject:
    """The subject that ``toybox:CLASS/SEED`` names.

    Raises:
        InputError: it names none.
    """
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
    job: Job,
    cascade: Cascade,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    learned: Learned | None = None,
) -> Words:
    """Chooses or checks the identifier, and embeds every prompt of the run.

    Args:
        learned: what the identifier was taught to mean, where it was.

    Raises:
        InputError: the identifier cannot be tokenised, or weights are missing.
    """
    noun = job.subject.class_noun
    pieces = tokenizer(cascade, job.weights.vocabulary)
    name, ids, warnings = choose_identifier(job, cascade, pieces)
    alone = job.alone
    instance = prompts.instance_prompt(name, noun, alone=alone)
    klass = prompts.class_prompt(noun)
    filled = tuple(
        prompts.fill(each, name, noun, alone=alone) for each in job.pictures.prompts
    )
    plain = tuple(prompts.fill(each, "", noun) for each in job.pictures.prompts)
    found, origin = embed(
        cascade,
        [instance, klass, *filled, *plain],
        weights=job.weights.text,
        vocabulary=job.weights.vocabulary,
        cleaning=job.cleaning,
        cache=cache,
        mesh=mesh,
        dtype=dtype,
        learned=learned,
        rules=job.mesh.rules,
    )
    reading = origin["sha256"]
    if origin["cleaning"] != cleaning_of(cascade, ""):
        reading += f" {origin['cleaning']}"
    return Words(
        *(name, ids, alone, instance, klass, filled, plain, found, origin),
        reading if learned is None else f"{reading} {learned.digest()}",
        reading,
        warnings,
    )


def description_of(subject: Subject) -> str:
    """The words that stand for the subject where nothing is tuned.

    Raises:
        InputError: the toybox is to describe a subject that is none of its own.
    """
    if subject.description != TOYBOX:
        return subject.description
    if not subject.photos.startswith(TOY):
        raise InputError(
            f"config.subject.description={TOYBOX!r}, but the subject of "
            f"config.subject.photos={subject.photos!r} is not of the toybox; say what "
            "it looks like, such as 'small brown dog with a white chest'"
        )
    return toys.describe(toy_subject(subject.photos))


def choose_identifier(
    job: Job, cascade: Cascade, pieces: Tokenizer
) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """The user's identifier, or a drawn one: its text, its tokens, and warnings.

    Raises:
        InputError: none can be drawn, or the job's cleaning is not known.
    """
    text, noun = cascade.text, job.subject.class_noun
    cleaning = cleaning_of(cascade, job.cleaning)
    clean = prompts.cleaner(cleaning)
    if job.subject.description:
        name = description_of(job.subject)
        return name, tuple(pieces.pieces(name if clean is None else clean(name))), ()
    if job.subject.identifier:
        name = job.subject.identifier
        warnings = identifier.check(name, pieces, text.rare, noun, clean)
        read = name if clean is None else clean(name)
        return name, tuple(pieces.pieces(read)), tuple(warnings)
    # diffusers' pipelines clean captions unless told not to, so what is drawn for
    # weights that go there has to survive that as well.
    strongest = None if cleaning == "none" else prompts.clean_caption
    drawn = identifier.draw(
        pieces, text.rare, noun, job.subject.tokens, job.seed, strongest
    )
    return drawn.text, tuple(drawn.ids), ()
