"""Bytes and FLOPs from shapes, against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from imagen_booth.cascade import by_name
from imagen_booth.config.schema import FineTuning, OptimConfig
from imagen_booth.distributed import device_memory, sharding
from imagen_booth.preflight import jaxpr_cost, memory

CASCADE = by_name("tiny")


def cost(stage="base", devices=1, **changes):
    tuning = FineTuning(steps=4, subject_rows=2, class_rows=1, optim=OptimConfig())
    tuning = dataclasses.replace(tuning, **changes)
    return memory.stage_cost(CASCADE, CASCADE.stage(stage), tuning, devices)


def test_products_are_counted_as_often_as_a_loop_runs():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 4))

    def once(a, b):
        return a @ b

    def looped(a, b):
        return jax.lax.scan(lambda x, _: (jax.jit(once)(x, b), None), a, length=7)[0]

    def branched(a, b):
        return jax.lax.cond(True, once, lambda a, b: a, a, b)

    assert jaxpr_cost.count_flops(once, a, b) == 2 * 3 * 4 * 4
    assert jaxpr_cost.count_flops(looped, a, b) == 7 * 2 * 3 * 4 * 4
    assert jaxpr_cost.count_flops(branched, a, b) == 2 * 3 * 4 * 4


def test_backward_of_a_product_is_two_products():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    gradient = jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), (0, 1))
    assert (
        jaxpr_cost.count_flops(gradient, a, b) == (1 + memory.BACKWARD) * 2 * 3 * 4 * 5
    )


def test_batched_products_and_convolutions():
    a, b = jnp.ones((6, 3, 4)), jnp.ones((6, 4, 5))
    assert jaxpr_cost.count_flops(jnp.matmul, a, b) == 6 * 2 * 3 * 4 * 5

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    x, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 3, 10))
    # Each of 2 x 4 x 4 x 10 outputs sums 3 x 3 pixels of half the 6 channels.
    assert jaxpr_cost.count_flops(convolve, x, kernel) == 2 * (2 * 4 * 4 * 10) * (
        3 * 3 * 3
    )


def test_sharded_arrays_are_divided_and_small_ones_copied():
    mesh = sharding.make_mesh(2, 2)
    tree = {
        "large": jax.ShapeDtypeStruct((512, 512), jnp.float32),
        "small": jax.ShapeDtypeStruct((8,), jnp.bfloat16),
    }
    assert device_memory.size(tree) == 512 * 512 * 4 + 16
    assert device_memory.size_per_device(tree, mesh) == 512 * 512 * 4 // 2 + 16
    rules = (("unet/small", ("fsdp",)), ("unet/large", (None, None)))
    assert device_memory.size_per_device(tree, mesh, rules) == 512 * 512 * 4 // 2 + 16
    assert device_memory.size_per_device(tree, mesh, rules, "unet") == 512 * 512 * 4 + 8


def test_training_state_by_optimizer():
    adam = cost()
    parameters = device_memory.size(adam.params)
    small = 64  # step counters
    assert 0 <= device_memory.size(adam.training) - 3 * parameters < small
    averaged = cost(optim=OptimConfig(ema=0.99))
    assert 0 <= device_memory.size(averaged.training) - 4 * parameters < small
    lean = cost(optim=OptimConfig("adafactor"))
    assert (
        parameters
        < device_memory.size(lean.training)
        < device_memory.size(adam.training)
    )


def test_rows_are_padded_to_the_devices_and_cost():
    one, four = cost(), cost(devices=4)
    assert one.batch["image"].shape == (3, 64, 64, 3)
    assert four.batch["image"].shape == (4, 64, 64, 3)
    assert four.step_flops == pytest.approx(one.step_flops * 4 / 3)
    assert one.step_flops == pytest.approx(one.row_flops * 3 * (1 + memory.BACKWARD))


def test_a_stage_without_fine_tuning_only_samples():
    untouched = cost("sr1024", steps=0)
    assert untouched.training is None
    assert untouched.step_flops == 0
    # It is traced on crops of 256 pixels and samples images of 1024.
    tuned = cost("sr1024")
    assert untouched.row_flops == tuned.row_flops
    assert tuned.row_flops * 3 * 3 == pytest.approx(16 * tuned.step_flops)


def test_no_array_is_made_for_a_large_network():
    cascade = by_name("imagen")
    tuning = FineTuning(2, 1, 1, OptimConfig("adafactor"))
    before = sum(array.nbytes for array in jax.live_arrays())
    found = memory.stage_cost(cascade, cascade.stage("sr1024"), tuning, 1)
    assert device_memory.size(found.params) > 2e9
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 2**24
