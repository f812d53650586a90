"""Looks at a job before it runs: photos, words, weights, memory, disk.

    python -m imagen_booth.doctor --config=configs/dog.py
    python -m imagen_booth.doctor --config=configs/subject.py:if_m \\
        --config.subject.photos=DIR --config.subject.class_noun=dog

Takes what train takes, answers in seconds, downloads and writes nothing.  With --clip
it also says what the photos seem to show, and whether the class noun fits; on subjects
of the toybox the judge does.  Exits with 0 if the job is ready, with 2 for bad input,
3 if it does not fit in memory, 5 if the disk is too small.
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


def main() -> None:
    if _CONFIG.value is None:
        raise InputError("--config is missing; give --config=configs/dog.py")
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth import checkup
    from imagen_booth.config import to_job

    file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or cli.default_workdir(file)
    findings = checkup.check(
        to_job(_CONFIG.value), epath.Path(workdir), _CLIP.value, _JUDGE.value
    )
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
    problems = [each for each in findings if each.level == checkup.PROBLEM]
    warnings = [each for each in findings if each.level == checkup.WARNING]
    verdict = _number(problems, "problem") if problems else "ready"
    print(f"\n{verdict}" + (f", {_number(warnings, 'warning')}" if warnings else ""))
    if problems:
        sys.exit(min(each.exit_code for each in problems))


def _number(some: Sized, noun: str) -> str:
    return f"{len(some)} {noun}{'s' * (len(some) > 1)}"


if __name__ == "__main__":
    cli.run(main, __doc__)
