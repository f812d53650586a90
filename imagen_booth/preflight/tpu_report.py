"""The report of ``doctor --topology``: memory and minutes of a job on named TPUs."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from imagen_booth.cascade import Cascade, by_name
from imagen_booth.config.schema import Job
from imagen_booth.errors import DoesNotFit
from imagen_booth.preflight import estimate, tpu_topology
from imagen_booth.preflight.estimate import Machine, ProgramEstimate, TaskTime
from imagen_booth.preflight.jaxpr_cost import Cost
from imagen_booth.preflight.units import in_bytes, in_flops
from imagen_booth.rundir import layout
from imagen_booth.weights import load, placement

NO_PART = "none"
# Programs of any job, the columns of the Markdown table.
PROGRAMS = (
    "text",
    "base.train",
    "base.sample",
    "sr256.train",
    "sr256.sample",
    "sr1024.train",
    "sr1024.sample",
)


def report(
    job: Job,
    workdir: epath.Path,
    name: str,
    wanted: Sequence[str],
    in_markdown: bool,
    price: float | None = None,
    many: bool = False,
) -> None:
    """Compiles a job's programs one by one and prints the results.

    Args:
        workdir: Run directory; the compiler's answers go to its cache folder.
        name: Name of the TPUs, as ``tpu_topology.parse`` takes it.
        wanted: Programs to compile; empty for all, ``none`` for none.
        in_markdown: Whether to print a Markdown table of the peaks and nothing else.
        price: Dollars for an hour of one chip.
        many: Whether the job is the first of many subjects of a class.

    Raises:
        InputError: A topology, mesh or part is wrong, or the compiler is missing.
        DoesNotFit: A program needs more memory than a chip has.
    """
    topology = tpu_topology.parse(name)
    cascade = _described(job)
    parts: list[str] = []
    if list(wanted) != [NO_PART]:
        parts = estimate.parts_of(job, cascade, wanted)
    tpu_topology.prepare()
    devices = tpu_topology.devices(topology)
    machine = Machine(
        name=topology.name,
        chip=topology.chip,
        devices=devices,
        usable=int(topology.chip.memory * 2**30),
        dtype=placement.activation_dtype(job.dtype, accelerated=True),
    )
    cache = layout.cache_folder(job.cache, workdir)
    report_on(machine, job, cascade, parts, cache, in_markdown, price, many)


def _described(job: Job) -> Cascade:
    """The cascade as its weights describe it, if all of them are given."""
    sources = dataclasses.asdict(job.weights)
    cascade = by_name(job.cascade).without(sources)
    if all(sources[name] for name in ("text", *(s.name for s in cascade.stages))):
        return load.resolve(cascade, sources)
    return cascade


def report_on(
    machine: Machine,
    job: Job,
    cascade: Cascade,
    parts: Sequence[str],
    cache: epath.Path,
    in_markdown: bool = False,
    price: float | None = None,
    many: bool = False,
) -> None:
    """Does the work of ``report`` for a given machine and cascade.

    Raises:
        DoesNotFit: A program needs more memory than a chip has.
    """
    mesh = machine.mesh(cascade, job)
    sizes = " x ".join(f"{axis} {count}" for axis, count in mesh.shape.items())
    if not in_markdown:
        print(
            f"{job.cascade} on {machine.name}: {mesh.size} x "
            f"{machine.devices[0].device_kind} as {sizes}, "
            f"{in_bytes(machine.usable)} usable on each, {machine.dtype} activations\n",
            flush=True,
        )
    found = []
    for part in parts:
        _progress(f"compiling {part} ...")
        found.append(estimate.estimate_program(part, job, cascade, machine, cache))
    _progress("")
    if in_markdown:
        print("\n".join(markdown([job.cascade, machine.name, sizes], found)))
        return
    if found:
        print("\n".join(memory_table(found)))
    _progress("counting the work of the whole job ...")
    counted: dict[Any, Cost] = {}
    times = {
        name: estimate.minutes(form, cascade, machine, counted)
        for name, form in estimate.forms(job, cascade).items()
    }
    if many:  # which share the text encoder's pass and the class images
        times |= {
            "each further subject": [
                each
                for each in times["as set"]
                if each.task.part != "text" and each.task.what != "class images"
            ]
        }
    _progress("")
    print("\n" + "\n".join(time_table(times["as set"])))
    print("\n" + "\n".join(form_table(times, mesh.size, price)))
    _check_fit(found, machine.usable)
    if found:
        print("\nfits")


def _check_fit(found: Sequence[ProgramEstimate], usable: int) -> None:
    """Raises DoesNotFit if a program needs more than the usable bytes of a chip."""
    if too_large := [each for each in found if not each.fits]:
        needs = "; ".join(f"{e.part} needs {in_bytes(e.peak)}" for e in too_large)
        raise DoesNotFit(
            f"does not fit: {needs}, and {in_bytes(usable)} are usable on each "
            "chip. What usually helps: config.base.remat=True, a "
            "larger config.base.accumulate, a smaller config.class_images.group or "
            "config.pictures.batch, and on several chips a larger config.mesh.fsdp"
        )


def memory_table(found: Sequence[ProgramEstimate]) -> list[str]:
    """A table of programs, and a line for each one that the compiler refused."""
    rows = [
        (
            "program",
            "parameters",
            "optimizer",
            "temporaries",
            "also resident",
            "peak",
            "compiler",
        )
    ]
    for each in found:
        figures = each.figures
        compiler = f"{figures.seconds:.0f} s" if figures.seconds else "not run"
        rows.append(
            (
                each.part,
                in_bytes(each.parameters),
                in_bytes(each.optimizer) if each.optimizer else "-",
                "-" if figures.refused else in_bytes(figures.temporaries),
                in_bytes(each.resident) if each.resident else "-",
                in_bytes(each.peak) + ("" if each.fits else " (!)"),
                "refused, " * bool(figures.refused) + compiler,
            )
        )
    refusals = [f"{e.part}: {e.figures.refused}" for e in found if e.figures.refused]
    return [*_aligned(rows), *refusals]


def time_table(times: Sequence[TaskTime]) -> list[str]:
    """A table of a job's tasks with their share of the time, then the sum."""
    total = sum(each.minutes for each in times)
    at_half = sum(each.at_half for each in times)
    rows = [("task", "calls", "work", "minutes", "share", "at half of peak")]
    for each in times:
        stage = each.task.part.partition(".")[0]
        rows.append(
            (
                each.task.what if stage == "text" else f"{stage} {each.task.what}",
                str(each.task.calls),
                in_flops(each.flops),
                f"{each.minutes:.2f}",
                f"{each.minutes / total:.0%}",
                f"{each.at_half:.2f}",
            )
        )
    flops = in_flops(sum(each.flops for each in times))
    rows.append(("total", "", flops, f"{total:.2f}", "100%", f"{at_half:.2f}"))
    return [
        *_aligned(rows),
        f"{total:.1f} minutes at the roofline, {at_half:.1f} at half of the peak "
        "FLOP/s; compiling, loading and saving come on top",
    ]


