"""Embeds prompts: once each, cached on disk; the encoder then leaves memory."""

import dataclasses
import hashlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array

from imagen_booth.cascade import Cascade
from imagen_booth.config.schema import Job
from imagen_booth.data.examples import Embedding
from imagen_booth.distributed import processes, sharding
from imagen_booth.errors import InputError
from imagen_booth.storage import from_cache, read_array, write_array
from imagen_booth.text import caption_cleaning
from imagen_booth.text.tokenizer import EMBEDDED, Tokenizer
from imagen_booth.train_state import Params
from imagen_booth.weights.load import Part, load, weight_origin

ROWS = 8  # prompts per batch of the encoder
MAX_LISTED = 5  # long prompts in an error


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedEmbedding:
    """The embedding of some tokens, learned by Textual Inversion.

    Attributes:
        ids: The K tokens.
        rows: Their rows of the encoder's input embedding, f32 [K, D].
    """

    ids: tuple[int, ...]
    rows: np.ndarray

    def digest(self) -> str:
        """Hash of ids and rows, for caches, recipes and manifests."""
        data = repr(self.ids).encode() + np.ascontiguousarray(self.rows).tobytes()
        return hashlib.sha256(data).hexdigest()


def replace_rows(
    params: Params, ids: Sequence[int], rows: Array | np.ndarray
) -> Params:
    """A text encoder's parameters with some rows of its input embedding replaced.

    Copies the table [vocabulary, D]; its gradient is as large.

    Args:
        ids: K different tokens.
        rows: Their new rows, [K, D].
    """
    table = params["token_embedder"]["embedding"].at[np.asarray(ids)].set(rows)
    return params | {"token_embedder": {"embedding": table}}


def load_tokenizer(cascade: Cascade, vocabulary: str) -> Tokenizer:
    """The cascade's tokenizer.

    Args:
        vocabulary: ``shipped``, or the path of a SentencePiece model, or of a folder
            that holds ``spiece.model`` or ``tokenizer/spiece.model``; local or
            ``gs://``.

    Raises:
        InputError: The cascade has no vocabulary of its own and none is given, or it
            cannot be read.
    """
    if cascade.text.vocabulary == "embedded":
        return Tokenizer(EMBEDDED, cascade.text.length)
    if not vocabulary or vocabulary == "shipped":
        raise InputError(
            f"config.weights.vocabulary is {vocabulary!r}: the {cascade.name} cascade "
            "reads T5's vocabulary; give the path of its spiece.model"
        )
    path = epath.Path(vocabulary)
    if path.is_dir():
        places = [path / "spiece.model", path / "tokenizer" / "spiece.model"]
        path = next((place for place in places if place.exists()), None)
        if path is None:
            raise InputError(
                f"config.weights.vocabulary={vocabulary} is a folder without "
                "spiece.model or tokenizer/spiece.model; give the path of that file"
            )
    return Tokenizer(path, cascade.text.length)


def cleaning_name(cascade: Cascade, setting: str) -> str:
    """Name of the cleaning for a job's ``cleaning``; "" is the cascade's own."""
    return setting or ("simple" if cascade.text.lower else "none")


def embed_prompts(
    job: Job,
    cascade: Cascade,
    prompts: Sequence[str],
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    dtype: np.dtype,
    learned: LearnedEmbedding | None = None,
) -> tuple[dict[str, Embedding], dict[str, Any]]:
    """Embeddings of prompts, and of the null text under the key "".

    The cached arrays hold the tokens that the U-Net reads. The encoder's fingerprint,
    the token ids and, where the tokens include learned ones, their digest name each
    file.

    Args:
        job: Names the encoder, its vocabulary and sharding, and the cleaning.
        prompts: The prompts; "" is always embedded too, as the null text.
        learned: Rows that replace the encoder's own.

    Returns:
        {prompt: embedding}, and the encoder's origin with the name of the cleaning,
        for the manifest.

    Raises:
        InputError: A missing vocabulary, missing weights, an unknown cleaning, or
            prompts that are longer than the encoder reads.
    """
    wanted = list(dict.fromkeys(["", *prompts]))
    cleaning, weights = cleaning_name(cascade, job.cleaning), job.weights.text
    tokens = tokenize(cascade, wanted, job.weights.vocabulary, cleaning)
    origin = weight_origin(cascade, "text", weights) | {"cleaning": cleaning}
    paths = _cache_files(cache / "text" / origin["fingerprint"][:16], tokens, learned)

    def encode_rows(rows: Sequence[int]) -> list[np.ndarray]:
        """Loads the encoder, which leaves memory at the end."""
        part = load(cascade, "text", weights, mesh, dtype, job.mesh.rules, train=False)
        return _encode_with(cascade, part, learned, tokens[np.asarray(rows)], mesh)

    values = _read_or_encode(paths, encode_rows)
    found = {
        prompt: padded(value, cascade.text.length)
        for prompt, value in zip(wanted, values, strict=True)
    }
    if cascade.text.null == "zeros":
        mask = np.zeros(cascade.text.length, bool)
        mask[0] = True  # a softmax needs one position; it reads a zero there
        found[""] = Embedding(text=np.zeros_like(found[""].text), mask=mask)
    return found, origin


