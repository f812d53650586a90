"""Pretraining of the embedded cascade, stage by stage.

    python -m imagen_booth.pretrain --config=configs/pretrain.py:toybox_base \\
        --workdir=runs/toybox_base
"""

from imagen_booth.config import pretraining


def get_config(stage="toybox_base"):
    return pretraining(stage)
