"""SentencePiece tokens of fixed length with T5's ids: pad 0, eos 1, unknown 2."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from etils import epath

from imagen_booth.errors import InputError

PAD, EOS, UNKNOWN = 0, 1, 2

# The small vocabulary of the package (built by text/vocabulary.py), and the ids of its
# pieces that no caption uses.
EMBEDDED = Path(__file__).with_name("embedded.model")
EMBEDDED_RARE = (1848, 2047)

# DreamBooth's range in the vocabulary of T5. Ranges include both ends.
T5_RARE = (5000, 10000)


class Tokenizer:
    """A SentencePiece model and a length in tokens.

    Args:
        model: Path of a SentencePiece model, local or ``gs://``, or its bytes.
        length: Tokens per text L, including the end mark.

    Raises:
        InputError: The file is missing or not a SentencePiece model, or its special
            pieces are not T5's.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, length: int):
        if length < 1:
            raise InputError(f"The tokenizer's length is {length}; give at least 1.")
        self.length = length
        name = "bytes" if isinstance(model, bytes) else os.fspath(model)
        try:
            given = isinstance(model, bytes)
            proto = model if given else epath.Path(model).read_bytes()
            self._model = sentencepiece.SentencePieceProcessor()
            self._model.LoadFromSerializedProto(proto)
        except OSError as error:
            raise InputError(
                f"The vocabulary {name} cannot be read: {error.strerror or error}."
                " Give the path of a SentencePiece model, for T5 its spiece.model."
            ) from error
        except RuntimeError as error:
            raise InputError(
                f"The vocabulary {name} is not a SentencePiece model, or is truncated."
            ) from error
        special = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
        if special != (PAD, EOS, UNKNOWN):
            raise InputError(
                f"The vocabulary {name} has pad, eos, unknown at {special}; T5 and"
                f" this package have them at {(PAD, EOS, UNKNOWN)}."
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces, not counting T5's sentinels and padding rows."""
        return self._model.vocab_size()

    def token_ids(self, text: str) -> list[int]:
        """Ids of the whole text, without end mark and padding."""
        return self._model.encode(text)

    def piece(self, id: int) -> str:
        """The piece with this id; '▁' marks the start of a word."""
        return self._model.id_to_piece(id)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids up to the first end mark; padding is dropped."""
        ids = [int(id) for id in ids]
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        return self._model.decode([id for id in ids if id != PAD])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of texts, with end mark and padding; long texts are truncated.

        Returns:
            int32 [N, length]. A truncated text also ends with the end mark.
        """
        tokens = np.full((len(texts), self.length), PAD, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [*self.token_ids(text)[: self.length - 1], EOS]
            row[: len(ids)] = ids
        return tokens
