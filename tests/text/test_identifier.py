"""Rare-token identifiers, drawn and checked, on the embedded vocabulary and T5's."""

import pytest
from paths import SHARED

from imagen_booth.errors import InputError
from imagen_booth.text import identifier
from imagen_booth.text.caption_cleaning import clean_caption, simple_clean
from imagen_booth.text.tokenizer import EMBEDDED, EMBEDDED_RARE, T5_RARE, Tokenizer

T5 = SHARED / "data/t5/spiece.model"


@pytest.fixture(scope="module", params=["embedded", "t5"])
def vocabulary(request):
    if request.param == "embedded":
        return Tokenizer(EMBEDDED, 16), EMBEDDED_RARE
    if not T5.exists():
        pytest.skip("no T5 vocabulary in ../shared/data/t5")
    return Tokenizer(T5, 77), T5_RARE


@pytest.fixture(scope="module")
def t5():
    if not T5.exists():
        pytest.skip("no T5 vocabulary in ../shared/data/t5")
    return Tokenizer(T5, 77)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_drawn_identifier_is_rare_short_and_survives(vocabulary, k):
    tokenizer, (lo, hi) = vocabulary
    for seed in range(25):
        drawn = identifier.draw(tokenizer, (lo, hi), "dog", k, seed)
        assert len(drawn.ids) == len(set(drawn.ids)) == drawn.k == k
        for id in drawn.ids:
            assert lo <= id <= hi
            assert len(tokenizer.piece(id).removeprefix("\u2581")) <= 3
        prompt = f"a {drawn.text} dog"
        for treated in (prompt, prompt.lower(), clean_caption(prompt)):
            ids = tokenizer.token_ids(treated)
            kept = ids[len(tokenizer.token_ids("a")) : -len(tokenizer.token_ids("dog"))]
            assert tuple(kept) == drawn.ids
        assert identifier.check(drawn.text, tokenizer, (lo, hi), "dog") == []


def test_the_seed_decides(vocabulary):
    tokenizer, rare = vocabulary
    first = [identifier.draw(tokenizer, rare, "cat", 2, seed) for seed in range(12)]
    again = [identifier.draw(tokenizer, rare, "cat", 2, seed) for seed in range(12)]
    assert first == again
    assert len({drawn.text for drawn in first}) > 8


@pytest.mark.parametrize("k", [1, 3])
def test_two_drawn_identifiers_share_no_token(vocabulary, k):
    tokenizer, rare = vocabulary
    for seed in range(12):
        first = identifier.draw(tokenizer, rare, "dog", k, seed)
        second = identifier.draw(tokenizer, rare, "cat", k, seed, taken=first.ids)
        assert not set(first.ids) & set(second.ids)
        assert identifier.check(second.text, tokenizer, rare, "cat") == []


def test_every_rare_piece_can_be_drawn():
    tokenizer = Tokenizer(EMBEDDED, 16)
    drawn = {
        identifier.draw(tokenizer, EMBEDDED_RARE, "dog", 1, seed).ids[0]
        for seed in range(2000)
    }
    assert drawn == set(range(EMBEDDED_RARE[0], EMBEDDED_RARE[1] + 1))


def test_counts_on_the_vocabulary_of_t5(t5):
    """Those of the facts about this range, by the test's own counting."""

    def alone_in(prompt, id):
        return t5.token_ids(prompt) == t5.token_ids("a") + [id] + t5.token_ids("dog")

    short = identifier.rare_ids(t5, T5_RARE)
    assert len(short) == 1180
    assert sum(t5.piece(id).startswith("\u2581") for id in short) == 544
    kept = [id for id in short if alone_in(f"a {t5.decode([id])} dog", id)]
    assert len(kept) == 542
    lower = [id for id in kept if alone_in(f"a {t5.decode([id])} dog".lower(), id)]
    assert len(lower) == 217
    texts = [t5.decode([id]) for id in lower]
    assert sum(text.isascii() and text.isalpha() for text in texts) == 136


def test_what_does_not_survive_is_drawn_again(t5):
    drawn = [identifier.draw(t5, T5_RARE, "dog", 3, seed) for seed in range(25)]
    assert max(each.tries for each in drawn) > 1
    assert all(word.isalpha() for each in drawn for word in each.text.split())


def test_survival_is_asked_of_each_treatment(t5):
    ids = t5.token_ids("Abs")
    assert identifier.survives("Abs", ids, t5, "dog", None)
    assert not identifier.survives("Abs", ids, t5, "dog", simple_clean)
    ids = t5.token_ids("a1b")
    assert identifier.survives("a1b", ids, t5, "dog", simple_clean)
    assert not identifier.survives("a1b", ids, t5, "dog", clean_caption)
    assert not identifier.survives("sky", t5.token_ids("sea"), t5, "dog", None)


def test_the_class_noun_may_be_cleaned_too(vocabulary):
    tokenizer, rare = vocabulary
    drawn = identifier.draw(tokenizer, rare, "Stuffed Animal", 1, 0)
    assert identifier.check(drawn.text, tokenizer, rare, "Stuffed Animal") == []


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("sks", ["splits into 4 pieces (\u2581 s k s)"]),
        ("xxy5syt00", ["pieces (\u2581 x", "destroyed by the caption cleaner"]),
        ("blue", ["is a common word"]),
        ("egg", ["is a common word"]),
        ("Olis", ["splits into", "is not lower case"]),
        ("red hat", ["its word 'red' is a common", "its word 'hat' is a common"]),
        ("", ["is empty"]),
        ("  ", ["is empty"]),
        ("sks*", ["splits into", "destroyed by the caption cleaner"]),
        (
            "\u72d7",
            ["characters that the vocabulary lacks", "destroyed by the caption"],
        ),
    ],
)
def test_a_bad_identifier_is_told_why(vocabulary, text, reasons):
    tokenizer, rare = vocabulary
    warnings = identifier.check(text, tokenizer, rare, "dog")
    assert len(warnings) == len(reasons)
    for warning, reason in zip(warnings, reasons, strict=True):
        assert reason in warning


def test_cleaning_is_checked_as_it_will_be_used(t5):
    def said(clean):
        return " ".join(identifier.check("xxy5syt00", t5, T5_RARE, "dog", clean))

    assert "becomes 'a dog'" in said(clean_caption)
    assert "cleaner" not in said(simple_clean)
    assert "cleaner" not in said(None)
    for clean, lowers in ((clean_caption, True), (simple_clean, True), (None, False)):
        warnings = identifier.check("Abs", t5, T5_RARE, "dog", clean)
        assert any("lower-cased" in each for each in warnings) == lowers


def test_too_many_rare_pieces():
    tokenizer = Tokenizer(EMBEDDED, 16)
    assert identifier.check("zuj qix xoq", tokenizer, EMBEDDED_RARE, "dog") == []
    (warning,) = identifier.check("zuj qix xoq vij", tokenizer, EMBEDDED_RARE, "dog")
    assert "4 tokens long; 3 are enough" in warning


def test_impossible_draws_are_refused():
    tokenizer = Tokenizer(EMBEDDED, 16)
    with pytest.raises(InputError, match="range is 1848 to 5000; .* ids 0 to 2047"):
        identifier.draw(tokenizer, (1848, 5000), "dog", 1, 0)
    with pytest.raises(InputError, match="range 1900 to 1901 gave no identifier of 3"):
        identifier.draw(tokenizer, (1900, 1901), "dog", 3, 0)
    common = tokenizer.token_ids("dog")[0]
    with pytest.raises(InputError, match="gave no identifier of 1 tokens"):
        identifier.draw(tokenizer, (common, common), "dog", 1, 0)
