"""The prior term from the frozen model: targets, noisy images, gradients, resuming."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_booth import train_state
from imagen_booth.cascade import Stage, by_name
from imagen_booth.config import build, presets
from imagen_booth.config.schema import FrozenModel, Subject
from imagen_booth.data.examples import Embedding, ImagePair
from imagen_booth.diffusion.schedule import CosineSchedule, Schedule, TableSchedule
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.models import SIZES
from imagen_booth.training import finetune, frozen_targets, subject_photos, train_step
from imagen_booth.training.frozen_targets import FrozenPrior
from imagen_booth.weights.load import network, random_params

SIDE, LENGTH, WIDTH = 4, 3, 5
COSINE, TABLE = CosineSchedule(), TableSchedule()
F32 = jnp.dtype("float32")


def scale_network(params, x, time, text, mask, level):
    """w times the noisy image plus the text's mean; a second half where w has two."""
    out = params["w"][0] * x + jnp.mean(text, (1, 2))[:, None, None, None]
    if len(params["w"]) == 1:
        return out
    return jnp.concatenate([out, params["w"][1] * x], -1)


def stage_of(prediction, schedule: Schedule = COSINE, learned=False):
    return Stage(
        "base",
        SIDE,
        SIZES["tiny_base"],
        schedule,
        prediction=prediction,
        learned_variance=learned,
    )


def batch_of(groups, weight=1.0, seed=0):
    rng, rows = np.random.default_rng(seed), len(groups)
    group = np.asarray(groups, np.int32)
    each = np.where(group == 0, 1 / max((group == 0).sum(), 1), 0.0)
    each += np.where(group == 1, weight / max((group == 1).sum(), 1), 0.0)
    text = rng.normal(size=(2, LENGTH, WIDTH)).astype(np.float32)
    batch = {
        "image": rng.uniform(-1, 1, (rows, SIDE, SIDE, 3)).astype(np.float32),
        "weight": each.astype(np.float32),
        "group": group,
        "text": text[np.clip(group, 0, 1)],
        "text_mask": np.ones((rows, LENGTH), bool),
    }
    return {name: jnp.asarray(leaf) for name, leaf in batch.items()}


def loss_of(stage, settings, frozen, rows, **config):
    prior = FrozenPrior(settings, F32, rows)
    loss_config = train_step.LossConfig(**config)

    def loss(params, batch, key):
        class_rows = functools.partial(
            prior.class_rows, stage, scale_network, frozen["unet"]
        )
        return train_step.batch_loss(
            stage, scale_network, None, loss_config, params, batch, key, class_rows
        )

    return loss


@pytest.fixture
def whole_optimization():
    """Two forms of one prediction are rounded alike only where both are optimized."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def weights(*values):
    return {"unet": {"w": jnp.asarray(values, jnp.float32)}}


@pytest.mark.usefixtures("whole_optimization")
@pytest.mark.parametrize(
    ("stage", "start", "from_noise"),
    [
        (stage_of("v"), (0.7,), 1.0),
        (stage_of("eps", TABLE, learned=True), (0.7, 0.2), 0.5),
    ],
)
def test_before_the_first_step_the_term_is_zero(stage, start, from_noise, key):
    """And so is its gradient; that of the subject is as without the term."""
    settings = FrozenModel(from_noise, steps=2)
    frozen = weights(*start)
    loss = loss_of(stage, settings, frozen, 3, hybrid=True)
    both = jax.jit(jax.grad(loss, has_aux=True))
    batch = batch_of([0, 0, 1, 1, 1, -1])
    grads, sums = both(frozen, batch, key)
    assert sums["sum_class"] == 0.0
    assert sums["rows_class"] == 3
    assert sums["sum_subject"] > 0
    alone = dict(batch, weight=jnp.where(batch["group"] == 1, 0.0, batch["weight"]))
    np.testing.assert_array_equal(
        grads["unet"]["w"], both(frozen, alone, key)[0]["unet"]["w"]
    )
    off = dict(batch, weight=batch["weight"] - alone["weight"])
    np.testing.assert_array_equal(both(frozen, off, key)[0]["unet"]["w"], 0.0)


def noisy_images(stage, batch, key):
    """x0, eps, t and xt of the rows, in float64, from the streams of a step."""
    noise_key, time_key, *_ = jax.random.split(key, 5)
    t = stage.schedule.draw(time_key, (len(batch["image"]),))
    eps = np.asarray(jax.random.normal(noise_key, batch["image"].shape), np.float64)
    logsnr = stage.schedule.logsnr64(np.asarray(t, np.float64))[:, None, None, None]
    alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * logsnr)) for sign in (-1, 1))
    x0 = np.asarray(batch["image"], np.float64)
    return x0, eps, alpha, sigma, alpha * x0 + sigma * eps


def test_the_term_on_photos_in_float64(key):
    """(w - w0) xt, squared: the subject's rows and their weights are as in Eq. 2."""
    stage, w, w0, weight = stage_of("eps"), 0.9, 0.7, 0.5
    batch = batch_of([0, 0, 1, 1, 1, 1], weight)
    loss = loss_of(stage, FrozenModel(0.0), weights(w0), 4)
    whole, sums = jax.jit(loss)(weights(w), batch, key)
    x0, eps, *_, xt = noisy_images(stage, batch, key)
    mean = np.asarray(batch["text"]).mean((1, 2))[:, None, None, None]
    subject = ((w * xt + mean - eps) ** 2).mean((1, 2, 3))[:2]
    of_class = (((w - w0) * xt) ** 2).mean((1, 2, 3))[2:]
    assert sums["sum_class"] == pytest.approx(of_class.sum(), rel=1e-4)
    expected = subject.mean() + weight * of_class.mean()
    assert whole == pytest.approx(expected, rel=1e-4)


