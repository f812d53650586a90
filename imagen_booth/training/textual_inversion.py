"""Textual Inversion: the photos teach what a word means, and nothing else changes.

The trained parameters are the rows of the text encoder's input embedding that belong
to the identifier's tokens, as an array of their own that is laid over the table before
each pass. Optimizer state, weight decay and checkpoints exist for this array alone, so
no other row can change. The gradient comes through the frozen encoder and the frozen
base stage, by the loop and the step that all tuning uses.

Source: Gal et al., arXiv 2208.01618, on a T5 encoder and a pixel cascade; there is no
published recipe for these.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imagen_booth import train_state
from imagen_booth.cascade import Cascade
from imagen_booth.config.schema import Job, TextualInversion
from imagen_booth.data import pipeline
from imagen_booth.data.examples import Embedding, ImagePair
from imagen_booth.distributed import processes, sharding
from imagen_booth.errors import InputError
from imagen_booth.sampling.text_embeddings import (
    LearnedEmbedding,
    cleaning_name,
    encode,
    load_tokenizer,
    padded,
    replace_rows,
)
from imagen_booth.text import caption_cleaning, prompts
from imagen_booth.text.tokenizer import UNKNOWN
from imagen_booth.training import finetune, optimizers, previews, train_step
from imagen_booth.training.finetune import FinetuneContext
from imagen_booth.training.previews import Preview
from imagen_booth.training.subject_prompts import SubjectPrompts
from imagen_booth.weights.load import Part

ROWS = "rows/vectors"  # the path of what is trained


@dataclasses.dataclass(frozen=True)
class InversionTokens:
    """The tokens of an inversion.

    Attributes:
        ids: K tokens whose rows are learnt.
        start: tokens whose rows, in the mean, they start from.
        templates: int32 [T, L], the prompts of the photos.
        shown: int32 [P, L], the prompts of the preview, by prompt.
    """

    ids: tuple[int, ...]
    start: tuple[int, ...]
    templates: np.ndarray
    shown: Mapping[str, np.ndarray]


def read_tokens(job: Job, cascade: Cascade, words: SubjectPrompts) -> InversionTokens:
    """The tokens that a job's words come to.

    Raises:
        InputError: the identifier or the initializer holds what the vocabulary lacks,
            a token of the identifier is one of the templates' own, or it does not
            come through in a template.
    """
    pieces = load_tokenizer(cascade, job.weights.vocabulary)
    clean = caption_cleaning.cleaner(cleaning_name(cascade, job.cleaning)) or str
    name, noun = words.identifier, job.subject.class_noun
    initializer = job.text.initializer or noun
    start = tuple(pieces.pieces(clean(initializer)))
    if not start or UNKNOWN in start:
        raise InputError(
            f"config.text.initializer={initializer!r} is not in the vocabulary; give "
            "a plain word for the kind of thing the subject is"
        )
    ids = tuple(dict.fromkeys(words.ids))
    if not ids or UNKNOWN in ids:
        raise InputError(
            f"config.subject.identifier={name!r} holds what the vocabulary lacks, so "
            "there is no row of its own to learn; leave it empty to draw rare tokens"
        )
    filled = []
    for template in job.text.templates:
        said = clean(prompts.fill(template, name, noun, alone=True))
        plain = clean(prompts.fill(template, "", noun))
        shared = set(ids) & set(pieces.pieces(plain))
        if shared:
            piece = pieces.piece(shared.pop())
            raise InputError(
                f"config.subject.identifier={name!r} shares the token {piece!r} with "
                f"{plain!r}, which would change its meaning; leave the identifier "
                "empty to draw rare tokens"
            )
        if not _holds(pieces.pieces(said), words.ids):
            raise InputError(
                f"config.subject.identifier={name!r} loses its tokens in {said!r}; "
                "leave it empty to draw some that do not, or change "
                "config.text.templates"
            )
        filled.append(said)
    shown = {
        prompt: pieces.encode([clean(prompt)])[0]
        for prompt in (words.instance, words.klass, *words.pictures)
    }
    return InversionTokens(ids, start, pieces.encode(filled), shown)


def _holds(whole: Sequence[int], part: Sequence[int]) -> bool:
    """Whether one sequence stands in another."""
    size = len(part)
    return any(
        list(whole[at : at + size]) == list(part) for at in range(len(whole) - size + 1)
    )


def learn_embedding(
    lesson: InversionTokens,
    cascade: Cascade,
    parts: Mapping[str, Part],
    tuning: TextualInversion,
    subject: Sequence[ImagePair],
    preview: Preview,
    means: FinetuneContext,
) -> tuple[LearnedEmbedding, dict[str, Any]]:
    """Learns the rows, from the newest checkpoint if there is one.

    Args:
        parts: ``text`` and ``base`` with their weights; these are consumed.
        subject: the photos; each comes equally often.
        preview: its embeddings are made anew from the rows at each step shown.

    Returns:
        What was learnt, and entries for the manifest.
    """
    stage, text, unet = cascade.stage("base"), parts["text"], parts["base"]
    optimizer = optimizers.build(tuning.optim, tuning.steps)
    loss_config, mesh = finetune.make_loss_config(tuning), means.mesh

    def taught(params: train_state.Params) -> train_state.Params:
        return replace_rows(params["text"], lesson.ids, params["rows"]["vectors"])

    def loss_fn(params, batch, key):
        whole = {"unet": params["unet"], "text": taught(params)}
        return train_step.batch_loss(
            stage, unet.apply, text.apply, loss_config, whole, batch, key
        )

    table = text.params["token_embedder"]["embedding"]
    middle = sharding.fetch(table[np.asarray(lesson.start)]).mean(0)
    first = np.tile(middle.astype(np.float32), (len(lesson.ids), 1))
    frozen = {"text": text.params, "unet": unet.params}
    start = finetune.initial_state(
        frozen | {"rows": {"vectors": sharding.put_copies(first, mesh)}},
        optimizer,
        tuning.optim.ema > 0,
        mesh,
        (ROWS,),
        means.rules,
    )
    data = pipeline.batches(
        [
            pipeline.Group(
                [{"image": pair.image} for pair in subject],
                tuning.subject_rows,
                1.0,
                train_step.SUBJECT,
            )
        ],
        seed=means.seed,
        host=processes.index(),
        hosts=processes.count(),
        multiple=mesh.size * tuning.accumulate,
        prepare=_with_template(lesson.templates),
    )
    encode_with = jax.jit(
        lambda params, ids, mask: text.apply(taught(params), ids, mask)
    )

    def draw(params: train_state.Params) -> finetune.Sheet:
        needed = {name: params[name] for name in ("text", "rows")}
        tokens = np.stack([lesson.shown[prompt] for prompt in preview.prompts])
        values = encode(cascade, encode_with, needed, tokens, mesh)
        embeddings: list[Embedding] = [
            padded(value, cascade.text.length) for value in values
        ]
        now = dataclasses.replace(preview, embeddings=embeddings)
        return previews.sample_preview(stage, unet, params["unet"], 0.0, now, mesh)

    rows, told = finetune.run_finetuning(
        "text",
        tuning,
        start,
        loss_fn,
        optimizer,
        iter(data.to_iter_dataset()),
        draw,
        preview,
        lambda params: {"rows": params["rows"]},
        means,
        frozen=lambda: frozen,
    )
    vectors = sharding.fetch(rows["rows"]["vectors"])
    return LearnedEmbedding(lesson.ids, np.asarray(vectors, np.float32)), told


def _with_template(templates: np.ndarray) -> Any:
    """Gives a photo the tokens of a template, drawn anew at each visit."""

    def give(example: pipeline.Example, rng: np.random.Generator) -> pipeline.Example:
        return example | {"tokens": templates[rng.integers(len(templates))]}

    return give
