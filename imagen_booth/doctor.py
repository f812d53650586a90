"""Checks a job before it runs: photos, identifier, prompts, weights, run, memory.

    python -m imagen_booth.doctor --config=configs/dog.py
    python -m imagen_booth.doctor --config=configs/subject.py:if_m \\
        --config.subject.photos=DIR --config.subject.class_noun=dog

It takes the flags of train, answers in seconds, downloads nothing and writes nothing.
With --clip it also reports what the photos seem to show and whether the class noun
fits; for subjects of the toybox it uses the toybox judge. Exit codes: 0 the job is
ready, 2 bad input or a run directory that train would refuse, 3 it does not fit in
memory, 5 the disk is too small or cannot be written.

    python -m imagen_booth.doctor --config=configs/subjects.py --config.subjects=DIR

Of many subjects it checks each, and prints what the first and each further one has cost
so far, with --price in dollars too.

    python -m imagen_booth.doctor --config=configs/dog.py:imagen --topology=v4:1x1x1

With --topology it compiles the job's programs for TPUs that need not be there: peak
memory, whether it fits (exit code 3 if not), and minutes of the job as it is set and of
its faster forms, with --price in dollars too. A program takes minutes to compile; the
answers are cached beside the run. This needs the TPU compiler: pip install
'imagen_booth[tpu]'.
"""

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from imagen_booth import cli
from imagen_booth.errors import InputError

if TYPE_CHECKING:
    from imagen_booth.preflight.checks import Finding

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "settings, FILE.py or FILE.py:CASCADE", lock_config=True
)
_WORKDIR = cli.define_path(
    "workdir", None, "run directory of the job; default runs/CONFIG"
)
_OVERWRITE = flags.DEFINE_list("overwrite", [], "parts to redo, as for train")
_CLIP = cli.define_path(
    "clip", "", "folder of openai/clip-vit-base-patch32, to check the class noun"
)
_JUDGE = cli.define_path("judge", "", "folder of a toybox judge")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPUs to compile for: v4:2x2x1, or as sold, v4-8, v5e-4, v6e-1"
)
_PARTS = flags.DEFINE_list(
    "parts",
    [],
    "with --topology: programs to compile, such as base, base.train, sr256.sample or "
    "text; default all; none for the minutes alone",
)
_MARKDOWN = flags.DEFINE_bool(
    "markdown", False, "with --topology: print a Markdown table of the peaks instead"
)
_JSON = flags.DEFINE_bool("json", False, "print the findings as one JSON list instead")
_PRICE = flags.DEFINE_float(
    "price",
    None,
    "with --topology or many subjects: dollars for an hour of one chip",
    lower_bound=0.0,
)


def main() -> None:
    if _CONFIG.value is None:
        raise InputError("--config is missing; give --config=configs/dog.py")
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.config.build import to_any_job
    from imagen_booth.preflight import checks
    from imagen_booth.reports import subject_costs
    from imagen_booth.weights import fetch

    file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or cli.default_workdir(file)
    subjects, job = to_any_job(_CONFIG.value)
    job = fetch.with_fetched(job)
    if _TOPOLOGY.value is not None:
        from imagen_booth.preflight import tpu_report

        tpu_report.report(
            job,
            epath.Path(workdir),
            _TOPOLOGY.value,
            _PARTS.value,
            in_markdown=_MARKDOWN.value,
            price=_PRICE.value,
            many=subjects is not None,
        )
        return
    for flag in (_PARTS, _MARKDOWN, *([] if subjects else [_PRICE])):
        if flag.value:
            raise InputError(f"--{flag.name} needs --topology")
    given = _CLIP.value, _JUDGE.value, frozenset(_OVERWRITE.value)
    if subjects is None:
        findings = checks.check(job, epath.Path(workdir), *given)
    else:
        findings = checks.check_many(subjects, job, epath.Path(workdir), *given)
    problems = [each for each in findings if each.level == checks.PROBLEM]
    warnings = [each for each in findings if each.level == checks.WARNING]
    if _JSON.value:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=1))
    else:
        verdict = _number(problems, "problem") if problems else "ready"
        counted = f", {_number(warnings, 'warning')}" if warnings else ""
        lines = [f"{file} -> {workdir}", "", *_paragraphs(checks.shortened(findings))]
        lines += ["", f"{verdict}{counted}"]
        if subjects is not None:
            costs = subject_costs.read(epath.Path(workdir) / subject_costs.FOLDER)
            price = subjects.price if _PRICE.value is None else _PRICE.value
            lines.append(subject_costs.in_text(subject_costs.table(costs, price)))
        # In one piece, which a reader such as `head` has before it leaves.
        sys.stdout.write("\n".join(lines) + "\n")
    if problems:
        sys.exit(min(each.exit_code for each in problems))


def _paragraphs(findings: "Iterable[Finding]") -> Iterator[str]:
    """One paragraph a finding; a topic stands before its first one."""
    topic = ""
    for finding in findings:
        head = "" if finding.topic == topic else finding.topic
        topic = finding.topic
        yield textwrap.fill(
            finding.text,
            width=100,
            initial_indent=f"{head:<12}{finding.level:<9}",
            subsequent_indent=" " * 23,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _number(some: Sized, noun: str) -> str:
    return f"{len(some)} {noun}{'s' * (len(some) > 1)}"


if __name__ == "__main__":
    cli.run(main, __doc__)
