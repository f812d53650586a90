"""The judge: its network, its scores, its training on real renders, its files."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from imagen_booth import train_state
from imagen_booth.config import build, schema
from imagen_booth.config.build import from_config
from imagen_booth.config.presets import pretraining
from imagen_booth.config.schema import JudgeTraining, OptimConfig
from imagen_booth.data import pipeline
from imagen_booth.errors import InputError
from imagen_booth.evaluation import toybox_judge
from imagen_booth.evaluation.toybox_judge import WORDS, Readings
from imagen_booth.models.toybox_judge import Judge as Network
from imagen_booth.preflight import jaxpr_cost
from imagen_booth.toybox import examples, grammar, pairs
from imagen_booth.toybox import records as rendered
from imagen_booth.toybox.grammar import Attributes
from imagen_booth.toybox.records import RenderedRecords
from imagen_booth.train_state import flatten
from imagen_booth.training import optimizers, pretrain_judge, train_step
from imagen_booth.training.pretrain_judge import DistinctIndividuals

NETWORK = Network(toybox_judge.CONFIG)


def apply(params, image) -> Any:
    return NETWORK.apply({"params": params}, image)


@pytest.fixture(scope="module")
def params():
    return jax.jit(NETWORK.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_the_network_is_small_and_cheap(params):
    count = sum(leaf.size for leaf in flatten(params).values())
    assert 0.5e6 < count < 1e6
    picture = jnp.zeros((1, 64, 64, 3))
    assert jaxpr_cost.count_flops(apply, params, picture) < 60e6


def test_what_the_network_returns(params):
    image = jnp.asarray(pipeline.to_unit(noise(3, 64, 64, 3)))
    logits, subjects, looks = apply(params, image)
    assert {name: leaf.shape for name, leaf in logits.items()} == {
        name: (3, len(words)) for name, words in WORDS.items()
    }
    assert subjects.shape == (3, 64)
    for vectors in (subjects, looks):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    # one level of 16 x 16, 8 x 8 and 4 x 4 each, a third of the square to each
    parts = np.split(np.asarray(looks), np.cumsum([16 * 16 * 64, 8 * 8 * 96]), axis=1)
    for part in parts:
        np.testing.assert_allclose(np.square(part).sum(1), 1 / 3, rtol=1e-5)


def test_the_judge_knows_the_whole_grammar():
    assert WORDS["noun"] == grammar.WORDS.nouns
    assert len(WORDS["context"]) == len(grammar.WORDS.contexts) + 1
    assert len(WORDS["accessory"]) == len(grammar.WORDS.accessories) + 1
    for words in WORDS.values():
        assert len(set(words)) == len(words)


def test_reading_many_is_reading_each(params):
    one = toybox_judge.Judge(params)
    images = noise(toybox_judge.ROWS + 2, 64, 64, 3)
    many = one.read(images)
    assert many.subjects.shape == (len(images), 64)
    for index in (0, toybox_judge.ROWS + 1):
        single = one.read(images[index : index + 1])
        np.testing.assert_allclose(many.subjects[index], single.subjects[0], atol=1e-5)
        for name, words in single.words.items():
            assert many.words[name][index] == words[0]
            assert many.sure[name][index] == pytest.approx(single.sure[name][0], 1e-3)
            assert 1 / len(WORDS[name]) <= single.sure[name][0] <= 1


def test_large_pictures_are_reduced_by_area():
    image = noise(256, 256, 3)
    means = image.astype(np.float64).reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(toybox_judge.reduced(image, 64) - means).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(
        toybox_judge.reduced(image[:64, :64], 64), image[:64, :64]
    )


@pytest.mark.parametrize("shape", [(32, 32), (64, 80), (96, 96)])
def test_other_pictures_are_refused(params, shape):
    with pytest.raises(InputError, match=f"{shape[1]} x {shape[0]} px.*side of 64 px"):
        toybox_judge.Judge(params).read(noise(1, *shape, 3))


def readings(**words):
    """Readings of pictures that show a plain dog unless said otherwise."""
    count = len(next(iter(words.values())))
    usual = {
        "noun": "dog",
        "colour": "brown",
        "context": toybox_judge.PLAIN,
        "accessory": toybox_judge.BARE,
        "view": "front",
        "style": "photo",
    }
    answers = {name: words.get(name, [word] * count) for name, word in usual.items()}
    return Readings(answers, {}, np.zeros((count, 2)), np.zeros((count, 2)))


def test_answers_are_about_what_the_prompt_asks_for():
    seen = readings(
        noun=["dog", "cat", "dog", "dog"],
        colour=["red", "brown", "brown", "red"],
        context=["beach", "snow", "snow", toybox_judge.PLAIN],
        accessory=[toybox_judge.BARE, toybox_judge.BARE, "hat", toybox_judge.BARE],
    )
    wanted = [
        (Attributes(noun="dog"), set()),  # any colour, any place
        (Attributes(noun="dog", context="snow"), {"noun"}),  # a cat
        (Attributes(noun="dog", context="snow"), {"accessory"}),  # a hat
        (Attributes(noun="dog", colour="red", view="side"), {"view"}),  # the front
    ]
    always = {"noun", "accessory", "view", "style"}
    also = [set(), {"context"}, {"context"}, {"colour"}]
    for number, ((attributes, wrong), more) in enumerate(
        zip(wanted, also, strict=True)
    ):
        found = toybox_judge.answers(seen, number, attributes)
        assert found.keys() == always | more
        assert {name for name, right in found.items() if not right} == wrong


def at(*degrees):
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1)


def test_diversity_is_the_mean_distance_of_two():
    assert toybox_judge.diversity(at(40, 40, 40)) == pytest.approx(0.0)
    assert toybox_judge.diversity(at(0, 180)) == pytest.approx(2.0)
    # angles of 60, 90 and 30 degrees between the three
    expected = 1 - (1 / 2 + 0 + math.sqrt(3) / 2) / 3
    assert toybox_judge.diversity(at(0, 60, 90)) == pytest.approx(expected)


def test_a_pair_is_one_individual_in_two_scenes():
    both = [pairs.attributes(0, index) for index in range(300)]
    assert all((a.noun, a.colour) == (b.noun, b.colour) for a, b in both)
    assert sum(a != b for a, b in both) > 290
    shown = [each for two in both for each in two]
    for name in ("contexts", "accessories", "views", "styles"):
        words = getattr(grammar.WORDS, name)
        field = {"accessories": "accessory"}.get(name, name.removesuffix("s"))
        values = [getattr(each, field) for each in shown]
        assert set(words) <= set(values) <= {None, *words}
        counts = [values.count(word) for word in set(values)]
        assert max(counts) < 1.7 * min(counts), "all equally likely"
    made = pairs.pair(0, 7)
    assert made.attributes == both[7]
    assert [scene.style for scene in made.scenes] == [each.style for each in both[7]]
    assert made == pairs.pair(0, 7)
    assert made.scenes[0].camera != made.scenes[1].camera


@pytest.fixture
def small_blocks(monkeypatch):
    for module in (rendered, pairs, pretrain_judge, schema):
        monkeypatch.setattr(module, "BLOCK", 4)


@pytest.mark.usefixtures("small_blocks")
def test_pairs_are_rendered_once(tmp_path):
    folder = epath.Path(tmp_path)
    args = {"seed": 0, "length": 4, "size": 64}
    drawn = pairs.Pairs(folder, **args)[3]
    image = np.array(drawn["image"])  # the original is a view of the file
    assert image.shape == (2, 64, 64, 3)
    assert drawn["attributes"] == pairs.attributes(0, 3)
    (file,) = tmp_path.rglob("*.npy")
    kept = np.load(file)
    np.save(file, kept // 2)
    again = pairs.Pairs(folder, **args)[3]["image"]
    np.testing.assert_array_equal(again, image // 2)
    file.write_bytes(file.read_bytes()[:1000])
    mended = pairs.Pairs(folder, **args)[3]["image"]
    np.testing.assert_array_equal(mended, image)


def test_rows_of_two_become_rows_of_one():
    batch: dict[str, Any] = {
        "image": np.arange(4.0).reshape(2, 2, 1, 1, 1),
        "words": np.arange(8).reshape(2, 2, 2),
        "weight": np.array([0.5, 0.0], np.float32),
        "group": np.array([1, -1], np.int32),
    }
    flat = pretrain_judge.single(batch)
    np.testing.assert_array_equal(flat["image"].ravel(), [0, 1, 2, 3])
    np.testing.assert_array_equal(flat["words"], np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(
        flat["weight"], np.array([0.25, 0.25, 0, 0], np.float32)
    )
    np.testing.assert_array_equal(flat["group"], [1, 1, -1, -1])


def test_worsening_keeps_what_a_picture_is(key, monkeypatch):
    monkeypatch.setattr(pretrain_judge, "NOISE", 0.0)
    picture = jnp.broadcast_to(jnp.array([-0.5, 0.0, 0.5]), (8, 16, 16, 3))
    flat = pretrain_judge.degraded(picture, key)
    # blurred to the very edge, a plain picture stays plain; its tint moves a little
    np.testing.assert_allclose(flat, flat[:, :1, :1] + 0 * flat, atol=1e-5)
    off = np.abs(flat - picture).max((0, 1, 2))
    limit = pretrain_judge.SHIFT + pretrain_judge.GAIN * np.array([0.5, 0.0, 0.5])
    assert (off <= limit + 1e-5).all()
    assert (off > 0).all()
    monkeypatch.setattr(pretrain_judge, "GAIN", 0.0)
    monkeypatch.setattr(pretrain_judge, "SHIFT", 0.0)
    monkeypatch.setattr(pretrain_judge, "BLUR", 0.0)
    image = jnp.asarray(pipeline.to_unit(noise(16, 16, 16, 3)))
    same = pretrain_judge.degraded(image, key)
    mirrored = np.asarray(same == image[:, :, ::-1]).all((1, 2, 3))
    kept = np.asarray(same == image).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 0 < mirrored.sum() < 16


def test_pair_losses_in_closed_form():
    axes = jnp.eye(3)[jnp.array([0, 0, 1, 1, 2, 2])]
    weight = jnp.full((6,), 0.1)
    expected = math.log(1 + 4 * math.exp(-1 / 0.5))
    np.testing.assert_allclose(
        pretrain_judge.pair_losses(axes, weight, 0.5), expected, rtol=1e-5
    )
    # the last row is padding, so one stranger less on each side
    expected = math.log(1 + 2 * math.exp(-1 / 0.5))
    found = pretrain_judge.pair_losses(axes, weight.at[4:].set(0.0), 0.5)
    np.testing.assert_allclose(found[:4], expected, rtol=1e-5)
    # a partner no nearer than strangers is one of five
    lost = pretrain_judge.pair_losses(jnp.ones((6, 1)), weight, 0.5)
    np.testing.assert_allclose(lost, math.log(5), rtol=1e-5)


@pytest.mark.long
def test_padding_counts_nothing_and_records_teach_words_alone(params, key, monkeypatch):
    # what worsens a picture depends on how many there are
    monkeypatch.setattr(pretrain_judge, "degraded", lambda image, _: image)
    image = pipeline.to_unit(noise(6, 64, 64, 3))
    image = np.concatenate([image, image[:2]])
    batch = {
        "image": jnp.asarray(image),
        "words": jnp.zeros((8, len(WORDS)), jnp.int32),
        "weight": jnp.array([1.0] * 6 + [0.0] * 2) / 6,
        "group": jnp.array([0, 0, 1, 1, 1, 1, -1, -1]),
    }
    rows = {name: leaf[:6] for name, leaf in batch.items()}
    tree = {"judge": params}
    whole, metrics = pretrain_judge.batch_loss(apply, 0.1, tree, batch, key)
    alone, _ = pretrain_judge.batch_loss(apply, 0.1, tree, rows, key)
    assert float(whole) == pytest.approx(float(alone), rel=1e-5)
    assert (metrics["rows_words"], metrics["rows_pairs"]) == (6, 4)
    expected = metrics["sum_words"] / 6 + metrics["sum_pairs"] / 6
    assert float(whole) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.long
def test_a_short_training_lifts_accuracy():
    """Two classes in two colours, 48 records and 24 pairs; measured on others."""
    few = dataclasses.replace(
        grammar.WORDS,
        nouns=("duck", "car"),
        colours=("yellow", "blue"),
        contexts=("snow",),
    )
    images, _, shown = examples.render_examples(0, range(80), words=few)
    twice = [pairs.pair(0, index, few) for index in range(24)]
    both = examples.render([scene for two in twice for scene in two.scenes], 64)
    pictures = np.concatenate([images[:48], both])
    wanted = [*shown[:48], *(each for two in twice for each in two.attributes)]
    labels = [
        [words.index(toybox_judge.shown(each)[name]) for name, words in WORDS.items()]
        for each in wanted
    ]
    batch = {
        "image": jnp.asarray(pipeline.to_unit(pictures)),
        "words": jnp.array(labels),
        "weight": jnp.full((96,), 1 / 96),
        "group": jnp.repeat(
            jnp.array([pretrain_judge.RECORDS, pretrain_judge.PAIRS]), 48
        ),
    }
    start = NETWORK.init(jax.random.key(1), batch["image"][:1])["params"]

    def loss_fn(params, batch, key):
        return pretrain_judge.batch_loss(apply, 0.1, params, batch, key)

    optimizer = optimizers.build(OptimConfig(lr=3e-3), 40)
    now = train_state.create({"judge": start}, ("judge/.*",), optimizer, False)
    step = jax.jit(train_step.make_step(loss_fn, optimizer, seed=0))
    losses = []
    for _ in range(40):
        now, metrics = step(now, batch)
        losses.append((float(metrics["loss_words"]), float(metrics["loss_pairs"])))
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < 0.8 * losses[0][1]

    found = toybox_judge.Judge(now.trainable["judge"]).read(images[48:])
    for name in ("noun", "colour"):
        right = [
            toybox_judge.answers(found, number, each)[name]
            for number, each in enumerate(shown[48:])
        ]
        assert np.mean(right) >= 0.75


@pytest.mark.long
@pytest.mark.usefixtures("small_blocks")
def test_the_whole_run(tmp_path):
    job = JudgeTraining(
        records=8,
        pairs=4,
        held_out=32,
        steps=2,
        record_rows=3,
        pair_rows=2,
        optim=OptimConfig(ema=0.9),
        log_every=1,
        save_every=1,
        preview_every=1,
    )
    work = epath.Path(tmp_path)
    pretrain_judge.run(job, work)
    rows = [
        json.loads(row) for row in (work / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 1, 2, 2]
    assert {"train/loss", "train/right_noun", "train/loss_pairs"} <= rows[0].keys()
    assert {"eval/noun", "eval/subject_nearer"} <= rows[1].keys()
    one = toybox_judge.load(work / "weights")
    assert one.manifest["images"] == 2 * 5 * 2
    assert one.manifest["recipe"]["steps"] == 2
    held_out = one.manifest["held_out"]
    assert held_out["words"].keys() == WORDS.keys()
    # the manifest speaks of the weights in the file
    records = RenderedRecords(work / "records", seed=1, length=32, size=64)
    twice = pairs.Pairs(work / "records", seed=1, length=8, size=64)
    again = pretrain_judge.measure(one, DistinctIndividuals(records, 1), twice)
    assert again["words"] == held_out["words"]
    # finished: the same command changes nothing
    before = (work / "metrics.jsonl").read_bytes()
    pretrain_judge.run(job, work)
    assert (work / "metrics.jsonl").read_bytes() == before
    with pytest.raises(InputError, match="temperature: 0.1 -> 0.2"):
        pretrain_judge.run(dataclasses.replace(job, temperature=0.2), work)


def test_the_command_finds_its_settings():
    config = pretraining("toybox_judge")
    config.steps = 7
    assert from_config(JudgeTraining, config) == JudgeTraining(steps=7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"records": 100}, "records=100 should be 256 or more, a multiple of 256"),
        ({"pairs": 0}, "pairs=0 should be 256 or more"),
        ({"held_out": 256}, "held_out=256 should be 1024 or more"),
    ],
)
def test_settings_that_cannot_be(change, words):
    with pytest.raises(InputError, match=words):
        build.build(JudgeTraining, change, "config")


@pytest.fixture
def folder(tmp_path, params):
    toybox_judge.write(epath.Path(tmp_path), params, {"held_out": {"words": 1}})
    return epath.Path(tmp_path)


def test_weights_come_back(folder, params):
    one = toybox_judge.load(folder)
    assert one.config == toybox_judge.CONFIG
    assert one.manifest["held_out"] == {"words": 1}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    image = noise(1, 64, 64, 3)
    expected = toybox_judge.Judge(
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    ).read(image)
    np.testing.assert_array_equal(one.read(image).subjects, expected.subjects)
    assert (folder / "judge.safetensors").stat().length < 2**21


def test_no_judge_says_how_to_train_one(tmp_path):
    with pytest.raises(InputError, match="judge.safetensors does not exist.*_judge"):
        toybox_judge.load(tmp_path)


def test_a_file_cut_short(folder):
    path = folder / "judge.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        toybox_judge.load(folder)


def test_a_file_with_a_changed_byte(folder):
    path = folder / "judge.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="not the file that manifest.json describes"):
        toybox_judge.load(folder)


def edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["parts"])
    path.write_text(json.dumps(manifest))


def test_manifests_that_do_not_describe_it(folder):
    edit(folder, lambda parts: parts["judge"]["judge"].update(width=3))
    with pytest.raises(InputError, match="judge.width is not a setting.*widths"):
        toybox_judge.load(folder)
    edit(folder, lambda parts: parts.pop("judge"))
    with pytest.raises(InputError, match="does not describe judge.safetensors"):
        toybox_judge.load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="manifest.json does not exist"):
        toybox_judge.load(folder)


def test_weights_of_another_shape(folder):
    edit(folder, lambda parts: parts["judge"]["judge"]["words"].pop())
    with pytest.raises(InputError, match="style/bias is not expected"):
        toybox_judge.load(folder)