def _read_or_encode(
    paths: Sequence[epath.Path],
    encode_rows: Callable[[Sequence[int]], list[np.ndarray]],
) -> list[np.ndarray]:
    """Reads the rows that are cached; encodes the others and writes them.

    Args:
        paths: The cache file of each row.
        encode_rows: Gives the encoder's output for rows; called at most once.
    """
    values: dict[int, np.ndarray] = {}

    def read_what_is_there() -> list[int]:
        """Fills ``values`` and gives the rows that are missing or damaged."""
        for row, path in enumerate(paths):
            value = from_cache(path, read_array)
            if value is not None:
                values[row] = value
        return [row for row in range(len(paths)) if row not in values]

    missing = processes.decide(read_what_is_there)
    if missing:
        values |= dict(zip(missing, encode_rows(missing), strict=True))
    if processes.is_first():
        for row in missing:
            write_array(paths[row], values[row])
    return [
        values[row] if row in values else read_array(path)
        for row, path in enumerate(paths)
    ]


def _encode_with(
    cascade: Cascade,
    part: Part,
    learned: LearnedEmbedding | None,
    tokens: np.ndarray,
    mesh: jax.sharding.Mesh,
) -> list[np.ndarray]:
    """The encoder's output for tokens, with learned rows in place of its own."""
    params = part.params
    if learned is not None:
        replace = jax.jit(replace_rows, static_argnums=1)
        params = replace(params, learned.ids, learned.rows)
    return encode(cascade, jax.jit(part.apply), params, tokens, mesh)


def tokenize(
    cascade: Cascade, prompts: Sequence[str], vocabulary: str, cleaning: str
) -> np.ndarray:
    """Tokens of prompts after cleaning.

    Args:
        prompts: N prompts.
        vocabulary: Source of the vocabulary, see ``load_tokenizer``.
        cleaning: Name of the cleaning, see ``cleaning_name``.

    Returns:
        int32 [N, L].

    Raises:
        InputError: Some prompts have more tokens than the encoder reads.
    """
    tokenizer = load_tokenizer(cascade, vocabulary)
    clean = caption_cleaning.cleaner(cleaning) or str
    cleaned = [clean(prompt) for prompt in prompts]
    lengths = [len(tokenizer.token_ids(text)) + 1 for text in cleaned]
    long = [
        f"  {length} tokens: {textwrap.shorten(prompt, 100, placeholder=' ...')}"
        for prompt, length in zip(prompts, lengths, strict=True)
        if length > tokenizer.length
    ]
    if long:
        raise InputError(
            "\n".join(
                [
                    f"{len(long)} prompts are too long: the {cascade.name} cascade "
                    f"reads {tokenizer.length} tokens; shorten them",
                    *long[:MAX_LISTED],
                ]
            )
        )
    return tokenizer.encode(cleaned)


def _cache_files(
    folder: epath.Path, tokens: np.ndarray, learned: LearnedEmbedding | None
) -> list[epath.Path]:
    """The cache file of each row of tokens."""
    paths = []
    for row in tokens:
        name = f"{hashlib.sha256(row.tobytes()).hexdigest()[:24]}.npy"
        if learned is not None and np.isin(row, learned.ids).any():
            paths.append(folder / learned.digest()[:16] / name)
        else:
            paths.append(folder / name)
    return paths


def encode(
    cascade: Cascade,
    apply: Callable[..., Array],
    params: Params,
    tokens: np.ndarray,
    mesh: jax.sharding.Mesh,
) -> list[np.ndarray]:
    """The encoder's output for tokens, trimmed to the tokens that the U-Net reads.

    Args:
        apply: The jitted encoder; all batches use one program.
        tokens: int32 [N, L].

    Returns:
        f32 [l, D] for each row, with l at most L.
    """
    outputs = []
    for start in range(0, len(tokens), ROWS):
        rows = tokens[start : start + ROWS]
        ids = np.resize(rows, (ROWS, rows.shape[1]))
        out = apply(params, *sharding.put_copies((ids, ids > 0), mesh))
        values = sharding.fetch(out).astype(np.float32)
        for row, value in zip(rows, values, strict=False):
            length = (row > 0).sum() if cascade.text.masked else cascade.text.length
            outputs.append(value[:length])
    return outputs


def padded(value: np.ndarray, length: int) -> Embedding:
    """An embedding [l, D], padded to ``length`` tokens that the mask excludes."""
    text = np.zeros((length, value.shape[1]), np.float32)
    text[: len(value)] = value
    return Embedding(text=text, mask=np.arange(length) < len(value))
