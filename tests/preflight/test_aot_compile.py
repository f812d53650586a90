"""Programs built ahead of time are those of a run; compilers' answers are parsed."""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from imagen_booth.cascade import by_name
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth
from imagen_booth.config.schema import OptimConfig
from imagen_booth.data.examples import Embedding
from imagen_booth.distributed import device_memory, sharding
from imagen_booth.errors import DoesNotFit
from imagen_booth.preflight import aot_compile, jaxpr_cost, memory
from imagen_booth.sampling import cascade_sampler
from imagen_booth.training import finetune, loop, optimizers
from imagen_booth.weights.load import load, network, shapes

CASCADE = by_name("tiny")
JOB = to_job(dreambooth("tiny"))
F32 = jnp.dtype("float32")
LIBTPU = importlib.util.find_spec("libtpu") is not None


def embedding(seed):
    text = CASCADE.text
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(text.length, text.encoder.width)).astype(np.float32)
    return Embedding(value, np.arange(text.length) < 5)


def picture(seed, side):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize("name", ["base", "sr1024"])
@pytest.mark.parametrize(("data", "fsdp", "accumulate"), [(1, 4, 1), (4, 1, 2)])
def test_train_step_is_the_one_that_a_run_compiles(name, data, fsdp, accumulate):
    """Lowered from real arrays, placed as a run places them, it is the same text."""
    mesh = sharding.make_mesh(data, fsdp)
    stage = CASCADE.stage(name)
    tuning = dataclasses.replace(
        JOB.finetuning(name), accumulate=accumulate, class_rows=2, hybrid=False
    )
    low = stage.low_resolution
    rows = [
        finetune.ImagePair(
            picture(i, stage.resolution), None if low is None else picture(i, low)
        ).example(embedding(i))
        for i in range(3)
    ]
    with jax.set_mesh(mesh):
        part = load(CASCADE, name, "random", mesh, F32)
        optimizer = optimizers.build(tuning.optim, tuning.steps)
        loss_fn = finetune.make_loss(stage, part.apply, tuning)
        step_fn = finetune.make_finetune_step(loss_fn, optimizer, tuning, 0)
        start = finetune.initial_state({"unet": part.params}, optimizer, False, mesh)
        batches = finetune.batches(
            stage, tuning, [rows], [rows], seed=3, host=0, hosts=1, devices=mesh.size
        )
        batch = loop._place(batches[5], mesh)
        ok = sharding.put_copies(np.bool_(True), mesh)
        real = loop.jit_step(step_fn, start.abstract).lower(start.make(), batch, ok=ok)
        program = aot_compile.train_step(CASCADE, stage, tuning, mesh, F32)
        built = program.jitted.lower(*program.inputs, **program.named)
    assert built.as_text() == real.as_text()


@pytest.mark.parametrize("name", ["base", "sr256"])
def test_sampler_is_the_one_that_a_run_compiles(name, monkeypatch):
    mesh = sharding.make_mesh(2, 2)
    stage, config = CASCADE.stage(name), JOB.pictures.sr256
    part = load(CASCADE, name, "random", mesh, F32)
    low = stage.low_resolution
    lowered = []

    class Stop(Exception):
        pass

    def record(*about):
        """Records the lowered program in place of sampling."""

        def draw(params, **inputs):
            lowered.append(real(*about).lower(params, **inputs))
            raise Stop

        return draw

    real = cascade_sampler.sampler_program
    monkeypatch.setattr(cascade_sampler, "sampler_program", record)
    with jax.set_mesh(mesh), pytest.raises(Stop):
        cascade_sampler.sample_stage(
            stage,
            part,
            part.params,
            config,
            [embedding(i) for i in range(3)],
            embedding(9),
            [1, 2, 3],
            mesh=mesh,
            low=None if low is None else np.stack([picture(i, low) for i in range(3)]),
            level=0.1,
        )
    monkeypatch.undo()
    with jax.set_mesh(mesh):
        program = aot_compile.sampler(CASCADE, stage, config, 3, mesh, F32)
        built = program.jitted.lower(*program.inputs, **program.named)
    assert built.as_text() == lowered[0].as_text()


def test_rules_decide_what_a_device_holds():
    mesh, stage, tuning = sharding.make_mesh(1, 4), CASCADE.stage("base"), JOB.base
    rules = (("unet/conv_in/kernel", (None, None, None, "fsdp")),)
    kernel = shapes(CASCADE, "base")["conv_in"]["kernel"]
    saved = 3 * kernel.size * kernel.dtype.itemsize // 4
    for make in (
        functools.partial(aot_compile.train_step, CASCADE, stage, tuning, mesh, F32),
        functools.partial(
            aot_compile.sampler, CASCADE, stage, JOB.pictures.base, 4, mesh, F32
        ),
    ):
        assert make().parameters - make(rules).parameters == saved
    state = functools.partial(
        aot_compile.beside_preview, CASCADE, stage, tuning, mesh, F32
    )
    assert state() - state(rules) >= saved


