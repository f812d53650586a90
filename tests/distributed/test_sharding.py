"""The mesh, the rule that shards arrays, and a sharded step equal to the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from imagen_booth import train_state
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.training import train_step


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((), (4, 1)), ((-1, 2), (2, 2)), ((1, -1), (1, 4)), ((2, 2), (2, 2))],
)
def test_a_mesh_over_all_devices(sizes, expected):
    mesh = sharding.make_mesh(*sizes)
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.shape == expected
    assert {device.id for device in mesh.devices.flat} == {0, 1, 2, 3}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    "sizes", [(3, 1), (2, 1), (8, 1), (-1, 3), (0, 4), (3, 0), (-1, -1), (-2, -2)]
)
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(InputError, match="config.mesh.*4 devices"):
        sharding.make_mesh(*sizes)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), P()),
        ((512,), P()),  # small
        ((255, 256), P()),  # just small
        ((256, 256), P("fsdp")),
        ((256, 1024), P(None, "fsdp")),
        ((3, 3, 128, 256), P(None, None, None, "fsdp")),
        ((3, 3, 256, 128), P(None, None, "fsdp")),
        ((1021, 512), P(None, "fsdp")),  # the largest does not divide
        ((257, 259), P()),  # nothing divides
    ],
)
def test_large_arrays_are_split_along_their_largest_dimension(shape, spec):
    assert sharding.spec_of(shape, sharding.make_mesh(2, 2)) == spec


def test_one_fsdp_device_splits_nothing():
    assert sharding.spec_of((1024, 1024), sharding.make_mesh(4, 1)) == P()


def test_rows_there_and_back():
    mesh = sharding.make_mesh(2, 2)
    rows = {"a": np.arange(24.0, dtype=np.float32).reshape(8, 3)}
    placed = sharding.put_rows(rows, mesh)["a"]
    assert [shard.data.shape for shard in placed.addressable_shards] == [(2, 3)] * 4
    np.testing.assert_array_equal(sharding.fetch(placed), rows["a"])
    # the first device has the first rows, as the hosts' shares are ordered
    first = placed.addressable_shards[0]
    np.testing.assert_array_equal(first.data, rows["a"][first.index])

    copied = sharding.put_copies(rows, mesh)["a"]
    assert copied.is_fully_replicated
    np.testing.assert_array_equal(sharding.fetch(copied), rows["a"])


def squares(params, batch, key):
    hidden = jnp.tanh(batch["a"] @ params["unet"]["first"])
    out = (hidden @ params["unet"]["last"])[:, 0]
    noisy = out - batch["b"] + 0.1 * jax.random.normal(key, out.shape)
    loss = jnp.sum(noisy**2 * batch["weight"])
    return loss, {"loss": loss}


@pytest.mark.parametrize("sizes", [(4, 1), (2, 2), (1, 4)])
def test_a_sharded_step_is_the_same_step(sizes):
    """Sums over devices have another order, so results agree up to rounding."""
    rng = np.random.default_rng(0)
    params = {
        "unet": {
            "first": rng.normal(size=(256, 256)) / 16,
            "last": rng.normal(size=(256, 1)) / 16,
        }
    }
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    batches = [
        {
            "a": rng.normal(size=(8, 256)).astype(np.float32),
            "b": rng.normal(size=8).astype(np.float32),
            "weight": np.full(8, 1 / 8, np.float32),
        }
        for _ in range(2)
    ]
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = train_step.make_step(squares, optimizer, seed=0, ema=0.9)

    def create(params):
        return train_state.create(params, ("unet/.*",), optimizer, True)

    alone, metrics = create(jax.tree.map(jnp.asarray, params)), {}
    for batch in batches:
        alone, metrics = jax.jit(step)(alone, batch)

    mesh = sharding.make_mesh(*sizes)
    placement = sharding.tree_shardings(jax.eval_shape(create, params), mesh)
    with jax.set_mesh(mesh):
        now = jax.jit(create, out_shardings=placement)(params)
        jitted = jax.jit(step, out_shardings=(placement, None))
        for batch in batches:
            now, sharded_metrics = jitted(now, sharding.put_rows(batch, mesh))

    for tree in (now.trainable, now.ema, now.opt_state[0].trace):
        shards = tree["unet"]["first"].addressable_shards
        assert {shard.data.size for shard in shards} == {256 * 256 // sizes[1]}
        assert tree["unet"]["last"].is_fully_replicated
    assert sharded_metrics["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), now, alone)


@pytest.mark.parametrize(
    ("need", "memory", "data", "expected"),
    [
        (0, 100, -1, (4, 1)),
        (70, 100, -1, (4, 1)),  # just fits in 0.7 of it
        (71, 100, -1, (2, 2)),
        (200, 100, -1, (1, 4)),
        (10_000, 100, -1, (1, 4)),  # does not fit: doctor reports it
        (10_000, None, -1, (4, 1)),  # a device of unknown memory
        (0, 100, 2, (2, 2)),  # devices / data
    ],
)
def test_fsdp_is_chosen_by_the_memory_needed(need, memory, data, expected):
    mesh = sharding.make_mesh(data, 0, need=need, memory=memory)
    assert mesh.devices.shape == expected


RULES = (
    ("unet/first/kernel", ("fsdp", None)),
    ("unet/.*/bias", ("data",)),
    ("unet/first/.*", (None, None)),
)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("unet/first/kernel", (4, 1024), P("fsdp")),  # small, and not the largest
        ("unet/first/bias", (6,), P("data")),
        ("unet/first/scale", (512, 512), P()),
        ("unet/last/kernel", (256, 1024), P(None, "fsdp")),  # no rule for it
        ("text/first/kernel", (256, 1024), P(None, "fsdp")),
    ],
)
def test_the_first_matching_rule_overrides_the_general_one(path, shape, spec):
    assert sharding.spec_at(path, shape, sharding.make_mesh(2, 2), RULES) == spec


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        ("unet/first/kernel", (4, 4, 4), r"rules\[0\].*2 dimensions.*first/kernel"),
        ("unet/first/kernel", (3, 4), r"rules\[0\].*dimension of 3 .*fsdp.* 2 devices"),
    ],
)
def test_a_rule_that_a_shape_cannot_follow_is_named(path, shape, message):
    with pytest.raises(InputError, match=message):
        sharding.spec_at(path, shape, sharding.make_mesh(2, 2), RULES)


@pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.adafactor(1e-3)])
def test_state_follows_the_rules_of_its_parameters(optimizer):
    params = {"unet": {"first": {"kernel": jnp.zeros((128, 512))}}}
    mesh = sharding.make_mesh(1, 4)
    rules = (("unet/first/kernel", ("fsdp", None)),)

    def create(params):
        return train_state.create(params, ("unet/.*",), optimizer, True)

    shapes = jax.eval_shape(create, params)
    placed = sharding.tree_shardings(shapes, mesh, rules)
    found = {
        jax.tree_util.keystr(path): (leaf.shape, where.spec)
        for (path, leaf), where in zip(
            jax.tree.leaves_with_path(shapes), jax.tree.leaves(placed), strict=True
        )
    }
    whole = [spec for shape, spec in found.values() if shape == (128, 512)]
    # parameter and average, and Adam's two moments
    assert len(whole) >= 2
    assert set(whole) == {P("fsdp")}
    for shape, spec in found.values():
        if shape != (128, 512):
            assert spec == P(), "factored moments and counters are small"
    inside = sharding.tree_shardings(params["unet"], mesh, rules, "unet")
    assert inside["first"]["kernel"].spec == P("fsdp")
