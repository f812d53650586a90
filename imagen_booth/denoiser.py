"""The denoiser of a stage: conditioning, prediction and guidance.

Training and sampling build the network's input with the same two functions,
``condition`` and ``predict``, so a super-resolution stage is fine-tuned on the same
input as it gets in sampling.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from imagen_booth.cascade import Stage
from imagen_booth.diffusion import augment, guidance, process, sampler


class Condition(NamedTuple):
    """What a super-resolution network sees of the low-res image.

    Attributes:
        image: Enlarged and noised image at the output's size, [B, H, W, 3].
        level: Level in the network's own unit, [B] f32.
    """

    image: Array
    level: Array


class Prediction(NamedTuple):
    """The network's prediction, in every form the method uses.

    Attributes:
        raw: First three channels of the output, [B, H, W, 3].
        x0: Clean image that follows from them, [B, H, W, 3].
        eps: Noise that follows from them, [B, H, W, 3].
        frac: Position between the two ancestral log variances, [B, H, W, 3] in
            [0, 1]; None where the variance is fixed.
    """

    raw: Array
    x0: Array
    eps: Array
    frac: Array | None


def _resize_matrix(low: int, high: int, aligned: bool) -> np.ndarray:
    """[high, low] weights of linear interpolation along one axis."""
    if aligned:
        at = np.arange(high) * ((low - 1) / (high - 1))
    else:
        at = np.clip((np.arange(high) + 0.5) * (low / high) - 0.5, 0, low - 1)
    below = np.minimum(at.astype(int), max(low - 2, 0))
    share = at - below
    matrix = np.zeros((high, low))
    matrix[np.arange(high), below] += 1 - share
    matrix[np.arange(high), np.minimum(below + 1, low - 1)] += share
    return matrix.astype(np.float32)


def enlarge(low: Array, scale: int, aligned: bool) -> Array:
    """Bilinear enlargement of [B, h, w, 3] by ``scale``.

    Args:
        low: Images, [B, h, w, 3].
        scale: Enlargement, 1 or more.
        aligned: Whether centres of corner pixels map onto centres of corner pixels
            (IF); otherwise edges coincide, which gives a crop the same pixels as the
            whole image.

    Returns:
        Images, [B, h * scale, w * scale, 3].
    """
    rows = _resize_matrix(low.shape[1], low.shape[1] * scale, aligned)
    columns = _resize_matrix(low.shape[2], low.shape[2] * scale, aligned)
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, low, columns)


def condition(stage: Stage, low: Array, level: Array, eps: Array) -> Condition:
    """Noise-conditioning augmentation of a low-res image (Imagen, sec. 2.4).

    Args:
        stage: A super-resolution stage.
        low: Images in [-1, 1], [B, h, w, 3], ``scale`` times smaller than the output.
        level: Augmentation level of each row, [B]: the variance of the added noise.
        eps: Unit Gaussian noise at the output's size, [B, H, W, 3].

    Raises:
        ValueError: ``stage.level_map`` is not known.
    """
    image = augment.corrupt(enlarge(low, stage.scale, stage.aligned), eps, level)
    if stage.level_map == "time":
        seen = 1000.0 * augment.level_to_time(level)
    elif stage.level_map == "if_index":
        seen = augment.level_to_if(level)
    else:
        raise ValueError(f"level_map={stage.level_map!r}; use 'time' or 'if_index'")
    return Condition(image, seen)


Apply = Callable[..., Array]  # module.apply over the "unet" parameters


def network_inputs(
    stage: Stage,
    xt: Array,
    t: Array,
    text: Array,
    text_mask: Array,
    cond: Condition | None,
) -> tuple[Array | None, ...]:
    """The inputs of the stage's network, see ``predict``."""
    x = xt if cond is None else jnp.concatenate([xt, cond.image], axis=-1)
    level = None if cond is None else cond.level
    return x, stage.schedule.network_time(t), text, text_mask, level


