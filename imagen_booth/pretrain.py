"""Pretrains one stage of a cascade on captioned images, here the toybox.

    python -m imagen_booth.pretrain --config=configs/pretrain.py:toybox_base
    python -m imagen_booth.pretrain --config=configs/pretrain.py:toybox_sr256
    python -m imagen_booth.pretrain --config=configs/pretrain.py:toybox_judge

The base stage trains its text encoder too; the others read it from --config.text, a
folder of weights or shipped. The next command exports a run to a folder of weights,
beside the stages that are there already:

    python -m imagen_booth.convert export --run=RUN --to=DIR --dtype=bfloat16

For the weights that ship, DIR is imagen_booth/weights/shipped/toybox. The judge is the
network that scores toybox pictures. The same command resumes a run that was stopped.
"""

import dataclasses

from absl import flags
from ml_collections import config_flags

from imagen_booth import cli
from imagen_booth.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "settings, FILE.py:STAGE", lock_config=True
)
_WORKDIR = cli.define_path("workdir", None, "run directory, local or gs://")
_INIT = cli.define_path(
    "init", "", "start from these weights: a folder, or shipped; default random"
)
_PROFILE = flags.DEFINE_bool(
    "profile", False, "write a profiler trace of early steps to DIR/profile"
)
cli.define_hosts()


def main() -> None:
    if _CONFIG.value is None:
        raise InputError("--config is missing; see --help")
    if not _WORKDIR.value:
        raise InputError("--workdir is missing; give a folder for checkpoints")
    cli.start_hosts()
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.config.build import from_config
    from imagen_booth.config.schema import JudgeTraining, Pretraining
    from imagen_booth.distributed import processes
    from imagen_booth.training import pretrain_judge, pretrain_stage

    processes.check_shared("--workdir", _WORKDIR.value)
    if "pairs" in _CONFIG.value:
        if _INIT.value:
            raise InputError(f"--init={_INIT.value} is for stages; leave it out")
        if _PROFILE.value:
            raise InputError("--profile is for stages; leave it out")
        job = from_config(JudgeTraining, _CONFIG.value)
        return pretrain_judge.run(job, epath.Path(_WORKDIR.value))
    job = from_config(Pretraining, _CONFIG.value)
    if _INIT.value:
        job = dataclasses.replace(job, init=_INIT.value)
    return pretrain_stage.run(job, epath.Path(_WORKDIR.value), profile=_PROFILE.value)


if __name__ == "__main__":
    cli.run(main, __doc__)
