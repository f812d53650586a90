"""Gradients of the convolution: those of XLA, in the order that is fast on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from imagen_booth.models.convolution import (
    Conv,
    Geometry,
    _by_dilation,
    _by_parity,
    convolve,
    upsample_convolve,
)
from imagen_booth.preflight import jaxpr_cost

CASES = {
    "same": (2, (8, 8), 3, (3, 3), (1, 1), "SAME"),
    "stride": (2, (9, 8), 3, (3, 3), (2, 2), "SAME"),
    "stride leaves a row": (1, (8, 8), 2, (3, 3), (3, 2), "VALID"),
    "one pixel": (2, (6, 6), 3, (1, 1), (1, 1), "SAME"),
    "valid": (1, (7, 9), 2, (3, 5), (1, 1), "VALID"),
    "a row of pixels": (4, (5, 300), 2, (3, 3), (1, 1), "SAME"),
}


def reference(x, kernel, strides, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers
    )


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_a_loop_are_those_of_xla(case):
    batch, image, channels, size, strides, padding = CASES[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *image, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*size, channels, 4)), jnp.float32)
    above, left = lax.padtype_to_pads(image, size, strides, padding)
    geometry = Geometry(image, size, strides, (above, left))

    def gradients(function):
        out = jax.eval_shape(function, x, kernel)
        seed = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)

        def add(index, total):
            found = jax.vjp(function, x, kernel)[1](seed)
            return jax.tree.map(jnp.add, total, found)

        zeros = jax.tree.map(jnp.zeros_like, (x, kernel))
        return jax.jit(lambda: lax.fori_loop(0, 1, add, zeros))()

    found = gradients(lambda x, kernel: convolve(x, kernel, geometry))
    wanted = gradients(lambda x, kernel: reference(x, kernel, strides, padding))
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)


def test_convolutions_of_a_compiled_loop_are_in_the_fast_order():
    """That of images and kernels as they come, with which the CPU compiler is fast."""
    conv = Conv(4, (3, 3))
    x = jnp.ones((2, 2, 8, 8, 4))  # two micro-batches
    params = conv.init(jax.random.key(0), x[0])

    def loss(params, rows):
        for _ in range(2):
            rows = jnp.asarray(conv.apply(params, rows))
        return jnp.sum(rows**2)

    def accumulated(params):
        def add(total, rows):
            found = jax.grad(loss)(params, rows)
            return jax.tree.map(jnp.add, total, found), None

        return lax.scan(add, jax.tree.map(jnp.zeros_like, params), x)[0]

    text = jax.jit(accumulated).lower(params).compile().as_text() or ""
    orders = {
        line.split("dim_labels=")[1].split(",")[0]
        for line in text.splitlines()
        if " convolution(" in line
    }
    assert orders == {"b01f_01io->b01f"}


def test_one_that_is_frozen_costs_nothing():
    """No gradient of a frozen kernel is computed, and its images are not saved."""
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    geometry = Geometry((4, 4), (3, 3), (1, 1), ((1, 1), (1, 1)))
    _, of_x = jax.vjp(lambda x: convolve(x, kernel, geometry), x)
    _, of_kernel = jax.vjp(lambda kernel: convolve(x, kernel, geometry), kernel)
    assert [leaf.shape for leaf in jax.tree.leaves(of_x)] == [kernel.shape]
    assert [leaf.shape for leaf in jax.tree.leaves(of_kernel)] == [x.shape]


def test_it_is_flax_convolution():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 3)), jnp.bfloat16)
    conv = Conv(4, (3, 3), strides=2, dtype=jnp.bfloat16)
    params = conv.init(jax.random.key(0), x)
    plain = np.asarray(conv.clone(conv_general_dilated=None).apply(params, x))
    np.testing.assert_array_equal(np.asarray(conv.apply(params, x)), plain)


@pytest.mark.parametrize("more", [{"feature_group_count": 2}, {"kernel_dilation": 2}])
def test_groups_and_dilation_are_those_of_flax(more):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 4)), jnp.float32)
    conv = Conv(4, (3, 3), **more)
    params = conv.init(jax.random.key(0), x)
    plain = np.asarray(conv.clone(conv_general_dilated=None).apply(params, x))
    np.testing.assert_array_equal(np.asarray(conv.apply(params, x)), plain)


@pytest.mark.parametrize("image", [(4, 4), (5, 3), (1, 2)])
@pytest.mark.parametrize("convolve", [_by_parity, _by_dilation])
def test_upsampling_first_changes_only_the_rounding(image, convolve):
    """Output and gradients of a convolution of pixels that are repeated 2 x 2 times."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *image, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 5)), jnp.float32)

    def repeated(x, kernel):
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return reference(x, kernel, (1, 1), "SAME")

    wanted, of_wanted = jax.vjp(repeated, x, kernel)
    found, of_found = jax.vjp(convolve, x, kernel)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    seed = jnp.asarray(rng.normal(size=wanted.shape), jnp.float32)
    for ours, theirs in zip(of_found(seed), of_wanted(seed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("convolve", [_by_parity, _by_dilation, upsample_convolve])
def test_upsampling_first_takes_four_ninths_of_the_arithmetic(convolve):
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    assert jaxpr_cost.count_flops(convolve, x, kernel) == 2 * 16 * 16 * (2 * 2 * 4) * 4
