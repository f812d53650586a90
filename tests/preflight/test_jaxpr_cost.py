"""Arithmetic and memory traffic of traced programs, against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from imagen_booth.models.layers import GroupNorm
from imagen_booth.preflight import jaxpr_cost


def count(function, *inputs):
    return jaxpr_cost.count_cost(jax.make_jaxpr(function)(*inputs))


def test_a_product_reads_both_sides_and_writes_one():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    found = count(lambda a, b: jnp.sin(a) @ b, a, b)
    assert found.flops == 2 * 3 * 4 * 5
    assert found.bytes == 4 * (12 + 20 + 15)  # the sine is joined to the product


def test_elementwise_updates_read_each_input_once():
    leaf = jnp.ones(100)

    def adam(p, m, v, g):
        m, v = 0.9 * m + g, 0.99 * v + g * g
        return p - m / jnp.sqrt(v), m, v

    assert count(adam, leaf, leaf, leaf, leaf).bytes == 400 * (4 + 3)


def test_what_is_only_passed_on_costs_nothing():
    leaf = jnp.ones(100)
    assert count(lambda a, b: (a, b + 1.0), leaf, leaf).bytes == 400 * 2


def test_narrow_sources_are_read_narrow():
    half = jnp.ones(100, jnp.bfloat16)
    assert count(lambda x: x.astype(jnp.float32).sum(), half).bytes == 200 + 4
    whole = jnp.ones((100, 100))
    assert count(lambda x: x[:10] + 1.0, whole).bytes == 2 * 4 * 10 * 100


def test_loops_move_their_body_each_time():
    w, x = jnp.ones((8, 8)), jnp.ones((2, 8))

    def constant(w, x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

    found = count(constant, w, x)
    assert found.flops == 5 * 2 * 2 * 8 * 8
    assert found.bytes == 5 * 4 * (64 + 16 + 16)

    def stacked(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    # The product is written, and read again for the tanh that is carried.
    found = count(stacked, jnp.ones((5, 8, 8)), x)
    assert found.bytes == 5 * 4 * (64 + 16 + 16 + 16 + 16)


def test_long_chains_are_written_in_between():
    leaves = [jnp.ones(100)] * (jaxpr_cost.JOINED + 1)
    whole = 4 * 100 * (len(leaves) + 1)
    assert count(lambda *xs: sum(xs[1:], xs[0]), *leaves).bytes == whole
    # The last sum has too many sources: it is stored, and then read for the output.
    chain = count(lambda *xs: sum(xs[1:], xs[0]) + 1.0, *leaves).bytes
    assert chain == whole + 4 * 200


def test_slices_move_what_they_take_and_put():
    x, part = jnp.ones((100, 10)), jnp.ones((2, 10))

    def put(x, part):
        return jax.lax.dynamic_update_slice(x, part, (0, 0))

    assert count(put, x, part).bytes == 2 * 80

    def take(x, i):
        return jax.lax.dynamic_slice(x, (i, i * 0), (2, 10))

    assert count(take, x, jnp.int32(3)).bytes == 80 + 80 + 4


@pytest.mark.parametrize("wrapped", [jax.jit, jax.checkpoint, lambda f: f])
def test_calls_are_looked_into(wrapped):
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    inner = wrapped(lambda a, b: jnp.cos(a) @ b)
    assert count(lambda a, b: inner(a + 1.0, b), a, b).bytes == 4 * (12 + 20 + 15)


def test_rematerialising_adds_a_forward_pass():
    w, x = jnp.ones((8, 8)), jnp.ones((4, 8))

    def loss(layer, w, x):
        return jnp.sum(layer(layer(x, w), w))

    def layer(x, w):
        return jnp.sin(x @ w)

    plain = count(jax.grad(lambda w, x: loss(layer, w, x)), w, x)
    again = count(jax.grad(lambda w, x: loss(jax.checkpoint(layer), w, x)), w, x)
    product = 2 * 4 * 8 * 8
    # Two forward, two backward for the weights, one for what lies between them.
    assert plain.flops == 5 * product
    assert again.flops == 7 * product


def test_normalisation_reads_its_input_three_times(key):
    x = jnp.ones((2, 16, 16, 64), jnp.bfloat16)
    module = GroupNorm(8)
    params = module.init(key, x)
    found = count(lambda p, x: module.apply(p, x), params, x)
    size = x.size * 2
    # Mean, mean of squares, and the result, which is written; statistics are small.
    assert found.bytes == pytest.approx(4 * size, rel=0.05)
