"""A toy dog without prior preservation (lambda 0), to see how the class drifts.

    python -m imagen_booth.train --config=configs/no_prior.py

Cascades follow after a colon as in configs/dog.py.
"""

from imagen_booth.config.presets import dreambooth


def get_config(cascade=None):
    config = dreambooth(cascade)
    config.subject.photos = "toybox:dog/11"
    config.subject.class_noun = "dog"
    config.base.class_rows = 0
    return config
