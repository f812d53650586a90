"""Adapters as trees: which kernels they have, how they start, what they add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth import models
from imagen_booth.models import SIZES, lora
from imagen_booth.train_state import flatten, unflatten


def shapes(name: str) -> dict:
    """Shapes of a network's parameters."""
    config = SIZES[name]
    low = config.in_channels == 6
    inputs = (
        jnp.zeros((1, 64, 64, config.in_channels)),
        jnp.zeros((1,)),
        jnp.zeros((1, 3, config.text_width)),
        None,
        jnp.zeros((1,)) if low else None,
    )
    return jax.eval_shape(models.build(config).init, jax.random.key(0), *inputs)[
        "params"
    ]


@pytest.mark.parametrize(
    ("name", "count"), [("tiny_base", 6), ("tiny_sr256", 12), ("if_i_m", 132)]
)
def test_kernels_with_an_adapter(name, count):
    network = shapes(name)
    assert len(lora.kernel_paths(network, "attention", 99)) == count
    every = {path for path in flatten(network) if path.endswith("/kernel")}
    assert set(lora.kernel_paths(network, "all", 1)) == every
    without = every - set(lora.kernel_paths(network, "all", 16))
    # Of IF the last convolution has 6 channels, fewer than the rank.
    assert without == ({"conv_out/kernel"} if name == "if_i_m" else set())


@pytest.fixture
def network():
    """A linear map and a convolution, random, and a norm that is no kernel."""
    rng = np.random.default_rng(0)
    shapes = {
        "attentions_0/to_q/kernel": (6, 5),
        "conv/kernel": (3, 3, 4, 7),
        "norm/scale": (4,),
    }
    return unflatten(
        {path: rng.normal(size=shape).astype("f4") for path, shape in shapes.items()}
    )


@pytest.mark.parametrize("kernels", lora.KERNELS)
def test_a_new_adapter_changes_nothing(network, kernels):
    adapter = lora.init(0, network, kernels, 2)
    added = lora.add(network, adapter, 1.0)
    jax.tree.map(np.testing.assert_array_equal, added, network)
    for path, leaf in flatten(adapter).items():
        assert leaf.dtype == np.float32
        if path.endswith(lora.A):
            bound = np.prod(leaf.shape[:-1]) ** -0.5
            assert 0.5 * bound < np.abs(leaf).max() <= bound
        else:
            assert not leaf.any()


def test_the_sum_in_float64_and_in_bfloat16(network):
    adapter = lora.init(0, network, "all", 2)
    adapter = jax.tree.map(lambda leaf: leaf + 0.5, adapter)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), network)
    exact, rounded = (lora.add(each, adapter, 1.5) for each in (network, half))
    for path, leaf in flatten(network).items():
        module, expected = path.removesuffix("kernel"), np.float64(leaf)
        if module + lora.A in flatten(adapter):
            a, b = (
                np.float64(flatten(adapter)[module + each]) for each in (lora.A, lora.B)
            )
            expected = expected + 1.5 * np.einsum("...ir,ro->...io", a, b)
        np.testing.assert_allclose(flatten(exact)[path], expected, rtol=1e-5, atol=1e-6)
        assert flatten(rounded)[path].dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.float64(flatten(rounded)[path]), expected, rtol=2e-2, atol=2e-2
        )


def test_a_kernel_has_the_same_start_whatever_the_others(network):
    few, many = (lora.init(3, network, kernels, 2) for kernels in lora.KERNELS)
    few, many = flatten(few), flatten(many)
    assert few.keys() < many.keys()
    for path, leaf in few.items():
        np.testing.assert_array_equal(leaf, many[path])