def predict(
    stage: Stage,
    apply: Apply,
    xt: Array,
    t: Array,
    text: Array,
    text_mask: Array,
    cond: Condition | None,
) -> Prediction:
    """One call of the stage's network on a noisy image.

    Args:
        stage: The stage, base or super-resolution.
        apply: The network, ``(x, time, text, text_mask, level) -> [B, H, W, 3 or 6]``.
        xt: Noisy image z_t, [B, H, W, 3].
        t: Time on the stage's schedule, [B]: in [0, 1], or a table index as f32.
        text: Text embeddings, [B, L, D].
        text_mask: True where a token is read, bool [B, L].
        cond: The low-res image as ``condition`` made it; None for the base stage.
    """
    out = apply(*network_inputs(stage, xt, t, text, text_mask, cond))
    raw, frac = out, None
    if stage.learned_variance:
        raw, v = jnp.split(out, 2, axis=-1)
        frac = (v + 1.0) / 2.0
    alpha, sigma = stage.schedule.alpha(t), stage.schedule.sigma(t)
    x0, eps = process.convert(raw, stage.prediction, xt, alpha, sigma)
    return Prediction(raw, x0, eps, frac)


def guided_denoiser(
    stage: Stage,
    apply: Apply,
    text: Array,
    text_mask: Array,
    null: Array,
    null_mask: Array,
    cond: Condition | None,
    config: sampler.SamplerConfig,
    read_text: Callable[..., Any] | None = None,
) -> Callable[..., tuple[Array, Array | None]]:
    """The denoiser that a sampler calls: guidance, then thresholding of x0.

    Both branches of classifier-free guidance go through the network in one call.
    The variance is taken from the conditional branch, as IF's sampler does.

    Args:
        stage: The stage.
        apply: The network, as in ``predict``.
        text: Text embeddings to move towards, [B, L, D].
        text_mask: Their mask, [B, L].
        null: Null text or negative prompt to move away from, [B, L, D].
        null_mask: Its mask, [B, L].
        cond: The low-res image; None for the base stage.
        config: Gives the guidance weight and the threshold.
        read_text: Computes what the network makes of the text, once for all calls of
            the denoiser, from the inputs of ``apply``, which takes it as ``of_text``;
            None to compute it in every call.

    Returns:
        ``denoise(xt [B, H, W, 3], t [] or [B], guided=True) -> (x0, frac or None)``;
        not guided, it takes the conditional prediction alone.
    """

    def double(one: Array, other: Array) -> Array:
        return jnp.concatenate([one, other])

    single = (text, text_mask, cond)
    if config.guidance != 1.0:
        both = None if cond is None else Condition(*(double(c, c) for c in cond))
        pair = (double(text, null), double(text_mask, null_mask), both)
    else:
        pair = single
    for_single = for_pair = apply
    if read_text is not None:
        shape = (len(pair[0]), stage.resolution, stage.resolution, 3)
        inputs = network_inputs(stage, jnp.zeros(shape), jnp.zeros(shape[:1]), *pair)
        made = read_text(*inputs)
        for_pair = functools.partial(apply, of_text=made)
        made = jax.tree.map(lambda leaf: leaf[: len(text)], made)
        for_single = functools.partial(apply, of_text=made)

    def denoise(xt: Array, t: Array, guided: bool = True) -> tuple[Array, Array | None]:
        rows, twice = xt.shape[0], guided and config.guidance != 1.0
        times = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (rows,))
        if twice:
            out = predict(stage, for_pair, double(xt, xt), double(times, times), *pair)
        else:
            out = predict(stage, for_single, xt, times, *single)
        x0, frac = out.x0[:rows], None if out.frac is None else out.frac[:rows]
        if frac is not None and stage.stale_variance:
            frac = jnp.zeros_like(frac)
        if twice:
            # x0 is affine in the network's output at a fixed xt, so guiding x0
            # is guiding eps.
            x0 = guidance.combine(x0, out.x0[rows:], config.guidance)
        x0 = guidance.threshold(x0, config.threshold, config.ratio, config.cap)
        return x0, frac

    return denoise
