"""Textual Inversion: learns the embedding of the identifier and nothing else.

The trained parameters are the rows of the text encoder's input embedding that belong
to the identifier's tokens. They are an array of their own, put over the table before
each pass. Optimizer state, weight decay and checkpoints exist for this array alone, so
no other row can change. The gradient comes through the frozen encoder and the frozen
base stage, by the same loop and step as all fine-tuning.

Source: Gal et al., arXiv 2208.01618, applied to a T5 encoder and a pixel cascade; there
is no published recipe for these.
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
from imagen_booth.text import caption_cleaning
from imagen_booth.text.prompts import fill
from imagen_booth.text.tokenizer import UNKNOWN
from imagen_booth.training import finetune, previews, train_step
from imagen_booth.training.finetune import (
    FinetuneContext,
    FinetuneTask,
    PreviewSampling,
)
from imagen_booth.training.previews import Preview
from imagen_booth.training.subject_prompts import PromptTexts
from imagen_booth.weights.load import Part

ROWS = "rows/vectors"  # path of the trained array


@dataclasses.dataclass(frozen=True)
class InversionTokens:
    """The tokens that Textual Inversion needs.

    Attributes:
        ids: The K tokens whose rows are learned.
        start: The tokens whose mean row is the start of each learned row.
        templates: Tokens of the photos' prompts, int32 [T, L].
        shown: Tokens of the preview's prompts, int32 [L], by prompt.
    """

    ids: tuple[int, ...]
    start: tuple[int, ...]
    templates: np.ndarray
    shown: Mapping[str, np.ndarray]


def read_tokens(job: Job, cascade: Cascade, prompts: PromptTexts) -> InversionTokens:
    """Tokenizes the identifier, the initializer, the templates and the prompts.

    Raises:
        InputError: The identifier or the initializer is not in the vocabulary, the
            identifier shares a token with a template, or a template changes its
            tokens.
    """
    pieces = load_tokenizer(cascade, job.weights.vocabulary)
    clean = caption_cleaning.cleaner(cleaning_name(cascade, job.cleaning)) or str
    name, noun = prompts.identifier, job.subject.class_noun
    initializer = job.text.initializer or noun
    start = tuple(pieces.token_ids(clean(initializer)))
    if not start or UNKNOWN in start:
        raise InputError(
            f"config.text.initializer={initializer!r} is not in the vocabulary; give "
            "a plain word for the kind of thing the subject is"
        )
    ids = tuple(dict.fromkeys(prompts.ids))
    if not ids or UNKNOWN in ids:
        raise InputError(
            f"config.subject.identifier={name!r} is not in the vocabulary, so "
            "there is no row of its own to learn; leave it empty to draw rare tokens"
        )
    filled = []
    for template in job.text.templates:
        prompt = clean(fill(template, name, noun, alone=True))
        plain = clean(fill(template, "", noun))
        shared = set(ids) & set(pieces.token_ids(plain))
        if shared:
            piece = pieces.piece(shared.pop())
            raise InputError(
                f"config.subject.identifier={name!r} shares the token {piece!r} with "
                f"{plain!r}, which would change its meaning; leave the identifier "
                "empty to draw rare tokens"
            )
        if not _holds(pieces.token_ids(prompt), prompts.ids):
            raise InputError(
                f"config.subject.identifier={name!r} loses its tokens in {prompt!r}; "
                "leave it empty to draw some that do not, or change "
                "config.text.templates"
            )
        filled.append(prompt)
    shown = {
        prompt: pieces.encode([clean(prompt)])[0]
        for prompt in (prompts.instance_prompt, prompts.class_prompt, *prompts.pictures)
    }
    return InversionTokens(ids, start, pieces.encode(filled), shown)


def _holds(whole: Sequence[int], part: Sequence[int]) -> bool:
    """Whether ``whole`` contains ``part`` as a contiguous run."""
    size = len(part)
    return any(
        list(whole[at : at + size]) == list(part) for at in range(len(whole) - size + 1)
    )


def learn_embedding(
    tokens: InversionTokens,
    cascade: Cascade,
    parts: Mapping[str, Part],
    config: TextualInversion,
    subject: Sequence[ImagePair],
    preview: Preview,
    context: FinetuneContext,
) -> tuple[LearnedEmbedding, dict[str, Any]]:
    """Learns the rows, or resumes from the newest checkpoint.

    Args:
        parts: ``text`` and ``base`` with their weights; these are consumed.
        subject: The photos; each is used equally often.
        preview: The preview; its prompts are embedded again with the rows of each step.

    Returns:
        The learned embedding, and entries for the manifest, see
        ``finetune.Finetuned``.
    """
    stage, text, unet = cascade.stage("base"), parts["text"], parts["base"]
    loss_config = finetune.make_loss_config(config)

    def loss_fn(params, batch, key):
        whole = {"unet": params["unet"], "text": _with_rows(params, tokens)}
        return train_step.batch_loss(
            stage, unet.apply, text.apply, loss_config, whole, batch, key
        )

    frozen = {"text": text.params, "unet": unet.params}
    first = sharding.put_copies(_first_rows(text, tokens), context.mesh)
    finetuned = finetune.run_finetuning(
        FinetuneTask(
            name="text",
            params=frozen | {"rows": {"vectors": first}},
            trainable=(ROWS,),
            loss_fn=loss_fn,
            usable=lambda params: {"rows": params["rows"]},
            frozen=lambda: frozen,
        ),
        config,
        pipeline.iterate(_batches(tokens, config, subject, context)),
        _preview_sampling(tokens, cascade, parts, preview, context.mesh),
        context,
    )
    vectors = sharding.fetch(finetuned.params["rows"]["vectors"])
    learned = LearnedEmbedding(tokens.ids, np.asarray(vectors, np.float32))
    return learned, finetuned.result


def _with_rows(
    params: train_state.Params, tokens: InversionTokens
) -> train_state.Params:
    """The text encoder's parameters with the learned rows in their place."""
    return replace_rows(params["text"], tokens.ids, params["rows"]["vectors"])


