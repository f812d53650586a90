"""The tokenizer, the embedded vocabulary, and T5's where it is at hand."""

import re
import string

import numpy as np
import pytest
from paths import SHARED

from imagen_booth.errors import InputError
from imagen_booth.models.t5 import T5_SIZES
from imagen_booth.text.tokenizer import EMBEDDED, EMBEDDED_RARE, Tokenizer
from imagen_booth.text.words import rare, words

T5 = SHARED / "data/t5/spiece.model"


@pytest.fixture(scope="module")
def embedded():
    return Tokenizer(EMBEDDED, 16)


def test_encode_ends_pads_and_cuts():
    tokenizer = Tokenizer(EMBEDDED, 5)
    a, dog, the = (tokenizer.token_ids(word)[0] for word in ("a", "dog", "the"))
    tokens = tokenizer.encode(["a dog", "", "a dog the dog", "a dog the dog a"])
    expected = [
        [a, dog, 1, 0, 0],
        [1, 0, 0, 0, 0],
        [a, dog, the, dog, 1],
        [a, dog, the, dog, 1],
    ]
    np.testing.assert_array_equal(tokens, expected)
    assert tokens.dtype == np.int32
    assert tokenizer.encode([]).shape == (0, 5)


def test_decode_stops_at_the_end(embedded):
    row = embedded.encode(["a red dog"])[0]
    assert embedded.decode(row) == "a red dog"
    longer = row.tolist() + embedded.token_ids("cat")
    assert embedded.decode(longer) == "a red dog"


def test_length_must_hold_the_end():
    assert Tokenizer(EMBEDDED, 1).encode(["a dog"]).tolist() == [[1]]
    with pytest.raises(InputError, match="length is 0"):
        Tokenizer(EMBEDDED, 0)


def test_bad_vocabularies_are_named(tmp_path):
    with pytest.raises(InputError, match="missing.model cannot be read: No such file"):
        Tokenizer(tmp_path / "missing.model", 8)
    broken = tmp_path / "broken.model"
    for content in (b"", b"not a model", EMBEDDED.read_bytes()[:-7]):
        broken.write_bytes(content)
        with pytest.raises(InputError, match="broken.model is not a SentencePiece"):
            Tokenizer(broken, 8)


def test_special_pieces_must_be_those_of_t5():
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto
    model = proto.FromString(EMBEDDED.read_bytes())
    model.pieces[0].piece, model.pieces[1].piece = "</s>", "<pad>"
    with pytest.raises(InputError, match=r"at \(1, 0, 2\)"):
        Tokenizer(model.SerializeToString(), 8)


def test_bytes_and_path_are_the_same(embedded):
    copy = Tokenizer(EMBEDDED.read_bytes(), 16)
    assert copy.token_ids("a shiny robot") == embedded.token_ids("a shiny robot")


def test_embedding_has_a_row_for_each_piece(embedded):
    assert embedded.vocab_size == T5_SIZES["toybox"].vocab == T5_SIZES["tiny"].vocab


def test_listed_words_are_whole_and_listed_once(embedded):
    assert len(words()) == len(set(words()))
    split = [word for word in words() if len(embedded.token_ids(f"a {word}")) != 2]
    assert not split


def test_printable_text_has_an_encoding_that_can_be_undone(embedded):
    spaced = " ".join(string.ascii_letters + string.digits + string.punctuation)
    for text in (spaced, string.printable.strip(), "Hello, World! {42%} ~volumetric~"):
        ids = embedded.token_ids(text)
        assert 2 not in ids
        assert embedded.decode(ids) == text


def test_rare_pieces_are_one_token_in_context(embedded):
    lo, hi = EMBEDDED_RARE
    assert (hi - lo + 1, hi) == (len(rare()), embedded.vocab_size - 1)
    assert len(rare()) >= 200
    for id, piece in zip(range(lo, hi + 1), rare(), strict=True):
        assert re.fullmatch("[a-z]{1,3}", piece)
        assert embedded.piece(id) == "\u2581" + piece
        for prompt in ("a {} dog", "a red {} dog, painting", "{}", "the {}'s hat"):
            with_rare = embedded.token_ids(prompt.format(piece))
            assert with_rare.count(id) == 1
            with_word = embedded.token_ids(prompt.format("dog"))
            assert len(with_rare) == len(with_word)


def test_rare_pieces_are_in_no_english_text(embedded):
    topics = pytest.importorskip("pydoc_data.topics").topics
    text = " ".join([*topics.values(), *words()]).lower()
    english = set(re.findall(r"(?<![\w'.])[a-z]{2,}(?![\w'.])", text))
    assert len(english) > 3000
    found = {w for w in english if max(embedded.token_ids(w)) >= EMBEDDED_RARE[0]}
    assert not found


def test_embedded_vocabulary_is_what_its_builder_makes(embedded):
    vocabulary = pytest.importorskip("imagen_booth.text.vocabulary")
    built = Tokenizer(vocabulary.build(), 16)
    pieces = [
        [tokenizer.piece(id) for id in range(2048)] for tokenizer in (built, embedded)
    ]
    assert pieces[0] == pieces[1]


@pytest.mark.skipif(not T5.exists(), reason="no T5 vocabulary in ../shared/data/t5")
def test_t5_vocabulary():
    tokenizer = Tokenizer(T5, 77)
    assert tokenizer.vocab_size == 32000
    for text, ids in (
        ("a dog", [3, 9, 1782]),
        ("a photo of sks dog", [3, 9, 1202, 13, 3, 7, 157, 7, 1782]),
        ("A [V] dog", [71, 784, 553, 908, 1782]),
        ("", []),
    ):
        assert tokenizer.token_ids(text) == ids
        row = tokenizer.encode([text])[0]
        assert row.tolist() == ids + [1] + [0] * (76 - len(ids))
    assert 2 in tokenizer.token_ids("a \u72d7 dog")
