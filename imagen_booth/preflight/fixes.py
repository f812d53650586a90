"""What to change in a job whose programs do not fit."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from imagen_booth.config.schema import Job, Mesh
from imagen_booth.preflight.estimate import Machine

TRIES = 3


def enough(held: int, machine: Machine) -> int:
    """Chips that share this many bytes and have a quarter left for the work.

    Arithmetic alone; nothing is compiled.
    """
    chips = max(len(machine.devices), 1)
    while held / chips > 0.75 * machine.usable:
        chips *= 2
    return chips if chips > len(machine.devices) else 2 * chips


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of a job that may make a program fit.

    Attributes:
        flags: what to add to the command.
        job: with the change.
    """

    flags: str
    job: Job


def changes(part: str, job: Job, machine: Machine, heavy: bool) -> list[Change]:
    """At most ``TRIES`` changes that may make a part's program fit, mild ones first.

    Each comes on top of those before it.

    Args:
        heavy: what the program is given is by itself too much; only sharing it helps.
    """
    ways = list(_ways(part, job, machine))
    if heavy:
        ways = [way for way in ways if "mesh" in way[0]]
    found, flags = [], []
    for flag, change in ways[:TRIES]:
        job = change(job)
        flags.append(flag)
        found.append(Change(" ".join(flags), job))
    return found


def _ways(
    part: str, job: Job, machine: Machine
) -> Iterator[tuple[str, Callable[[Job], Job]]]:
    """Single changes, and the flags that make them."""
    name, _, kind = part.partition(".")
    chips = len(machine.devices)
    if kind == "train":
        tuning = job.tuning(name)

        def tuned(**values: Any) -> Callable[[Job], Job]:
            def change(job: Job) -> Job:
                tuning = dataclasses.replace(job.tuning(name), **values)
                return dataclasses.replace(job, **{name: tuning})

            return change

        if not tuning.remat:
            yield f"--config.{name}.remat=True", tuned(remat=True)
        each = -(-(tuning.subject_rows + tuning.class_rows) // chips)
        if each > tuning.accumulate:
            yield f"--config.{name}.accumulate={each}", tuned(accumulate=each)
    elif kind == "sample":
        group, batch = job.class_images.group, job.pictures.batch
        if group > 1 or batch > 2:
            smaller, fewer = max(group // 4, 1), max(batch // 4, 1)

            def drawn(job: Job) -> Job:
                return dataclasses.replace(
                    job,
                    class_images=dataclasses.replace(job.class_images, group=smaller),
                    pictures=dataclasses.replace(job.pictures, batch=fewer),
                )

            flags = f"--config.class_images.group={smaller}"
            yield f"{flags} --config.pictures.batch={fewer}", drawn
    if chips > 1 and job.mesh != Mesh(1, chips):
        mesh = Mesh(1, chips)
        flags = f"--config.mesh.data=1 --config.mesh.fsdp={chips}"
        yield flags, lambda job: dataclasses.replace(job, mesh=mesh)
