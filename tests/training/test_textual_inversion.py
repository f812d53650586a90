"""Textual Inversion: rows of one table learn, by the right gradient, and no more."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from interruptions import signal_at
from photo_files import blurred

from imagen_booth import dreambooth, train_state
from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets
from imagen_booth.config.schema import Job, TextualInversion
from imagen_booth.data import image_files
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError, Stopped
from imagen_booth.rundir import checkpoints
from imagen_booth.sampling import batch_job, finished_run
from imagen_booth.sampling.text_embeddings import (
    LearnedEmbedding,
    embed_prompts,
    load_tokenizer,
    replace_rows,
)
from imagen_booth.text.prompts import fill
from imagen_booth.training import (
    finetune,
    subject_prompts,
    textual_inversion,
    train_step,
)
from imagen_booth.training.subject_prompts import SubjectPrompts
from imagen_booth.training.textual_inversion import InversionTokens
from imagen_booth.weights import export
from imagen_booth.weights.load import load

TINY = by_name("tiny")
F32 = np.dtype(np.float32)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """Two vectors, weight decay, base previews and pictures at 64 px alone."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(2):
        photo = blurred(np.random.default_rng(index), 6, (90, 80))
        photo.save(folder / f"{index}.png")
    settings = presets.textual_inversion("tiny")
    settings.subject.photos = str(folder)
    settings.subject.class_noun = "dog"
    settings.subject.tokens = 2
    settings.text.optim.name = "adamw"
    settings.text.optim.weight_decay = 0.5
    settings.pictures.prompts = ("a [V] [N]",)
    return build.to_job(settings)


@pytest.fixture(scope="module")
def finished(job, tmp_path_factory) -> epath.Path:
    work = epath.Path(tmp_path_factory.mktemp("straight")) / "run"
    dreambooth.run(job, work, frozenset())
    return work


def vectors(work: epath.Path) -> np.ndarray:
    return checkpoints.read_params(work / "text")[0]["rows"]["vectors"]


@pytest.mark.long
def test_only_the_rows_of_the_identifier_change(job, finished, tmp_path):
    """Bit for bit, weight decay and all; U-Nets are not even saved."""
    manifest = json.loads((finished / "manifest.json").read_text())
    ids = manifest["subject"]["identifier_ids"]
    assert len(ids) == 2
    to = epath.Path(tmp_path)
    export.write_native(to, export.export_run(finished, []), None)
    assert [path.name for path in to.glob("*.safetensors")] == ["text.safetensors"]
    mesh = sharding.make_mesh()
    before = train_state.flatten(load(TINY, "text", "random", mesh, F32).params)
    after = train_state.flatten(load(TINY, "text", str(to), mesh, F32).params)
    assert before.keys() == after.keys()
    table = "token_embedder/embedding"
    changed = np.any(np.asarray(before[table]) != np.asarray(after[table]), axis=1)
    assert np.flatnonzero(changed).tolist() == sorted(ids)
    np.testing.assert_array_equal(np.asarray(after[table])[ids], vectors(finished))
    for name in before.keys() - {table}:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    about = json.loads((to / "manifest.json").read_text())["parts"]["text"]
    assert about["learned"] == {
        "identifier": manifest["subject"]["identifier"],
        "ids": ids,
    }
    assert {part.name for part in finished.iterdir()}.isdisjoint({"base", "sr256"})
    # What a checkpoint holds is a few rows and their moments, no network.
    newest = max((finished / "text").glob("[0-9]*"), key=lambda path: int(path.name))
    size = sum(file.stat().length for file in newest.glob("*/*") if file.is_file())
    assert size < 100_000 < TINY.text.encoder.vocab * TINY.text.encoder.width * 4


@pytest.mark.long
def test_rows_start_from_the_mean_of_the_initializer(job, monkeypatch, tmp_path):
    seen = {}

    def start(params, *rest):
        seen.update(params["rows"])
        raise Stopped("seen")

    monkeypatch.setattr(finetune, "initial_state", start)
    text = dataclasses.replace(job.text, initializer="dog cat")
    with pytest.raises(Stopped):
        dreambooth.run(
            dataclasses.replace(job, text=text),
            epath.Path(tmp_path) / "run",
            frozenset(),
        )
    params = load(TINY, "text", "random", sharding.make_mesh(), F32).params
    table = np.asarray(params["token_embedder"]["embedding"])
    pieces = load_tokenizer(TINY, "shipped")
    [dog], [cat] = pieces.token_ids("dog"), pieces.token_ids("cat")
    np.testing.assert_allclose(
        seen["vectors"], [(table[dog] + table[cat]) / 2] * 2, rtol=1e-6
    )


