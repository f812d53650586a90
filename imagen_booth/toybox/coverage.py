"""The words of the toybox that a prior was trained on, and prompts beyond them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from imagen_booth.toybox.captions import SAME, caption
from imagen_booth.toybox.grammar import TIER_B, Attributes, Tier, held_out_combinations

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


def beyond(text: str, knows: Mapping[str, Sequence[str]]) -> list[str]:
    """Words of the toybox that a prior was not trained on, each with its kind.

    Args:
        text: A prompt, or any words. Words that the toybox lacks are ignored.
        knows: Known words by field of ``Tier``, as in the manifest of the weights. All
            words of a field that it lacks count as known.

    Returns:
        Such as ``["context desert", "view above"]``, in the order of the text.
    """
    words = [SAME.get(word, word) for word in re.findall(r"[a-z']+", text.lower())]
    return [
        f"{kind} {word}"
        for word in dict.fromkeys(words)
        for field, kind in KINDS.items()
        if word in getattr(TIER_B, field) and word not in knows.get(field, (word,))
    ]


def held_out_captions(tier: Tier, count: int) -> list[tuple[str, Attributes]]:
    """Captions with combinations of noun, colour and context left out of training.

    Returns:
        ``count`` captions with different combinations, and their attributes. A tier
        always gives the same ones.
    """
    combinations = held_out_combinations(tier)
    chosen = np.random.default_rng(0).permutation(len(combinations))[:count]
    asked = [
        Attributes(noun=noun, colour=colour, context=context)
        for noun, colour, context in (combinations[index] for index in sorted(chosen))
    ]
    return [(caption(each), each) for each in asked]
