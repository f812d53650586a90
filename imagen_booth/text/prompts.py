"""Prompts from templates: [V] and [N] filled in, and their articles."""

import re

from imagen_booth.errors import InputError

# Spelt with a vowel that is spoken as a consonant, and the reverse.
_A = re.compile(r"(one|once|uni(?!n)|us[aeiu]|eu|ewe|ufo)", re.IGNORECASE)
_AN = re.compile(r"(hour|honest|honou?r|heir)", re.IGNORECASE)

_PLACE = re.compile(r"\b(an?) (\[v\]|\[n\])|(\[v\]|\[n\])", re.IGNORECASE)


def article(word: str) -> str:
    """'a' or 'an', by the first letter and a few well-known exceptions."""
    vowel = word[:1].lower() in tuple("aeiou")
    return "an" if (vowel and not _A.match(word)) or _AN.match(word) else "a"


def fill(template: str, identifier: str, noun: str, *, alone: bool = False) -> str:
    """A prompt from a template such as 'a [V] [N] on the beach'.

    [V] is the identifier, [N] the class noun. An article straight before a place is
    chosen anew for the word put there. Without an identifier ('') the prompt is that of
    the class: 'a dog on the beach'.

    Args:
        alone: the identifier says what the subject is, so a class noun straight after
            it is left out: 'a [V] on the beach'.

    Raises:
        InputError: the template holds another word in brackets.
    """
    places = {"[v]": identifier, "[n]": noun}
    unknown = [p for p in re.findall(r"\[.*?\]", template) if p.lower() not in places]
    if unknown:
        raise InputError(
            f"The prompt template {template!r} holds {unknown[0]}; write [V] for the"
            " identifier and [N] for the class noun."
        )
    if not identifier:
        template = re.sub(r"\[v\]\s*", "", template, flags=re.IGNORECASE)
    elif alone:
        template = re.sub(r"(\[v\])\s*\[n\]", r"\1", template, flags=re.IGNORECASE)

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
    """'a [V] dog' with the identifier in its place; 'a [V]' where it stands alone."""
    return fill("a [V] [N]", identifier, noun, alone=alone)
