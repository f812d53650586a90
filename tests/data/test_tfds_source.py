"""TFDS sets as records: plain and odd ones, bad settings."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from imagen_booth.data.examples import CaptionedImages
from imagen_booth.data.tfds_source import ImageCaptions
from imagen_booth.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed")

PLAIN = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
OFFLINE = tfds.download.DownloadConfig(try_download_gcs=False)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def halves(height, width):
    """Left half black, right half white."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, width // 2 :] = 255
    return pixels


class Odd(tfds.core.GeneratorBasedBuilder):
    """Pictures of several sizes and kinds, with several captions or none."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        texts = tfds.features.Sequence({"text": tfds.features.Text()})
        features = {
            "grey": tfds.features.Image(shape=(None, None, 1)),
            "clear": tfds.features.Image(shape=(None, None, 4)),
            "captions": texts,
            "count": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, (height, width) in enumerate([(20, 40), (48, 16), (16, 16)]):
            grey = halves(height, width)
            clear = np.stack([grey, grey, grey, np.full_like(grey, 51)], -1)
            texts = [f"Picture {index}", "another"][: 2 - index]
            yield (
                index,
                {
                    "grey": png(grey),
                    "clear": png(clear),
                    "captions": {"text": texts},
                    "count": index,
                },
            )


class Plain(tfds.core.GeneratorBasedBuilder):
    """Square pictures with a caption each, in two splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(16, 16, 3)),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples("dog"),
            "validation": self._generate_examples("cat"),
        }

    def _generate_examples(self, noun):
        yield 0, {"image": png(PLAIN), "caption": f"a {noun}"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with a plain set and an odd one."""
    folder = str(tmp_path_factory.mktemp("sets"))
    for kind in (Plain, Odd):
        builder = kind(data_dir=folder, file_format="array_record")
        builder.download_and_prepare(download_config=OFFLINE)
    return folder


def opened(name, folder, split="train", image="image", caption="caption", size=16):
    return ImageCaptions(
        name, split, data_dir=folder, image=image, caption=caption, size=size
    )


def test_records_of_each_split_as_they_are_and_without_tensorflow(sets):
    for split, caption in (("train", "a dog"), ("validation", "a cat")):
        records = opened("plain", sets, split)
        assert len(records) == 1
        assert records[0]["caption"] == caption
        np.testing.assert_array_equal(records[0]["image"], PLAIN)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("image", ["grey", "clear"])
def test_pictures_of_any_size_come_square_and_in_three_channels(sets, image):
    records = opened("odd", sets, image=image, caption="captions/text")
    dark = 0 if image == "grey" else 204  # black at a fifth over white
    for index in range(3):
        picture = records[index]["image"]
        assert (picture.shape, picture.dtype) == ((16, 16, 3), np.uint8)
        # Cut in the middle: the edge between black and white stays there.
        np.testing.assert_array_equal(picture[:, :4], dark)
        np.testing.assert_array_equal(picture[:, -4:], 255)


def test_the_first_of_several_captions_counts(sets):
    captions = [
        opened("odd", sets, image="grey", caption="captions/text")[index]["caption"]
        for index in range(3)
    ]
    assert captions == ["Picture 0", "Picture 1", ""]
    assert opened("odd", sets, image="grey", caption="")[0]["caption"] == ""


def test_rows_have_the_low_resolution_version(sets):
    records = opened("odd", sets, image="grey", caption="captions/text", size=32)
    rows = CaptionedImages(records, lambda caption: {"said": np.array(len(caption))}, 8)
    row = rows[0]
    assert row["said"] == len("Picture 0")
    assert (row["image"].shape, row["low"].shape) == ((32, 32, 3), (8, 8, 3))
    np.testing.assert_array_equal(row["low"][:, 0], 0)
    np.testing.assert_array_equal(row["low"][:, -1], 255)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("no_such_set", {}, "config.source=no_such_set is neither"),
        ("mnist", {}, "tfds build mnist --file_format=array_record"),
        ("plain", {"split": "test"}, "'test'.*train, validation"),
        ("plain", {"image": "picture"}, "image_feature=picture.*caption, image"),
        ("plain", {"image": "caption"}, "image_feature=caption.*an image"),
        ("plain", {"caption": "text"}, "caption_feature=text is not"),
        ("plain", {"caption": "caption/a"}, "caption_feature=caption/a is not"),
        ("odd", {"image": "grey", "caption": "count"}, "should be text"),
    ],
)
def test_bad_settings_are_named(sets, name, changed, words):
    with pytest.raises(InputError, match=words):
        opened(name, sets, **changed)


def test_damaged_record_is_an_input_error(tmp_path):
    class Torn(Odd):
        def _generate_examples(self):
            for index, example in super()._generate_examples():
                yield index, example | {"grey": example["grey"][:40]}

    folder = str(tmp_path)
    builder = Torn(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=OFFLINE)
    records = opened("torn", folder, image="grey", caption="")
    with pytest.raises(InputError, match="record 1 of config.source=torn"):
        records[1]
