"""Many subjects in one job: a folder of folders of photos, or a table.

    python -m imagen_booth.train --config=configs/subjects.py:toybox \\
        --config.subjects=DIR_OR_TABLE --workdir=DIR
"""

from imagen_booth.config.presets import many_subjects


def get_config(cascade=None):
    return many_subjects(cascade)
