"""Prompts from templates: fills in [V] and [N] and corrects their articles."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from imagen_booth.errors import InputError

# Words that start with a vowel letter and a consonant sound, and the reverse.
_A = re.compile(r"(one|once|uni(?!n)|us[aeiu]|eu|ewe|ufo)", re.IGNORECASE)
_AN = re.compile(r"(hour|honest|honou?r|heir)", re.IGNORECASE)

_PLACE = re.compile(
    r"\b(an?) (\[[vn][12]?\])|(\[[vn][12]?\])", re.IGNORECASE
)  # [V1] is [V], and [N1] is [N]


class Naming(NamedTuple):
    """What stands for [V2] and [N2]: a second subject's identifier and class noun."""

    identifier: str
    noun: str


def second_naming(manifest: Mapping[str, Any]) -> Naming | None:
    """The second subject's naming in the manifest of a run; None without one."""
    second = manifest.get("second")
    return second and Naming(second["identifier"], second["class_noun"])


def article(word: str) -> str:
    """'a' or 'an', by the first letter and a few common exceptions."""
    vowel = word[:1].lower() in tuple("aeiou")
    return "an" if (vowel and not _A.match(word)) or _AN.match(word) else "a"


def fill(
    template: str,
    identifier: str,
    noun: str,
    *,
    alone: bool = False,
    second: Naming | None = None,
) -> str:
    """A prompt from a template such as 'a [V] [N] on the beach'.

    [V] is the identifier, [N] the class noun; [V1] and [N1] are the same. An article
    right before a placeholder is corrected for the word that replaces it. Without an
    identifier ('') the result is the prompt of the class: 'a dog on the beach'.

    Args:
        alone: Whether the identifier also replaces a class noun right after it: 'a [V]
            on the beach'.
        second: What [V2] and [N2] stand for; None for one subject.

    Raises:
        InputError: The template holds another word in brackets.
    """
    places: dict[str, str] = {"[v]": identifier, "[v1]": identifier}
    places |= {"[n]": noun, "[n1]": noun}
    if second is not None:
        places |= {"[v2]": second.identifier, "[n2]": second.noun}
    unknown = [p for p in re.findall(r"\[.*?\]", template) if p.lower() not in places]
    if unknown:
        raise InputError(
            f"The prompt template {template!r} holds {unknown[0]}; write [V] for the"
            " identifier and [N] for the class noun, and in a run with config.second"
            " [V2] and [N2] for those of its second subject."
        )
    for place, word in places.items():
        if place.startswith("[v") and not word:
            template = re.sub(
                re.escape(place) + r"\s*", "", template, flags=re.IGNORECASE
            )
    if alone:
        template = re.sub(r"(\[v1?\])\s*\[n1?\]", r"\1", template, flags=re.IGNORECASE)

    def put(match: re.Match[str]) -> str:
        word = places[(match[2] or match[3]).lower()]
        if match[1] is None:
            return word
        chosen = article(word)
        return f"{chosen.capitalize() if match[1][0] == 'A' else chosen} {word}"

    return _PLACE.sub(put, template)


def class_prompt(noun: str) -> str:
    """'a dog'."""
    return fill("a [N]", "", noun)


def instance_prompt(identifier: str, noun: str, *, alone: bool = False) -> str:
    """'a [V] dog' with the identifier filled in; 'a [V]' if it replaces the noun."""
    return fill("a [V] [N]", identifier, noun, alone=alone)


_KINDS = "photo|photograph|picture|image|portrait|painting|drawing|rendering|close-up"
_LEAD = re.compile(
    rf"(?:(?:a|an|the|my|one|this|some)\s+)?(?:[\w-]+\s+)?(?:{_KINDS})s?\s+of\s+"
    r"|(?:a|an|the|my|one|this|some)\s+",
    re.IGNORECASE,
)


def noun_of(text: str) -> str:
    """The noun in a prompt such as ``a photo of a [V] dog,``; a noun stays as it is."""
    noun = " ".join(re.sub(r"\[\w*\]|<[^<>]*>", " ", text).split()).strip(" ,.;:!?\"'")
    while lead := _LEAD.match(noun):
        noun = noun[lead.end() :]
    return noun
