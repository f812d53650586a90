"""Identifiers: rare tokens that come to stand for the subject.

DreamBooth draws token ids from a range of the vocabulary that is rare but not the
rarest, and takes the text they decode to as the identifier. That text must turn back
into the same tokens wherever it is used: inside a prompt, after lower-casing, and
after cleaning. Of T5's short pieces fewer than one in five does.

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
    """An identifier that was drawn.

    Args:
        text: what stands for [V] in a prompt.
        ids: its k token ids, as they occur inside a prompt.
        k: how many.
        tries: draws made until one survived, this one included.
    """

    text: str
    ids: tuple[int, ...]
    k: int
    tries: int


def rare_ids(tokenizer: Tokenizer, id_range: tuple[int, int]) -> list[int]:
    """Ids of the range, both ends included, of pieces of at most 3 characters."""
    lowest, highest = id_range
    if not 0 <= lowest <= highest < tokenizer.vocab_size:
        raise InputError(
            f"The identifier's id range is {lowest} to {highest}; the vocabulary has"
            f" ids 0 to {tokenizer.vocab_size - 1}."
        )
    ids = range(lowest, highest + 1)
    return [id for id in ids if 0 < len(tokenizer.decode([id])) <= MAX_CHARACTERS]


def is_common(word: str, tokenizer: Tokenizer, rare: Collection[int]) -> bool:
    """Whether a word is one the model will know, `rare` being the rare ids.

    It is if it stands in our list of everyday English, or if it is a whole piece of
    the vocabulary but none of the rare ones: pieces below T5's range are its most
    frequent, and longer ones are nearly all words.
    """
    ids = tokenizer.pieces(word)
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
    """Whether 'a TEXT NOUN' holds exactly `ids` between the tokens of 'a' and noun.

    Asked of the prompt as it is and, if there is a cleaner, lower-cased and cleaned.
    """
    treatments = [str] if clean is None else [str, str.lower, clean]
    return all(
        tokenizer.pieces(treat(f"a {text} {class_noun}"))
        == tokenizer.pieces("a") + ids + tokenizer.pieces(treat(class_noun))
        for treat in treatments
    )


def draw(
    tokenizer: Tokenizer,
    id_range: tuple[int, int],
    class_noun: str,
    k: int,
    seed: int,
    clean: Callable[[str], str] | None = clean_caption,
) -> Identifier:
    """Draw an identifier of k rare tokens that survives in its prompt.

    Ids are uniform without replacement. Drawn again is what does not survive, and what
    already means something: common words, and numbers or punctuation.

    Args:
        id_range: lowest and highest id, both included.
        class_noun: the noun after the identifier.
        k: number of tokens, 1 to 3.
        seed: the same seed gives the same identifier.
        clean: the strongest cleaning that prompts will meet, None for none.

    Raises:
        InputError: k is out of range, or the range holds no such identifier.
    """
    if not 1 <= k <= MAX_TOKENS:
        raise InputError(f"The identifier's k is {k}; give 1 to {MAX_TOKENS} tokens.")
    pool = rare_ids(tokenizer, id_range)
    if len(pool) >= k:
        rng = np.random.default_rng(seed)
        for tries in range(1, MAX_TRIES + 1):
            ids = rng.choice(pool, k, replace=False).tolist()
            text = tokenizer.decode(ids)
            fresh = all(
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
    """What is wrong with an identifier that the user chose; [] if nothing is.

    Returns:
        Sentences, each saying why. None of them forbids the identifier.
    """
    text = " ".join(text.split())
    name = f"The identifier {text!r}"
    if not text:
        return [f"{name} is empty: nothing would tell the subject from its class."]
    warnings = []
    rare = set(rare_ids(tokenizer, id_range))
    for word in text.split():
        said = name if word == text else f"{name}: its word {word!r}"
        ids = tokenizer.pieces(word)
        if UNKNOWN in ids:
            warnings.append(
                f"{said} holds characters that the vocabulary lacks; all such"
                " characters read the same."
            )
        elif is_common(word, tokenizer, rare):
            warnings.append(
                f"{said} is a common word: what the model knows of it will mix with"
                " the subject."
            )
        elif not rare.issuperset(ids):
            pieces = " ".join(tokenizer.piece(id) for id in ids)
            warnings.append(
                f"{said} splits into {len(ids)} pieces ({pieces}), which are parts of"
                " many words and bind badly to one subject."
            )
    ids = tokenizer.pieces(text)
    if not warnings and len(ids) > MAX_TOKENS:
        warnings.append(f"{name} is {len(ids)} tokens long; {MAX_TOKENS} are enough.")

    lower = text.lower()
    if clean is not None and text != lower:
        warnings.append(
            f"{name} is not lower case, but prompts are lower-cased before they become"
            f" tokens: {lower!r} is what the model will see."
        )
    if clean is not None:
        cleaned = clean(f"a {text} {class_noun}")
        if cleaned != f"a {lower} {clean(class_noun)}":
            warnings.append(
                f"{name} is destroyed by the caption cleaner: of"
                f" 'a {text} {class_noun}' it leaves {cleaned!r}."
            )
    if not warnings and not survives(text, ids, tokenizer, class_noun, clean):
        warnings.append(f"{name} loses its tokens inside 'a {text} {class_noun}'.")
    return warnings
