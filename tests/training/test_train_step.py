"""The training step: Eq. 2, padding, accumulation, null text, stopping on NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_booth import train_state
from imagen_booth.cascade import Stage
from imagen_booth.diffusion.schedule import CosineSchedule, TableSchedule
from imagen_booth.models import SIZES
from imagen_booth.training import train_step

SIDE, LENGTH, WIDTH = 4, 3, 5
BASE = Stage("base", SIDE, SIZES["tiny_base"], CosineSchedule())
PARAMS = {"unet": {"w": jnp.float32(0.7)}}


class Network:
    """w x, remembering what it was given; use it outside of jit."""

    def __init__(self):
        self.calls = []

    def __call__(self, params, x, time, text, mask, level):
        self.calls.append((x, time, text, mask, level))
        return params["w"] * x


def draw_batch(groups, seed=0, **entries):
    """Images of noise with these groups, weight 1/n each, and one text for all."""
    rng = np.random.default_rng(seed)
    rows = len(groups)
    batch = {
        "image": rng.uniform(-1, 1, (rows, SIDE, SIDE, 3)).astype(np.float32),
        "weight": np.full(rows, 1 / rows, np.float32),
        "group": np.asarray(groups, np.int32),
        "text": np.ones((rows, LENGTH, WIDTH), np.float32),
        "text_mask": np.ones((rows, LENGTH), bool),
    }
    return {name: jnp.asarray(leaf) for name, leaf in (batch | entries).items()}


def batch_loss(network, batch, key, params=PARAMS, stage=BASE, **config):
    return train_step.batch_loss(
        stage, network, None, train_step.LossConfig(**config), params, batch, key
    )


@pytest.mark.parametrize(
    ("subject", "klass", "padding", "prior_weight"),
    [(1, 1, 0, 1.0), (1, 3, 0, 0.5), (4, 2, 2, 2.0), (3, 1, 4, 1.0)],
)
def test_weights_make_equation_two(subject, klass, padding, prior_weight, key):
    groups = [0] * subject + [1] * klass + [-1] * padding
    weight = [1 / subject] * subject + [prior_weight / klass] * klass + [0] * padding
    # Images of zero: what the network sees is then sigma eps, so eps is known.
    batch = draw_batch(
        groups,
        image=np.zeros((len(groups), SIDE, SIDE, 3), np.float32),
        weight=np.asarray(weight, np.float32),
    )
    network = Network()
    loss, metrics = batch_loss(network, batch, key)
    x, time = (np.asarray(leaf, np.float64) for leaf in network.calls[0][:2])
    eps = x / np.sin(time / 1000 * np.pi / 2)[:, None, None, None]

    w = float(PARAMS["unet"]["w"])
    row_loss = ((w * x - eps) ** 2).mean((1, 2, 3))
    row_slope = (2 * x * (w * x - eps)).mean((1, 2, 3))
    kinds = np.asarray(groups)

    def equation(row):
        return row[kinds == 0].mean() + prior_weight * row[kinds == 1].mean()

    assert loss == pytest.approx(equation(row_loss), rel=1e-4)
    assert metrics["loss"] == loss
    for name, kind in (("subject", 0), ("class", 1)):
        assert float(metrics[f"rows_{name}"]) == (kinds == kind).sum()
        mean = metrics[f"sum_{name}"] / metrics[f"rows_{name}"]
        assert mean == pytest.approx(row_loss[kinds == kind].mean(), rel=1e-4)
    slope = jax.jit(jax.grad(lambda p: batch_loss(Network(), batch, key, p)[0]))
    grads = slope(PARAMS)
    assert grads["unet"]["w"] == pytest.approx(equation(row_slope), rel=1e-4)


def test_rows_have_noise_and_times_of_their_own(key):
    network = Network()
    batch = draw_batch([0] * 4, image=np.zeros((4, SIDE, SIDE, 3), np.float32))
    batch_loss(network, batch, key)
    x, time = (np.asarray(leaf) for leaf in network.calls[0][:2])
    eps = x / np.sin(time / 1000 * np.pi / 2)[:, None, None, None]
    assert len(np.unique(time)) == 4
    correlation = np.corrcoef(eps.reshape(4, -1)) - np.eye(4)
    assert np.abs(correlation).max() < 0.6  # of 48 values; copies would give 1


def test_padding_rows_change_nothing(key):
    weight = np.asarray([0.5, 0.5, 0.0, 0.0], np.float32)
    batch = draw_batch([0, 0, -1, -1], weight=weight)
    other = dict(batch, image=batch["image"].at[2:].multiply(-3.0))
    other["text"] = batch["text"].at[2:].set(9.0)

    @jax.jit
    def evaluate(batch):
        return jax.value_and_grad(
            lambda p: batch_loss(Network(), batch, key, p), has_aux=True
        )(PARAMS)

    one, two = evaluate(batch), evaluate(other)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    # while a row that counts does count
    other["image"] = batch["image"].at[:1].multiply(-3.0)
    assert evaluate(other)[0][0] != one[0][0]


def test_group_losses_are_means_over_rows_however_a_batch_is_divided():
    def loss(params, batch, key):
        value = jnp.sum(batch["a"]) * params["unet"]["w"][0]
        sums = {"loss": value}
        for name, kind in (("subject", 0), ("class", 1), ("other", 2)):
            chosen = (batch["group"] == kind).astype(jnp.float32)
            sums |= {f"sum_{name}": batch["a"] @ chosen, f"rows_{name}": chosen.sum()}
        return value, sums

    batch = {
        "a": jnp.asarray([1.0, 2.0, 6.0, 5.0]),
        "group": jnp.asarray([0, 0, 0, 1], jnp.int32),
    }
    for count in (1, 2, 4):
        step = train_step.make_step(loss, optax.sgd(0.1), seed=0, accumulate=count)
        _, metrics = step(start(optax.sgd(0.1)), batch)
        assert metrics["loss_subject"] == 3.0
        assert metrics["loss_class"] == 5.0
        assert np.isnan(metrics["loss_other"])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_null_text_replaces_whole_rows(share, key):
    rows = 400
    batch = draw_batch(
        [0] * rows,
        image=np.zeros((rows, 1, 1, 3), np.float32),
        null=np.zeros((LENGTH, WIDTH), np.float32),
        null_mask=np.arange(LENGTH) == 0,
    )
    network = Network()
    batch_loss(network, batch, key, null_text=share)
    text, mask = (np.asarray(leaf) for leaf in network.calls[0][2:4])
    dropped = (text == 0).all((1, 2))
    np.testing.assert_array_equal(text[~dropped], 1)
    np.testing.assert_array_equal(mask[~dropped], True)
    assert (mask[dropped] == [True, False, False]).all()
    spread = 4 * np.sqrt(share * (1 - share) / rows)
    assert abs(dropped.mean() - share) <= spread


def test_tokens_go_through_the_text_encoder(key):
    tokens = jnp.asarray([[7, 1, 0], [3, 4, 1]], jnp.int32)
    batch = draw_batch([0, 0], tokens=tokens)
    del batch["text"], batch["text_mask"]

    def encode(params, tokens, mask):
        return params["table"] * jnp.where(mask, tokens, 0)[..., None].astype(
            jnp.float32
        )

    network = Network()
    config = train_step.LossConfig()
    params = PARAMS | {"text": {"table": jnp.float32(0.5)}}
    train_step.batch_loss(BASE, network, encode, config, params, batch, key)
    np.testing.assert_array_equal(network.calls[0][2][..., 0], tokens / 2)
    np.testing.assert_array_equal(network.calls[0][3], [[1, 1, 0], [1, 1, 1]])


def test_levels_are_drawn_evenly_in_cosine_time(key):
    ends = (1e-4, 1e-2)
    level = np.asarray(train_step.sample_level(key, ends, 4000), np.float64)
    u = np.arcsin(np.sqrt(level))
    first, last = np.arcsin(np.sqrt(ends))
    at = (u - first) / (last - first)
    assert at.min() > -1e-4
    assert at.max() < 1 + 1e-4
    np.testing.assert_allclose(
        np.histogram(at, 4, (-0.01, 1.01))[0] / 4000, 0.25, atol=0.03
    )
    fixed = train_step.sample_level(key, (1e-5, 1e-5), 3)
    np.testing.assert_array_equal(fixed, np.full(3, 1e-5, np.float32))


def test_the_hybrid_loss_trains_the_variance_and_nothing_else(key):
    stage = dataclasses.replace(BASE, schedule=TableSchedule(), learned_variance=True)
    params = {"unet": {"mean": jnp.float32(0.7), "variance": jnp.float32(0.2)}}

    def network(params, x, *_):
        return jnp.concatenate([params["mean"] * x, params["variance"] * x], -1)

    def slopes(hybrid):
        def loss(params):
            batch = draw_batch([0, 0])
            return batch_loss(network, batch, key, params, stage, hybrid=hybrid)[0]

        return jax.jit(jax.grad(loss))(params)["unet"]

    plain, hybrid = slopes(False), slopes(True)
    assert plain["mean"] == hybrid["mean"] != 0
    assert plain["variance"] == 0 != hybrid["variance"]


# The step itself, on a loss that any reader can differentiate.


def squares(params, batch, key):
    """Weighted sum of (w a - b)^2; reports a random number too."""
    rows = (batch["a"] @ params["unet"]["w"] - batch["b"]) ** 2
    subject = (batch["group"] == 0).astype(jnp.float32)
    return jnp.sum(rows * batch["weight"]), {
        "loss": jnp.sum(rows * batch["weight"]),
        "loss_subject": jnp.sum(rows * subject) / jnp.sum(subject),
        "drawn": jax.random.uniform(key),
    }


def start(optimizer, ema=False, **params):
    params = {"unet": {"w": jnp.asarray([0.5, -1.0, 2.0])} | params}
    return train_state.create(params, ("unet/w",), optimizer, ema)


def draw_rows(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=rows), jnp.float32),
        "weight": jnp.asarray(rng.uniform(size=rows), jnp.float32),
        "group": jnp.asarray([0, 1] * (rows // 2), jnp.int32),
    }


def test_one_step_is_gradient_descent():
    optimizer, batch = optax.sgd(0.1), draw_rows()
    before = start(optimizer)
    after, metrics = jax.jit(train_step.make_step(squares, optimizer, seed=0))(
        before, batch
    )
    a, b, weight = (
        np.asarray(batch[name], np.float64) for name in ("a", "b", "weight")
    )
    w = np.asarray(before.trainable["unet"]["w"], np.float64)
    slope = (2 * weight * (a @ w - b)) @ a
    np.testing.assert_allclose(after.trainable["unet"]["w"], w - 0.1 * slope, rtol=1e-5)
    assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(slope), rel=1e-5)
    assert metrics["finite"]
    assert after.step == 1


@pytest.mark.parametrize("count", [2, 4, 8])
def test_accumulation_is_exact(count):
    optimizer, batch = optax.sgd(0.1), draw_rows()
    # Entries that all rows share are not divided, whatever their length.
    batch |= {"null": jnp.ones((3, 2)), "null_mask": jnp.ones(3, bool)}

    def loss(params, batch, key):
        assert batch["null"].shape == (3, 2)
        value, metrics = squares(params, batch, key)
        scale = batch["null"].mean()
        return value * scale, metrics | {"loss": value * scale}

    whole, one = train_step.make_step(loss, optimizer, seed=0)(start(optimizer), batch)
    parts, many = train_step.make_step(loss, optimizer, seed=0, accumulate=count)(
        start(optimizer), batch
    )
    np.testing.assert_allclose(
        parts.trainable["unet"]["w"], whole.trainable["unet"]["w"], rtol=1e-5
    )
    assert many["loss"] == pytest.approx(float(one["loss"]), rel=1e-5)
    assert many["grad_norm"] == pytest.approx(float(one["grad_norm"]), rel=1e-5)


def test_micro_batches_draw_apart():
    def loss(params, batch, key):
        sign = jnp.where(jax.random.uniform(key) < 0.5, -1.0, 1.0)
        return sign * params["unet"]["w"].sum(), {"loss": jnp.abs(sign)}

    optimizer = optax.sgd(0.1)
    step = train_step.make_step(loss, optimizer, seed=0, accumulate=16)
    _, metrics = step(start(optimizer), draw_rows(16))
    # Sixteen equal signs would add up; sixteen of their own cancel in part.
    assert metrics["loss"] == 16
    assert metrics["grad_norm"] < 12 * 3**0.5


def test_randomness_is_seed_and_step_alone():
    optimizer, batch = optax.sgd(0.1), draw_rows()

    def draws(seed, first, count):
        step = jax.jit(train_step.make_step(squares, optimizer, seed=seed))
        now = dataclasses.replace(start(optimizer), step=jnp.int32(first))
        found = []
        for _ in range(count):
            now, metrics = step(now, batch)
            found.append(float(metrics["drawn"]))
        return found

    straight = draws(seed=3, first=0, count=4)
    assert len(set(straight)) == 4
    assert draws(seed=3, first=2, count=2) == straight[2:]
    assert not set(draws(seed=4, first=0, count=2)) & set(straight)


@pytest.mark.parametrize("trouble", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(trouble):
    def loss(params, batch, key):
        value, metrics = squares(params, batch, key)
        if trouble == "loss":
            value = value / batch["bad"]
        else:  # sqrt has no slope at 0, and is 0 there
            value = value + jnp.sqrt(
                params["unet"]["w"] @ params["unet"]["w"] * (1.0 - batch["bad"])
            )
        return value, metrics | {"loss": value}

    optimizer = optax.sgd(0.1, momentum=0.9)
    step = jax.jit(train_step.make_step(loss, optimizer, seed=0, ema=0.9))
    good = draw_rows() | {"bad": jnp.float32(1.0 if trouble == "loss" else 0.0)}
    now, metrics = step(start(optimizer, ema=True, still=jnp.ones(2)), good)
    assert metrics["finite"]

    bad = good | {"bad": jnp.float32(0.0 if trouble == "loss" else 1.0)}
    after, metrics = step(now, bad)
    assert not metrics["finite"]
    assert np.isfinite(metrics["loss"]) == (trouble == "gradient")
    jax.tree.map(np.testing.assert_array_equal, after, now)
    assert step(after, good)[0].step == 2


def test_what_is_not_finite_is_named():
    optimizer = optax.sgd(0.1)
    clean = start(optimizer, ema=False, still=jnp.ones(2))
    batch = draw_rows()
    assert train_step.not_finite(squares, clean, batch, seed=0) == []

    bad = batch | {"b": batch["b"].at[3].set(jnp.nan)}
    found = train_step.not_finite(squares, clean, bad, seed=0)
    assert found == ["gradient of unet/w", "batch b"]

    ill = dataclasses.replace(clean, frozen={"unet": {"still": jnp.ones(2) / 0}})
    assert train_step.not_finite(squares, ill, batch, seed=0) == ["unet/still"]


def test_not_finite_looks_at_the_step_that_failed():
    """Same seed and step, so the same noise as in the step that is explained."""

    def loss(params, batch, key):
        unlucky = jax.random.uniform(key) > 0.5
        value = jnp.sum(params["unet"]["w"]) * jnp.where(unlucky, jnp.nan, 1.0)
        return value, {"loss": value}

    optimizer = optax.sgd(0.1)
    step = train_step.make_step(loss, optimizer, seed=1)
    seen = set()
    for number in range(6):
        now = dataclasses.replace(start(optimizer), step=jnp.int32(number))
        finite = bool(step(now, {})[1]["finite"])
        found = train_step.not_finite(loss, now, {}, seed=1)
        assert found == ([] if finite else ["gradient of unet/w"])
        seen.add(finite)
    assert seen == {True, False}
