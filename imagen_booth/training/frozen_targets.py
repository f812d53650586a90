"""Prior preservation without class images: the frozen model gives the targets.

In the class rows of a step, the trained network reads the class prompt and should
predict what the frozen network predicts for the same noisy image. Before the first
step both agree, so the term is 0 and has no gradient; later it pulls the network's
predictions for the class back to what they were. ``config.schema.FrozenModel`` chooses
the noisy images.
"""

import dataclasses
import fractions
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from imagen_booth import train_state as states
from imagen_booth.cascade import Stage
from imagen_booth.config.schema import FrozenModel, Job
from imagen_booth.data.examples import ImagePair
from imagen_booth.denoiser import Condition, Prediction, predict
from imagen_booth.diffusion import guidance, process
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.models.hint import hint
from imagen_booth.weights.load import to_frozen

STREAM = 1  # folded into a step's key for the noise of the class rows


class NoisyRows(NamedTuple):
    """Rows of a batch as a network sees them.

    Attributes:
        xt: Noisy images, [B, H, W, 3].
        t: Times, [B].
        text: Text embeddings, [B, L, D].
        mask: Their mask, [B, L].
        cond: The low-res images; None for the base stage.
    """

    xt: Array
    t: Array
    text: Array
    mask: Array
    cond: Condition | None


class ClassRows(NamedTuple):
    """The class rows of a batch, as the frozen model sees them.

    Attributes:
        index: Their places in the batch, [n] int; where there are fewer than n, the
            number of rows of the batch, which is no place.
        xt: Their noisy images, [n, H, W, 3].
        prediction: The frozen model's prediction for these.
    """

    index: Array
    xt: Array
    prediction: Prediction

    def put(self, values: Array, where: Array) -> Array:
        """``where`` [B, ...] with ``values`` [n, ...] in the class rows."""
        return where.at[self.index].set(values, mode="drop")


@dataclasses.dataclass(frozen=True)
class FrozenPrior:
    """How the frozen model gives the class rows of a stage their targets.

    Attributes:
        settings: Noisy images of the class rows.
        dtype: Dtype of the activations, to which the copied weights are cast.
        rows: Most class rows in a micro-batch.
    """

    settings: FrozenModel
    dtype: Any
    rows: int

    def class_rows(
        self,
        stage: Stage,
        unet: Callable[..., Array],
        params: states.Params,
        is_class: Array,
        rows: NoisyRows,
        key: Array,
    ) -> ClassRows:
        """The class rows of a batch and the frozen model's predictions for them.

        Args:
            unet: The network, ``(params, x, time, text, mask, level) -> out``.
            params: The frozen weights; with an adapter, those that it is added to.
            is_class: Which rows of the batch are those of the class, bool [B].
            rows: The batch; images are photos with noise.
            key: Randomness of the batch.
        """
        index = jnp.nonzero(is_class, size=self.rows, fill_value=len(is_class))[0]
        rows = jax.tree.map(
            lambda leaf: hint(jnp.take(leaf, index, axis=0, mode="clip")), rows
        )
        apply = functools.partial(unet, jax.lax.stop_gradient(params))
        if self.settings.from_noise == 0:
            xt, prediction = rows.xt, predict(stage, apply, *rows)
        else:
            xt, prediction = self._carry(stage, apply, rows, key)
        return jax.lax.stop_gradient(ClassRows(index, xt, prediction))

    def _carry(
        self, stage: Stage, apply: Callable[..., Array], rows: NoisyRows, key: Array
    ) -> tuple[Array, Prediction]:
        """In a share of steps, pure noise is brought to the rows' times with DDIM.

        Each row has ``steps`` steps, evenly spread between the schedule's noisiest time
        and its own.

        Returns:
            The noisy images, and the frozen model's prediction for them.
        """
        steps, schedule = self.settings.steps, stage.schedule
        noise_key, share_key = jax.random.split(jax.random.fold_in(key, STREAM))
        # One choice for all rows: what is not chosen costs nothing, on any mesh.
        from_noise = jax.random.uniform(share_key) < self.settings.from_noise
        noisiest = float(schedule.times(1, "linspace")[0])

        def time_at(step: Array) -> Array:
            share = step / steps
            time = (1.0 - share) * noisiest + share * rows.t
            return jnp.round(time) if isinstance(schedule, TableSchedule) else time

        def scales(time: Array) -> tuple[Array, Array]:
            return schedule.alpha(time), schedule.sigma(time)

        def step(xt: Array, number: Array) -> tuple[Array, Prediction]:
            now = time_at(number)
            out = predict(stage, apply, *rows._replace(xt=xt, t=now))
            x0 = guidance.static_threshold(out.x0)
            eps = process.convert(x0, "x0", xt, *scales(now))[1]
            then = time_at(jnp.minimum(number + 1.0, steps))
            moved = process.add_noise(x0, eps, *scales(then))
            return jnp.where(number < steps, moved, xt), out

        def maybe(carry: tuple[Array, Prediction], number: Array) -> tuple[Any, None]:
            # The last step is the prediction itself. It shares a loop with the steps
            # of DDIM, so that the network is compiled once.
            needed = from_noise | (number == steps)
            carry = jax.lax.cond(needed, lambda: step(carry[0], number), lambda: carry)
            return carry, None

        noise = hint(jax.random.normal(noise_key, rows.xt.shape))
        start = jnp.where(from_noise, noise, rows.xt)
        none = jnp.zeros_like(start)
        frac = none if stage.learned_variance else None
        numbers = jnp.arange(steps + 1, dtype=jnp.float32)
        carry = start, Prediction(none, none, none, frac)
        return jax.lax.scan(maybe, carry, numbers)[0]


def copy_params(params: states.Params, dtype: Any) -> states.Params:
    """Copies a network's weights in the dtypes in which it uses them.

    The copies are arrays of their own, so the originals can be donated. Networks cast
    their weights on every use, so the copy predicts the same.

    Args:
        dtype: Dtype of the activations, see ``weights.load.to_frozen``.
    """
    # A cast to the same dtype is no copy: jit would return the original.
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, to_frozen(tree, dtype)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, params),
    )
    return copy(params)


def repeat_photos(photos: Sequence[ImagePair], share: float) -> list[ImagePair]:
    """The photos, each as often as a ``share`` of its rows with null text needs."""
    times = fractions.Fraction(share).limit_denominator(1000).denominator
    return [photo for photo in photos for _ in range(times)]


def prior_of(job: Job, stage: str, devices: int, dtype: Any) -> FrozenPrior | None:
    """How the frozen model gives a job's class rows their targets; None if it does not.

    Args:
        devices: Devices of all hosts, over which the class rows are spread.
        dtype: Dtype of the activations.
    """
    settings, tuning = job.frozen_prior(stage), job.finetuning(stage)
    if settings is None:
        return None
    rows = -(-tuning.class_rows // tuning.accumulate)
    return FrozenPrior(settings, dtype, -(-rows // devices) * devices)
