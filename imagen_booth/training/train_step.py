"""The one training step: pretraining, DreamBooth, super-resolution, inversion.

The loss is a weighted sum over the rows of a batch,

    loss = sum_i weight_i * || prediction_i - target_i ||^2 / pixels,

with weights normalised when the batch is made: 1/n_subject for subject rows and
lambda/n_class for class rows give

    mean over subject rows + lambda * mean over class rows,

which is Eq. 2 of DreamBooth (arXiv 2208.12242) with independent noise and time
for its two terms, at every batch size; 1/n for every row is plain training, and
0 marks padding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from imagen_booth import train_state as states
from imagen_booth.cascade import Stage
from imagen_booth.denoiser import Condition, Prediction, condition, predict
from imagen_booth.diffusion import augment, loss, process
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.models.hint import hint
from imagen_booth.training.frozen_targets import ClassRows, NoisyRows

Batch = dict[str, Array]

SUBJECT, CLASS, PADDING = 0, 1, -1  # values of a batch's "group"
SHARED = ("null", "null_mask")  # entries of a batch without a row axis


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Settings of the loss.

    Attributes:
        weighting: Name of the log-SNR weighting in ``diffusion.loss``.
        hybrid: Whether to add the variational bound, which trains a learned variance.
        null_text: Share of rows whose text is replaced by the null text, 0 to 1.
        level: Least and greatest augmentation level of super-resolution rows, drawn
            uniformly in cosine time between the two; equal ends fix it.
    """

    weighting: str = "eps"
    hybrid: bool = False
    null_text: float = 0.0
    level: tuple[float, float] = (1e-5, 1e-5)


def sample_level(key: Array, level: tuple[float, float], rows: int) -> Array:
    """Augmentation levels, f32 [rows], uniform in cosine time within ``level``."""
    low, high = level
    if low == high:
        return jnp.full((rows,), low, jnp.float32)
    ends = augment.level_to_time(jnp.asarray(level, jnp.float32))
    u = jax.random.uniform(key, (rows,))
    return augment.time_to_level(ends[0] + u * (ends[1] - ends[0]))


