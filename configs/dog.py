"""A toy dog, rendered, on the embedded cascade: runs anywhere, downloads nothing.

    python -m imagen_booth.train --config=configs/dog.py

Without a colon the cascade is :toybox:lora. Others: :toybox (all parameters train),
:tiny (random, for tests), :if_m, :if_l, :if_xl (DeepFloyd IF with T5 v1.1 XXL), :imagen
(the paper's shapes).
"""

from imagen_booth.config.presets import dreambooth


def get_config(cascade=None):
    config = dreambooth(cascade)
    config.subject.photos = "toybox:dog/11"
    config.subject.class_noun = "dog"
    return config
