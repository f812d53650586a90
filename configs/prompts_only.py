"""A toy dog by its description alone: the frozen cascade, without fine-tuning.

    python -m imagen_booth.train --config=configs/prompts_only.py
    python -m imagen_booth.train --config=configs/prompts_only.py \\
        --config.subject.photos=DIR --config.subject.class_noun=dog \\
        --config.subject.description="small brown dog with a white chest"

The description replaces "[V] [N]" in every prompt; the photos are only for comparison.
Cascades follow after a colon as in configs/dog.py.
"""

from imagen_booth.config.presets import prompts_only


def get_config(cascade=None):
    config = prompts_only(cascade)
    config.subject.photos = "toybox:dog/11"
    config.subject.class_noun = "dog"
    return config
