"""Your own subject: a folder of photos and a class noun.

    python -m imagen_booth.train --config=configs/subject.py \\
        --config.subject.photos=DIR --config.subject.class_noun=dog
"""

from imagen_booth.config.presets import dreambooth


def get_config(cascade=None):
    return dreambooth(cascade)
