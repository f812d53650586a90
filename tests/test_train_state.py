"""Which parameters train, and their moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_booth import train_state
from imagen_booth.errors import InputError
from imagen_booth.training import train_step

PARAMS = {
    "unet": {
        "conv": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)},
        "conv_out": {"kernel": jnp.ones((3, 1))},
    },
    "text": {"embedding": jnp.ones((4, 2))},
}
PATHS = {"unet/conv/kernel", "unet/conv/bias", "unet/conv_out/kernel", "text/embedding"}


def test_paths_and_back():
    flat = train_state.flatten(PARAMS)
    assert set(flat) == PATHS
    assert flat["unet/conv/bias"] is PARAMS["unet"]["conv"]["bias"]
    jax.tree.map(np.testing.assert_array_equal, train_state.unflatten(flat), PARAMS)


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (("unet/.*",), PATHS - {"text/embedding"}),
        (("unet/conv/.*",), {"unet/conv/kernel", "unet/conv/bias"}),
        ((".*/kernel", "text/.*"), PATHS - {"unet/conv/bias"}),
        ((".*",), PATHS),
        (("text/embedding", "text/.*"), {"text/embedding"}),
    ],
)
def test_split_by_path(patterns, chosen):
    trainable, frozen = train_state.split(PARAMS, patterns)
    assert set(train_state.flatten(trainable)) == chosen
    assert set(train_state.flatten(frozen)) == PATHS - chosen
    merged = train_state.merge(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, merged, PARAMS)


# The second one matches the beginning of a path, which is not enough.
@pytest.mark.parametrize("pattern", ["unett/.*", "unet/conv", "embedding"])
def test_a_pattern_that_matches_nothing_is_refused(pattern):
    with pytest.raises(InputError, match=f"'{pattern}' matches no parameter"):
        train_state.split(PARAMS, ("text/.*", pattern))


def test_only_what_trains_has_optimizer_state_and_average():
    created = jax.eval_shape(
        lambda params: train_state.create(
            params, ("unet/conv/.*",), optax.adam(1e-3), True
        ),
        PARAMS,
    )
    assert created.step.shape == ()
    assert created.step.dtype == jnp.int32
    shapes = {"kernel": (2, 3), "bias": (3,)}
    for tree in (created.trainable, created.ema):
        assert {k: v.shape for k, v in tree["unet"]["conv"].items()} == shapes
        assert set(train_state.flatten(tree)) == {"unet/conv/kernel", "unet/conv/bias"}
    # Adam: two moments of 9 numbers, and a count
    assert sum(leaf.size for leaf in jax.tree.leaves(created.opt_state)) == 2 * 9 + 1
    assert train_state.create(PARAMS, (".*",), optax.sgd(1.0), False).ema is None


def fall(params, batch, key):
    """A loss whose gradient is `slope` everywhere."""
    del key
    value = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * batch["slope"]
    return value, {"loss": value}


def run(count, *, slope, decay, patterns=("unet/.*",)):
    optimizer = optax.sgd(0.1)
    now = train_state.create(PARAMS, patterns, optimizer, decay > 0)
    step = jax.jit(train_step.make_step(fall, optimizer, seed=0, ema=decay))
    for _ in range(count):
        now, _ = step(now, {"slope": jnp.float32(slope)})
    return now


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_average_of_constant_parameters_is_themselves(decay):
    for count in (1, 3):
        averaged = train_state.ema_params(run(count, slope=0.0, decay=decay), decay)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), averaged, PARAMS
        )


def test_average_weighs_the_weights_so_far():
    decay, count = 0.9, 4
    now = run(count, slope=1.0, decay=decay)
    # after step k the ones are 1 - 0.1 k
    seen = 1 - 0.1 * np.arange(1, count + 1)
    weight = decay ** np.arange(count - 1, -1, -1.0)
    expected = (seen * weight).sum() / weight.sum()
    averaged = train_state.ema_params(now, decay)
    np.testing.assert_allclose(averaged["unet"]["conv"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(
        averaged["text"]["embedding"], PARAMS["text"]["embedding"]
    )


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_average_at_step_0_is_the_parameters_themselves(decay):
    """The moving sum is empty then, and its correction divides by zero."""
    averaged = train_state.ema_params(run(0, slope=1.0, decay=decay), decay)
    jax.tree.map(np.testing.assert_array_equal, averaged, PARAMS)


def test_without_an_average_the_parameters_themselves():
    now = run(2, slope=1.0, decay=0.0)
    params = train_state.ema_params(now, 0.0)
    np.testing.assert_allclose(params["unet"]["conv"]["kernel"], 0.8, rtol=1e-6)


def test_frozen_parameters_stay_to_the_bit():
    now = run(2, slope=0.3, decay=0.9, patterns=("unet/conv/.*",))
    np.testing.assert_array_equal(now.frozen["unet"]["conv_out"]["kernel"], 1.0)
    np.testing.assert_array_equal(now.frozen["text"]["embedding"], 1.0)
    assert (now.trainable["unet"]["conv"]["kernel"] != 1.0).all()
