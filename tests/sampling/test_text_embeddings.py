"""Embeddings of prompts: the path of the vocabulary, cleaning, several hosts."""

import dataclasses
import shutil

import gcs
import jax
import numpy as np
import pytest
from etils import epath

from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets
from imagen_booth.config.schema import Subject
from imagen_booth.distributed.sharding import make_mesh
from imagen_booth.errors import InputError
from imagen_booth.sampling import text_embeddings as embedding
from imagen_booth.sampling.text_embeddings import embed_prompts, load_tokenizer
from imagen_booth.text.tokenizer import EMBEDDED
from imagen_booth.train_state import flatten
from imagen_booth.training import subject_prompts
from imagen_booth.weights.load import load

TINY, IF_M = by_name("tiny"), by_name("if_m")


@pytest.fixture
def read(tmp_path):
    """Embeddings of prompts by the tiny encoder."""

    def run(prompts, cleaning):
        return embed_prompts(
            job_with("", cleaning),
            TINY,
            prompts,
            cache=epath.Path(tmp_path),
            mesh=make_mesh(),
            dtype=np.dtype(np.float32),
        )

    return run


@pytest.mark.parametrize("place", ["spiece.model", "tokenizer/spiece.model", "x.model"])
def test_the_vocabulary_may_be_a_folder(tmp_path, place):
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(EMBEDDED, tmp_path / place)
    given = tmp_path / place if place == "x.model" else tmp_path
    assert load_tokenizer(IF_M, str(given)).token_ids("a dog")


def test_the_vocabulary_may_be_in_a_bucket():
    pytest.importorskip("gcsfs")
    with gcs.emulator():
        folder = epath.Path(f"gs://{gcs.BUCKET}/vocabulary")
        (folder / "spiece.model").write_bytes(EMBEDDED.read_bytes())
        for path in (folder, folder / "spiece.model"):
            assert load_tokenizer(IF_M, str(path)).token_ids("a dog")
        with pytest.raises(InputError, match="gs://bucket/missing cannot be read"):
            load_tokenizer(IF_M, f"gs://{gcs.BUCKET}/missing")


def test_a_folder_without_a_vocabulary(tmp_path):
    with pytest.raises(InputError, match="config.weights.vocabulary=.* is a folder wi"):
        load_tokenizer(IF_M, str(tmp_path))
    with pytest.raises(InputError, match="config.weights.vocabulary is ''"):
        load_tokenizer(IF_M, "")


@pytest.mark.parametrize(
    ("cleaning", "same_as"),
    [("", "a dog #12 (red)"), ("simple", "a dog #12 (red)"), ("caption", "a dog red")],
)
def test_prompts_are_cleaned_as_the_job_says(read, cleaning, same_as):
    prompt = " A Dog #12 (red) "
    found, about = read([prompt], cleaning)
    plain, _ = read([prompt, same_as], "none")
    np.testing.assert_array_equal(found[prompt].text, plain[same_as].text)
    assert plain[prompt].mask.sum() != plain[same_as].mask.sum()
    assert about["cleaning"] == (cleaning or "simple")


def test_an_unknown_cleaning(read):
    with pytest.raises(InputError, match="config.cleaning='hard'"):
        read([], "hard")


def test_prompts_beyond_the_encoder_are_refused_with_their_lengths(read, tmp_path):
    fits, long = "dog " * 46, "a cat " + "dog " * 60
    found, _ = read([fits], "")
    assert found[fits].mask.sum() == 47
    before = sorted(tmp_path.rglob("*.npy"))
    with pytest.raises(
        InputError, match="1 prompts are too long(.|\n)*63 tokens: a ca"
    ):
        read([fits, long], "")
    assert sorted(tmp_path.rglob("*.npy")) == before


@pytest.mark.parametrize("left", [0, 20, 200])
def test_a_damaged_embedding_is_made_again(read, tmp_path, left):
    first, _ = read(["a dog"], "")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    for path, data in kept.items():
        path.write_bytes(data[:left])
    second, _ = read(["a dog"], "")
    np.testing.assert_array_equal(second["a dog"].text, first["a dog"].text)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npy")} == kept


def test_process_0_alone_decides_what_is_encoded(read, tmp_path, monkeypatch):
    """All hosts encode what it lacks, and read nothing of that back from disk."""
    first, _ = read(["a dog"], "")
    for path in tmp_path.rglob("*.npy"):
        path.unlink()
    decided = []

    def decide(look):
        decided.append(look())
        return [0, 1]  # what process 0 finds missing

    monkeypatch.setattr(embedding.processes, "decide", decide)
    monkeypatch.setattr(embedding.processes, "is_first", lambda: False)
    second, _ = read(["a dog"], "")
    assert decided == [[0, 1]]
    assert not list(tmp_path.rglob("*.npy"))  # another process writes them
    np.testing.assert_array_equal(second["a dog"].text, first["a dog"].text)


def job_with(identifier, cleaning):
    job = build.to_job(presets.dreambooth("tiny"))
    subject = dataclasses.replace(job.subject, class_noun="dog", identifier=identifier)
    return dataclasses.replace(job, subject=subject, cleaning=cleaning)


