"""Optimizers against formulas worked by hand in float64."""

import jax
import numpy as np
import pytest

from imagen_booth.config.schema import OptimConfig
from imagen_booth.errors import InputError
from imagen_booth.training import optimizers

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 4)), "bias": 3 + RNG.normal(size=4)}
# Three steps' gradients of very different sizes, so that a clip is felt.
GRADS = [
    {name: scale * RNG.normal(size=leaf.shape) for name, leaf in PARAMS.items()}
    for scale in (0.01, 5.0, 0.1)
]


@pytest.fixture(autouse=True)
def _promoting():
    # optax multiplies its integer step count by floats
    with jax.numpy_dtype_promotion("standard"):
        yield


def walk(config: OptimConfig, steps=10):
    """Parameters after each of three steps."""
    optimizer = optimizers.build(config, steps)
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, "float32"), PARAMS)
    state, walked = optimizer.init(params), []
    for grads in GRADS:
        grads = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, "float32"), grads)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda a, b: a + b, params, updates)
        walked.append(params)
    return walked


def clipped(grads, limit):
    norm = np.sqrt(sum((leaf**2).sum() for leaf in grads.values()))
    scale = min(1.0, limit / norm) if limit else 1.0
    return {name: scale * leaf for name, leaf in grads.items()}


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_adam_by_hand(name, clip):
    lr, b1, b2, eps, decay = 0.01, 0.8, 0.95, 1e-6, 0.3
    config = OptimConfig(
        *(name, lr), b1=b1, b2=b2, eps=eps, weight_decay=decay, clip=clip
    )
    decay = decay if name == "adamw" else 0.0
    params = dict(PARAMS)
    m, v = ({leaf: np.zeros(4) for leaf in params} for _ in range(2))
    for k, (grads, got) in enumerate(zip(GRADS, walk(config), strict=True), 1):
        for leaf, g in clipped(grads, clip).items():
            m[leaf] = b1 * m[leaf] + (1 - b1) * g
            v[leaf] = b2 * v[leaf] + (1 - b2) * g**2
            step = m[leaf] / (1 - b1**k) / (np.sqrt(v[leaf] / (1 - b2**k)) + eps)
            params[leaf] = params[leaf] - lr * (step + decay * params[leaf])
            np.testing.assert_allclose(got[leaf], params[leaf], atol=2e-6)


@pytest.mark.parametrize(
    ("name", "scaled"), [("adafactor", True), ("adafactor_unscaled", False)]
)
def test_adafactors_first_step_by_hand(name, scaled):
    """Its first step is the gradient's sign, times the tensor's own size or not."""
    got = walk(OptimConfig(name, 0.01, clip=0.0))[0]
    for leaf, before in PARAMS.items():
        size = np.sqrt((before**2).mean()) if scaled else 1.0
        expected = before - 0.01 * size * np.sign(GRADS[0][leaf])
        np.testing.assert_allclose(got[leaf], expected, atol=1e-5)


def test_learning_rate_by_hand():
    def rates(config, count):
        rate = optimizers.learning_rate(config, 10)
        return np.asarray([rate(step) for step in range(count)])

    np.testing.assert_allclose(rates(OptimConfig(lr=0.2), 12), 0.2)
    warm = OptimConfig(lr=0.2, warmup=4)
    np.testing.assert_allclose(rates(warm, 6), [0, 0.05, 0.1, 0.15, 0.2, 0.2])
    fall = OptimConfig(lr=0.2, warmup=2, decay="cosine")
    down = 0.1 * (1 + np.cos(np.pi * np.arange(9) / 8))
    np.testing.assert_allclose(rates(fall, 11), [0, 0.1, *down], atol=1e-7)


def test_the_rate_reaches_the_optimizer():
    """Adam's step with a constant gradient's sign is the rate itself."""
    config = OptimConfig(lr=0.2, warmup=2, clip=0.0, b1=0.0, b2=0.0)
    walked = [np.asarray(params["bias"]) for params in walk(config)]
    moves = np.abs(np.diff([PARAMS["bias"], *walked], axis=0))
    np.testing.assert_allclose(moves, [[rate] * 4 for rate in (0, 0.1, 0.2)], atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OptimConfig("adamm"), "name='adamm'.*'adafactor_unscaled'"),
        (OptimConfig(decay="linear"), "decay='linear'.*'cosine'"),
    ],
)
def test_unknown_names_are_refused(config, words):
    with pytest.raises(InputError, match=words):
        optimizers.build(config, 10)
