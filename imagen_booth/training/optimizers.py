"""Optimizers by name, with the learning-rate schedule and the gradient clip."""

import optax

from imagen_booth.config.schema import OptimConfig
from imagen_booth.errors import InputError


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0."""
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
        InputError: Unknown ``name`` or ``decay``.
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
