"""Prompts to embeddings: computed once, cached on disk, the encoder let go."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array

from imagen_booth.cascade import Cascade
from imagen_booth.data.examples import Embedding
from imagen_booth.distributed import processes, sharding
from imagen_booth.errors import InputError
from imagen_booth.storage import write_atomic
from imagen_booth.text import caption_cleaning
from imagen_booth.text.tokenizer import EMBEDDED, Tokenizer
from imagen_booth.train_state import Params
from imagen_booth.weights.load import load, weight_origin

ROWS = 8  # prompts encoded together


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedEmbedding:
    """What some tokens were taught to mean, by Textual Inversion.

    Attributes:
        ids: the tokens, K of them.
        rows: f32 [K, D], theirs in the encoder's input embedding.
    """

    ids: tuple[int, ...]
    rows: np.ndarray

    def digest(self) -> str:
        """Identifies ids and rows, for caches, recipes and manifests."""
        data = repr(self.ids).encode() + np.ascontiguousarray(self.rows).tobytes()
        return hashlib.sha256(data).hexdigest()


def replace_rows(
    params: Params, ids: Sequence[int], rows: Array | np.ndarray
) -> Params:
    """A text encoder's parameters with some rows of its input embedding replaced.

    The table is copied, and its gradient is as large: [vocabulary, D].

    Args:
        ids: K different tokens.
        rows: [K, D].
    """
    table = params["token_embedder"]["embedding"].at[np.asarray(ids)].set(rows)
    return params | {"token_embedder": {"embedding": table}}


def load_tokenizer(cascade: Cascade, vocabulary: str) -> Tokenizer:
    """The cascade's tokenizer.

    Args:
        vocabulary: ``shipped``, or the path of a SentencePiece model, or of a folder
            with ``spiece.model`` in it or in ``tokenizer``.

    Raises:
        InputError: the cascade has no vocabulary of its own and none is given, or it
            cannot be read.
    """
    if cascade.text.vocabulary == "embedded":
        return Tokenizer(EMBEDDED, cascade.text.length)
    if not vocabulary or vocabulary == "shipped":
        raise InputError(
            f"config.weights.vocabulary is {vocabulary!r}: the {cascade.name} cascade "
            "reads T5's vocabulary; give the path of its spiece.model"
        )
    path = pathlib.Path(vocabulary)
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
    """Name of the cleaning that a job's ``cleaning`` means."""
    return setting or ("simple" if cascade.text.lower else "none")


def embed_prompts(
    cascade: Cascade,
    prompts: Sequence[str],
    *,
    weights: str,
    vocabulary: str,
    cleaning: str = "",
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    dtype: np.dtype,
    learned: LearnedEmbedding | None = None,
    rules: Sequence[sharding.Rule] = (),
) -> tuple[dict[str, Embedding], dict[str, Any]]:
    """Embeddings of prompts, and of the null text under the key "".

    Stored embeddings are trimmed to the tokens the U-Net reads; each file is named
    by the encoder's fingerprint, that of learned rows if it speaks of them, and the
    token ids.

    Args:
        prompts: any prompts; "" always comes along as the null text.
        weights: source of the encoder's weights.
        cleaning: as a job says it, see ``Job.cleaning``.
        learned: rows that replace the encoder's own.
        rules: how the encoder's parameters are cut, see ``sharding.spec_at``.

    Returns:
        {prompt: embedding}, and the encoder's origin for the manifest, with the name
        of the cleaning.

    Raises:
        InputError: a vocabulary, weights or a cleaning that are not there.
    """
    text = cascade.text
    pieces = load_tokenizer(cascade, vocabulary)
    wanted = list(dict.fromkeys(["", *prompts]))
    cleaning = cleaning_name(cascade, cleaning)
    clean = caption_cleaning.cleaner(cleaning) or str
    tokens = pieces.encode([clean(one) for one in wanted])
    about = weight_origin(cascade, "text", weights) | {"cleaning": cleaning}
    folder = cache / "text" / about["sha256"][:16]

    def place(row: np.ndarray) -> epath.Path:
        touched = learned is not None and np.isin(row, learned.ids).any()
        within = folder / learned.digest()[:16] if learned and touched else folder
        return within / f"{hashlib.sha256(row.tobytes()).hexdigest()[:24]}.npy"

    paths = [place(row) for row in tokens]
    missing = [row for row, path in enumerate(paths) if not path.exists()]
    if missing:
        part = load(cascade, "text", weights, mesh, dtype, rules, train=False)
        params = part.params
        if learned is not None:
            params = jax.jit(replace_rows, static_argnums=1)(
                params, learned.ids, learned.rows
            )
        values = encode(cascade, jax.jit(part.apply), params, tokens[missing], mesh)
        for row, value in zip(missing, values, strict=True):
            if processes.is_first():
                _write(paths[row], value)
        processes.wait("embed")
    found = {
        prompt: padded(np.load(io.BytesIO(path.read_bytes())), text.length)
        for prompt, path in zip(wanted, paths, strict=True)
    }
    if text.null == "zeros":
        first = np.zeros(text.length, bool)
        first[0] = True  # a softmax needs one position; it reads a zero there
        found[""] = Embedding(np.zeros_like(found[""].text), first)
    return found, about


def encode(
    cascade: Cascade,
    apply: Callable[..., Array],
    params: Params,
    tokens: np.ndarray,
    mesh: jax.sharding.Mesh,
) -> list[np.ndarray]:
    """What the encoder makes of tokens, trimmed to what the U-Net reads.

    Args:
        apply: the encoder, jitted; one program serves every call.
        tokens: int32 [N, L].

    Returns:
        f32 [l, D] for each row, l at most L.
    """
    found = []
    for start in range(0, len(tokens), ROWS):
        rows = tokens[start : start + ROWS]
        ids = np.resize(rows, (ROWS, rows.shape[1]))
        out = apply(params, *sharding.put_copies((ids, ids > 0), mesh))
        values = sharding.fetch(out).astype(np.float32)
        for row, value in zip(rows, values, strict=False):
            kept = (row > 0).sum() if cascade.text.masked else cascade.text.length
            found.append(value[:kept])
    return found


def padded(value: np.ndarray, length: int) -> Embedding:
    """An embedding [l, D] filled up to ``length`` with what is not read."""
    text = np.zeros((length, value.shape[1]), np.float32)
    text[: len(value)] = value
    return Embedding(text, np.arange(length) < len(value))


def _write(path: epath.Path, value: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, value)
    write_atomic(path, data.getvalue())
