"""A toy dog by its description alone: the frozen cascade, with nothing tuned.

    python -m imagen_booth.train --config=configs/prompts_only.py
    python -m imagen_booth.train --config=configs/prompts_only.py \\
        --config.subject.photos=DIR --config.subject.class_noun=dog \\
        --config.subject.description="small brown dog with a white chest"

The description stands for "[V] [N]" in every prompt; photos are only compared with.
Cascades follow after a colon as in configs/dog.py.
"""

from imagen_booth.config.presets import prompts_only


def get_config(cascade=None):
    config = prompts_only(cascade)
    config.subject.photos = "toybox:dog/11"
    config.subject.class_noun = "dog"
    return config
