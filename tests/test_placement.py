"""Meshes chosen by size, rules of a config, and what really lies on each device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from imagen_booth import (
    budget,
    checkpoint,
    config,
    job,
    loop,
    metrics,
    placement,
    sharding,
    state,
    steps,
    tune,
)
from imagen_booth.cascade import by_name
from imagen_booth.data import pipeline
from imagen_booth.errors import InputError
from imagen_booth.weights import load

TINY = by_name("tiny")
MIB = 2**20


def settings(mesh=job.Mesh()):
    subject = job.Subject("photos", "dog")
    return dataclasses.replace(
        config.to_job(config.booth("tiny")), subject=subject, mesh=mesh
    )


def test_a_mesh_left_alone_copies_what_fits():
    for choose in (placement.mesh_to_tune, placement.mesh_to_draw):
        assert choose(TINY, settings()).devices.shape == (4, 1)


def test_a_mesh_left_alone_cuts_what_does_not_fit(monkeypatch):
    """A device with less memory than the largest stage in training asks for."""
    needed = []
    real = sharding.make_mesh

    def make_mesh(*sizes, need, memory):
        needed.append(need)
        return real(*sizes, need=need, memory=memory)

    monkeypatch.setattr(sharding, "make_mesh", make_mesh)
    placement.mesh_to_tune(TINY, settings())
    shapes = placement.shapes_of(TINY)
    sizes = {name: budget.size(tree) for name, tree in shapes.items()}
    # AdamW: parameters, two moments and gradients, two counters of four bytes in all
    # beside the step's.
    last = sizes["base"] + sizes["sr256"] + 4 * sizes["sr1024"]
    assert last <= needed[0] <= last + 64
    for devices in (2, 4):
        memory = int(needed[0] / devices / sharding.ROOM) + 1
        monkeypatch.setattr(budget, "device_memory", lambda memory=memory: memory)
        mesh = placement.mesh_to_tune(TINY, settings())
        assert mesh.devices.shape == (4 // devices, devices)
    # Pictures ask for the parameters alone.
    monkeypatch.setattr(budget, "device_memory", lambda: 2 * sum(sizes.values()))
    assert placement.mesh_to_draw(TINY, settings()).devices.shape == (4, 1)


def test_sizes_that_are_given_are_kept(monkeypatch):
    monkeypatch.setattr(budget, "device_memory", lambda: 1)
    mesh = placement.mesh_to_tune(TINY, settings(job.Mesh(data=2, fsdp=2)))
    assert mesh.devices.shape == (2, 2)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (("unet/[", ("fsdp",)), r"rules\[0\].*no regular expression"),
        (("unet/.*", ("model",)), r"rules\[0\].*'data', 'fsdp' or None"),
        (("unet/.*", ("fsdp", "fsdp")), r"rules\[0\].*two dimensions over one axis"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_as_it_is_read(rule, said):
    with pytest.raises(InputError, match=said):
        job.Mesh(rules=(rule,))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (("unet/nowhere/.*", ("fsdp",)), r"rules\[0\].*matches no parameter.*'text/"),
        (("text/.*", ("fsdp",)), r"rules\[0\].*names 1 dimensions, but text/"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused_before_any_work(rule, said):
    with pytest.raises(InputError, match=said):
        placement.mesh_to_tune(TINY, settings(job.Mesh(rules=(rule,))))


def test_rules_come_through_a_flag_and_a_file():
    raw = config.booth("tiny")
    with raw.unlocked():
        raw.mesh.rules = (("unet/conv_in/kernel", (None, None, None, "fsdp")),)
    assert config.to_job(raw).mesh.rules == raw.mesh.rules


def wide() -> tuple:
    """The tiny base stage with kernels of 2.25 MiB."""
    stage = TINY.stage("base")
    stage = dataclasses.replace(
        stage, model=dataclasses.replace(stage.model, widths=(256,))
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
        [pipeline.Group(photos, rows, 1.0, steps.SUBJECT)], seed=0, multiple=mesh.size
    )


def fit(cascade, stage, mesh, folder, count, watch=lambda state: None, rules=()):
    """Trains through the loop; ``watch`` is called between steps."""
    part = load.load(cascade, "base", "random", mesh, jnp.float32, rules)
    optimizer = optax.adam(1e-3)

    def loss_fn(params, batch, key):
        config = steps.LossConfig()
        return steps.batch_loss(stage, part.apply, None, config, params, batch, key)

    with (
        jax.set_mesh(mesh),
        checkpoint.Checkpoints(folder / "base") as checkpoints,
        metrics.MetricWriter(folder, active=True) as writer,
    ):
        start = tune.start_state(
            {"unet": part.params}, optimizer, True, mesh, rules=rules
        )
        del part  # as it came; the state holds what trains
        return loop.fit(
            "base",
            start,
            steps.make_step(loss_fn, optimizer, seed=0, ema=0.99),
            iter(batches(stage, mesh).to_iter_dataset()),
            loop.LoopConfig(count, log_every=1, preview_every=1),
            mesh=mesh,
            checkpoints=checkpoints,
            metrics=writer,
            learning_rate=lambda step: 1e-3,
            preview=lambda now, step: watch(now),
            inference=lambda now: None,
            diagnose=lambda now, batch: [],
            stop=loop.StopRequest(),
        )