@pytest.mark.long
def test_the_gradient_is_that_of_finite_differences(key):
    """Through encoder and U-Net, at the identifier's rows of the whole table."""
    mesh = sharding.make_mesh()
    parts = {name: load(TINY, name, "random", mesh, F32) for name in ("text", "base")}
    # The last layer of random weights is zero, and would pass no gradient.
    unet = jax.tree.map(
        lambda leaf: leaf + 0.02 * jax.random.normal(key, leaf.shape),
        parts["base"].params,
    )
    ids = (2018, 1900)
    tokens = np.zeros((2, TINY.text.length), np.int32)
    tokens[:, :5] = [[7, 2018, 1900, 9, 1], [5, 2018, 1900, 1, 0]]
    rows = parts["text"].params["token_embedder"]["embedding"][np.array(ids)]
    batch_ = {
        "image": jax.random.uniform(key, (2, 64, 64, 3), minval=-1.0),
        "tokens": jnp.asarray(tokens),
        "weight": jnp.array([0.5, 0.5]),
        "group": jnp.zeros(2, jnp.int32),
    }

    def loss(rows):
        text = replace_rows(parts["text"].params, ids, rows)
        return train_step.batch_loss(
            TINY.stage("base"),
            parts["base"].apply,
            parts["text"].apply,
            train_step.LossConfig(),
            {"unet": unet, "text": text},
            batch_,
            key,
        )[0]

    value = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(rows)
    assert float(optax.tree.norm(gradient)) > 0
    direction = gradient / jnp.linalg.norm(gradient)
    step = 0.05
    apart = (value(rows + step * direction) - value(rows - step * direction)) / (
        2 * step
    )
    assert float(apart) == pytest.approx(float(jnp.linalg.norm(gradient)), rel=0.02)


@pytest.mark.long
def test_stopped_and_continued_is_bit_identical(job, finished, tmp_path, monkeypatch):
    work = epath.Path(tmp_path) / "run"
    left = signal_at(monkeypatch, [("text", step) for step in (1, 2, 3)])
    for _ in range(3):
        with pytest.raises(Stopped, match="text: saved at step"):
            dreambooth.run(job, work, frozenset())
    assert not left
    dreambooth.run(job, work, frozenset())
    np.testing.assert_array_equal(vectors(work), vectors(finished))
    for size in (64, 256):
        name = epath.Path("samples") / "final" / str(size) / "00_0.png"
        np.testing.assert_array_equal(
            image_files.load_png(work / name), image_files.load_png(finished / name)
        )
    steps_shown = [path.name for path in (work / "samples/previews/text").iterdir()]
    assert sorted(steps_shown) == [f"step_00000{step}.png" for step in (0, 2, 4)]


@pytest.mark.long
def test_a_run_is_sampled_with_what_was_learnt(finished, tmp_path):
    """One prompt or a job of them: the run's own picture again; sr256 reads "a dog"."""
    one = batch_job.sample_prompts(
        finished, ["a [V] [N]"], "one", seeds=1, resolution=256
    )
    file = tmp_path / "prompts.txt"
    file.write_text("a [V] [N]")
    many = batch_job.run_batch(finished, str(file), "many", seeds=1, resolution=256)
    [line] = (many / "index.jsonl").read_text().splitlines()
    for drawn in json.loads(line)["files"]:
        size = drawn.split("/")[0]
        own = image_files.load_png(finished / "samples" / "final" / size / "00_0.png")
        np.testing.assert_array_equal(image_files.load_png(many / drawn), own)
        again = image_files.load_png(one / drawn)
        np.testing.assert_array_equal(again, own)
    run = finished_run.read_run(finished)
    assert (
        run.with_identifier("a [V] [N] in the snow")
        == f"a {run.identifier} in the snow"
    )
    assert run.plain("a [V] [N] in the snow") == "a dog in the snow"
    assert [run.job.uses_identifier(stage, 0) for stage in ("base", "sr256")] == [
        True,
        False,
    ]


