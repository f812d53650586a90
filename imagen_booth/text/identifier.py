"""Identifiers: rare tokens that name the subject.

DreamBooth draws token ids from a range of the vocabulary that is rare but not the
rarest, and uses the text they decode to as the identifier. That text must become the
same tokens again wherever it is used: inside a prompt, after lower-casing, and after
cleaning. Fewer than one in five of T5's short pieces does.

Source: Ruiz et al., arXiv 2208.12242, section 3.2.
"""

import dataclasses
from collections.abc import Callable, Collection

import numpy as np

from imagen_booth.errors import InputError
from imagen_booth.text.caption_cleaning import clean_caption
from imagen_booth.text.tokenizer import UNKNOWN, Tokenizer
from imagen_booth.text.words import words

MAX_CHARACTERS = 3
MAX_TOKENS = 3
MAX_TRIES = 10_000


@dataclasses.dataclass(frozen=True)
class Identifier:
    """A drawn identifier.

    Attributes:
        text: Text that replaces [V] in a prompt.
        ids: Its k token ids, as they occur inside a prompt.
        k: Number of tokens.
        tries: Number of draws until one survived, including this one.
    """

    text: str
    ids: tuple[int, ...]
    k: int
    tries: int


def rare_ids(tokenizer: Tokenizer, id_range: tuple[int, int]) -> list[int]:
    """Ids within the range, ends included, whose pieces have at most 3 characters."""
    lowest, highest = id_range
    if not 0 <= lowest <= highest < tokenizer.vocab_size:
        raise InputError(
            f"The identifier's id range is {lowest} to {highest}; the vocabulary has"
            f" ids 0 to {tokenizer.vocab_size - 1}."
        )
    ids = range(lowest, highest + 1)
    return [id for id in ids if 0 < len(tokenizer.decode([id])) <= MAX_CHARACTERS]


def is_common(word: str, tokenizer: Tokenizer, rare: Collection[int]) -> bool:
    """Whether the model probably knows a word.

    It does if the word is in our list of everyday English, or is one piece of the
    vocabulary and not a rare one: the pieces below T5's range are its most frequent,
    and longer pieces are nearly all words.

    Args:
        rare: The ids of ``rare_ids``.
    """
    ids = tokenizer.token_ids(word)
    whole = len(ids) == 1 and ids[0] != UNKNOWN
    known = whole and ids[0] not in rare
    return known or word.lower() in words()


def survives(
    text: str,
    ids: list[int],
    tokenizer: Tokenizer,
    class_noun: str,
    clean: Callable[[str], str] | None = clean_caption,
) -> bool:
    """Whether 'a TEXT NOUN' has exactly `ids` between the tokens of 'a' and of NOUN.

    Checks the prompt as it is and, if there is a cleaner, lower-cased and cleaned.
    """
    treatments = [str] if clean is None else [str, str.lower, clean]
    return all(
        tokenizer.token_ids(treat(f"a {text} {class_noun}"))
        == tokenizer.token_ids("a") + ids + tokenizer.token_ids(treat(class_noun))
        for treat in treatments
    )


def draw(
    tokenizer: Tokenizer,
    id_range: tuple[int, int],
    class_noun: str,
    k: int,
    seed: int,
    clean: Callable[[str], str] | None = clean_caption,
    taken: Collection[int] = (),
) -> Identifier:
    """Draws an identifier of k rare tokens that survives in its prompt.

    Ids are uniform without replacement. Texts that do not survive, common words,
    numbers and punctuation are drawn again.

    Args:
        id_range: Lowest and highest id, both included.
        class_noun: The noun after the identifier.
        k: Number of tokens, 1 to 3.
        seed: Seed, 0 or more; the same seed gives the same identifier.
        clean: The strongest cleaning that prompts go through; None for none.
        taken: Ids of another subject's identifier, which are drawn again too.

    Raises:
        InputError: The range has no such identifier.
    """
    pool = rare_ids(tokenizer, id_range)
    if len(pool) >= k:
        rng = np.random.default_rng(seed)
        for tries in range(1, MAX_TRIES + 1):
            ids = rng.choice(pool, k, replace=False).tolist()
            text = tokenizer.decode(ids)
            fresh = not set(taken).intersection(ids) and all(
                word.isalpha() and not is_common(word, tokenizer, pool)
                for word in text.split()
            )
            if fresh and survives(text, ids, tokenizer, class_noun, clean):
                return Identifier(text, tuple(ids), k, tries)
    raise InputError(
        f"The id range {id_range[0]} to {id_range[1]} gave no identifier of {k} tokens"
        f" that survives in 'a [V] {class_noun}'. Widen the range or take a smaller k."
    )


def check(
    text: str,
    tokenizer: Tokenizer,
    id_range: tuple[int, int],
    class_noun: str,
    clean: Callable[[str], str] | None = clean_caption,
) -> list[str]:
    """Warnings about an identifier that the user chose; [] if there are none."""
    text = " ".join(text.split())
    name = f"The identifier {text!r}"
    if not text:
        return [
            f"{name} is empty: prompts cannot distinguish the subject from its class."
        ]
    warnings = []
    rare = set(rare_ids(tokenizer, id_range))
    for word in text.split():
        part = name if word == text else f"{name}: its word {word!r}"
        ids = tokenizer.token_ids(word)
        if UNKNOWN in ids:
            warnings.append(
                f"{part} holds characters that the vocabulary lacks; they all become"
                " the same token."
            )
        elif is_common(word, tokenizer, rare):
            warnings.append(
                f"{part} is a common word: its present meaning will mix with the"
                " subject."
            )
        elif not rare.issuperset(ids):
            pieces = " ".join(tokenizer.piece(id) for id in ids)
            warnings.append(
                f"{part} splits into {len(ids)} pieces ({pieces}), which are parts of"
                " many words and bind poorly to one subject."
            )
    ids = tokenizer.token_ids(text)
    if not warnings and len(ids) > MAX_TOKENS:
        warnings.append(f"{name} is {len(ids)} tokens long; {MAX_TOKENS} are enough.")

    lower = text.lower()
    if clean is not None and text != lower:
        warnings.append(
            f"{name} is not lower case, but prompts are lower-cased before they become"
            f" tokens: the model will read {lower!r}."
        )
    if clean is not None:
        cleaned = clean(f"a {text} {class_noun}")
        if cleaned != f"a {lower} {clean(class_noun)}":
            warnings.append(
                f"{name} is destroyed by the caption cleaner: 'a {text} {class_noun}'"
                f" becomes {cleaned!r}."
            )
    if not warnings and not survives(text, ids, tokenizer, class_noun, clean):
        warnings.append(f"{name} loses its tokens inside 'a {text} {class_noun}'.")
    return warnings
