"""What ``doctor --topology`` does: compile, tell, and look for what to change."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from imagen_booth.cascade import Cascade, by_name
from imagen_booth.config import fast
from imagen_booth.config.schema import Job, Mesh
from imagen_booth.errors import DoesNotFit
from imagen_booth.preflight import (
    aot_compile,
    estimate,
    estimate_tables,
    fixes,
    tpu_topology,
)
from imagen_booth.preflight.estimate import Machine, ProgramEstimate
from imagen_booth.preflight.jaxpr_cost import Cost
from imagen_booth.preflight.units import in_bytes
from imagen_booth.rundir import layout
from imagen_booth.weights import load, placement

NO_PART = "none"


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command was asked.

    Attributes:
        config: the config as it was named.
        topology: name of the TPUs.
        parts: programs to compile; none for all, ``none`` for no one.
        markdown: a table in Markdown and nothing else.
        origin: topology whose figures to compute these from; empty to compile.
    """

    config: str
    topology: str
    parts: Sequence[str]
    markdown: bool
    origin: str = ""


def answer(job: Job, workdir: epath.Path, request: Request) -> None:
    """Compiles a job's programs one by one, and prints what comes of it.

    Args:
        workdir: where the run would live; answers are kept in its cache folder.

    Raises:
        InputError: a topology, mesh or part that cannot be, or no TPU compiler.
        DoesNotFit: a program needs more memory than a chip has.
    """
    kinds = [tpu_topology.parse(request.topology)]
    if request.origin:
        kinds.append(tpu_topology.parse(request.origin))
    cascade = _described(job)
    parts: list[str] = []
    if list(request.parts) != [NO_PART]:
        parts = estimate.parts_of(job, cascade, request.parts)
    tpu_topology.prepare()
    machine, *origin = [_machine(kind, job) for kind in kinds]
    cache = layout.cache_folder(job.cache, workdir)
    consult(job, cascade, machine, parts, cache, request, *origin)


def _machine(kind: tpu_topology.Topology, job: Job) -> Machine:
    devices = tpu_topology.devices(kind)
    return Machine(
        kind.name,
        kind.chip,
        devices,
        aot_compile.usable_memory(devices[0]),
        placement.activation_dtype(job.dtype, accelerated=True),
    )


def consult(
    job: Job,
    cascade: Cascade,
    machine: Machine,
    parts: Sequence[str],
    cache: epath.Path,
    request: Request,
    origin: Machine | None = None,
) -> None:
    """As ``answer``, on a machine that is known.

    Args:
        origin: compile for this one, its chips sharing the parameters, and compute.
    """
    mesh = machine.mesh(cascade, job)
    sizes = " x ".join(f"{axis} {count}" for axis, count in mesh.shape.items())
    if not request.markdown:
        print(
            f"{request.config} on {machine.name}: {mesh.size} x "
            f"{machine.devices[0].device_kind} as {sizes}, "
            f"{in_bytes(machine.usable)} usable on each, {machine.dtype} activations\n",
            flush=True,
        )
    found = []
    for part in parts:
        _progress(f"compiling {part} ...")
        if origin is None:
            found.append(estimate.estimate_program(part, job, cascade, machine, cache))
            continue
        at = dataclasses.replace(job, mesh=Mesh(1, -1))
        made = estimate.estimate_program(part, at, cascade, origin, cache)
        known = estimate.Known(made, origin, at)
        found.append(estimate.computed(part, job, cascade, machine, known))
    _progress("")
    if request.markdown:
        print(estimate_tables.markdown_head())
        print(estimate_tables.markdown(job.cascade, machine.name, sizes, found))
        return
    if found:
        rows = [estimate_tables.HEADS, *map(estimate_tables.cells, found)]
        print("\n".join(estimate_tables.table(rows)))
    for each in found:
        if each.figures.refused:
            print(f"{each.part}: {each.figures.refused}")
    _progress("counting the work of the whole job ...")
    counted: dict[Any, Cost] = {}
    spent = estimate.minutes(job, cascade, machine, counted)
    _progress("")
    print("\n" + "\n".join(estimate_tables.shares(spent)))
    if not request.parts or not parts:
        print("\n".join(_ladder(job, cascade, machine, counted)))
    worst = [each for each in found if not each.fits]
    if not worst:
        if found:
            print("\nfits")
        return
    advice = [_mended(each, job, cascade, machine, cache) for each in worst]
    raise DoesNotFit("does not fit: " + "; ".join(advice))


def _described(job: Job) -> Cascade:
    """The cascade as its weights describe it, where there are any to ask."""
    sources = dataclasses.asdict(job.weights)
    cascade = by_name(job.cascade)
    if all(sources[name] for name in ("text", *(s.name for s in cascade.stages))):
        return load.resolve(cascade, sources)
    return cascade


def _ladder(
    job: Job, cascade: Cascade, machine: Machine, counted: dict[Any, Cost]
) -> list[str]:
    """What each option buys, from the job as it is to the fast one."""

    def spent(job: Job) -> tuple[float, float]:
        return estimate_tables.totals(estimate.minutes(job, cascade, machine, counted))

    now = spent(job)
    rows = [("what it buys", "minutes", "at half of peak", "saved")]
    rows.append(("faithful: as it is", f"{now[0]:.1f}", f"{now[1]:.1f}", ""))
    for what, shorter in fast.ladder(job):
        before = now
        now = spent(shorter)
        saved = f"{before[0] - now[0]:.1f}"
        rows.append((f"+ {what}", f"{now[0]:.1f}", f"{now[1]:.1f}", saved))
    rows.append(("fast: all of these", f"{now[0]:.1f}", f"{now[1]:.1f}", ""))
    return ["", *estimate_tables.table(rows)]


def _mended(
    each: ProgramEstimate,
    job: Job,
    cascade: Cascade,
    machine: Machine,
    cache: epath.Path,
) -> str:
    """What to change for a program that does not fit, found by compiling it."""
    said = f"{each.part} needs {in_bytes(each.peak)} of {in_bytes(each.figures.usable)}"
    heavy = each.parameters + each.optimizer + each.beside > machine.usable
    tried = []
    for change in fixes.changes(each.part, job, machine, heavy):
        _progress(f"trying {change.flags} ...")
        now = estimate.estimate_program(each.part, change.job, cascade, machine, cache)
        if now.fits:
            _progress("")
            return f"{said}; {change.flags} makes it {in_bytes(now.peak)}"
        tried.append(f"{change.flags} ({in_bytes(now.peak)})")
    _progress("")
    if tried:
        said += f", and with {'; '.join(tried)}"
    least = (each.parameters + each.optimizer + each.beside) * len(machine.devices)
    chips = fixes.enough(least + each.parameters * len(machine.devices), machine)
    return f"{said}; it takes {chips} chips or more that share it (config.mesh.fsdp)"


def _progress(text: str) -> None:
    """A line on a terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
