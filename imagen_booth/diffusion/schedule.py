"""Noise schedules: the signal-to-noise ratio at time t.

The forward process is z_t = alpha x + sigma eps with alpha^2 + sigma^2 = 1, so one
function describes it, the log signal-to-noise ratio

    logsnr(t) = log(alpha^2 / sigma^2),  alpha^2 = sigmoid(logsnr).

Time runs from clean to noisy. In the continuous schedules it lies in [0, 1] with
1 = noise; in the table schedule it is the integer index 0..size-1, carried as f32.

A sampler visits exactly the times of `times()`. From the last one it steps to a picture
without noise, on every schedule, and so returns x0 itself.

Source: Imagen, arXiv 2205.11487, section 2; DeepFloyd IF for the table and its
named step lists.
"""

import abc
import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from imagen_booth.errors import InputError

# Networks of this family take time in thousandths, even where it is continuous.
STEPS = 1000

# Named step lists of DeepFloyd IF. The table is cut into sections of equal length; a
# list has the number of times in each section, the least noisy section first.
SECTIONS = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (
        *(1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3),
        *(4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    ),
    "smart185": (
        *(1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7),
        *(8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20),
    ),
    "super27": (1, 1, 1, 1, 1, 1, 1, 2, 5, 13),
    "super40": (2, 2, 2, 2, 2, 2, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}

# Lists of steps by name: what their numbers are, and the numbers, noisiest first.
# The last of the ten steps ends at a picture without noise in place of sigma 0.006.
STEP_LISTS = {
    # Align Your Steps for DeepFloyd IF's first stage: arXiv 2404.14507, table 3
    "ays_if": (
        "sigma",
        (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030),
    ),
}
# What the numbers of a list can be; those of each increase or decrease with noise.
UNITS = ("time", "logsnr", "sigma")
Steps = int | str | tuple[float, ...]


class Schedule(abc.ABC):
    """The interface of a schedule for training and sampling."""

    @abc.abstractmethod
    def logsnr(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """log(alpha^2 / sigma^2) in nats at times t, finite for every training time."""

    @abc.abstractmethod
    def logsnr64(self, t: Float[np.ndarray, " *shape"]) -> Float[np.ndarray, " *shape"]:
        """`logsnr` in float64 on the host, for sampling plans."""

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Random training times, uniform over the schedule, f32."""

    @abc.abstractmethod
    def network_time(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """The number that the network embeds as its time, from 0 to 1000."""

    @abc.abstractmethod
    def spaced_times(self, steps: int | str, spacing: str) -> Float[np.ndarray, " T"]:
        """The times of an even grid or of a list in `SECTIONS`, see `times`."""

    @abc.abstractmethod
    def time_at(self, logsnr: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """The times with these log-SNRs, or the nearest there are, float64."""

    @abc.abstractmethod
    def on_schedule(self, t: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Which times the schedule has, bool."""

    def times(self, steps: Steps, spacing: str) -> Float[np.ndarray, " T"]:
        """The T times of a sampler's network calls, decreasing, float64.

        Args:
          steps: T, the name of a list in `SECTIONS` or `STEP_LISTS`, or T numbers,
            noisiest first.
          spacing: 'linspace', 'leading' or 'trailing'; of a list of numbers what they
            are: 'time', 'logsnr', or 'sigma' for the ratio of noise to picture.

        Raises:
          InputError: The schedule has no such grid, or a list is out of order or
            outside the schedule.
        """
        if isinstance(steps, str) and steps in STEP_LISTS:
            spacing, steps = STEP_LISTS[steps]
        if not isinstance(steps, tuple):
            return self.spaced_times(steps, spacing)
        values = np.asarray(steps, np.float64)
        _check_order(values, spacing)
        if spacing == "time":
            t, outside = values, ~self.on_schedule(values)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                logsnr = values if spacing == "logsnr" else -2.0 * np.log(values)
            ends = self.logsnr64(self._ends()) + (-1e-9, 1e-9)  # rounding of exp, log
            outside = ~((ends[0] <= logsnr) & (logsnr <= ends[1]))
            t = self.time_at(np.where(outside, ends[0], logsnr))
        if outside.any():
            raise InputError(
                f"sampler.steps has the {spacing} {values[outside.argmax()]:g}, which "
                f"is outside the schedule; it has {self._range(spacing)}."
            )
        same = np.flatnonzero(np.diff(t) == 0)
        if same.size:
            one, other = values[same[0]], values[same[0] + 1]
            raise InputError(
                f"sampler.steps has {one:g} and {other:g}, which are the same time "
                f"{t[same[0]]:g} of the schedule. Leave one out."
            )
        return t

    def _ends(self) -> Float[np.ndarray, " 2"]:
        """The noisiest time and the cleanest."""
        return np.asarray([self.spaced_times(1, "linspace")[0], 0.0])

    def _range(self, unit: str) -> str:
        """The least and the greatest value of a unit, for errors."""
        values = self._ends()
        if unit != "time":
            values = self.logsnr64(values)
        if unit == "sigma":
            values = np.exp(-0.5 * values)
        low, high = sorted(values)
        whole = " (whole numbers)" if unit == "time" and high > 1 else ""
        return f"{low:.4g} to {high:.4g}{whole}"

    def alpha(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """Scale of the picture in z_t, in [0, 1]."""
        return jnp.sqrt(jax.nn.sigmoid(self.logsnr(t)))

    def sigma(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """Scale of the noise in z_t, in [0, 1]."""
        return jnp.sqrt(jax.nn.sigmoid(-self.logsnr(t)))


class Continuous(Schedule):
    """A schedule given by a formula on [0, 1]."""

    @abc.abstractmethod
    def law(self, t: Any, xp: ModuleType) -> Any:
        """The log-SNR at times t in [0, 1]; `xp` is numpy or jax.numpy."""

    def logsnr(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        return self.law(t, jnp)

    def logsnr64(self, t: Float[np.ndarray, " *shape"]) -> Float[np.ndarray, " *shape"]:
        with np.errstate(divide="ignore"):
            return self.law(np.asarray(t, np.float64), np)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape, jnp.float32)

    def network_time(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        return STEPS * t

    def time_at(self, logsnr: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """By bisection, to the last digits of float64; the law falls with time."""
        low, high = np.zeros_like(logsnr), np.ones_like(logsnr)
        for _ in range(60):
            middle = 0.5 * (low + high)
            cleaner = self.logsnr64(middle) > logsnr
            low, high = np.where(cleaner, middle, low), np.where(cleaner, high, middle)
        return high

    def on_schedule(self, t: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        return (t > 0) & (t <= 1)

    def spaced_times(self, steps: int | str, spacing: str) -> Float[np.ndarray, " T"]:
        """The noisy ends of `steps` even intervals from 1 to 0: 1, ..., 1/steps.

        'linspace' and 'trailing' are the same here. A grid of the intervals' clean ends
        ('leading') would not start at pure noise and is refused, and so are the named
        lists, which are indices into the table.
        """
        if isinstance(steps, str):
            raise InputError(
                f"sampler.steps is '{steps}', a list of table indices, but this "
                "schedule is continuous. Give a number of steps, or one of "
                f"{', '.join(STEP_LISTS)}."
            )
        if spacing == "leading":
            raise InputError(
                "sampler.spacing is 'leading', which starts short of pure noise on a "
                "continuous schedule. Use 'linspace'."
            )
        return np.linspace(1.0, 0.0, _at_least_one(steps) + 1)[:-1]


@dataclasses.dataclass(frozen=True)
class CosineSchedule(Continuous):
    """logsnr(t) = shift - 2 log tan(pi t / 2), clipped.

    Without a shift, alpha and sigma are cosine and sine of pi t / 2. A shift of s moves
    every time to noise that is exp(-s / 2) as strong.

    Source: Imagen's base and 256 px stages; arXiv 2301.11093, section 3.1, for the
    shift.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 0.0

    def law(self, t: Any, xp: ModuleType) -> Any:
        # tan as a quotient of two sines: near t = 1 the cosine would lose all digits.
        half = 0.5 * np.pi
        logsnr = 2.0 * (xp.log(xp.sin(half * (1.0 - t))) - xp.log(xp.sin(half * t)))
        return xp.clip(logsnr + self.shift, self.logsnr_min, self.logsnr_max)


@dataclasses.dataclass(frozen=True)
class LinearSchedule(Continuous):
    """Linearly growing betas in continuous time: -log alpha^2 = 1e-4 + 10 t^2.

    The constant is the first of a thousand betas, so that every time has noise; 10 is
    a thousand times half of the last beta. The log-SNR differs from that of the product
    of the thousand betas by at most 0.7, near t = 0.004, and by less than 0.12 from
    t = 0.1 on.

    Source: Imagen's 1024 px stage. Only the betas and the continuous time are
    published; this law is in common use for them.
    """

    beta_min: float = 1e-4
    beta_max: float = 0.02

    def law(self, t: Any, xp: ModuleType) -> Any:
        return -xp.log(xp.expm1(self.beta_min + 0.5 * STEPS * self.beta_max * t * t))


@dataclasses.dataclass(frozen=True)
class TableSchedule(Schedule):
    """DeepFloyd IF's table: a cosine law with offset 0.008, betas capped at 0.999.

    alpha^2 at index i is called abar_i. A size other than 1000 has the same law in more
    or fewer steps.
    """

    size: int = STEPS

    @property
    def betas64(self) -> Float[np.ndarray, " size"]:
        """The share of the signal's variance that each step removes, float64."""
        return _table(self.size)[0]

    @property
    def abar64(self) -> Float[np.ndarray, " size"]:
        """alpha^2 at each index, float64."""
        return _table(self.size)[1]

    def logsnr(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        table = jnp.asarray(_logit(self.abar64), t.dtype)
        return table[t.astype(jnp.int32)]

    def logsnr64(self, t: Float[np.ndarray, " *shape"]) -> Float[np.ndarray, " *shape"]:
        return _logit(self.abar64)[np.asarray(t).astype(int)]

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.randint(key, shape, 0, self.size).astype(jnp.float32)

    def network_time(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        return t

    def time_at(self, logsnr: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """The index whose log-SNR is nearest."""
        gap = np.abs(_logit(self.abar64)[None] - logsnr[:, None])
        return gap.argmin(axis=1).astype(np.float64)

    def on_schedule(self, t: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        return (t >= 0) & (t < self.size) & (t == np.round(t))

    def spaced_times(self, steps: int | str, spacing: str) -> Float[np.ndarray, " T"]:
        """Indices that the sampler visits, highest first.

        'linspace' spreads them evenly and includes both ends of the table, 'trailing'
        includes the noisy end, 'leading' the clean end: 100 steps start at 990. A name
        in `SECTIONS` selects a list of DeepFloyd IF and ignores the spacing.
        """
        if isinstance(steps, str):
            return self._named(steps)
        if _at_least_one(steps) > self.size:
            raise InputError(
                f"sampler.steps is {steps}, but the table has {self.size} times. "
                f"Use {self.size} or fewer."
            )
        if spacing == "linspace" and steps > 1:
            return np.linspace(0, self.size - 1, steps).round()[::-1]
        if spacing == "leading":
            return np.arange(steps)[::-1] * float(self.size // steps)
        # also a single 'linspace' step, which must start from noise
        return np.arange(self.size, 0, -self.size / steps).round()[:steps] - 1.0

    def _named(self, name: str) -> Float[np.ndarray, " T"]:
        if name not in SECTIONS:
            raise InputError(
                f"sampler.steps is '{name}', which is not a known list of steps. "
                f"Use a number or one of {', '.join((*SECTIONS, *STEP_LISTS))}."
            )
        counts = SECTIONS[name]
        times, start = [], 0
        for i, count in enumerate(counts):
            length = self.size // len(counts) + (i < self.size % len(counts))
            if count > length:
                raise InputError(
                    f"sampler.steps is '{name}', which has too many steps for a table "
                    f"of {self.size} times. Use a number."
                )
            # A running sum as in IF, because ties must round the same way.
            strides = np.full(count, (length - 1) / max(count - 1, 1))
            strides[0] = 0.0
            times.append(start + np.cumsum(strides).round())
            start += length
        return np.concatenate(times)[::-1]


@functools.cache
def _table(size: int) -> tuple[np.ndarray, np.ndarray]:
    u = np.arange(size + 1) / size
    law = np.cos(0.5 * np.pi * (u + 0.008) / 1.008) ** 2
    betas = np.minimum(1.0 - law[1:] / law[:-1], 0.999)
    abar = np.cumprod(1.0 - betas)
    betas.flags.writeable = abar.flags.writeable = False
    return betas, abar


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


def _check_order(values: np.ndarray, unit: str) -> None:
    """Raises InputError unless a list of steps goes from noise to picture."""
    if not values.size:
        raise InputError("sampler.steps is an empty list. Give one number or more.")
    direction = 1.0 if unit == "logsnr" else -1.0
    wrong = np.flatnonzero(~(direction * np.diff(values) > 0))
    if wrong.size:
        one, other = values[wrong[0]], values[wrong[0] + 1]
        word = "increase" if unit == "logsnr" else "decrease"
        raise InputError(
            f"sampler.steps is out of order: {one:g} is followed by {other:g}. A list "
            f"of {unit} starts at noise, so its numbers {word}."
        )


def _at_least_one(steps: int) -> int:
    if steps < 1:
        raise InputError(f"sampler.steps is {steps}. Use 1 or more.")
    return steps
