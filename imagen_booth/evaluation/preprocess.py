"""Preprocessing of pictures for the networks of the scores.

Pillow's bicubic filter, which antialiases, scales the shorter side of an 8-bit picture
to a given length. The centre is cropped. Values are scaled to [0, 1] and normalised per
channel. Resize and crop of each network:

- DINO: 256, then 224, with ImageNet's mean and deviation, as in DINO's own evaluation
  and in the evaluations after DreamBooth. The hub's preprocessor_config of this model
  differs (224 bilinear, 0.5 for all) and gives other scores.
- CLIP: 224, then 224, with CLIP's own mean and deviation.
- LPIPS: 256, then 256, to [-1, 1]. The paper names no size; a fixed one makes pictures
  of different systems comparable.

If an odd number of pixels is cropped, the smaller part is at the top and the left, as
in transformers. torchvision's CenterCrop rounds to even instead, so every second such
picture lies one pixel further. Resizing tensors, as some evaluations do, differs from
resizing pictures in rounding and at the borders.
"""

import dataclasses

import numpy as np
from PIL import Image

Three = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of one network.

    Attributes:
        resize: Length of the shorter side after scaling, in pixels.
        crop: Side of the square crop, in pixels, at most ``resize``.
        mean, std: Per channel, for values in [0, 1].
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
    """Preprocesses a picture, uint8 [H, W, 3], to f32 [crop, crop, 3]."""
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