def _first_rows(text: Part, tokens: InversionTokens) -> np.ndarray:
    """The start of the learned rows, float32 [K, D]."""
    table = text.params["token_embedder"]["embedding"]
    mean = sharding.fetch(table[np.asarray(tokens.start)]).mean(0)
    return np.tile(mean.astype(np.float32), (len(tokens.ids), 1))


def _batches(
    tokens: InversionTokens,
    config: TextualInversion,
    subject: Sequence[ImagePair],
    context: FinetuneContext,
) -> Any:
    """Batches of photos, each with a randomly drawn template, as grain's MapDataset."""
    rows = [{"image": pair.image} for pair in subject]
    return pipeline.batches(
        [pipeline.Group(rows, config.subject_rows, 1.0, train_step.SUBJECT)],
        seed=context.seed,
        host=processes.index(),
        hosts=processes.count(),
        multiple=context.mesh.size * config.accumulate,
        prepare=_with_template(tokens.templates),
    )


def _with_template(templates: np.ndarray) -> Any:
    """Gives a photo the tokens of a template, drawn anew at each visit."""

    def give(example: pipeline.Example, rng: np.random.Generator) -> pipeline.Example:
        return example | {"tokens": templates[rng.integers(len(templates))]}

    return give


def _preview_sampling(
    tokens: InversionTokens,
    cascade: Cascade,
    parts: Mapping[str, Part],
    preview: Preview,
    mesh: jax.sharding.Mesh,
) -> PreviewSampling:
    """The preview, with its prompts embedded again for each step."""
    stage, text, unet = cascade.stage("base"), parts["text"], parts["base"]
    encode_with = jax.jit(
        lambda params, ids, mask: text.apply(_with_rows(params, tokens), ids, mask)
    )

    def sample(params: train_state.Params) -> finetune.Sheet:
        encoder = {name: params[name] for name in ("text", "rows")}
        ids = np.stack([tokens.shown[prompt] for prompt in preview.prompts])
        values = encode(cascade, encode_with, encoder, ids, mesh)
        embeddings: list[Embedding] = [
            padded(value, cascade.text.length) for value in values
        ]
        embedded = dataclasses.replace(preview, embeddings=embeddings)
        return previews.sample_preview(stage, unet, params["unet"], 0.0, embedded, mesh)

    return PreviewSampling(preview, sample)
