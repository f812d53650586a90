"""Textual Inversion of a toy dog: only the identifier's row of the T5 table is learnt.

    python -m imagen_booth.train --config=configs/textual_inversion.py

--config.subject.tokens=2 or 3 learns as many vectors; --config.text.initializer=WORD
starts them from another word than the class noun. Prompts are written as usual: the
identifier stands for "[V] [N]". Cascades follow after a colon as in configs/dog.py.
"""

from imagen_booth.config.presets import textual_inversion


def get_config(cascade=None):
    config = textual_inversion(cascade)
    config.subject.photos = "toybox:dog/11"
    config.subject.class_noun = "dog"
    return config
