"""The identifier of a run, and the embeddings of all its prompts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from imagen_booth.cascade import Cascade
from imagen_booth.config.schema import SECOND, SUBJECT, TOYBOX, Job, Subject
from imagen_booth.data.examples import Embedding
from imagen_booth.errors import InputError
from imagen_booth.sampling.text_embeddings import (
    LearnedEmbedding,
    cleaning_name,
    embed_prompts,
    load_tokenizer,
)
from imagen_booth.text import caption_cleaning, identifier, prompts
from imagen_booth.text.prompts import Naming
from imagen_booth.text.tokenizer import Tokenizer
from imagen_booth.toybox import subjects as toys
from imagen_booth.training.subject_photos import TOYBOX_PREFIX, toybox_subject


@dataclasses.dataclass(frozen=True)
class SubjectWords:
    """The identifier of a subject, and the prompts of its images.

    Attributes:
        identifier: The text that stands for [V].
        ids: Its tokens.
        replaces_noun: Whether the identifier stands for the class noun too.
        instance_prompt: The prompt of the photos.
        class_prompt: The prompt of the class images.
    """

    identifier: str
    ids: tuple[int, ...]
    replaces_noun: bool
    instance_prompt: str
    class_prompt: str


@dataclasses.dataclass(frozen=True)
class PromptTexts(SubjectWords):
    """The words of a run's subject, and all prompts of the run.

    Attributes:
        pictures: The prompts of the final pictures, filled in.
        plain: The same without the identifier, for stages that do not know it.
        warnings: What is wrong with the user's identifier.
        second: The words of the second subject; None for a run of one.
    """

    pictures: tuple[str, ...]
    plain: tuple[str, ...]
    warnings: tuple[str, ...]
    second: SubjectWords | None = dataclasses.field(default=None, kw_only=True)

    @property
    def of_subjects(self) -> dict[str, SubjectWords]:
        """The words of each subject, by name of its setting."""
        return {SUBJECT: self} | ({SECOND: self.second} if self.second else {})

    @property
    def every(self) -> tuple[str, ...]:
        """All prompts."""
        of_images = [
            prompt
            for words in self.of_subjects.values()
            for prompt in (words.instance_prompt, words.class_prompt)
        ]
        return *of_images, *self.pictures, *self.plain


@dataclasses.dataclass(frozen=True)
class SubjectPrompts(PromptTexts):
    """The identifier and the prompts of a run, with their embeddings.

    Attributes:
        embeddings: Embeddings by prompt; "" is the null text.
        encoder: Origin of the text encoder.
        reading: Identifies what prompts mean to the networks, for recipes: the
            encoder's fingerprint, the cleaning unless it is the cascade's own, and
            the digest of a learned identifier.
        plain_reading: The same without the learned identifier.
    """

    embeddings: dict[str, Embedding]
    encoder: dict[str, Any]
    reading: str
    plain_reading: str


def choose_prompts(job: Job, cascade: Cascade) -> PromptTexts:
    """Chooses or checks the identifier, and fills in the prompts of the run.

    Raises:
        InputError: The identifier cannot be tokenised, or a prompt has an unknown
            placeholder; or the identifiers of two subjects share a token.
    """
    pieces = load_tokenizer(cascade, job.weights.vocabulary)
    words, warnings = choose_words(job, cascade, pieces)
    first, second, noun = words[SUBJECT], words.get(SECOND), job.subject.class_noun
    naming = second and Naming(second.identifier, job.second.class_noun)
    no_name = naming and naming._replace(identifier="")
    name, alone = first.identifier, first.replaces_noun
    templates = job.pictures.prompts
    return PromptTexts(
        **vars(first),
        pictures=tuple(
            prompts.fill(each, name, noun, alone=alone, second=naming)
            for each in templates
        ),
        plain=tuple(prompts.fill(each, "", noun, second=no_name) for each in templates),
        warnings=warnings,
        second=second,
    )


def choose_words(
    job: Job, cascade: Cascade, pieces: Tokenizer
) -> tuple[dict[str, SubjectWords], tuple[str, ...]]:
    """Chooses or checks the identifier of each subject.

    Returns:
        The words by name of the subject's setting, and warnings.

    Raises:
        InputError: An identifier cannot be tokenised, or those of two subjects share a
            token, so that prompts would mix the subjects.
    """
    found: dict[str, SubjectWords] = {}
    warnings, alone = (), job.identifier_replaces_noun
    for setting, subject in job.subjects.items():
        taken = [id for words in found.values() for id in words.ids]
        name, ids, more = choose_identifier(job, cascade, pieces, setting, taken)
        shared = [pieces.piece(id) for id in ids if id in taken]
        if shared:
            raise InputError(
                f"config.{setting}.identifier={name!r} shares the token {shared[0]!r} "
                f"with the identifier {found[SUBJECT].identifier!r} of the other "
                "subject; give one without it, or leave it empty to draw one"
            )
        warnings += more
        noun = subject.class_noun
        found[setting] = SubjectWords(
            identifier=name,
            ids=ids,
            replaces_noun=alone,
            instance_prompt=prompts.instance_prompt(name, noun, alone=alone),
            class_prompt=prompts.class_prompt(noun),
        )
    if SECOND in found and "[v2]" not in " ".join(job.pictures.prompts).lower():
        warnings += (
            "no prompt of config.pictures.prompts has [V2], so the final pictures will "
            "not show the second subject",
        )
    return found, warnings


def plain_reading(cascade: Cascade, encoder: str, cleaning: str) -> str:
    """Identifies what prompts mean to the networks without a learned identifier.

    Args:
        encoder: Fingerprint of the text encoder.
        cleaning: Name of the cleaning.
    """
    own = cleaning == cleaning_name(cascade, "")
    return encoder if own else f"{encoder} {cleaning}"


def prepare_prompts(
    job: Job,
    cascade: Cascade,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    learned: LearnedEmbedding | None = None,
) -> SubjectPrompts:
    """Chooses or checks the identifier, and embeds every prompt of the run.

    Args:
        learned: The learned embedding of the identifier, after Textual Inversion.

    Raises:
        InputError: The identifier cannot be tokenised, or weights are missing.
    """
    texts = choose_prompts(job, cascade)
    embeddings, encoder = embed_prompts(
        job, cascade, texts.every, cache=cache, mesh=mesh, dtype=dtype, learned=learned
    )
    reading = plain_reading(cascade, encoder["fingerprint"], encoder["cleaning"])
    return SubjectPrompts(
        **vars(texts),
        embeddings=embeddings,
        encoder=encoder,
        reading=reading if learned is None else f"{reading} {learned.digest()}",
        plain_reading=reading,
    )


def subject_description(subject: Subject) -> str:
    """The words that describe the subject in runs without fine-tuning.

    Raises:
        InputError: The description is ``toybox``, but the subject is not of the toybox.
    """
    if subject.description != TOYBOX:
        return subject.description
    if not subject.photos.startswith(TOYBOX_PREFIX):
        raise InputError(
            f"config.subject.description={TOYBOX!r}, but the subject of "
            f"config.subject.photos={subject.photos!r} is not of the toybox; describe "
            "what it looks like, such as 'small brown dog with a white chest'"
        )
    return toys.describe(toybox_subject(subject.photos))


def choose_identifier(
    job: Job,
    cascade: Cascade,
    pieces: Tokenizer,
    name_of: str = SUBJECT,
    taken: Sequence[int] = (),
) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """The user's identifier, or a drawn one: its text, its tokens, and warnings.

    Args:
        name_of: Setting of the subject.
        taken: Tokens of another subject's identifier, none of which is drawn.

    Raises:
        InputError: None can be drawn, or the job's cleaning is not known.
    """
    subject = job.subjects[name_of]
    text, noun = cascade.text, subject.class_noun
    cleaning = cleaning_name(cascade, job.cleaning)
    clean = caption_cleaning.cleaner(cleaning)
    if subject.description:
        name = subject_description(subject)
        return name, tuple(pieces.token_ids(name if clean is None else clean(name))), ()
    if subject.identifier:
        name = subject.identifier
        warnings = identifier.check(name, pieces, text.rare, noun, clean)
        read = name if clean is None else clean(name)
        return name, tuple(pieces.token_ids(read)), tuple(warnings)
    # diffusers' pipelines clean captions unless told not to, so what is drawn for
    # weights that go there has to survive that as well.
    strongest = None if cleaning == "none" else caption_cleaning.clean_caption
    drawn = identifier.draw(
        pieces, text.rare, noun, subject.tokens, job.seed, strongest, taken
    )
    return drawn.text, tuple(drawn.ids), ()
