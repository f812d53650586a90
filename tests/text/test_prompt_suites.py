"""Suites of prompts against the published counts, and nouns that mean a person."""

import collections
import re

import pytest

from imagen_booth.config.schema import Subject
from imagen_booth.errors import InputError
from imagen_booth.text import people, prompts
from imagen_booth.text.prompt_suites import DREAMBENCH_CLASSES, SUITES, dreambench
from imagen_booth.text.tokenizer import EMBEDDED, UNKNOWN, Tokenizer
from imagen_booth.training.subject_photos import check_class_noun

FAMILIES = (
    "recontextualisation",
    "art",
    "expression",
    "view",
    "accessories",
    "properties",
)


@pytest.mark.parametrize("name", SUITES)
def test_each_prompt_names_the_subject_once(name):
    texts = [prompt for _, prompt in SUITES[name]]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert re.findall(r"\[.*?\]|\{|\}", text) == ["[V]", "[N]"]


@pytest.mark.parametrize("name", SUITES)
def test_the_embedded_vocabulary_reads_all(name):
    pieces = Tokenizer(EMBEDDED, 48)
    for _, prompt in SUITES[name]:
        ids = pieces.token_ids(prompts.fill(prompt, "zaf", "dog").lower())
        assert UNKNOWN not in ids
        assert len(ids) < pieces.length


def test_dreambench_has_the_published_counts():
    def counts(name):
        return collections.Counter(family for family, _ in SUITES[name])

    assert counts("dreambench_objects") == {"recontextualisation": 20, "properties": 5}
    assert counts("dreambench_living") == {
        "recontextualisation": 10,
        "accessories": 10,
        "properties": 5,
    }
    objects, living = (SUITES[f"dreambench_{kind}"] for kind in ("objects", "living"))
    assert len(set(objects) & set(living)) == 15
    assert len(DREAMBENCH_CLASSES) == 30
    suites = collections.Counter(map(dreambench, DREAMBENCH_CLASSES.values()))
    assert suites == {"dreambench_objects": 21, "dreambench_living": 9}


def test_the_applications_are_six_families():
    assert tuple(dict.fromkeys(family for family, _ in SUITES["applications"])) == (
        FAMILIES
    )
    whole = [each for family in FAMILIES for each in SUITES[family]]
    assert list(SUITES["applications"]) == whole
    crosses = [text for _, text in SUITES["properties"] if "cross" in text]
    assert "a cross of a [V] [N] and a panda" in crosses


@pytest.mark.parametrize(
    "noun", ["person", "Young Woman", "man with a hat", "face of a child", " boy "]
)
def test_a_person_asks_for_consent(noun):
    assert people.is_person(noun)
    with pytest.raises(InputError, match=r"--config\.subject\.consent=true"):
        check_class_noun(Subject(class_noun=noun))
    check_class_noun(Subject(class_noun=noun, consent=True))


@pytest.mark.parametrize(
    "noun",
    ["dog", "man's watch", "baby elephant", "toy of a boy", "mannequin", "", "犬"],
)
def test_other_nouns_do_not(noun):
    assert not people.is_person(noun)
