"""Pretrains one stage of a cascade on captioned images, here the toybox.

    python -m imagen_booth.pretrain --config=configs/pretrain.py:toybox_base
    python -m imagen_booth.pretrain --config=configs/pretrain.py:toybox_sr256

The base stage trains its text encoder along; the others read it from --text.  The
same command goes on with a run that was stopped.
"""

import dataclasses

from absl import flags
from ml_collections import config_flags

from imagen_booth import cli
from imagen_booth.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "settings, FILE.py:STAGE", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "where the run lives, local or gs://")
_INIT = flags.DEFINE_string(
    "init", "", "start from these weights: a folder, or shipped; default random"
)


def main() -> None:
    if _CONFIG.value is None:
        raise InputError("--config is missing; see --help")
    if not _WORKDIR.value:
        raise InputError("--workdir is missing; give a folder for checkpoints")
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth import pretraining
    from imagen_booth.config import from_config
    from imagen_booth.job import Pretraining

    job = from_config(Pretraining, _CONFIG.value)
    if _INIT.value:
        job = dataclasses.replace(job, init=_INIT.value)
    pretraining.run(job, epath.Path(_WORKDIR.value))


if __name__ == "__main__":
    cli.run(main, __doc__)
