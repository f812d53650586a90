"""FLOPs and memory traffic of traced programs, against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from imagen_booth.preflight import jaxpr_cost


def count(function, *inputs):
    return jaxpr_cost.count_cost(jax.make_jaxpr(function)(*inputs))


def test_a_product_reads_both_sides_and_writes_one():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    found = count(lambda a, b: a @ b, a, b)
    assert found.flops == 2 * 3 * 4 * 5
    # Once for the product, once as arguments and output of the program.
    assert found.bytes == 2 * 4 * (12 + 20 + 15)


def test_elementwise_operations_cost_arguments_and_outputs_only():
    leaf = jnp.ones(100)

    def adam(p, m, v, g):
        m, v = 0.9 * m + g, 0.99 * v + g * g
        return p - m / jnp.sqrt(v), m, v

    found = count(adam, leaf, leaf, leaf, leaf)
    assert found == jaxpr_cost.Cost(0.0, 400 * (4 + 3))


def test_operands_count_in_their_own_dtype():
    half = jnp.ones((8, 8), jnp.bfloat16)
    found = count(lambda x: x @ x, half)
    assert found.bytes == 2 * (64 + 64) + 2 * (64 + 64 + 64)


def test_loops_count_their_body_each_time():
    w, x = jnp.ones((8, 8)), jnp.ones((2, 8))
    outer = 4 * (64 + 16 + 16)

    def constant(w, x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

    found = count(constant, w, x)
    assert found.flops == 5 * 2 * 2 * 8 * 8
    assert found.bytes == outer + 5 * 4 * (64 + 16 + 16)

    def unknown(w, x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9.0, lambda x: x @ w, x)

    assert count(unknown, w, x).flops == 2 * 2 * 8 * 8


def test_what_no_output_needs_does_not_count():
    w, x = jnp.ones((8, 8)), jnp.ones((2, 8))

    def unused(w, x):
        first, second = jax.jit(lambda w, x: (x @ w, w @ w))(w, x)
        return first

    assert count(unused, w, x).flops == 2 * 2 * 8 * 8


def test_the_most_expensive_branch_counts():
    w, x = jnp.ones((8, 8)), jnp.ones((2, 8))

    def branched(w, x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert count(branched, w, x).flops == 2 * (2 * 2 * 8 * 8)

    def by_platform(w, x):
        return jax.lax.platform_dependent(
            w, x, cpu=lambda w, x: x @ w @ w, default=lambda w, x: x @ w
        )

    # The count is for accelerators.
    assert count(by_platform, w, x).flops == 2 * 2 * 8 * 8


@pytest.mark.parametrize("wrapped", [jax.jit, jax.checkpoint, lambda f: f])
def test_calls_are_counted(wrapped):
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    inner = wrapped(lambda a, b: jnp.cos(a) @ b)
    found = count(lambda a, b: inner(a + 1.0, b), a, b)
    assert found == count(lambda a, b: a @ b, a, b)


def test_rematerialising_adds_a_forward_pass():
    w, x = jnp.ones((8, 8)), jnp.ones((4, 8))

    def loss(layer, w, x):
        return jnp.sum(layer(layer(x, w), w))

    def layer(x, w):
        return jnp.sin(x @ w)

    # The value too, or the last product of the first forward pass is not needed.
    gradient = jax.value_and_grad
    plain = count(gradient(lambda w, x: loss(layer, w, x)), w, x)
    again = count(gradient(lambda w, x: loss(jax.checkpoint(layer), w, x)), w, x)
    product = 2 * 4 * 8 * 8
    # Two forward, two backward for the weights, one for the layer between.
    assert plain.flops == 5 * product
    assert again.flops == 7 * product
