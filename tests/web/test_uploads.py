"""Uploads: checked as doctor checks photos, and stored under numbers."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from web_pages import photo_files

from imagen_booth.data import photos
from imagen_booth.errors import InputError
from imagen_booth.web import uploads
from imagen_booth.web.uploads import CropChoice

CENTRE = CropChoice("centre", 0.0, 0.0)


def test_uploads_get_the_sentences_of_doctor(tmp_path):
    files = photo_files(tmp_path / "photos")
    strange = tmp_path / "photos" / "..; rm -rf <b>.svg"
    strange.write_text("<svg/>")
    found = uploads.check([*files, files[0], str(strange)], "tiny", CENTRE)
    rows = {photo: (verdict, sentence) for photo, verdict, sentence in found.rows}
    verdict, sentence = rows["06.jpg (notes.jpg)"]
    assert verdict == "refused"
    assert sentence == "cannot be decoded: truncated, damaged, or not an image"
    assert "EXIF orientation 6 applied" in rows["02.jpg (IMG_1.jpg)"][1]
    assert rows["08.svg (..; rm -rf <b>.svg)"][0] == "refused"
    assert any("are the same file" in sentence for _, _, sentence in found.rows)
    assert len(found.crops) == len(found.usable) == 6
    assert found.usable[0] == files[0]


def test_the_crop_is_that_of_training(tmp_path):
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, 300:] = 255
    file = tmp_path / "wide.png"
    Image.fromarray(pixels).save(file)
    for choice in (CropChoice("centre", 1.0, 0.0), CropChoice("pad", 0.0, -1.0)):
        ((crop, _),) = uploads.check([str(file)], "tiny", choice).crops
        made = photos.Crop(choice.mode, (choice.right, choice.down))
        expected = photos.square(pixels, uploads.CROP, made, (255, 255, 255))
        np.testing.assert_array_equal(crop, expected)


def test_too_many_and_none():
    with pytest.raises(InputError, match="51 photos are uploaded"):
        uploads.check(["a.jpg"] * 51, "tiny", CENTRE)
    assert uploads.check([], "tiny", CENTRE).rows == ()


def test_photos_are_stored_under_numbers(tmp_path):
    files = photo_files(tmp_path / "photos")[:2]
    folder = tmp_path / "run" / "source"
    uploads.store(files, folder)
    uploads.store(files[1:], folder)
    (stored,) = folder.iterdir()
    assert stored.name == "01.jpg"
    assert stored.read_bytes() == pathlib.Path(files[1]).read_bytes()
    with pytest.raises(InputError, match="upload them again"):
        uploads.store([str(tmp_path / "gone.jpg")], folder)
    assert stored.exists()
