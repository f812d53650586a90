"""Fine-tunes a cascade on a few photos of a subject.

    python -m imagen_booth.train --config=configs/dog.py
    python -m imagen_booth.train --config=configs/subject.py:toybox \\
        --config.subject.photos=DIR --config.subject.class_noun=dog
    python -m imagen_booth.train --config=configs/subjects.py:toybox \\
        --config.subjects=DIR_OR_TABLE
    python -m imagen_booth.train --config=configs/two_subjects.py

The second command is for your own photos, the third for many subjects, each in a run of
its own, and the last for two subjects in one run, which its pictures show together.

Any setting can follow as --config.NAME=VALUE. The same command resumes a run that was
stopped. The result is DIR/report.html, with pictures and checkpoints beside it; of
many subjects it is DIR/index.html, with a run directory for each.
"""

from absl import flags
from ml_collections import config_flags

from imagen_booth import cli
from imagen_booth.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "settings, FILE.py or FILE.py:CASCADE", lock_config=True
)
_WORKDIR = cli.define_path(
    "workdir", None, "run directory, local or gs://; default runs/CONFIG"
)
_OVERWRITE = flags.DEFINE_list(
    "overwrite", [], "parts to redo: text, base, sr256, sr1024, samples, all"
)
_PROFILE = flags.DEFINE_bool(
    "profile", False, "write a profiler trace of early steps to DIR/profile"
)
cli.define_hosts()


def main() -> None:
    if _CONFIG.value is None:
        raise InputError("--config is missing; give --config=configs/dog.py")
    cli.start_hosts()
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth import dreambooth, many_subjects
    from imagen_booth.config.build import to_any_job
    from imagen_booth.distributed import processes
    from imagen_booth.weights import fetch

    subjects, job = to_any_job(_CONFIG.value)
    job = fetch.with_fetched(job)
    workdir = _WORKDIR.value or cli.default_workdir(
        config_flags.get_config_filename(flags.FLAGS["config"])
    )
    processes.check_shared("--workdir", workdir)
    if job.cache:
        processes.check_shared("config.cache", job.cache)
    given = epath.Path(workdir), frozenset(_OVERWRITE.value)
    if subjects is not None:
        page = many_subjects.run(subjects, job, *given, profile=_PROFILE.value)
    else:
        for name, subject in job.subjects.items():
            processes.check_same_files(f"config.{name}.photos", subject.photos)
        page = dreambooth.run(job, *given, profile=_PROFILE.value)
    print(f"open {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
