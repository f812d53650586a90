"""Looks at a job before it runs: photos, words, weights, memory, disk.

    python -m imagen_booth.doctor --config=configs/dog.py
    python -m imagen_booth.doctor --config=configs/subject.py:if_m \\
        --config.subject.photos=DIR --config.subject.class_noun=dog

Takes what train takes, answers in seconds, downloads and writes nothing.  With --clip
it also says what the photos seem to show, and whether the class noun fits; on subjects
of the toybox the judge does.  Exits with 0 if the job is ready, with 2 for bad input,
3 if it does not fit in memory, 5 if the disk is too small.

    python -m imagen_booth.doctor --config=configs/dog.py:imagen --topology=v4:1x1x1

With --topology it compiles the job's programs for TPUs that need not be there, which
takes minutes each and pip install 'imagen_booth[tpu]': memory, minutes, and whether it
fits, with what to change if not.  Answers are kept in the cache folder of the run.
"""

import sys
import textwrap
from collections.abc import Sized

from absl import flags
from ml_collections import config_flags

from imagen_booth import cli
from imagen_booth.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "settings, FILE.py or FILE.py:CASCADE", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where the run is to live; default runs/CONFIG"
)
_CLIP = flags.DEFINE_string(
    "clip", "", "folder of openai/clip-vit-base-patch32, to name what the photos show"
)
_JUDGE = flags.DEFINE_string("judge", "", "folder of a judge of the toybox")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPUs to compile for: v4:2x2x1, or as sold, v4-8, v5e-4, v6e-1"
)
_PARTS = flags.DEFINE_list(
    "parts",
    [],
    "programs to compile: base, base.train, sr256.sample, text; default all, "
    "none for the minutes alone",
)
_COMPUTED_FROM = flags.DEFINE_string(
    "computed_from", "", "with --topology: compile for this one and compute from that"
)
_MARKDOWN = flags.DEFINE_bool(
    "markdown", False, "with --topology: print rows of a Markdown table instead"
)


def main() -> None:
    if _CONFIG.value is None:
        raise InputError("--config is missing; give --config=configs/dog.py")
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.config.build import to_job
    from imagen_booth.preflight import checks

    file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or cli.default_workdir(file)
    job = to_job(_CONFIG.value)
    if _TOPOLOGY.value is not None:
        from imagen_booth.preflight import tpu_report

        said = tpu_report.Request(
            file,
            _TOPOLOGY.value,
            _PARTS.value,
            _MARKDOWN.value,
            _COMPUTED_FROM.value,
        )
        tpu_report.answer(job, epath.Path(workdir), said)
        return
    for flag in (_PARTS, _MARKDOWN, _COMPUTED_FROM):
        if flag.value:
            raise InputError(f"--{flag.name} goes with --topology")
    findings = checks.check(job, epath.Path(workdir), _CLIP.value, _JUDGE.value)
    print(f"{file} -> {workdir}\n")
    topic = ""
    for finding in findings:
        head = "" if finding.topic == topic else finding.topic
        topic = finding.topic
        print(
            textwrap.fill(
                finding.text,
                width=100,
                initial_indent=f"{head:<12}{finding.level:<9}",
                subsequent_indent=" " * 23,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    problems = [each for each in findings if each.level == checks.PROBLEM]
    warnings = [each for each in findings if each.level == checks.WARNING]
    verdict = _number(problems, "problem") if problems else "ready"
    print(f"\n{verdict}" + (f", {_number(warnings, 'warning')}" if warnings else ""))
    if problems:
        sys.exit(min(each.exit_code for each in problems))


def _number(some: Sized, noun: str) -> str:
    return f"{len(some)} {noun}{'s' * (len(some) > 1)}"


if __name__ == "__main__":
    cli.run(main, __doc__)