def form_table(
    times: Mapping[str, Sequence[TaskTime]], chips: int, price: float | None = None
) -> list[str]:
    """A table of the forms of a job: minutes, and dollars where there is a price.

    Args:
        times: Tasks of each form, by its name.
        chips: Number of chips.
        price: Dollars for an hour of one chip.
    """
    heads = ["form of the job", "minutes", "at half of peak"]
    rows = [heads if price is None else [*heads, "dollars", "at half of peak"]]
    for name, tasks in times.items():
        sums = [sum(t.minutes for t in tasks), sum(t.at_half for t in tasks)]
        cells = [f"{minutes:.2f}" for minutes in sums]
        if price is not None:
            cells += [f"{minutes / 60 * chips * price:.2f}" for minutes in sums]
        rows.append([name, *cells])
    return _aligned(rows)


def markdown(job: Sequence[str], found: Sequence[ProgramEstimate]) -> list[str]:
    """A Markdown table with one row: the peak memory of each program.

    Args:
        job: Cascade, chips and mesh.
    """
    heads = ("cascade", "chips", "mesh", *PROGRAMS, "compiler")
    peaks = {
        each.part: in_bytes(each.peak) + " (!)" * (not each.fits) for each in found
    }
    spent = sum(each.figures.seconds for each in found)
    row = (*job, *(peaks.get(name, "-") for name in PROGRAMS), f"{spent:.0f} s")
    return [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        f"| {' | '.join(row)} |",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _progress(text: str) -> None:
    """Replaces the progress line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
