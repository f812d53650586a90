"""Meshes chosen by size, rules of a config, and what really lies on each device."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from imagen_booth.cascade import by_name
from imagen_booth.config import build, presets, schema
from imagen_booth.data import pipeline
from imagen_booth.distributed import device_memory, sharding
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import InputError
from imagen_booth.rundir import checkpoints as checkpoint
from imagen_booth.rundir import metrics
from imagen_booth.training import finetune, loop, mesh_choice, train_step
from imagen_booth.weights import load, placement

TINY = by_name("tiny")
MIB = 2**20


LEFT_ALONE = schema.Mesh()


def settings(mesh=LEFT_ALONE):
    subject = schema.Subject("photos", "dog")
    return dataclasses.replace(
        build.to_job(presets.dreambooth("tiny")), subject=subject, mesh=mesh
    )


def test_a_mesh_left_alone_copies_what_fits():
    for choose in (mesh_choice.finetuning_mesh, placement.sampling_mesh):
        assert choose(TINY, settings()).devices.shape == (4, 1)


def test_a_mesh_left_alone_cuts_what_does_not_fit(monkeypatch):
    """A device with less memory than the largest stage in training asks for."""
    needed = []
    real = sharding.make_mesh

    def make_mesh(*sizes, need, memory):
        needed.append(need)
        return real(*sizes, need=need, memory=memory)

    monkeypatch.setattr(sharding, "make_mesh", make_mesh)
    mesh_choice.finetuning_mesh(TINY, settings())
    shapes = placement.shapes_of(TINY)
    sizes = {name: device_memory.size(tree) for name, tree in shapes.items()}
    # AdamW: parameters, two moments and gradients, two counters of four bytes in all
    # beside the step's.
    last = sizes["base"] + sizes["sr256"] + 4 * sizes["sr1024"]
    assert last <= needed[0] <= last + 64
    for devices in (2, 4):
        memory = int(needed[0] / devices / sharding.ROOM) + 1
        monkeypatch.setattr(device_memory, "available", lambda memory=memory: memory)
        mesh = mesh_choice.finetuning_mesh(TINY, settings())
        assert mesh.devices.shape == (4 // devices, devices)
    # Pictures ask for the parameters alone.
    monkeypatch.setattr(device_memory, "available", lambda: 2 * sum(sizes.values()))
    assert placement.sampling_mesh(TINY, settings()).devices.shape == (4, 1)


def test_sizes_that_are_given_are_kept(monkeypatch):
    monkeypatch.setattr(device_memory, "available", lambda: 1)
    mesh = mesh_choice.finetuning_mesh(TINY, settings(schema.Mesh(data=2, fsdp=2)))
    assert mesh.devices.shape == (2, 2)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (("unet/[", ("fsdp",)), r"rules\[0\].*not a regular expression"),
        (("unet/.*", ("model",)), r"rules\[0\].*'data', 'fsdp' or None"),
        (("unet/.*", ("fsdp", "fsdp")), r"rules\[0\].*two dimensions over one axis"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_as_it_is_read(rule, said):
    with pytest.raises(InputError, match=said):
        schema.Mesh(rules=(rule,))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (("unet/nowhere/.*", ("fsdp",)), r"rules\[0\].*matches no parameter.*'text/"),
        (("text/.*", ("fsdp",)), r"rules\[0\].*names 1 dimensions, but text/"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused_before_any_work(rule, said):
    with pytest.raises(InputError, match=said):
        mesh_choice.finetuning_mesh(TINY, settings(schema.Mesh(rules=(rule,))))


def wide() -> tuple:
    """The tiny base stage with kernels of 1.2 MiB."""
    stage = TINY.stage("base")
    stage = dataclasses.replace(
        stage, model=dataclasses.replace(stage.model, widths=(184,))
    )
    return TINY.having(stage), stage


def batches(stage, mesh, rows=5):
    """Two photos, and rows that no number of devices but one divides."""
    rng = np.random.default_rng(0)
    size, text = stage.resolution, TINY.text
    photos = [
        {
            "image": rng.integers(0, 255, (size, size, 3)).astype(np.uint8),
            "text": rng.normal(size=(text.length, 32)).astype(np.float32),
            "text_mask": np.arange(text.length) < 3,
        }
        for _ in range(2)
    ]
    return pipeline.batches(
        [pipeline.Group(photos, rows, 1.0, train_step.SUBJECT)],
        seed=0,
        multiple=mesh.size,
    )


def fit(cascade, stage, mesh, folder, count, watch=lambda state: None, rules=()):
    """Trains through the loop; ``watch`` is called between steps."""
    part = load.load(cascade, "base", "random", mesh, jnp.float32, rules)
    apply, params = part.apply, {"unet": part.params}
    optimizer = optax.adam(1e-3)

    def loss_fn(params, batch, key):
        config = train_step.LossConfig()
        return train_step.batch_loss(stage, apply, None, config, params, batch, key)

    with (
        jax.set_mesh(mesh),
        checkpoint.Checkpoints(folder / "base") as checkpoints,
        metrics.MetricWriter(folder, active=True) as writer,
    ):
        start = finetune.initial_state(params, optimizer, True, mesh, rules=rules)
        training = loop.Training(
            "base",
            start,
            train_step.make_step(loss_fn, optimizer, seed=0, ema=0.99),
            iter(batches(stage, mesh).to_iter_dataset()),
            loop.LoopConfig(count, log_every=1, preview_every=1),
            loop.LoopHooks(
                learning_rate=lambda step: 1e-3,
                preview=lambda state, step: watch(state),
                inference=lambda state: None,
                diagnose=lambda state, batch: [],
            ),
        )
        context = loop.LoopContext(mesh, checkpoints, writer, StopRequest())
        return loop.train(training, context)


@pytest.mark.long
def test_fewer_photos_than_devices_and_odd_rows_train_the_same(tmp_path):
    """One, two and four devices; rows of weight 0 fill a batch up to them."""
    stage, rows = TINY.stage("base"), {}
    for count in (1, 2, 4):
        mesh = jax.make_mesh(
            (count, 1),
            sharding.AXES,
            axis_types=(AxisType.Auto,) * 2,
            devices=jax.devices()[:count],
        )
        batch = batches(stage, mesh)[0]
        assert batch is not None
        assert len(batch["weight"]) == -(-5 // count) * count
        assert (batch["weight"] > 0).sum() == 5  # two photos, repeated
        assert batch["weight"].sum() == pytest.approx(1.0)
        folder = epath.Path(tmp_path) / str(count)
        fit(TINY, stage, mesh, folder, 3)
        rows[count] = (folder / "metrics.jsonl").read_text().splitlines()
    for count in (2, 4):
        for one, other in zip(rows[1], rows[count], strict=True):
            one, other = (loss_and_norm(row) for row in (one, other))
            np.testing.assert_allclose(other, one, rtol=1e-4)


def loss_and_norm(row):
    found = json.loads(row)
    return [found["train/loss"], found["train/grad_norm"]]


def large(before):
    """Every live array above 1 MiB that was not there before."""
    return [
        array
        for array in jax.live_arrays()
        if id(array) not in before and array.nbytes > MIB
    ]


@pytest.mark.long
def test_between_steps_no_large_array_lies_whole_on_a_device(tmp_path):
    """Parameters, both moments and the average, on four devices that share a copy.

    Exempt is what is smaller: below ``sharding.SMALL`` elements a copy is cheaper.
    """
    before = {id(array) for array in jax.live_arrays()}
    cascade, stage = wide()
    mesh, seen = sharding.make_mesh(1, 4), []

    def watch(now):
        wide_leaves = [leaf for leaf in jax.tree.leaves(now) if leaf.nbytes > MIB]
        arrays = large(before)
        assert {id(leaf) for leaf in wide_leaves} <= {id(array) for array in arrays}
        for array in arrays:
            whole = [s for s in array.addressable_shards if s.data.nbytes > MIB]
            sizes = {shard.data.nbytes for shard in array.addressable_shards}
            assert not whole, (array.shape, array.sharding)
            assert sizes == {array.nbytes // 4}, (array.shape, array.sharding)
        kinds = (now.trainable, now.opt_state[0].mu, now.opt_state[0].nu, now.ema)
        for tree in kinds:
            assert any(leaf.nbytes > MIB for leaf in jax.tree.leaves(tree))
        seen.append((int(now.step), len(wide_leaves), len(arrays)))

    fit(cascade, stage, mesh, epath.Path(tmp_path), 2, watch)
    assert [step for step, *_ in seen] == [0, 1, 2]
    for _, of_state, of_all in seen:
        assert of_state == of_all, "something large beside the state"


@pytest.mark.long
def test_a_rule_of_a_config_moves_real_arrays(tmp_path):
    rules = (("unet/conv_in/kernel", (None, None, None, "fsdp")),)
    placed = []

    def watch(now):
        assert now.ema is not None
        for tree in (now.trainable, now.ema, now.opt_state[0].mu):
            placed.append(tree["unet"]["conv_in"]["kernel"].sharding.spec)

    mesh = sharding.make_mesh(1, 4)
    fit(TINY, TINY.stage("base"), mesh, epath.Path(tmp_path), 1, watch, rules)
    assert set(placed) == {P(None, None, None, "fsdp")}


@pytest.mark.parametrize("name", ["toybox", "if_m", "if_xl", "imagen"])
@pytest.mark.parametrize("fsdp", [2, 4])
def test_the_general_rule_leaves_nothing_large_whole(name, fsdp):
    """By shapes at full size: every parameter above 1 MiB of every part is cut."""
    mesh = sharding.make_mesh(4 // fsdp, fsdp)
    for part, tree in placement.shapes_of(by_name(name)).items():
        places = sharding.tree_shardings(tree, mesh)
        for (path, leaf), place in zip(
            jax.tree.leaves_with_path(tree), jax.tree.leaves(places), strict=True
        ):
            if leaf.size * 4 > MIB:
                assert "fsdp" in place.spec, (part, jax.tree_util.keystr(path))