def test_every_class_row_of_a_micro_batch_has_its_target():
    stage, optimizer = stage_of("v"), optax.sgd(0.1)
    loss = loss_of(stage, FrozenModel(), weights(0.7), 2)
    step = train_step.make_step(loss, optimizer, seed=0, accumulate=2)
    state = train_state.create(weights(0.7), ("unet/.*",), optimizer, False)
    batch = batch_of([0, 0, 1, 1, 1, -1])
    _, metrics = jax.jit(step)(state, batch)
    assert metrics["loss_class"] == 0.0
    assert metrics["loss_subject"] > 0


def test_noise_is_carried_down_as_ddim_says(key):
    """Against DDIM in float64, to each row's own time."""
    stage, steps, w0 = stage_of("x0"), 3, 0.6
    batch = batch_of([0, 1, 1])
    prior = FrozenPrior(FrozenModel(1.0, steps), F32, 2)
    t = jnp.asarray([0.5, 0.8, 0.25])
    rows = frozen_targets.NoisyRows(
        batch["image"], t, batch["text"], batch["text_mask"], None
    )
    found = jax.jit(functools.partial(prior.class_rows, stage, scale_network))(
        weights(w0)["unet"], batch["group"] == 1, rows, key
    )
    np.testing.assert_array_equal(found.index, [1, 2])
    carried, _ = jax.random.split(jax.random.fold_in(key, frozen_targets.STREAM))
    z = np.asarray(jax.random.normal(carried, (2, SIDE, SIDE, 3)), np.float64)
    mean = np.asarray(batch["text"], np.float64).mean((1, 2))[1:, None, None, None]
    for i in range(steps):
        now, then = (
            1.0 + (np.asarray(t, np.float64)[1:] - 1.0) * n / steps for n in (i, i + 1)
        )
        (a, s), (a_next, s_next) = (
            (
                1 / np.sqrt(1 + np.exp(-logsnr))[:, None, None, None],
                1 / np.sqrt(1 + np.exp(logsnr))[:, None, None, None],
            )
            for logsnr in map(stage.schedule.logsnr64, (now, then))
        )
        x0 = np.clip(w0 * z + mean, -1, 1)
        z = a_next * x0 + s_next * (z - a * x0) / s
    np.testing.assert_allclose(found.xt, z, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(
        found.prediction.raw, w0 * z + mean, rtol=1e-3, atol=1e-4
    )


def test_a_mixture_has_steps_of_both_kinds(key):
    """And a step on photos does not carry noise down to throw it away."""
    stage, steps = stage_of("v"), 64
    batch = batch_of([1, 1])
    noisy = frozen_targets.NoisyRows(
        batch["image"], jnp.full(2, 0.5), batch["text"], batch["text_mask"], None
    )
    prior = FrozenPrior(FrozenModel(0.25, steps=1), F32, 2)
    rows = jax.jit(functools.partial(prior.class_rows, stage, scale_network))
    args = weights(0.7)["unet"], batch["group"] == 1, noisy
    same = np.stack(
        [
            np.asarray(rows(*args, each).xt == batch["image"]).all((1, 2, 3))
            for each in jax.random.split(key, steps)
        ]
    )
    np.testing.assert_array_equal(same[:, 0], same[:, 1])
    assert 0.55 * steps < same[:, 0].sum() < 0.95 * steps
    assert "conditional(" in str(rows.lower(*args, key).compile().as_text())


@pytest.fixture(scope="module")
def tiny():
    cascade = by_name("tiny")
    _, apply = network(cascade, "base", F32)
    return cascade.stage("base"), apply, random_params(cascade, "base")


def test_the_copy_predicts_what_the_network_does(tiny, key):
    """In a real network the term is 0 at first and grows with the distance."""
    stage, apply, params = tiny
    rng = np.random.default_rng(0)
    # Zero-initialised output layers would make both sides 0.
    params = jax.tree.map(
        lambda leaf: leaf + 0.02 * rng.normal(size=leaf.shape).astype(leaf.dtype),
        params,
    )
    mesh = sharding.make_mesh()
    params = jax.device_put(params, sharding.copies(mesh))
    copy = frozen_targets.copy_params(params, F32)
    for one, other in zip(*map(jax.tree.leaves, (params, copy)), strict=True):
        np.testing.assert_array_equal(one, other)
    config = build.to_job(presets.dreambooth("tiny")).base
    prior = FrozenPrior(FrozenModel(), F32, 4)
    text = Embedding(
        rng.normal(size=(by_name("tiny").text.length, stage.model.text_width)).astype(
            np.float32
        ),
        np.ones(by_name("tiny").text.length, bool),
    )
    pixels = rng.integers(0, 256, (stage.resolution, stage.resolution, 3), np.uint8)
    examples = [ImagePair(pixels, None).example(text)]
    data = finetune.batches(
        stage,
        config,
        [examples],
        [examples],
        seed=0,
        host=0,
        hosts=1,
        devices=4,
    )
    loss = jax.jit(finetune.make_loss(stage, apply, config, prior))
    batch = jax.tree.map(jnp.asarray, data[0])
    _, sums = loss({"unet": params}, batch, key, copy)
    assert float(sums["sum_class"]) < 1e-8 * float(sums["sum_subject"])
    moved = jax.tree.map(lambda leaf: 1.01 * leaf, params)
    _, moved_sums = loss({"unet": moved}, batch, key, copy)
    assert float(moved_sums["sum_class"]) > 1e-6 * float(sums["sum_subject"])
    jax.tree.map(lambda leaf: leaf.delete(), params)  # as the state's donation does
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(copy))


