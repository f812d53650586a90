"""A forecast as text for people, and as rows of a Markdown table."""

from collections.abc import Sequence

from imagen_booth.preflight.estimate import ProgramEstimate, TaskTime
from imagen_booth.preflight.units import in_bytes, in_flops, in_time, scaled

HEADS = (
    "program",
    "parameters",
    "optimizer",
    "temporaries",
    "beside it",
    "peak",
    "work a call",
    "traffic a call",
    "roofline",
    "compiler",
)

PROGRAMS = (
    "text",
    "base.train",
    "base.sample",
    "sr256.train",
    "sr256.sample",
    "sr1024.train",
    "sr1024.sample",
)


def cells(each: ProgramEstimate) -> list[str]:
    """One program as the cells of a row, in the order of ``HEADS``."""
    figures = each.figures
    refused = bool(figures.refused)
    return [
        each.part,
        in_bytes(each.parameters),
        in_bytes(each.optimizer) if each.optimizer else "-",
        "-" if refused else in_bytes(figures.temporaries),
        in_bytes(each.beside) if each.beside else "-",
        in_bytes(each.peak) + ("" if each.fits else " (!)"),
        in_flops(each.work.flops),
        f"{scaled(each.work.bytes, 1000)}B",
        in_time(each.seconds),
        _compiler(each),
    ]


def _compiler(each: ProgramEstimate) -> str:
    """How the figures were come by, and in how many seconds."""
    if each.computed:
        return "computed"
    if not each.figures.seconds:
        return "not asked"
    refused = "refused, " * bool(each.figures.refused)
    return f"{refused}{each.figures.seconds:.0f} s"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def shares(found: Sequence[TaskTime]) -> list[str]:
    """Every task of a job with its share of the time, then the sum."""
    total, at_half = totals(found)
    rows = [("task", "calls", "work", "minutes", "share", "at half of peak")]
    for each in found:
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
    flops = in_flops(sum(each.flops for each in found))
    rows.append(("in all", "", flops, f"{total:.2f}", "100%", f"{at_half:.2f}"))
    return [
        *table(rows),
        f"{total:.1f} minutes at the roofline, {at_half:.1f} at half of the peak "
        "arithmetic; compiling, loading and saving come on top",
    ]


def totals(found: Sequence[TaskTime]) -> tuple[float, float]:
    """Minutes of a whole job, at the roofline and at half of the peak arithmetic."""
    return sum(each.minutes for each in found), sum(each.at_half for each in found)


def markdown(
    cascade: str, topology: str, mesh: str, found: Sequence[ProgramEstimate]
) -> str:
    """A row for a table whose head is ``markdown_head``: the peak of each program."""
    peaks = {
        each.part: in_bytes(each.peak) + " (!)" * (not each.fits) for each in found
    }
    computed = any(each.computed for each in found)
    spent = sum(each.figures.seconds for each in found)
    line = [cascade, topology, mesh, *(peaks.get(name, "-") for name in PROGRAMS)]
    line.append("computed" if computed else f"{spent:.0f} s")
    return f"| {' | '.join(line)} |"


def markdown_head() -> str:
    """The head of that table."""
    heads = ("cascade", "chips", "mesh", *PROGRAMS, "compiler")
    return f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
