"""Optimizers by name, with the learning-rate schedule and the gradient clip."""

import dataclasses

import optax

from imagen_booth.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer of one stage.

    Attributes:
        name: ``adam``, ``adamw``, ``adafactor`` (optax defaults, which scale each
            step by the parameter's own size) or ``adafactor_unscaled``.
        lr: peak learning rate.
        warmup: steps of linear warm-up from 0.
        decay: ``constant``, or ``cosine`` to 0 over the stage's steps.
        b1, b2, eps: Adam's moments and floor.
        weight_decay: decoupled decay, ``adamw`` only.
        clip: largest global gradient norm; 0 turns clipping off.
        ema: decay of the parameter average; 0 turns it off.
    """

    name: str = "adam"
    lr: float = 1e-4
    warmup: int = 0
    decay: str = "constant"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.0


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step (counted from 0)."""
    if config.decay == "constant":
        after = optax.constant_schedule(config.lr)
    elif config.decay == "cosine":
        after = optax.cosine_decay_schedule(config.lr, max(steps - config.warmup, 1))
    else:
        raise InputError(
            f"optim.decay={config.decay!r} is not known; use 'constant' or 'cosine'"
        )
    if config.warmup == 0:
        return after
    warmup = optax.linear_schedule(0.0, config.lr, config.warmup)
    return optax.join_schedules([warmup, after], [config.warmup])


def build(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer for a stage of ``steps`` steps.

    Raises:
        InputError: unknown ``name`` or ``decay``.
    """
    lr = learning_rate(config, steps)
    if config.name == "adam":
        core = optax.adam(lr, config.b1, config.b2, config.eps)
    elif config.name == "adamw":
        core = optax.adamw(
            lr, config.b1, config.b2, config.eps, weight_decay=config.weight_decay
        )
    elif config.name == "adafactor":
        core = optax.adafactor(lr)
    elif config.name == "adafactor_unscaled":
        core = optax.adafactor(lr, multiply_by_parameter_scale=False)
    else:
        raise InputError(
            f"optim.name={config.name!r} is not known; use 'adam', 'adamw', "
            "'adafactor' or 'adafactor_unscaled'"
        )
    if config.clip <= 0:
        return core
    return optax.chain(optax.clip_by_global_norm(config.clip), core)