@pytest.mark.parametrize(
    ("share", "photos", "silent"), [(0.0, 3, 0), (0.125, 3, 3), (0.5, 2, 2)]
)
def test_each_photo_has_its_share_of_null_text(share, photos, silent):
    pairs = [ImagePair(np.full((2, 2, 3), n, np.uint8), None) for n in range(photos)]
    repeated = frozen_targets.repeat_photos(pairs, share)
    text, null = (
        Embedding(np.full((2, 2), value, np.float32), np.ones(2, bool))
        for value in (1.0, 0.0)
    )
    rows = finetune.class_examples(repeated, text, null, share)
    without = [row for row in rows if not row["text"].any()]
    assert len(without) == silent
    assert len(without) == pytest.approx(share * len(rows))
    assert len({int(row["image"][0, 0, 0]) for row in without}) == silent


def test_bad_settings_are_named():
    for name, value, words in (
        ("from_noise", 1.5, "from_noise=1.5 should be 0 or more, at most 1"),
        ("steps", 0, "frozen_model.steps=0 should be 1 or more"),
    ):
        with pytest.raises(InputError, match=words):
            build.build(FrozenModel, {name: value}, "config.frozen_model")
    job = build.to_job(presets.dreambooth("tiny"))
    with pytest.raises(InputError, match="config.prior='frozen' is not known"):
        dataclasses.replace(job, prior="frozen")
    with pytest.raises(InputError, match="class_noun is empty, but config.prior="):
        subject_photos.check_class_noun(Subject(), "frozen_model")
