"""What a job takes: its tasks, its minutes and its memory."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from imagen_booth.cascade import by_name
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth
from imagen_booth.config.schema import Mesh
from imagen_booth.errors import DoesNotFit, InputError
from imagen_booth.preflight import estimate, tpu_report, tpu_topology
from imagen_booth.preflight.aot_compile import MemoryFigures
from imagen_booth.preflight.estimate import Machine, ProgramEstimate
from imagen_booth.preflight.jaxpr_cost import Cost
from imagen_booth.preflight.units import in_bytes

V4 = tpu_topology.CHIPS["v4"]
TINY = by_name("tiny")


def machine(devices=1, usable=2**30):
    return Machine("test", V4, jax.devices()[:devices], usable, jnp.dtype("float32"))


def test_tasks_of_the_paper_job():
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
    # No class images are enlarged if no stage above trains on them.
    assert ("sr256.sample", "class images") not in found


def test_class_images_are_enlarged_for_stages_trained_on_them():
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
    *rows, last = tpu_report.time_table(found)[1:]
    assert len(rows) == len(found) + 1
    total = sum(each.minutes for each in found)
    assert last.startswith(f"{total:.1f} minutes")


@pytest.mark.parametrize(
    ("from_noise", "calls", "least", "most"), [(0.0, 1, 1.05, 1.5), (0.5, 5, 1.5, 2)]
)
def test_forms_without_class_images_pay_the_frozen_model(
    from_noise, calls, least, most
):
    job = to_job(dreambooth("tiny"))
    settings = dataclasses.replace(job.frozen_model, from_noise=from_noise)
    job = dataclasses.replace(job, frozen_model=settings)
    forms, counted = estimate.forms(job, TINY), {}
    assert list(forms) == ["as set", "without class images", "fast"]
    times = {
        name: estimate.minutes(form, TINY, machine(), counted)
        for name, form in forms.items()
    }
    tasks = {
        name: {(t.task.part, t.task.what): t.flops for t in found}
        for name, found in times.items()
    }
    images, steps = ("base.sample", "class images"), ("base.train", "steps")
    with_images, without = tasks["as set"], tasks["without class images"]
    assert images in with_images
    assert images not in without
    assert least < without[steps] / with_images[steps] < most
    same = with_images.keys() - {images, steps}
    assert {key: without[key] for key in same} == {k: with_images[k] for k in same}
    # 2 + 2 rows and a gradient of twice the forward pass. The frozen model alone has 2
    # rows: one call for the target, and 4 from pure noise, as in the dearest steps.
    row = with_images[steps] / (4 * 3)
    frozen = 2 * calls * row
    assert without[steps] - with_images[steps] == pytest.approx(frozen, rel=0.3)
    head, *rows = tpu_report.form_table(times, chips=2, price=3.0)
    assert "dollars" in head
    assert [row.startswith(name) for row, name in zip(rows, forms, strict=True)]
    total = sum(each.minutes for each in times["as set"])
    assert f"{total / 60 * 2 * 3.0:.2f}" in rows[0]
    assert "dollars" not in tpu_report.form_table(times, chips=2)[0]
    frozen = dataclasses.replace(job, prior="frozen_model")
    assert list(estimate.forms(frozen, TINY)) == ["as set", "fast"]


def test_two_chips_take_half_as_long_for_rows_that_divide():
    job = to_job(dreambooth("tiny"))
    job = dataclasses.replace(job, mesh=Mesh(-1, 1))
    one = estimate.minutes(job, TINY, machine(1))
    two = estimate.minutes(job, TINY, machine(2))
    for alone, shared in zip(one, two, strict=True):
        if alone.task.part != "text":
            # The same work, give or take what every chip does for itself.
            assert shared.flops == pytest.approx(alone.flops, rel=0.05)


def test_the_fast_job_differs_only_in_sampling_and_the_source_of_the_prior_term():
    job = to_job(dreambooth("imagen"))
    fast = to_job(dreambooth("imagen:fast"))
    assert fast.prior == "frozen_model"
    assert not fast.uses_class_images("base")
    assert fast.class_images.count == job.class_images.count == 800
    assert fast.class_images.sampler.method == "dpmpp_2m"
    assert fast.pictures.sr1024.steps == 8
    for name in ("base", "sr256", "sr1024"):
        same = dataclasses.replace(fast.finetuning(name), preview_every=100)
        assert same == job.finetuning(name)
    assert to_job(dreambooth("if_m:fast")).pictures.base.spacing == "trailing"


def figures(**changes):
    plain = MemoryFigures(140, 1000, 100, 100, 100, 40, "", 12.0)
    return dataclasses.replace(plain, **changes)


def one(resident=0, **changes):
    return ProgramEstimate("base.train", 60, 40, resident, figures(**changes))


def test_resident_arrays_count():
    assert one().fits
    assert one(resident=860).fits
    assert not one(resident=861).fits
    assert not one(refused="no").fits


def test_markdown_has_a_cell_for_every_head():
    many = dataclasses.replace(one(refused="no"), part="sr256.train")
    head, rule, row = tpu_report.markdown(["tiny", "v4", "data 1"], [one(), many])
    assert head.count("|") == rule.count("|") == row.count("|")
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["base.train"] == in_bytes(one().peak)
    assert cells["sr256.train"] == f"{in_bytes(many.peak)} (!)"
    assert cells["text"] == "-"


def test_memory_table_has_a_line_for_every_refusal():
    lines = tpu_report.memory_table([one(), one(refused="too large")])
    assert len(lines) == 4
    assert "40 B" in lines[1]  # temporaries
    assert "refused" in lines[2]
    assert lines[3] == "base.train: too large"


def test_job_that_does_not_fit(tmp_path, capsys):
    """A program whose arguments alone are too large is not compiled."""
    job = to_job(dreambooth("tiny"))
    with pytest.raises(DoesNotFit) as caught:
        tpu_report.report_on(
            machine(1, 1000), job, TINY, ["base.train"], epath.Path(tmp_path)
        )
    message = str(caught.value)
    assert message.startswith("does not fit: base.train needs")
    assert "1000 B are usable" in message
    for setting in ("base.remat", "base.accumulate", "class_images.group", "mesh.fsdp"):
        assert f"config.{setting}" in message
    assert caught.value.exit_code == 3
    out = capsys.readouterr().out
    assert "not compiled: its arguments alone exceed the memory of a device" in out
    assert "minutes at the roofline" in out
    assert list(tmp_path.iterdir()) == []


def test_job_that_fits(tmp_path, capsys):
    job = to_job(dreambooth("tiny"))
    arguments = (machine(), job, TINY, ["text"], epath.Path(tmp_path))
    tpu_report.report_on(*arguments)
    assert capsys.readouterr().out.splitlines()[-1] == "fits"
    tpu_report.report_on(*arguments, in_markdown=True)
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| tiny | test | data 1 x fsdp 1 | ")


def test_minutes_without_compiling(tmp_path, capsys):
    job = to_job(dreambooth("tiny"))
    tpu_report.report_on(machine(), job, TINY, [], epath.Path(tmp_path))
    out = capsys.readouterr().out
    assert "minutes at the roofline" in out
    assert "fits" not in out
    assert list(tmp_path.iterdir()) == []
