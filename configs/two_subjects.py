"""Two subjects in one run, so that one prompt can name both.

    python -m imagen_booth.train --config=configs/two_subjects.py
    python -m imagen_booth.train --config=configs/two_subjects.py:if_m \\
        --config.subject.photos=DIR --config.subject.class_noun=dog \\
        --config.second.photos=OTHER_DIR --config.second.class_noun=cat

In prompts [V1] and [N1] stand for the identifier and class noun of the first subject,
[V2] and [N2] for those of the second. Cascades follow after a colon as in
configs/dog.py.
"""

from imagen_booth.config.presets import two_subjects


def get_config(cascade=None):
    config = two_subjects(cascade)
    config.subject.photos = "toybox:dog/301"
    config.subject.class_noun = "dog"
    config.second.photos = "toybox:cat/303"
    config.second.class_noun = "cat"
    return config