def batch_loss(
    stage: Stage,
    unet: Callable[..., Array],
    text_encoder: Callable[..., Array] | None,
    config: LossConfig,
    params: states.Params,
    batch: Batch,
    key: Array,
    class_rows: Callable[..., ClassRows] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Weighted denoising loss of a batch.

    Args:
        stage: The stage that trains.
        unet: The network, ``(params, x, time, text, mask, level) -> out``.
        text_encoder: ``(params, tokens, mask) -> embeddings``; needed where the
            batch holds tokens.
        config: Settings of the loss.
        params: ``{"unet": ..., "text": ...?}``.
        batch: ``image`` [B, H, W, 3] in [-1, 1]; ``weight`` [B]; ``group`` [B] int;
            ``text`` [B, L, D] with ``text_mask`` [B, L], or ``tokens`` [B, L];
            ``null`` [L, D] with ``null_mask`` [L]; super-resolution adds ``low``
            [B, h, w, 3].
        key: Randomness of this batch: noise, times, null text, levels.
        class_rows: ``FrozenPrior.class_rows`` of a stage with its frozen weights, where
            the frozen model gives the targets of the class rows.

    Returns:
        Loss [], and sums over the rows: {"loss", "sum_subject", "rows_subject",
        "sum_class", "rows_class"} [], unweighted but for the first.
    """
    x0 = batch["image"]
    noise_key, time_key, null_key, *low_keys = jax.random.split(key, 5)

    text, text_mask = _batch_text(text_encoder, params, batch)
    text, text_mask = _drop_text(text, text_mask, batch, config.null_text, null_key)
    cond = None
    if stage.low_resolution is not None:
        cond = _augmented_low(stage, config.level, batch, *low_keys)

    t = stage.schedule.draw(time_key, x0.shape[:1])
    eps = hint(jax.random.normal(noise_key, x0.shape))
    alpha, sigma = stage.schedule.alpha(t), stage.schedule.sigma(t)
    xt = process.add_noise(x0, eps, alpha, sigma)
    frozen = target = None
    if class_rows is not None:
        noisy = NoisyRows(xt, t, text, text_mask, cond)
        frozen = class_rows(batch["group"] == CLASS, noisy, key)
        xt = frozen.put(frozen.xt, xt)
        target = process.target(stage.prediction, x0, eps, alpha, sigma)
        target = frozen.put(frozen.prediction.raw, target)

    apply = functools.partial(unet, params["unet"])
    out = predict(stage, apply, xt, t, text, text_mask, cond)
    logsnr = stage.schedule.logsnr(t)
    rows_loss = loss.per_example(
        out.raw, stage.prediction, x0, eps, logsnr, config.weighting, target
    )
    if config.hybrid and out.frac is not None:
        rows_loss += _bound(stage, t, x0, eps, out, batch["group"], frozen)

    total = loss.weighted_sum(rows_loss, batch["weight"])
    return total, {"loss": total} | _group_sums(rows_loss, batch["group"])


def _augmented_low(
    stage: Stage, level: tuple[float, float], batch: Batch, level_key: Array, key: Array
) -> Condition:
    """The small images of a super-resolution batch, at levels of their own."""
    shape = batch["image"].shape
    levels = sample_level(level_key, level, shape[0])
    return condition(stage, batch["low"], levels, jax.random.normal(key, shape))


def _bound(
    stage: Stage,
    t: Array,
    x0: Array,
    eps: Array,
    out: Prediction,
    group: Array,
    frozen: ClassRows | None,
) -> Array:
    """The term of each row, [B], that trains a learned variance."""
    assert isinstance(stage.schedule, TableSchedule)
    assert out.frac is not None
    bound = loss.variational_bound(stage.schedule, t, x0, eps, out.eps, out.frac)
    if frozen is None or frozen.prediction.frac is None:
        return bound
    other = frozen.put(frozen.prediction.eps, eps)
    frac = frozen.put(frozen.prediction.frac, jnp.zeros_like(out.frac))
    divergence = loss.step_divergence(stage.schedule, t, other, frac, out.eps, out.frac)
    return jnp.where(group == CLASS, divergence, bound)


def _batch_text(
    text_encoder: Callable[..., Array] | None, params: states.Params, batch: Batch
) -> tuple[Array, Array]:
    """Text embeddings [B, L, D] and their mask [B, L], encoded here from tokens."""
    if "tokens" not in batch:
        return batch["text"], batch["text_mask"]
    assert text_encoder is not None
    mask = batch["tokens"] > 0
    return text_encoder(params["text"], batch["tokens"], mask), mask


def _drop_text(
    text: Array, mask: Array, batch: Batch, share: float, key: Array
) -> tuple[Array, Array]:
    """Text and mask, with the null text in a randomly drawn share of the rows."""
    if share == 0:
        return text, mask
    drop = jax.random.bernoulli(key, share, (text.shape[0],))
    null = jnp.broadcast_to(batch["null"][None], text.shape)
    null_mask = jnp.broadcast_to(batch["null_mask"][None], mask.shape)
    text = jnp.where(drop[:, None, None], null.astype(text.dtype), text)
    return text, jnp.where(drop[:, None], null_mask, mask)


def _group_sums(rows_loss: Array, group: Array) -> dict[str, Array]:
    """Sum of the losses, and number of rows, of the subject and of the class."""
    sums = {}
    for name, value in (("subject", SUBJECT), ("class", CLASS)):
        chosen = (group == value).astype(jnp.float32)
        sums[f"sum_{name}"] = jnp.sum(rows_loss * chosen)
        sums[f"rows_{name}"] = jnp.sum(chosen)
    return sums


def make_step(
    loss_fn: Callable[..., tuple[Array, dict[str, Array]]],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: float = 0.0,
    accumulate: int = 1,
) -> Callable[..., tuple[states.TrainState, dict[str, Array]]]:
    """Makes the training step, a pure ``(state, batch, *fixed, ok=True) -> (state,
    metrics)``.

    Randomness comes from ``seed`` and the step counter alone, so a resumed run
    repeats nothing.  A step whose loss or gradient is not finite changes only
    ``metrics["finite"]``, and so does one that is called with ``ok=False``: a caller
    that passes each step's ``finite`` to the next and looks at it later stops with the
    last good state in hand.

    Args:
        loss_fn: ``(params, batch, key, *fixed) -> (loss, sums)`` as ``batch_loss``;
            ``fixed`` is what no step changes or donates, such as frozen weights.
        optimizer: Its state is ``state.opt_state``.
        seed: Seed of all randomness of the steps.
        ema: Decay of the moving average, where the state has one.
        accumulate: Number of micro-batches per step. The sum is exact, because weights
            were normalised over the whole batch.

    The metrics are {"loss", "loss_subject", "loss_class", "grad_norm", "finite"} [];
    a group without rows reports NaN.
    """

    def step(state, batch, *fixed, ok=True):
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(trainable, rows, key):
            return loss_fn(states.merge(trainable, state.frozen), rows, key, *fixed)

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        if accumulate == 1:
            (_, sums), grads = gradient(state.trainable, batch, key)
        else:
            sums, grads = _accumulated(
                gradient, state.trainable, batch, key, accumulate
            )
        metrics = _means(sums)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm) & ok
        new = _updated(state, grads, optimizer, ema)
        new = jax.tree.map(
            lambda a, b: a if a is b else jnp.where(finite, a, b), new, state
        )
        return new, metrics | {"grad_norm": norm, "finite": finite}

    return step


def _updated(
    state: states.TrainState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    ema: float,
) -> states.TrainState:
    """The state after a step with these gradients."""
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in int32
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    average = state.ema
    if average is not None:
        average = jax.tree.map(
            lambda old, new: old + (1.0 - ema) * (new - old), average, trainable
        )
    return dataclasses.replace(
        state,
        step=state.step + 1,
        trainable=trainable,
        opt_state=opt_state,
        ema=average,
    )


def _means(sums: dict[str, Array]) -> dict[str, Array]:
    """``sum_NAME`` over ``rows_NAME`` as ``loss_NAME``; the rest as it is."""
    groups = [name.removeprefix("rows_") for name in sums if name.startswith("rows_")]
    used = {f"{kind}_{group}" for kind in ("rows", "sum") for group in groups}
    means = {f"loss_{one}": sums[f"sum_{one}"] / sums[f"rows_{one}"] for one in groups}
    return means | {name: value for name, value in sums.items() if name not in used}


def _accumulated(gradient, trainable, batch, key, count):
    """Sums gradients and sums of losses over ``count`` micro-batches in a scan."""
    shared = {name: batch[name] for name in SHARED if name in batch}
    rows = {name: leaf for name, leaf in batch.items() if name not in shared}
    # Every count-th row, so that each micro-batch is on all devices.
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), rows
    )

    def one(total, part):
        index, rows = part
        key_of_part = jax.random.fold_in(key, index)
        (_, sums), grads = gradient(trainable, rows | shared, key_of_part)
        return jax.tree.map(jnp.add, total, grads), sums

    zeros = jax.tree.map(jnp.zeros_like, trainable)
    grads, sums = jax.lax.scan(one, zeros, (jnp.arange(count), parts))
    return {name: jnp.sum(values) for name, values in sums.items()}, grads


def not_finite(
    loss_fn: Callable[..., tuple[Array, dict[str, Array]]],
    state: states.TrainState,
    batch: Batch,
    seed: int,
) -> list[str]:
    """Names what is not finite in the step that would follow ``state``.

    Returns:
        Paths of parameters, then of gradients (``gradient of ...``), that hold an
        infinite or NaN value, then ``batch NAME`` of bad inputs.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_of(trainable: Any) -> Array:
        return loss_fn(states.merge(trainable, state.frozen), batch, key)[0]

    grads = jax.jit(jax.grad(loss_of))(state.trainable)
    paths = []
    params = states.merge(state.trainable, state.frozen)
    for prefix, tree in (("", params), ("gradient of ", grads), ("batch ", batch)):
        for path, leaf in states.flatten(tree).items():
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
                paths.append(prefix + path)
    return paths
