"""From pictures to what the networks of the scores were trained to see.

A picture is scaled so that its shorter side has a given length, by Pillow's bicubic
filter, which smooths where it makes smaller, on 8-bit values; the centre is cut out;
values are scaled to [0, 1] and normalised per channel. Networks and recipes:

- DINO: 256, then 224, with ImageNet's mean and deviation, as DINO's own evaluation and
  the evaluators after DreamBooth have it. The hub's preprocessor_config of this model
  says otherwise (224 bilinear, 0.5 for all), which gives other scores.
- CLIP: 224, then 224, with CLIP's own mean and deviation.
- LPIPS: 256, then 256, to [-1, 1]. The paper names no size; a fixed one makes pictures
  of different systems comparable.

Where an odd number of pixels is cut off, the smaller part goes at the top and the left,
as in transformers; torchvision's CenterCrop rounds to even instead, so that every
second such picture lies one pixel further. Resizing tensors, as some evaluators do,
differs from resizing pictures in rounding and at the borders.
"""

import dataclasses

import numpy as np
from PIL import Image

Three = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pictures are prepared.

    Attributes:
        resize: the shorter side after scaling, pixels.
        crop: the side of the square that is kept, pixels, at most ``resize``.
        mean, std: per channel, of values in [0, 1].
    """

    resize: int
    crop: int
    mean: Three
    std: Three


CLIP = Preprocessing(
    224,
    224,
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
RECIPES = {
    "dino_vits16": Preprocessing(
        256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "clip_vit_b32": CLIP,
    "clip_vit_b16": CLIP,
    "clip_vit_l14": CLIP,
    "lpips_alex": Preprocessing(256, 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def prepare(picture: np.ndarray, recipe: Preprocessing) -> np.ndarray:
    """A picture, uint8 [H, W, 3], as f32 [crop, crop, 3]."""
    assert picture.dtype == np.uint8, picture.dtype
    short = min(picture.shape[:2])
    height, width = (side * recipe.resize // short for side in picture.shape[:2])
    image = Image.fromarray(picture)
    if (height, width) != picture.shape[:2]:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - recipe.crop) // 2, (width - recipe.crop) // 2
    values = np.asarray(image)[top : top + recipe.crop, left : left + recipe.crop]
    mean, std = (np.array(each, np.float32) for each in (recipe.mean, recipe.std))
    return (values.astype(np.float32) / 255 - mean) / std
