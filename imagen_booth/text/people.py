"""Class nouns for persons."""

import re

_PEOPLE = """
person people human humans man men woman women boy boys girl girls child children kid
kids baby babies infant toddler teenager teenagers adult adults lady ladies gentleman
gentlemen guy guys face faces portrait selfie mother father mom mum dad parent parents
son sons daughter daughters brother brothers sister sisters sibling siblings husband
wife spouse partner boyfriend girlfriend grandmother grandfather grandma grandpa uncle
aunt nephew niece cousin friend friends couple family families bride groom neighbour
neighbor colleague student teacher
"""

# The words after one of these describe the noun before it.
_AFTER = re.compile(r"\b(?:with|without|in|on|of|at|from|wearing|holding)\b")


def is_person(noun: str) -> bool:
    """Whether the head of a class noun is a person.

    The head of 'man's watch' is 'watch', of 'baby elephant' 'elephant', and of 'face of
    a woman' 'face', which counts as a person.
    """
    head = _AFTER.split(noun.lower())[0]
    letters = re.findall(r"[a-z]+(?:'s)?", head)
    return bool(letters) and letters[-1] in _PEOPLE.split()