@pytest.mark.long
def test_an_unfinished_run_is_refused(finished, tmp_path):
    work = epath.Path(tmp_path)
    for name in ("config.json", "manifest.json"):
        (work / name).write_text((finished / name).read_text())
    with pytest.raises(InputError, match="has not learned .*; run the training"):
        finished_run.learned_embedding(finished_run.read_run(work))


@pytest.mark.long
def test_embeddings_are_kept_apart_by_what_was_learnt(tmp_path):
    """Prompts that speak of the word have a cache of their own, the others do not."""
    cache, mesh = epath.Path(tmp_path), sharding.make_mesh()
    pieces = load_tokenizer(TINY, "shipped")
    [token] = pieces.token_ids("zaj")
    prompts = ["a zaj in the snow", "a dog in the snow"]

    def read(learned):
        found, _ = embed_prompts(
            build.to_job(presets.dreambooth("tiny")),
            TINY,
            prompts,
            cache=cache,
            mesh=mesh,
            dtype=F32,
            learned=learned,
        )
        return [found[prompt].text for prompt in prompts], len(
            list(tmp_path.rglob("*.npy"))
        )

    rows = np.random.default_rng(0).normal(size=(1, TINY.text.encoder.width))
    (before, plain), count = read(None)
    (after, same), more = read(LearnedEmbedding((token,), rows.astype(np.float32)))
    (other, _), most = read(LearnedEmbedding((token,), 2 * rows.astype(np.float32)))
    np.testing.assert_array_equal(plain, same)
    assert (count, more, most) == (3, 4, 5)
    assert not np.array_equal(before, after)
    assert not np.array_equal(other, after)
    # The same as the encoder makes of the changed table.
    part = load(TINY, "text", "random", mesh, F32)
    ids = pieces.encode(prompts[:1])
    expected = part.apply(replace_rows(part.params, [token], rows), ids, ids > 0)
    length = int((ids > 0).sum())
    np.testing.assert_allclose(
        after[:length], expected[0, :length], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"initializer": "\U0001f436"},
            "text.initializer='\U0001f436' is not in the voc",
        ),
        ({"templates": ("a dog",)}, "'a dog', which lacks .V."),
        ({"class_rows": 1}, "class_rows=1, but Textual Inversion has no prior term"),
    ],
)
def test_lessons_that_cannot_be_taught(job, changes, said):
    with pytest.raises(InputError, match=said):
        lesson(dataclasses.replace(job, text=dataclasses.replace(job.text, **changes)))


@pytest.mark.parametrize(
    ("identifier", "said"),
    [
        ("\U0001f436", "is not in the vocabulary"),
        ("photo", "shares the token '▁photo' with 'a photo of a dog'"),
    ],
)
def test_identifiers_that_cannot_be_taught(job, identifier, said):
    subject = dataclasses.replace(job.subject, identifier=identifier)
    with pytest.raises(InputError, match=said):
        lesson(dataclasses.replace(job, subject=subject))


def lesson(job: Job) -> InversionTokens:
    """What a job would learn; nothing is embedded."""
    pieces = load_tokenizer(TINY, "shipped")
    name, ids, _ = subject_prompts.choose_identifier(job, TINY, pieces)
    prompts = SubjectPrompts(
        identifier=name,
        ids=ids,
        replaces_noun=True,
        instance_prompt=f"a {name}",
        class_prompt="a dog",
        pictures=(),
        plain=(),
        embeddings={},
        encoder={},
        reading="",
        plain_reading="",
        warnings=(),
    )
    return textual_inversion.read_tokens(job, TINY, prompts)


def test_a_template_is_drawn_for_each_row(job):
    found = lesson(job)
    give = textual_inversion._with_template(found.templates)
    rng = np.random.default_rng(0)
    seen = {give({}, rng)["tokens"].tobytes() for _ in range(50)}
    assert seen == {row.tobytes() for row in found.templates}
    pieces = load_tokenizer(TINY, "shipped")
    said = [pieces.decode(row) for row in found.templates]
    name = pieces.decode(found.ids)
    assert said == [fill(each, name, "dog", alone=True) for each in job.text.templates]


def test_inversion_is_off_by_default():
    job = build.to_job(presets.dreambooth("toybox"))
    assert job.text.steps == 0
    assert not job.identifier_replaces_noun
    assert TextualInversion(1, 1, 0, job.base.optim).templates