@pytest.mark.parametrize(
    ("cleaning", "lowered", "destroyed"),
    [("none", False, False), ("simple", True, False), ("caption", True, True)],
)
def test_identifiers_are_checked_as_prompts_are_cleaned(cleaning, lowered, destroyed):
    pieces = load_tokenizer(TINY, "shipped")
    job = job_with("Xy12z", cleaning)
    _, ids, warnings = subject_prompts.choose_identifier(job, TINY, pieces)
    told = " ".join(warnings)
    assert ("is not lower case" in told) == lowered
    assert ("destroyed by the caption cleaner" in told) == destroyed
    read = {"none": "Xy12z", "simple": "xy12z", "caption": ""}[cleaning]
    assert list(ids) == pieces.token_ids(read)


@pytest.mark.parametrize("cleaning", ["", "none", "simple", "caption"])
def test_drawn_identifiers_have_nothing_wrong(cleaning):
    pieces = load_tokenizer(TINY, "shipped")
    name, ids, _ = subject_prompts.choose_identifier(
        job_with("", cleaning), TINY, pieces
    )
    assert subject_prompts.choose_identifier(
        job_with(name, cleaning), TINY, pieces
    ) == (
        name,
        ids,
        (),
    )


@pytest.mark.parametrize("cleaning", ["", "simple", "caption"])
def test_recipes_name_a_cleaning_that_is_not_the_cascades(tmp_path, cleaning):
    words = subject_prompts.prepare_prompts(
        job_with("", cleaning),
        TINY,
        epath.Path(tmp_path),
        make_mesh(),
        np.dtype(np.float32),
    )
    own = words.encoder["fingerprint"]
    assert words.reading == (f"{own} caption" if cleaning == "caption" else own)
    assert words.encoder["cleaning"] == (cleaning or "simple")


def test_the_encoder_is_cut_over_the_devices_and_then_gone(tmp_path, monkeypatch):
    """As T5-XXL is: no device holds a large array whole, and none outlives the call."""
    wide = dataclasses.replace(TINY.text.encoder, width=256, hidden=1024)
    cascade = TINY.having(wide)
    before = {id(array) for array in jax.live_arrays()}
    seen, real = [], embedding.load

    def load(*about, **more):
        part = real(*about, **more)
        for leaf in jax.tree.leaves(part.params):
            seen.append(leaf.nbytes)
            if leaf.nbytes > 2**20 - 1:
                sizes = {shard.data.nbytes for shard in leaf.addressable_shards}
                assert sizes == {leaf.nbytes // 4}, leaf.shape
        return part

    monkeypatch.setattr(embedding, "load", load)
    found, _ = embed_prompts(
        job_with("", ""),
        cascade,
        ["a dog"],
        cache=epath.Path(tmp_path),
        mesh=make_mesh(1, 4),
        dtype=np.dtype(np.float32),
    )
    assert found["a dog"].text.shape == (TINY.text.length, 256)
    assert sum(size > 2**20 - 1 for size in seen) >= 5  # it was large
    left = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.nbytes for array in left) < 2**18, [a.shape for a in left]


def test_an_encoder_that_is_only_read_is_kept_small():
    """Kernels in bfloat16 from the start give what casting them on each use gives."""
    mesh, half = make_mesh(), np.dtype("bfloat16")
    whole = load(TINY, "text", "random", mesh, half)
    small = load(TINY, "text", "random", mesh, half, train=False)
    kinds = {path: leaf.dtype for path, leaf in flatten(small.params).items()}
    for path, kind in kinds.items():
        cast = path.endswith(("kernel", "token_embedder/embedding"))
        assert kind == (half if cast else np.float32), path
    ids = np.arange(48)[None] % 7
    ids = ids.astype(np.int32)
    np.testing.assert_array_equal(
        small.apply(small.params, ids, ids > 0), whole.apply(whole.params, ids, ids > 0)
    )


def both(first, second, prompts=("a [V1] [N1] beside a [V2] [N2]",)):
    """A job of a dog and a cat with these identifiers."""
    job = job_with(first, "")
    cat = Subject(photos="cats", class_noun="cat", identifier=second)
    pictures = dataclasses.replace(job.pictures, prompts=prompts)
    return dataclasses.replace(job, second=cat, pictures=pictures)


def test_two_subjects_have_words_of_their_own():
    alone = subject_prompts.choose_prompts(job_with("", ""), TINY)
    texts = subject_prompts.choose_prompts(both("", ""), TINY)
    assert (texts.identifier, texts.ids) == (alone.identifier, alone.ids)
    assert texts.second is not None
    assert not set(texts.second.ids) & set(texts.ids)
    name, other = texts.identifier, texts.second.identifier
    assert texts.second.instance_prompt == f"a {other} cat"
    assert texts.second.class_prompt == "a cat"
    assert texts.pictures == (f"a {name} dog beside a {other} cat",)
    assert texts.plain == ("a dog beside a cat",)
    assert set(texts.every) == {
        *texts.pictures,
        *texts.plain,
        f"a {name} dog",
        f"a {other} cat",
        "a dog",
        "a cat",
    }
    assert texts.warnings == ()
    [warning] = subject_prompts.choose_prompts(both("", "", ("a [V]",)), TINY).warnings
    assert "has [V2]" in warning


def test_identifiers_that_share_a_token_are_refused():
    name = subject_prompts.choose_prompts(job_with("", ""), TINY).identifier
    for first, second in ((name, name), ("", name), (f"{name} dog", f"red {name}")):
        with pytest.raises(InputError, match="config.second.identifier=.*shares the"):
            subject_prompts.choose_prompts(both(first, second), TINY)
