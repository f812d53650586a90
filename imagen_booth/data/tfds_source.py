"""Captioned images of any TFDS set, read without TensorFlow."""

from typing import Any, SupportsIndex

import numpy as np

from imagen_booth.data import photos
from imagen_booth.errors import InputError

WHITE = (255, 255, 255)
CROP = photos.Crop("centre")


class ImageCaptions:
    """Random access to one split of a set; images are cut square and scaled.

    The set must be prepared in the array_record format, which alone has random access.
    An image smaller than ``size`` is enlarged, and trains its blur.

    Args:
        name: TFDS name, ``SET`` or ``SET/CONFIG``.
        split: A split such as ``train``, or a part such as ``train[:90%]``.
        data_dir: Folder of prepared sets; empty for TFDS's own.
        image: Feature that holds the image; ``/`` separates nested features.
        caption: Feature that holds the text, of which the first is used; empty if the
            set has no text.
        size: Side of the images in pixels.

    Raises:
        InputError: No such set, split or feature, or the set is not prepared.
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
        self._where = f"config.source={name}"
        builder = self._builder(name, data_dir)
        self._check_features(builder.info.features, image, caption)
        self._records = self._open(builder, split)
        self._image, self._caption, self._size = image, caption, size

    def _builder(self, name: str, data_dir: str) -> Any:
        # Imported here because it is slow and only such sets need it.
        import tensorflow_datasets as tfds

        where = f"config.data_dir={data_dir}" if data_dir else "TFDS's own folder"
        try:
            builder: Any = tfds.builder(name, data_dir=data_dir or None)
            prepared = builder.is_prepared()
        except (ValueError, TypeError, ImportError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{self._where} is neither 'toybox' nor a set that TFDS has or that is "
                f"in {where}: {reason}"
            ) from error
        if not prepared:
            raise InputError(
                f"{self._where} is not prepared in {where}; first run: tfds build "
                f"{name} --file_format=array_record"
                f"{f' --data_dir={data_dir}' * bool(data_dir)}"
            )
        return builder

    def _check_features(self, features: Any, image: str, caption: str) -> None:
        import tensorflow_datasets as tfds

        found = self._feature(features, image, "image")
        if not isinstance(found, tfds.features.Image) or found.np_dtype != np.uint8:
            raise InputError(
                f"config.image_feature={image} of {self._where} is {found}; it should "
                "be an image of 8 bits"
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

    def _open(self, builder: Any, split: str) -> Any:
        try:
            records = builder.as_data_source(split=split)
        except NotImplementedError as error:
            raise InputError(
                f"{self._where} is not in the array_record format; build it again with "
                "--file_format=array_record"
            ) from error
        except (ValueError, KeyError) as error:
            raise InputError(
                f"split {split!r} of {self._where} cannot be read; it has "
                f"{', '.join(builder.info.splits)}"
            ) from error
        if not len(records):
            raise InputError(f"split {split!r} of {self._where} is empty")
        return records

    def _feature(self, features: Any, path: str, kind: str) -> Any:
        """The feature at a path; the error for a missing one lists all features."""
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
        """A record: ``image`` uint8 [size, size, 3] and ``caption``.

        Raises:
            InputError: The record is damaged.
        """
        number = index.__index__()
        try:
            record = self._records[number]
            image = photos.square(
                _to_rgb(_at(record, self._image)), self._size, CROP, WHITE
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise InputError(
                f"record {number} of {self._where} cannot be read ({error}); build "
                "the set again"
            ) from error
        caption = _first_text(_at(record, self._caption)) if self._caption else ""
        return {"image": image, "caption": caption}


def _at(record: Any, path: str) -> Any:
    for name in path.split("/"):
        record = record[name]
    return record


def _first_text(text: Any) -> str:
    """The text, or the first of several, or "" if there is none."""
    while not isinstance(text, bytes | str):
        if len(text) == 0:
            return ""
        text = text[0]
    return text.decode() if isinstance(text, bytes) else text


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """Grey or RGB, with or without alpha, as RGB; transparent pixels become white."""
    channels = image.shape[-1]
    if channels in (2, 4):
        alpha = image[..., -1:].astype(np.float32) / 255
        over = image[..., :-1] * alpha + 255 * (1 - alpha)
        image = np.round(over).astype(np.uint8)
    return np.repeat(image, 3, -1) if channels < 3 else image
