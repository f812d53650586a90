"""Captions of attributes in plain English, and attributes of a prompt."""

import dataclasses
import difflib
import re
from collections.abc import Iterable

import numpy as np

from imagen_booth.errors import InputError
from imagen_booth.toybox.grammar import BODIES, WORDS, Attributes

_PLACE = {
    "beach": "on the beach",
    "snow": "in the snow",
    "jungle": "in the jungle",
    "street": "on the street",
    "room": "in a room",
    "meadow": "in a meadow",
}
_VIEW = {"side": "seen from the side", "back": "seen from the back"}
SAME = {"behind": "back"}


def caption(attributes: Attributes, *, photo: bool = False) -> str:
    """The caption of all attributes, e.g. "a painting of a red cat wearing a hat".

    Args:
      attributes: Fields at their defaults or None are left out.
      photo: Whether to begin with "a photo of" if the style is photo.
    """
    words = filter(None, (attributes.colour, attributes.noun))
    parts = [_with_article(" ".join(words))]
    if attributes.accessory is not None:
        parts.append(f"wearing {_with_article(attributes.accessory)}")
    if attributes.context is not None:
        parts.append(_PLACE[attributes.context])
    if attributes.view in _VIEW:
        parts.append(_VIEW[attributes.view])
    text = " ".join(parts)
    if attributes.style != "photo":
        return f"{_with_article(attributes.style)} of {text}"
    return f"a photo of {text}" if photo else text


def training_caption(rng: np.random.Generator, attributes: Attributes) -> str:
    """A caption that leaves some attributes out, as people do.

    It names the colour half the time and the place nine times in ten. It always names
    an unusual view, style or accessory, so that "a dog" remains a dog without any of
    them.
    """
    said = dataclasses.replace(
        attributes,
        colour=attributes.colour if rng.random() < 0.5 else None,
        context=attributes.context if rng.random() < 0.9 else None,
    )
    return caption(said, photo=rng.random() < 0.25)


def _with_article(text: str) -> str:
    vowel = text[0] in "aeiou"
    return f"{'an' if vowel else 'a'} {text}"


def parse(prompt: str) -> Attributes:
    """The attributes that a prompt asks for; the inverse of `caption`.

    Args:
      prompt: Such as "a [V] dog wearing a hat in the snow". [V], case, full stops and
        articles do not matter.

    Raises:
      InputError: A word is not in the grammar; the message names the nearest one.
    """
    text = prompt.lower().replace("[v]", " ")
    said: list[str] = re.findall(r"[a-z']+", text)
    words = [SAME.get(w, w) for w in said if w not in ("a", "an", "the")]
    found: dict[str, str] = {}

    def take(field: str, known: Iterable[str]) -> None:
        if not words:
            raise InputError(
                f"prompt {prompt!r} ends where its {field} should follow; the toybox "
                f"knows {', '.join(known)}."
            )
        found[field] = _known(words.pop(0), known, field, prompt)

    if len(words) > 1 and words[1] == "of":
        take("style", WORDS.styles)
        words.pop(0)
    while words and words[0] in WORDS.colours:
        found["colour"] = words.pop(0)
    take("noun", BODIES)
    while words:
        word = words.pop(0)
        if word == "wearing":
            take("accessory", WORDS.accessories)
        elif word == "seen" and words and words[0] == "from":
            words.pop(0)
            take("view", WORDS.views)
        elif word in ("in", "on", "at"):
            take("context", WORDS.contexts)
        else:
            known = ("wearing", "seen", "in", "on", "at")
            _known(word, known, "linking word", prompt)
    return Attributes(**found)


def _known(word: str, known: Iterable[str], field: str, prompt: str) -> str:
    """The word, if it is known.

    Raises:
      InputError: It is not; the message names the nearest known word.
    """
    options = list(known)
    if word in options:
        return word
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.0)[0]
    raise InputError(
        f"prompt {prompt!r} has {word!r} where the toybox expects a {field}; the "
        f"nearest it knows is {near!r} (all: {', '.join(options)})."
    )
