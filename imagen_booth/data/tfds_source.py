"""Pictures with captions from any TFDS set, read without TensorFlow."""

from typing import Any, SupportsIndex

import numpy as np

from imagen_booth.data import photos
from imagen_booth.errors import InputError

WHITE = (255, 255, 255)
CROP = photos.Crop("centre")


class ImageCaptions:
    """Random access to one split of a set, its pictures cut square and scaled.

    The set has to be prepared in the array_record format, which alone can be read in
    any order. A picture smaller than ``size`` is enlarged, and teaches its blur.

    Args:
        name: as TFDS spells it, ``SET`` or ``SET/CONFIG``.
        split: such as ``train``, or a part of one, ``train[:90%]``.
        data_dir: folder of prepared sets; empty for TFDS's own.
        image: feature with the picture; ``/`` leads into a feature of features.
        caption: feature with the text, the first where a picture has several; empty
            where the set has none.
        size: side of the records' images in pixels.

    Raises:
        InputError: no such set, split or feature, or the set is not prepared.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        data_dir: str,
        image: str,
        caption: str,
        size: int,
    ) -> None:
        # Slow to import, and needed by those alone who read such a set.
        import tensorflow_datasets as tfds

        self._where = f"config.source={name}"
        where = f"config.data_dir={data_dir}" if data_dir else "TFDS's own folder"
        try:
            builder: Any = tfds.builder(name, data_dir=data_dir or None)
            prepared = builder.is_prepared()
        except (ValueError, TypeError, ImportError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{self._where} is neither 'toybox' nor a set that TFDS knows or that "
                f"lies in {where}: {reason}"
            ) from error
        if not prepared:
            raise InputError(
                f"{self._where} is not prepared in {where}; first run: tfds build "
                f"{name} --file_format=array_record"
                f"{f' --data_dir={data_dir}' * bool(data_dir)}"
            )
        features = builder.info.features
        picture = self._feature(features, image, "image")
        if not isinstance(picture, tfds.features.Image) or (
            picture.np_dtype != np.uint8
        ):
            raise InputError(
                f"config.image_feature={image} of {self._where} is {picture}; it "
                "should be an image of 8 bits"
            )
        if caption:
            text = self._feature(features, caption, "caption")
            while isinstance(text, tfds.features.Sequence):
                text = text.feature
            if not isinstance(text, tfds.features.Text):
                raise InputError(
                    f"config.caption_feature={caption} of {self._where} is {text}; it "
                    "should be text, or '' for none"
                )
        try:
            self._records = builder.as_data_source(split=split)
        except NotImplementedError as error:
            raise InputError(
                f"{self._where} in {where} is not in the array_record format; build "
                "it again with --file_format=array_record"
            ) from error
        except (ValueError, KeyError) as error:
            raise InputError(
                f"split {split!r} of {self._where} cannot be read; it has "
                f"{', '.join(builder.info.splits)}"
            ) from error
        if not len(self._records):
            raise InputError(f"split {split!r} of {self._where} is empty")
        self._image, self._caption, self._size = image, caption, size

    def _feature(self, features: Any, path: str, kind: str) -> Any:
        """The feature at a path, with a list of all where there is none."""
        found = features
        try:
            for name in path.split("/"):
                found = found[name]
        except (KeyError, TypeError, AttributeError):
            raise InputError(
                f"config.{kind}_feature={path} is not a feature of {self._where}; its "
                f"features are {', '.join(sorted(features))}"
            ) from None
        return found

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """``image`` uint8 [size, size, 3] and ``caption``.

        Raises:
            InputError: the record is damaged.
        """
        number = index.__index__()
        try:
            record = self._records[number]
            image = photos.square(
                _three(_reach(record, self._image)), self._size, CROP, WHITE
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise InputError(
                f"record {number} of {self._where} cannot be read ({error}); build "
                "the set again"
            ) from error
        caption = _first(_reach(record, self._caption)) if self._caption else ""
        return {"image": image, "caption": caption}


def _reach(record: Any, path: str) -> Any:
    for name in path.split("/"):
        record = record[name]
    return record


def _first(text: Any) -> str:
    """The text, or the first of several; of none the empty text."""
    while not isinstance(text, bytes | str):
        if len(text) == 0:
            return ""
        text = text[0]
    return text.decode() if isinstance(text, bytes) else text


def _three(image: np.ndarray) -> np.ndarray:
    """Grey or RGB as RGB; what is transparent shows white."""
    channels = image.shape[-1]
    if channels in (2, 4):
        alpha = image[..., -1:].astype(np.float32) / 255
        over = image[..., :-1] * alpha + 255 * (1 - alpha)
        image = np.round(over).astype(np.uint8)
    return np.repeat(image, 3, -1) if channels < 3 else image
