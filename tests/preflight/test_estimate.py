"""What a job takes: its tasks, the arithmetic of its minutes, and what to change."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from imagen_booth.cascade import by_name
from imagen_booth.config import fast as options
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth
from imagen_booth.config.schema import Mesh
from imagen_booth.errors import DoesNotFit, InputError
from imagen_booth.preflight import (
    aot_compile,
    estimate,
    estimate_tables,
    fixes,
    tpu_report,
    tpu_topology,
)
from imagen_booth.preflight.aot_compile import MemoryFigures
from imagen_booth.preflight.estimate import Machine, ProgramEstimate
from imagen_booth.preflight.jaxpr_cost import Cost
from imagen_booth.preflight.units import in_bytes

V4 = tpu_topology.CHIPS["v4"]
TINY = by_name("tiny")


def machine(devices=1, usable=2**30):
    return Machine("test", V4, jax.devices()[:devices], usable, jnp.dtype("float32"))


def test_tasks_of_the_paper_s_job():
    job, cascade = to_job(dreambooth("imagen")), by_name("imagen")
    found = {(task.part, task.what): task for task in estimate.tasks(job, cascade)}
    assert found["base.sample", "class images"].calls == 800 // 8
    assert found["base.sample", "class images"].rows == 8
    assert found["base.train", "steps"].calls == 1000
    assert found["base.sample", "previews"].calls == 11  # at 0, 100, ..., 1000
    # 8 prompts, 2 pictures at a time at 256 px.
    assert found["sr256.sample", "pictures"].calls == 4
    # Null, instance, class, and each prompt with and without the identifier.
    assert found["text", "prompts"].calls == -(-(3 + 2 * 8) // 8)
    # No class images are enlarged where no stage above learns from them.
    assert ("sr256.sample", "class images") not in found


def test_class_images_are_enlarged_for_stages_that_learn_from_them():
    job = to_job(dreambooth("tiny"))
    job = dataclasses.replace(job, sr1024=dataclasses.replace(job.sr1024, class_rows=1))
    drawn = [
        task.part for task in estimate.tasks(job, TINY) if task.what == "class images"
    ]
    assert drawn == ["base.sample", "sr256.sample", "sr1024.sample"]


def test_parts_by_name_and_by_stage():
    job = to_job(dreambooth("tiny"))
    every = estimate.parts_of(job, TINY, [])
    assert every[:3] == ["text", "base.train", "base.sample"]
    assert len(every) == 7
    assert estimate.parts_of(job, TINY, ["base"]) == ["base.train", "base.sample"]
    assert estimate.parts_of(job, TINY, ["sr256.sample", "text"]) == [
        "text",
        "sr256.sample",
    ]
    with pytest.raises(InputError, match="--parts=sr512 is no program") as caught:
        estimate.parts_of(job, TINY, ["base", "sr512"])
    assert "sr1024.train" in str(caught.value)
    still = dataclasses.replace(job, base=dataclasses.replace(job.base, steps=0))
    with pytest.raises(InputError, match=r"base\.train"):
        estimate.parts_of(still, TINY, ["base.train"])


def test_the_longer_of_arithmetic_and_traffic():
    one = machine()
    assert one.seconds(Cost(275e12, 0.0)) == pytest.approx(1.0)
    assert one.seconds(Cost(0.0, 1200e9)) == pytest.approx(1.0)
    assert one.seconds(Cost(275e12, 3 * 1200e9)) == pytest.approx(3.0)
    assert one.seconds(Cost(275e12, 3 * 1200e9), 0.5) == pytest.approx(3.0)
    assert one.seconds(Cost(275e12, 1200e9), 0.5) == pytest.approx(2.0)


def test_minutes_add_up():
    job = to_job(dreambooth("tiny"))
    found = estimate.minutes(job, TINY, machine())
    images = next(each for each in found if each.task.what == "class images")
    pictures = next(
        each
        for each in found
        if each.task.what == "pictures" and each.task.part == "base.sample"
    )
    # The same sampler on as many rows: 4 class images in 2 calls, 2 pictures in one.
    assert images.flops == pytest.approx(2 * pictures.flops)
    assert images.minutes == pytest.approx(2 * pictures.minutes)
    *rows, last = estimate_tables.shares(found)[1:]
    assert len(rows) == len(found) + 1
    total = sum(each.minutes for each in found)
    assert last.startswith(f"{total:.1f} minutes")


def test_two_chips_take_half_as_long_for_rows_that_divide():
    job = to_job(dreambooth("tiny"))
    job = dataclasses.replace(job, mesh=Mesh(-1, 1))
    one = estimate.minutes(job, TINY, machine(1))
    two = estimate.minutes(job, TINY, machine(2))
    for alone, shared in zip(one, two, strict=True):
        if alone.task.part != "text":
            # The same work, give or take what every chip does for itself.
            assert shared.flops == pytest.approx(alone.flops, rel=0.05)


def test_the_fast_job_only_differs_in_how_it_draws():
    job = to_job(dreambooth("imagen"))
    fast = to_job(dreambooth("imagen:fast"))
    assert fast.class_images.count == job.class_images.count == 800
    assert fast.class_images.group == 32
    assert fast.class_images.sampler.method == "dpmpp_2m"
    assert fast.pictures.sr1024.steps == 8
    for name in ("base", "sr256", "sr1024"):
        same = dataclasses.replace(fast.tuning(name), preview_every=100)
        assert same == job.tuning(name)
    # 200 class images come in groups that divide them.
    assert to_job(dreambooth("if_m:fast")).class_images.group == 25
    assert to_job(dreambooth("if_m:fast")).pictures.base.spacing == "trailing"
    *_, (_, last) = options.ladder(job)
    assert last.class_images.count == 0
    assert last.pictures == fast.pictures


def figures(**changes):
    plain = MemoryFigures(100, 100, 100, 40, 140, 1000, "", 12.0)
    return dataclasses.replace(plain, **changes)


def one(beside=0, **changes):
    return ProgramEstimate(
        "base.train", 60, 40, beside, figures(**changes), Cost(1, 1), 1.0
    )


def test_what_lies_beside_a_program_counts():
    assert one().fits
    assert one(beside=860).fits
    assert not one(beside=861).fits
    assert not one(refused="no").fits


def test_markdown_has_a_cell_for_every_head():
    head, rule = estimate_tables.markdown_head().splitlines()
    many = dataclasses.replace(one(refused="no"), part="sr256.train")
    row = estimate_tables.markdown("tiny", "v4", "data 1", [one(), many])
    assert head.count("|") == rule.count("|") == row.count("|")
    told = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert told["base.train"] == in_bytes(one().peak)
    assert told["sr256.train"] == f"{in_bytes(many.peak)} (!)"
    assert told["text"] == "-"


def test_figures_reckoned_for_more_chips():
    """Gradients are divided like parameters, the rest goes with the rows of a chip."""
    job = to_job(dreambooth("tiny"))
    job = dataclasses.replace(job, base=dataclasses.replace(job.base, subject_rows=6))
    alone, four = machine(1), machine(4, usable=2**19)
    stage, mesh = TINY.stage("base"), alone.mesh(TINY, job)
    made = aot_compile.train_step(TINY, stage, job.base, mesh, alone.dtype)
    batch, inner = 8000, 40_000
    held = made.parameters + made.optimizer
    known = ProgramEstimate(
        "base.train",
        made.parameters,
        made.optimizer,
        0,
        figures(
            arguments=held + batch,
            temporaries=made.parameters + inner,
            peak=held + batch + made.parameters + inner,
        ),
        Cost(1, 1),
        1.0,
    )
    found = estimate.computed(
        "base.train", job, TINY, four, estimate.Known(known, alone, job)
    )
    # Nothing is large enough to be shared; 8 rows are 2 on each of 4 chips.
    assert found.computed
    assert found.parameters == made.parameters
    assert found.figures.temporaries == made.parameters + inner // 4
    assert found.peak == held + batch // 4 + made.parameters + inner // 4
    assert not found.fits
    assert "computed" in estimate_tables.cells(found)


def test_changes_come_mild_ones_first_and_at_most_three():
    job, four = to_job(dreambooth("imagen")), machine(4)
    job = dataclasses.replace(job, base=dataclasses.replace(job.base, remat=False))
    for heavy, first in ((False, "--config.base.remat=True"), (True, "--config.mesh")):
        found = fixes.changes("base.train", job, four, heavy)
        assert len(found) <= fixes.TRIES
        assert found[0].flags.startswith(first)
    last = fixes.changes("base.train", job, four, False)[-1]
    assert last.job.base.remat
    assert last.job.mesh == Mesh(1, 4)
    assert fixes.changes("base.train", job, machine(1), True) == []
    (fewer,) = fixes.changes("base.sample", job, machine(1), False)
    assert fewer.job.class_images.group == 2
    one = fixes.changes("base.train", job, machine(1), False)[-1]
    assert one.flags == "--config.base.remat=True --config.base.accumulate=2"


def test_a_job_that_cannot_fit_is_told_what_would(tmp_path, capsys):
    """Nothing is compiled where what a program is given is already too much."""
    job = to_job(dreambooth("tiny"))
    request = tpu_report.Request("x.py", "test", ["base.train"], False)
    with pytest.raises(DoesNotFit) as caught:
        tpu_report.consult(
            job, TINY, machine(1, 1000), ["base.train"], epath.Path(tmp_path), request
        )
    said = str(caught.value)
    assert said.startswith("does not fit: base.train needs")
    assert "chips or more" in said
    out = capsys.readouterr().out
    assert "not compiled: what it is given is more than a device has" in out
    assert "minutes at the roofline" in out
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_fits_says_so(tmp_path, capsys):
    job = to_job(dreambooth("tiny"))
    request = tpu_report.Request("x.py", "test", ["text"], False)
    here = (job, TINY, machine(), ["text"], epath.Path(tmp_path))
    tpu_report.consult(*here, request)
    assert capsys.readouterr().out.splitlines()[-1] == "fits"
    tpu_report.consult(*here, dataclasses.replace(request, markdown=True))
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| tiny | test | data 1 x fsdp 1 | ")
