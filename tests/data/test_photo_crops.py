"""Crops of photographs: splits, pairs, degradation, and folders that are refused."""

import csv

import numpy as np
import pytest
from paths import SHARED
from PIL import Image, ImageFilter

from imagen_booth.data import photo_crops
from imagen_booth.data.photo_crops import PhotoFolder, degraded_crop
from imagen_booth.errors import InputError


def write_photo(path, size=(96, 64), seed=0):
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    noise.filter(ImageFilter.GaussianBlur(2)).save(path)


def write_table(folder, rows, columns=photo_crops.COLUMNS):
    with (folder / photo_crops.TABLE).open("w") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path):
    for index in range(4):
        write_photo(tmp_path / f"{index}.png", seed=index)
    write_table(
        tmp_path,
        [
            ("0.png", "Ada", "CC0-1.0", "a heap", "train"),
            ("1.png", "Bea", "CC-BY-4.0", "two heaps", "train"),
            ("2.png", "Cid", "CC0-1.0", "a hill", "held_out"),
        ],
    )
    return tmp_path


def test_the_table_decides_split_and_caption(folder):
    photos = PhotoFolder(str(folder), "train", least=64)
    assert [photos[i]["caption"] for i in range(len(photos))] == ["a heap", "two heaps"]
    assert photos[0]["image"].shape == (64, 96, 3)
    assert photos.origin["photographs"] == 2
    assert photos.origin["licences"] == {"CC0-1.0": 1, "CC-BY-4.0": 1}
    assert len(PhotoFolder(str(folder), "held_out", least=64)) == 1


def test_without_a_table_every_tenth_is_held_out(tmp_path):
    for index in range(10):
        write_photo(tmp_path / f"{index}.png", seed=index)
    train = PhotoFolder(str(tmp_path), "train", least=32)
    held_out = PhotoFolder(str(tmp_path), "held_out", least=32)
    names = [[row["file"] for row in each.rows] for each in (train, held_out)]
    assert names == [[f"{i}.png" for i in range(9)], ["9.png"]]


@pytest.mark.parametrize(
    ("break_it", "split", "least", "words"),
    [
        (lambda f: (f / "SOURCES.csv").write_text("file,split\n0.png,train\n"),
         "train", 32, "lacks the columns author"),
        (lambda f: (f / "0.png").unlink(), "train", 32, "0.png cannot be read"),
        (lambda f: (f / "0.png").write_bytes(b"no picture"), "train", 32, "0.png"),
        (lambda f: None, "test", 32, "no photographs of split 'test'; it has held_out"),
        (lambda f: None, "train", 65, "all 2 photographs of split 'train' are too sm"),
    ],
)  # fmt: skip
def test_bad_folders_are_refused(folder, break_it, split, least, words):
    break_it(folder)
    with pytest.raises(InputError, match=words):
        PhotoFolder(str(folder), split, least=least)


@pytest.mark.parametrize("path", ["", "/no/such/folder"])
def test_no_folder(path):
    with pytest.raises(InputError, match="config.data_dir=.* is not a folder"):
        PhotoFolder(path, "train", least=32)


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="none at all"):
        PhotoFolder(str(tmp_path), "train", least=32)


def crops_of(folder, count=40):
    photo = PhotoFolder(str(folder), "train", least=64)[0]
    crop = degraded_crop(32, 4)
    return [crop(photo, np.random.default_rng(i)) for i in range(count)]


def test_crops_are_pairs_at_many_scales(folder):
    pairs = crops_of(folder)
    errors = []
    for pair in pairs:
        assert pair["image"].shape == (32, 32, 3)
        assert pair["low"].shape == (8, 8, 3)
        small = pair["image"].reshape(8, 4, 8, 4, 3).mean((1, 3))
        errors.append(np.abs(small - pair["low"]).mean())
    assert max(errors) < 25  # the same part of the photograph, degraded or not
    assert np.quantile(errors, 0.25) < 3  # clean ones among them
    assert np.quantile(errors, 0.75) > 2 * np.quantile(errors, 0.25)  # and others
    detail = [np.abs(np.diff(p["image"].astype(float), axis=0)).mean() for p in pairs]
    assert max(detail) > 1.5 * min(detail)  # reduced parts show more detail


def test_a_crop_depends_on_its_random_numbers_alone(folder):
    for one, other in zip(crops_of(folder, 5), crops_of(folder, 5), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["low"], other["low"])


def test_half_are_mirrored(tmp_path):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "0.png")
    write_table(tmp_path, [("0.png", "", "", "", "train")])
    rises = [p["image"][0, -1, 0] > p["image"][0, 0, 0] for p in crops_of(tmp_path)]
    assert 10 < sum(map(int, rises)) < 30


def test_the_shared_photographs_can_be_read():
    folder = SHARED / "data" / "photos"
    if not folder.exists():
        pytest.skip("no shared photographs beside the checkout")
    sizes = [
        len(PhotoFolder(str(folder), s, least=1024)) for s in ("train", "held_out")
    ]
    assert sizes == [146, 19]
