"""Builds the embedded vocabulary: `python -m imagen_booth.text.vocabulary`.

2048 SentencePiece pieces: every word of words.py as one piece; parts of words, learned
from that list, for other words; the printable ASCII characters; and last a block of
rare pieces for identifiers.

SentencePiece chooses the segmentation with the highest sum of scores. A listed word
scores WORD and a part at most PART, so a split of a word or of a rare piece scores at
most WORD + PART and loses to the whole. No English word starts with a rare piece, so no
other segmentation contains one.
"""

import io
import string

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import (
    ModelProto,  # pyright: ignore[reportAttributeAccessIssue] made at import
)

from imagen_booth.text.tokenizer import EMBEDDED, EMBEDDED_RARE
from imagen_booth.text.words import rare, words

SIZE = 2048
WORD, RARE, PART = -8.0, -12.0, -10.0

MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for the space before a word

# Endings that give the trainer English suffixes; the joined words are not stored.
ENDINGS = ("", "s", "es", "ed", "ing", "er", "est", "ly", "ness", "ful", "less", "ment")


def _parts(count: int, without: set[str]) -> list[tuple[str, float]]:
    """Parts of words, best first, with the learned scores shifted to at most PART."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(w + ending for w in words() for ending in ENDINGS),
        model_writer=model,
        vocab_size=512,
        model_type="unigram",
        normalization_rule_name="identity",
        max_sentencepiece_length=4,
        num_threads=1,
        minloglevel=2,
    )
    learned = ModelProto.FromString(model.getvalue()).pieces
    kept = [p for p in learned if p.type == p.NORMAL and p.piece not in without]
    kept = sorted(kept, key=lambda p: (-p.score, p.piece))[:count]
    return [(p.piece, PART + p.score - kept[0].score) for p in kept]


def build() -> bytes:
    """The vocabulary as a serialised SentencePiece model."""
    whole = [(MARK + word, WORD) for word in words()]
    block = [(MARK + piece, RARE) for piece in rare()]
    marks = string.ascii_letters + string.digits + string.punctuation
    taken = {piece for piece, _ in whole + block} | {MARK, *marks}
    count = SIZE - 3 - len(taken)
    parts = _parts(count, taken)
    characters = [(mark, parts[-1][1] - 2.0) for mark in MARK + marks]

    model = ModelProto()
    piece_type = ModelProto.SentencePiece
    for piece, kind in (
        ("<pad>", piece_type.CONTROL),
        ("</s>", piece_type.CONTROL),
        ("<unk>", piece_type.UNKNOWN),
    ):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in whole + parts + characters + block:
        model.pieces.add(piece=piece, score=score)
    assert len(model.pieces) == SIZE == EMBEDDED_RARE[1] + 1
    assert len(block) == EMBEDDED_RARE[1] - EMBEDDED_RARE[0] + 1

    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.UNIGRAM
    trainer.vocab_size = SIZE
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    normalizer.name = "identity"
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    EMBEDDED.write_bytes(build())
