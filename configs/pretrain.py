"""Pretraining of the embedded cascade, stage by stage.

    python -m imagen_booth.pretrain --config=configs/pretrain.py:toybox_base \\
        --workdir=runs/toybox_base

With sr1024_div2k instead, the 256 -> 1024 stage trains on the photographs of DIV2K,
which have no captions; tfds build div2k/bicubic_x4 --file_format=array_record fetches
them first. --config.source takes any other set that TFDS has prepared.
"""

from imagen_booth.config.presets import pretraining


def get_config(stage="toybox_base"):
    return pretraining(stage)
