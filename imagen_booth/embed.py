"""Prompts to embeddings: computed once, cached on disk, the encoder let go."""

import hashlib
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from imagen_booth import hosts, sharding
from imagen_booth.cascade import Cascade
from imagen_booth.data.pictures import write_atomic
from imagen_booth.errors import InputError
from imagen_booth.text import prompts as words
from imagen_booth.text.tokenizer import EMBEDDED, Tokenizer
from imagen_booth.weights.load import load, origin

ROWS = 8  # prompts encoded together


class Embedding(NamedTuple):
    """One prompt as a U-Net reads it.

    Attributes:
        text: [L, D] f32.
        mask: [L] bool, True where the U-Net reads.
    """

    text: np.ndarray
    mask: np.ndarray


def tokenizer(cascade: Cascade, vocabulary: str) -> Tokenizer:
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


def cleaning_of(cascade: Cascade, setting: str) -> str:
    """Name of the cleaning that a job's ``cleaning`` means."""
    return setting or ("simple" if cascade.text.lower else "none")


def embed(
    cascade: Cascade,
    prompts: Sequence[str],
    *,
    weights: str,
    vocabulary: str,
    cleaning: str = "",
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    dtype: np.dtype,
) -> tuple[dict[str, Embedding], dict[str, Any]]:
    """Embeddings of prompts, and of the null text under the key "".

    Stored embeddings are trimmed to the tokens the U-Net reads; each file is named
    by the encoder's fingerprint and the token ids.

    Args:
        prompts: any prompts; "" always comes along as the null text.
        weights: source of the encoder's weights.
        cleaning: as a job says it, see ``Job.cleaning``.

    Returns:
        {prompt: embedding}, and the encoder's origin for the manifest, with the name
        of the cleaning.

    Raises:
        InputError: a vocabulary, weights or a cleaning that are not there.
    """
    text = cascade.text
    pieces = tokenizer(cascade, vocabulary)
    wanted = list(dict.fromkeys(["", *prompts]))
    cleaning = cleaning_of(cascade, cleaning)
    clean = words.cleaner(cleaning) or str
    tokens = pieces.encode([clean(one) for one in wanted])
    about = origin(cascade, "text", weights) | {"cleaning": cleaning}
    folder = cache / "text" / about["sha256"][:16]
    paths = [
        folder / f"{hashlib.sha256(row.tobytes()).hexdigest()[:24]}.npy"
        for row in tokens
    ]
    missing = [row for row, path in enumerate(paths) if not path.exists()]
    if missing:
        part = load(cascade, "text", weights, mesh, dtype, train=False)
        apply = jax.jit(part.apply)
        params = part.params
        for start in range(0, len(missing), ROWS):
            rows = missing[start : start + ROWS]
            full = np.resize(rows, ROWS)  # one program for every batch
            ids = tokens[full]
            out = apply(params, *sharding.put_copies((ids, ids > 0), mesh))
            values = sharding.fetch(out).astype(np.float32)
            for row, value in zip(rows, values, strict=False):
                kept = (tokens[row] > 0).sum() if text.masked else text.length
                if hosts.is_first():
                    _write(paths[row], value[:kept])
        hosts.wait("embed")
    found = {
        prompt: _padded(np.load(io.BytesIO(path.read_bytes())), text.length)
        for prompt, path in zip(wanted, paths, strict=True)
    }
    if text.null == "zeros":
        first = np.zeros(text.length, bool)
        first[0] = True  # a softmax needs one position; it reads a zero there
        found[""] = Embedding(np.zeros_like(found[""].text), first)
    return found, about


def _padded(value: np.ndarray, length: int) -> Embedding:
    text = np.zeros((length, value.shape[1]), np.float32)
    text[: len(value)] = value
    return Embedding(text, np.arange(length) < len(value))


def _write(path: epath.Path, value: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, value)
    write_atomic(path, data.getvalue())
