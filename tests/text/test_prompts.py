"""Prompts and the caption cleaner."""

import pytest

from imagen_booth.errors import InputError
from imagen_booth.text import caption_cleaning, prompts


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("dog", "a"),
        ("owl", "an"),
        ("umbrella", "an"),
        ("unicorn", "a"),
        ("uninteresting cat", "an"),
        ("used car", "a"),
        ("one-eyed cat", "a"),
        ("hourglass", "an"),
        ("house", "a"),
        ("Owl", "an"),
    ],
)
def test_article(word, expected):
    assert prompts.article(word) == expected


def test_prompts_of_class_and_instance():
    assert prompts.class_prompt("dog") == "a dog"
    assert prompts.class_prompt("owl") == "an owl"
    assert prompts.instance_prompt("zuj", "dog") == "a zuj dog"
    assert prompts.instance_prompt("emp", "dog") == "an emp dog"


@pytest.mark.parametrize(
    ("template", "with_identifier", "without"),
    [
        ("a [V] dog on the beach", "a zuj dog on the beach", "a dog on the beach"),
        ("a [V] [N]", "a zuj owl", "an owl"),
        ("An [v] [n]", "A zuj owl", "An owl"),
        ("a painting of a [V] [N]", "a painting of a zuj owl", "a painting of an owl"),
        ("a red [V] [N]", "a red zuj owl", "a red owl"),
        ("two [N]s", "two owls", "two owls"),
        ("a mountain", "a mountain", "a mountain"),
    ],
)
def test_fill(template, with_identifier, without):
    assert prompts.fill(template, "zuj", "owl") == with_identifier
    assert prompts.fill(template, "", "owl") == without


def test_fill_names_a_place_it_does_not_know():
    with pytest.raises(InputError, match=r"holds \[class\]; write \[V\]"):
        prompts.fill("a [V] [class]", "zuj", "dog")


BESIDE = "a [V1] [N1] beside a [V2] [N2]"


@pytest.mark.parametrize(
    ("template", "with_identifiers", "without"),
    [
        (BESIDE, "a zuj dog beside an emp owl", "a dog beside an owl"),
        ("a [V] [N] and a [v2] cat", "a zuj dog and an emp cat", "a dog and a cat"),
        ("an [N2]", "an owl", "an owl"),
    ],
)
def test_fill_names_two_subjects(template, with_identifiers, without):
    second = prompts.Naming("emp", "owl")
    assert prompts.fill(template, "zuj", "dog", second=second) == with_identifiers
    plain = second._replace(identifier="")
    assert prompts.fill(template, "", "dog", second=plain) == without


def test_the_first_of_two_is_the_only_one_of_one():
    for old, new in (("a [V] [N]", "a [V1] [N1]"), ("the [v]", "the [v1]")):
        for alone in (False, True):
            assert prompts.fill(old, "zuj", "dog", alone=alone) == prompts.fill(
                new, "zuj", "dog", alone=alone
            )
    with pytest.raises(InputError, match=r"holds \[V2\]; .* config.second \[V2\]"):
        prompts.fill(BESIDE, "zuj", "dog")


def test_simple_clean_keeps_all_but_case_and_ends():
    assert caption_cleaning.simple_clean("  A [V]  Dog! ") == "a [v]  dog!"


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A  Dog\non the BEACH ", "a dog on the beach"),
        ("dog%20on+the+beach", "dog on the beach"),
        ("<person> with a <b>red</b> hat", "person with a red hat"),
        ("dog<script>evil()</script> cat", "dog cat"),
        ("see www.pets.com/dogs/7 now", "see now"),
        ("by @some_body, a dog", "by , a dog"),
        ("a 狗 dog", "a dog"),
        ("a “dog” — it’s nice", 'a "dog" - it\'s nice'),
        ("host 10.0.0.1 dog", "host dog"),
        ("dog #12 and #12345 of 1234567", "dog and of"),
        ("dog_photo.JPG of a dog", "of a dog"),
        ("dog.... cat", "dog cat"),
        ("a (small) [dog] {*} ©", "a small dog"),
        ("a-b-c-d-e", "a b c d e"),
        ("a-b-c", "a-b-c"),
        ("2 &lt; 3", "2 < 3"),
        ("shoe jc6640vc", "shoe"),
        ("free shipping dog poster 30x40", "dog poster"),
        ("a dog, click on it, png images page 3", "a dog,"),
        ("cats,dogs", "cats, dogs"),
        ('"a dog"', "a dog"),
        ("", ""),
    ],
)
def test_cleaner_drops_what_the_web_adds(caption, cleaned):
    assert caption_cleaning.clean_caption(caption) == cleaned


def test_the_second_pass_goes_on_from_the_first():
    assert caption_cleaning.clean_once("-_dog") == "_dog"
    assert caption_cleaning.clean_caption("-_dog") == "dog"


def test_cleaner_without_ftfy_leaves_broken_encodings(monkeypatch):
    monkeypatch.setattr(caption_cleaning, "ftfy", None)
    assert caption_cleaning.clean_once("cafe\u0301 dog") == "caf\u00e9 dog"
    assert caption_cleaning.clean_once("sch\u00c3\u00b6n") == "sch\u00e3\u00b6n"


def test_cleanings_by_name():
    caption = " A Dog.jpg  photo "
    cleaned = {
        name: caption if clean is None else clean(caption)
        for name in caption_cleaning.CLEANERS
        for clean in [caption_cleaning.cleaner(name)]
    }
    assert cleaned == {
        "none": " A Dog.jpg  photo ",
        "simple": "a dog.jpg  photo",
        "caption": "a photo",
    }
    with pytest.raises(InputError, match="config.cleaning='html' .*none, simple, capt"):
        caption_cleaning.cleaner("html")


@pytest.mark.parametrize("prompt", ["a zuj dog", "a kgfil cat in the snow"])
def test_cleaner_keeps_plain_prompts(prompt):
    assert caption_cleaning.clean_caption(prompt) == prompt
