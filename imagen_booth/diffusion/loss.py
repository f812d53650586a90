"""The loss of each example, and their weighted sum.

A weight is a function w(logsnr) that multiplies the squared error *of eps*, whichever
of eps, x0 and v the network predicts. Errors of x0 and v are converted by

    |eps error|^2 = SNR |x0 error|^2 = alpha^2 |v error|^2      at the same z_t.

So a weight means the same loss for every kind of prediction.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtr
from jaxtyping import Array, Float

from imagen_booth.diffusion import process
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.errors import InputError

WEIGHTS: dict[str, Callable[[Array], Array]] = {
    # plain squared error of eps, of x0, of v
    "eps": lambda logsnr: jnp.ones_like(logsnr),
    "x0": lambda logsnr: jnp.exp(-logsnr),
    "v": lambda logsnr: 1.0 + jnp.exp(-logsnr),
    # min(1 + SNR, 10) on x0: the weight of v with an upper bound, for x0 predictions
    "v_max_10": lambda logsnr: jnp.minimum(
        1.0 + jnp.exp(-logsnr), 10.0 * jnp.exp(-logsnr)
    ),
    # SNR + 100 on x0: as "v", for a network whose unknown is a residual of a tenth of
    # the picture's range, so that its correction has unit size at every time
    "residual": lambda logsnr: 1.0 + 100.0 * jnp.exp(-logsnr),
    # max(SNR, 1) on x0: arXiv 2202.00512, section 4
    "snr_trunc": lambda logsnr: jnp.maximum(jnp.exp(-logsnr), 1.0),
    # min(SNR, 5) on x0: arXiv 2303.09556
    "min_snr_5": lambda logsnr: jnp.minimum(5.0 * jnp.exp(-logsnr), 1.0),
    # min(SNR + 0.1, 5) on x0: the same with some weight where noise is highest, where
    # a subject's colour is decided
    "min_snr_5_floor": lambda logsnr: jnp.minimum(
        5.0 * jnp.exp(-logsnr), 1.0 + 0.1 * jnp.exp(-logsnr)
    ),
}

_TO_EPS_ERROR: dict[str, Callable[[Array], Array]] = {
    "eps": lambda logsnr: jnp.ones_like(logsnr),
    "x0": jnp.exp,
    "v": jax.nn.sigmoid,
}


def per_example(
    prediction: Float[Array, " B *dims"],
    kind: str,
    x0: Float[Array, " B *dims"],
    eps: Float[Array, " B *dims"],
    logsnr: Float[Array, " B"],
    weight: str = "eps",
    target: Float[Array, " B *dims"] | None = None,
) -> Float[Array, " B"]:
    """w(logsnr) times the mean squared error of eps, for each row.

    Args:
      prediction: The network's output at z_t.
      kind: The kind of prediction: 'eps', 'x0' or 'v'.
      x0, eps: The picture and the noise in z_t.
      logsnr: Log-SNR of each row.
      weight: A name of `WEIGHTS`.
      target: The target of the prediction; None for what x0 and eps imply.

    Returns:
      The loss of each row, without the weights of the batch.

    Raises:
      InputError: The weight is not in `WEIGHTS`.
    """
    check_weight(weight)
    if target is None:
        alpha = jnp.sqrt(jax.nn.sigmoid(logsnr))
        sigma = jnp.sqrt(jax.nn.sigmoid(-logsnr))
        target = process.target(kind, x0, eps, alpha, sigma)
    error = prediction - target
    scale = WEIGHTS[weight](logsnr) * _TO_EPS_ERROR[kind](logsnr)
    return scale * _row_mean(jnp.square(error))


def check_weight(weight: str) -> None:
    """Checks the name of a weight.

    Raises:
      InputError: It is not in `WEIGHTS`.
    """
    if weight not in WEIGHTS:
        raise InputError(
            f"The loss weight is '{weight}'. Use one of {', '.join(WEIGHTS)}."
        )


def weighted_sum(
    losses: Float[Array, " B"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """The loss of a batch: the sum of losses times the weights in the batch.

    With 1/n_subject on the n_subject subject rows, lambda/n_class on the n_class class
    rows and 0 on padding, it is the mean over subject rows plus lambda times the mean
    over class rows: DreamBooth's loss with prior preservation (arXiv 2208.12242,
    equation 2) for every composition of the batch.
    """
    return jnp.sum(losses * weight)


def step_divergence(
    schedule: TableSchedule,
    t: Float[Array, " B"],
    eps: Float[Array, " B *dims"],
    frac: Float[Array, " B *dims"],
    eps_prediction: Float[Array, " B *dims"],
    frac_prediction: Float[Array, " B *dims"],
) -> Float[Array, " B"]:
    """Divergence of one model's step from another's; it trains a learned variance.

    This is `variational_bound` with a frozen model in place of the true posterior: the
    KL divergence of two Gaussians q(z_{t-1} | z_t), in the same unit, with the mean
    detached. It is exactly 0 where both models agree.

    Args:
      t: Table index of each row, as f32.
      eps, frac: The frozen model's noise, and its position between the smallest (0)
        and the largest (1) log variance.
      eps_prediction, frac_prediction: The same of the model that is trained.

    Returns:
      Bits per dimension of each row, times size/1000.
    """
    log_min, log_max, shift = _step_tables(schedule, t, eps)
    log_variance = frac_prediction * log_max + (1.0 - frac_prediction) * log_min
    gap = shift * (jax.lax.stop_gradient(eps_prediction) - eps)
    log_frozen = frac * log_max + (1.0 - frac) * log_min
    nats = _divergence(log_frozen, log_variance, gap)
    return _row_mean(nats) / np.log(2.0) * (schedule.size / 1000)


def variational_bound(
    schedule: TableSchedule,
    t: Float[Array, " B"],
    x0: Float[Array, " B *dims"],
    eps: Float[Array, " B *dims"],
    eps_prediction: Float[Array, " B *dims"],
    frac: Float[Array, " B *dims"],
) -> Float[Array, " B"]:
    """The term of the variational bound that trains a learned-range variance.

    It is added to the squared error of eps; the mean is detached, so this term moves
    only the variance. For index t > 0 it is the divergence of the model's step from
    the true posterior q(z_{t-1} | z_t, x0), for t = 0 minus the log likelihood of the
    8-bit picture, both averaged over pixels and channels and divided by ln 2, that
    is in bits per dimension, then times size/1000: one row stands for the sum over
    all `size` times, and the hybrid loss takes a thousandth of it.

    Args:
      t: Table index of each row, as f32.
      x0: Picture in [-1, 1] on the grid of 256 grey levels.
      eps: The noise in z_t.
      eps_prediction: The noise that the network predicts.
      frac: The network's position between the smallest (0) and the largest (1) log
        variance.

    Source: arXiv 2102.09672, section 3; DeepFloyd IF trains with it.
    """
    log_min, log_max, shift = _step_tables(schedule, t, x0)
    log_variance = frac * log_max + (1.0 - frac) * log_min
    # Posterior mean minus model mean. Written with eps: through x0 it would be a small
    # difference of numbers as large as 1/alpha.
    gap = shift * (jax.lax.stop_gradient(eps_prediction) - eps)
    divergence = _divergence(log_min, log_variance, gap)
    # At t = 0 the posterior mean is x0, so the model's is x0 - gap.
    likelihood = _grey_level_log_likelihood(x0, gap, jnp.exp(-0.5 * log_variance))
    first = t.reshape(t.shape + (1,) * (x0.ndim - 1)) < 1
    nats = jnp.where(first, -likelihood, divergence)
    return _row_mean(nats) / np.log(2.0) * (schedule.size / 1000)


def _step_tables(
    schedule: TableSchedule, t: Array, like: Array
) -> tuple[Array, Array, Array]:
    """Least and greatest log variance of a step, and its mean's shift per unit of eps.

    Each has one value per row, in the shape and dtype of ``like``.
    """
    index = t.astype(jnp.int32)

    def at(table: np.ndarray) -> Array:
        rows = jnp.asarray(table, like.dtype)[index]
        return rows.reshape(rows.shape + (1,) * (like.ndim - 1))

    betas, abar = schedule.betas64, schedule.abar64
    posterior = betas * (1.0 - np.append(1.0, abar[:-1])) / (1.0 - abar)
    # The posterior at 0 has no width; its neighbour's keeps the logarithm finite.
    posterior[0] = posterior[1]
    shift = betas / np.sqrt((1.0 - abar) * (1.0 - betas))
    return at(np.log(posterior)), at(np.log(betas)), at(shift)


def _divergence(log_true: Array, log_model: Array, gap: Array) -> Array:
    """KL divergence of two Gaussians in nats, by log variances and gap of means."""
    return 0.5 * (
        log_model
        - log_true
        - 1.0
        + jnp.exp(log_true - log_model)
        + jnp.square(gap) * jnp.exp(-log_model)
    )


def _grey_level_log_likelihood(x0: Array, gap: Array, precision: Array) -> Array:
    """log of a Gaussian's mass on x0's grey level, its mean being x0 - gap.

    A grey level is 2/255 wide; black and white reach out to infinity.
    """
    upper = precision * (gap + 1.0 / 255.0)
    lower = precision * (gap - 1.0 / 255.0)
    inside = jnp.log(jnp.maximum(ndtr(upper) - ndtr(lower), 1e-12))
    inside = jnp.where(x0 < -0.999, log_ndtr(upper), inside)
    return jnp.where(x0 > 0.999, log_ndtr(-lower), inside)


def _row_mean(x: Array) -> Array:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
