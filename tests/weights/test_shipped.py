"""Weights as package data: whole, damaged, missing; and what the prior was taught."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from imagen_booth.cascade import by_name
from imagen_booth.errors import InputError
from imagen_booth.toybox import coverage, grammar
from imagen_booth.toybox.captions import parse
from imagen_booth.toybox.coverage import beyond, held_out_captions
from imagen_booth.train_state import flatten
from imagen_booth.weights import load, native, tensor_files

KNOWS = dataclasses.asdict(grammar.WORDS)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package in which the base stage of ``tiny`` ships."""
    folder = epath.Path(tmp_path / "shipped")
    monkeypatch.setattr(load, "shipped_folder", lambda cascade: folder / cascade)
    shapes = flatten(load.shapes(by_name("tiny"), "base"))
    zeros = {
        path: tensor_files.held(np.zeros(leaf.shape, leaf.dtype))
        for path, leaf in shapes.items()
    }
    entry = {"prior": {"knows": KNOWS}}
    native.write(folder / "tiny", "base", zeros, None, entry)
    native.record(folder / "tiny", licence="CC0")
    return folder / "tiny"


def find(name="base"):
    return load.find(by_name("tiny"), name, "shipped")


def test_found_as_it_was_made(shipped):
    found = find()
    assert found is not None
    assert found.licence == "CC0"
    assert load.shipped_vocabulary(by_name("tiny"))["nouns"] == list(
        grammar.WORDS.nouns
    )


def test_the_place_is_in_the_package():
    folder = load.shipped_folder("toybox")
    package = epath.Path(load.__file__).parent
    assert folder == package / "shipped" / "toybox"


def test_missing_and_damaged_files_are_named(shipped):
    with pytest.raises(InputError, match="this cascade ships only base"):
        find("sr256")
    path = shipped / "base.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\1")  # the header still fits
    with pytest.raises(InputError, match="base.safetensors is damaged"):
        find()
    path.unlink()
    with pytest.raises(InputError, match="base.safetensors is missing"):
        find()
    path.write_bytes(whole)
    (shipped / native.MANIFEST).unlink()
    with pytest.raises(InputError, match="manifest.json does not exist"):
        find()
    assert load.shipped_vocabulary(by_name("tiny")) == {}
    shipped.rmtree()
    with pytest.raises(InputError, match="no weights ship for the tiny cascade"):
        find()


def test_what_lies_beyond_the_prior_is_named_with_its_kind():
    prompt = "A sketch of a happy purple [V] clock wearing glasses in the desert"
    assert beyond(f"{prompt} at night seen from the top", KNOWS) == [
        "style sketch",
        "expression happy",
        "colour purple",
        "noun clock",
        "accessory glasses",
        "context desert",
        "light night",
        "view above",
    ]


@pytest.mark.parametrize(
    "text", ["a red [V] dog wearing a hat", "a wise toad of the moon", "", "dog dog"]
)
def test_nothing_is_said_of_what_is_known_or_of_no_kind(text):
    assert beyond(text, KNOWS) == []


def test_of_kinds_that_a_manifest_leaves_out_the_words_of_the_toybox_are_known():
    assert beyond("a cat in the snow", {"nouns": ["dog"]}) == ["noun cat"]
    assert beyond("a cat in the snow", {}) == []
    assert beyond("a cat in the desert at night", {}) == [
        "context desert",
        "light night",
    ]


def test_held_out_captions_ask_for_what_training_never_shows():
    captions = held_out_captions(40)
    assert len(dict(captions)) == 40
    assert captions == held_out_captions(40)
    for text, asked in captions:
        assert parse(text) == asked
        assert asked.colour is not None
        assert grammar.held_out(asked.noun, asked.colour, asked.context)
    assert len({asked.noun for _, asked in captions}) == len(grammar.WORDS.nouns)


def test_every_word_has_a_kind():
    assert KNOWS.keys() <= coverage.KINDS.keys() == coverage.NOT_SHOWN.keys()
    for field, words in coverage.NOT_SHOWN.items():
        for word in (*KNOWS.get(field, ()), *words):
            named = beyond(word, {field: []})
            assert len(named) == 1, word
            assert named[0].endswith(f" {word}")