def test_figures_of_a_compiled_program(tmp_path):
    """By the CPU's compiler, through the function that asks the TPU's."""
    mesh = sharding.make_mesh(4, 1)
    stage, tuning = CASCADE.stage("base"), JOB.base
    program = aot_compile.train_step(CASCADE, stage, tuning, mesh, F32)
    cache = epath.Path(tmp_path)
    found = aot_compile.compile_program(program, mesh, 2**30, cache, "cpu")
    state, batch = program.inputs
    share = sum(leaf.size * leaf.dtype.itemsize // mesh.size for leaf in batch.values())
    held = device_memory.size_per_device(state, mesh)
    assert held == program.parameters + program.optimizer
    # Scalars are padded to a few bytes.
    assert found.arguments == pytest.approx(held + share, rel=0.01)
    assert found.aliased == pytest.approx(held, rel=0.01)
    assert found.peak >= found.arguments
    assert not found.refused

    # The next answer comes from the cache.
    (file,) = (tmp_path / "aot").iterdir()
    changed = json.loads(file.read_text()) | {"temporaries": 123}
    file.write_text(json.dumps(changed))
    assert (
        aot_compile.compile_program(program, mesh, 2**30, cache, "cpu").temporaries
        == 123
    )
    other = dataclasses.replace(tuning, optim=OptimConfig(lr=2e-3))
    again = aot_compile.train_step(CASCADE, stage, other, mesh, F32)
    assert (
        aot_compile.compile_program(again, mesh, 2**30, cache, "cpu").temporaries != 123
    )


def test_work_of_a_share_of_the_rows():
    one, four = sharding.make_mesh(1, 1, jax.devices()[:1]), sharding.make_mesh(4, 1)
    stage = CASCADE.stage("base")
    tuning = dataclasses.replace(JOB.base, subject_rows=4, class_rows=4)
    alone = aot_compile.train_step(CASCADE, stage, tuning, one, F32).work(one)
    shared = aot_compile.train_step(CASCADE, stage, tuning, four, F32).work(four)
    assert alone.flops == pytest.approx(4 * shared.flops, rel=1e-3)
    # Parameters and their update are not divided.
    assert alone.bytes / 4 < shared.bytes < alone.bytes


def test_sampler_works_in_proportion_to_its_steps():
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    stage = CASCADE.stage("base")

    def work(steps, guidance):
        config = dataclasses.replace(JOB.pictures.base, steps=steps, guidance=guidance)
        return aot_compile.sampler(CASCADE, stage, config, 2, mesh, F32).work(mesh)

    row = memory.stage_cost(CASCADE, stage, JOB.base, 1).row_flops
    assert work(1, 1.0).flops == pytest.approx(2 * row, rel=1e-3)
    # The text is read once, not in every step.
    _, apply = network(CASCADE, "base", F32)
    shape = (1, stage.resolution, stage.resolution, 3)
    text = jnp.zeros((1, CASCADE.text.length, stage.model.text_width))
    once = jaxpr_cost.count_flops(
        *(apply.read_text, shapes(CASCADE, "base")),
        *(jnp.zeros(shape), jnp.zeros(1), text, jnp.ones(text.shape[:2], bool), None),
    )
    assert 0 < once < row / 20
    further = work(5, 1.0).flops - work(1, 1.0).flops
    assert further == pytest.approx(4 * 2 * (row - once), rel=1e-3)
    assert work(5, 3.0).flops == pytest.approx(2 * work(5, 1.0).flops, rel=1e-3)
    assert work(10, 3.0).bytes == pytest.approx(2 * work(5, 3.0).bytes, rel=0.05)


def test_refusals_are_parsed():
    # From libtpu 0.0.42, for one v4 chip.
    found = aot_compile.parse_refusal(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (40.00G) exceeds available HBM (30.75G)."
    )
    assert (found.peak, found.usable) == (40 * 2**30, int(30.75 * 2**30))
    assert found.refused.startswith("Ran out of memory on HBM")
    with pytest.raises(DoesNotFit, match="something new"):
        aot_compile.parse_refusal("RESOURCE_EXHAUSTED: something new")
    with pytest.raises(RuntimeError, match="INTERNAL"):
        aot_compile.parse_refusal("INTERNAL: a bug")


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install -e '.[tpu]'")
def test_tpu_compiles_and_refuses(tmp_path):
    from imagen_booth.preflight import tpu_topology

    tpu_topology.prepare()
    (device,) = tpu_topology.devices(tpu_topology.parse("v4:1x1x1"))
    usable = int(tpu_topology.CHIPS["v4"].memory * 2**30)
    cache = epath.Path(tmp_path)
    mesh = sharding.make_mesh(1, 1, [device])
    bf16 = jnp.dtype("bfloat16")
    stage = CASCADE.stage("base")
    small = aot_compile.train_step(CASCADE, stage, JOB.base, mesh, bf16)
    found = aot_compile.compile_program(small, mesh, usable, cache, "v4:1x1x1")
    assert 0 < found.peak < usable
    assert found.aliased >= small.parameters + small.optimizer
    # So many rows that the batch alone is more than there is.
    many = dataclasses.replace(JOB.base, subject_rows=2, class_rows=0)
    large = aot_compile.train_step(CASCADE, stage, many, mesh, bf16)
    state, batch = large.inputs
    batch = {
        name: jax.ShapeDtypeStruct(
            (10**6, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding
        )
        for name, leaf in batch.items()
    }
    large = dataclasses.replace(large, inputs=(state, batch))
    found = aot_compile.compile_program(large, mesh, usable, cache, "v4:1x1x1")
    assert found.refused
    assert found.peak > found.usable == usable
