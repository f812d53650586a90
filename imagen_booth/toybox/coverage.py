"""The words of the toybox that a prior was trained on, and prompts beyond them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from imagen_booth.toybox.captions import SAME, caption
from imagen_booth.toybox.grammar import WORDS, Attributes, Words, held_out_combinations

# Words for pictures, by the fields of ``Words``, that the vocabulary of the toybox
# cascade has and its pictures do not show.
NOT_SHOWN = {
    "nouns": ("rabbit", "clock", "vase", "robot", "candle", "mug"),
    "contexts": ("desert", "water"),
    "colours": ("purple", "pink", "grey"),
    "accessories": ("glasses", "bow", "crown"),
    "views": ("above",),
    "styles": ("sketch", "cartoon", "statue"),
    "lights": ("sunset", "night"),
    "expressions": ("happy", "sleeping", "angry", "surprised"),
}
KINDS = {
    "nouns": "noun",
    "contexts": "context",
    "colours": "colour",
    "accessories": "accessory",
    "views": "view",
    "styles": "style",
    "lights": "light",
    "expressions": "expression",
}
_SAME = SAME | {"top": "above", "gray": "grey", "sleepy": "sleeping"}
_SHOWN = {field: getattr(WORDS, field, ()) for field in KINDS}


def beyond(text: str, knows: Mapping[str, Sequence[str]]) -> list[str]:
    """Words for pictures that a prior was not trained on, each with its kind.

    Args:
        text: A prompt, or any words. Other words than those of ``Words`` and
            ``NOT_SHOWN`` are ignored.
        knows: Known words by field of ``Words``, as in the manifest of the weights; of
            a field that it lacks, those of ``Words``.

    Returns:
        Such as ``["context desert", "view above"]``, in the order of the text.
    """
    words = [_SAME.get(word, word) for word in re.findall(r"[a-z']+", text.lower())]
    return [
        f"{kind} {word}"
        for word in dict.fromkeys(words)
        for field, kind in KINDS.items()
        if word in (*_SHOWN[field], *NOT_SHOWN[field])
        and word not in knows.get(field, _SHOWN[field])
    ]


def held_out_captions(
    count: int, knows: Mapping[str, Sequence[str]] | None = None
) -> list[tuple[str, Attributes]]:
    """Captions with combinations of noun, colour and context left out of training.

    Args:
        count: Number of captions.
        knows: Words of the prior, see ``beyond``; None for all words of the toybox.

    Returns:
        ``count`` captions with different combinations, and their attributes. The same
        words always give the same ones.
    """
    known = {
        field: tuple(word for word in words if word in (knows or {}).get(field, words))
        for field, words in dataclasses.asdict(WORDS).items()
    }
    combinations = held_out_combinations(Words(**known))
    chosen = np.random.default_rng(0).permutation(len(combinations))[:count]
    asked = [
        Attributes(noun=noun, colour=colour, context=context)
        for noun, colour, context in (combinations[index] for index in sorted(chosen))
    ]
    return [(caption(each), each) for each in asked]
