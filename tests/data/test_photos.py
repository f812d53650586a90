"""Odd and bad photos, each made here; and the real ones where they are present."""

import hashlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from paths import SHARED
from PIL import Image, ImageCms

from imagen_booth.data import decoding, image_files, photos
from imagen_booth.data.photos import Crop
from imagen_booth.errors import InputError, StorageError

WHITE = (255, 255, 255)
STAGES = {"base": 64, "sr256": 256, "sr1024": 1024}
DREAMBOOTH = SHARED / "data" / "dreambooth"


def scene(width=96, height=80, seed=0):
    """Blocks of random colours, uint8 [H,W,3]; another seed is another picture."""
    cells = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return np.array(Image.fromarray(cells).resize((width, height), 0))


def corners(width=60, height=40):
    """Red, green, blue and white quarters, from the top left along the rows."""
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    return picture


def encode(image, format, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def png_claiming(width, height):
    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def read(tmp_path):
    """Writes bytes to a file and loads it as a photo over white."""

    def read(data, name="photo.png", background=WHITE):
        (tmp_path / name).write_bytes(data)
        return photos.load(tmp_path / name, background)

    return read


def look(folder, mode="centre"):
    crop = Crop(mode)
    return photos.inspect(str(folder), STAGES, crop, WHITE)


def reasons(rejected):
    return {entry.name: entry.reason for entry in rejected}


# Where the quarters of `corners` come to lie by what EXIF says of row 0 and column 0,
# per orientation, as (top left, top right, bottom left).
RED, GREEN, BLUE, CLEAR = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTED = {
    1: (RED, GREEN, BLUE),
    2: (GREEN, RED, CLEAR),
    3: (CLEAR, BLUE, GREEN),
    4: (BLUE, CLEAR, RED),
    5: (RED, BLUE, GREEN),
    6: (BLUE, RED, CLEAR),
    7: (CLEAR, GREEN, BLUE),
    8: (GREEN, CLEAR, RED),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation(read, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    loaded = read(encode(corners(), format, exif=exif, **options))
    assert loaded.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    seen = loaded[8, 8], loaded[8, -8], loaded[-8, 8]
    np.testing.assert_allclose(seen, ORIENTED[orientation], atol=12)


def test_damaged_exif_is_taken_as_upright(read):
    data = encode(corners(), "PNG", exif=b"Exif\x00\x00damaged beyond reading")
    np.testing.assert_array_equal(read(data), corners())


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic(read, orientation):
    pytest.importorskip("pillow_heif", reason="HEIC photos need pillow-heif")
    decoding._readable_formats()  # registers the writer too
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(corners(), "HEIF", quality=100, exif=exif.tobytes())
    loaded = read(data, "photo.heic")
    seen = loaded[8, 8], loaded[8, -8], loaded[-8, 8]
    np.testing.assert_allclose(seen, ORIENTED[orientation], atol=25)


def test_heic_without_pillow_heif_is_refused_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_readable_formats", lambda: ["JPEG", "PNG"])
    header = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"
    (tmp_path / "IMG_1.HEIC").write_bytes(header + bytes(100))
    (tmp_path / "renamed.jpg").write_bytes(header + bytes(100))
    (tmp_path / "good.png").write_bytes(encode(scene(), "PNG"))
    refused = reasons(look(tmp_path).refused)
    assert set(refused) == {"IMG_1.HEIC", "renamed.jpg"}
    assert all("pip install pillow-heif" in reason for reason in refused.values())


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_over_the_stated_background(read, format):
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[..., :3] = (200, 100, 0)
    rgba[:, :10, 3], rgba[:, 10:20, 3] = 255, 51  # the rest stays clear
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    loaded = read(encode(rgba, format, **options), background=(0, 50, 250))
    # 51 / 255 = 0.2: 0.2 * (200, 100, 0) + 0.8 * (0, 50, 250)
    wanted = [(200, 100, 0), (40, 60, 200), (0, 50, 250)]
    np.testing.assert_array_equal(loaded[5, [5, 15, 25]], wanted)


def test_grey_with_alpha(read):
    la = np.full((20, 20, 2), (100, 102), np.uint8)
    loaded = read(encode(Image.fromarray(la, "LA"), "PNG"), background=(250, 0, 0))
    np.testing.assert_array_equal(loaded[0, 0], (190, 40, 40))


def test_palette_with_and_without_transparency(read):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 10, 200, 30, 90, 90, 90])
    image.paste(2, (0, 0, 20, 10))
    loaded = read(encode(image, "PNG"))
    np.testing.assert_array_equal(loaded[[5, 15], 5], [(90, 90, 90), (10, 200, 30)])
    loaded = read(encode(image, "PNG", transparency=2), background=(1, 2, 3))
    np.testing.assert_array_equal(loaded[[5, 15], 5], [(1, 2, 3), (10, 200, 30)])


def test_cmyk(read):
    # A JPEG by Adobe's convention stores 255 - ink; a TIFF stores the ink.
    cmyk = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    for format in ("JPEG", "TIFF"):
        loaded = read(encode(cmyk, format))
        np.testing.assert_allclose(loaded[9, 9], (255, 0, 0), atol=3)


def test_sixteen_bits_are_scaled_not_clipped(read):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    values = np.tile(ramp, (16, 1))
    for format in ("PNG", "TIFF"):
        loaded = read(encode(Image.fromarray(values), format))
        np.testing.assert_array_equal(loaded[3, :, 1], np.arange(256))
    clear = encode(Image.fromarray(values), "PNG", transparency=int(ramp[7]))
    assert read(clear, background=(1, 2, 3))[0, 7].tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="floating-point"):
        read(encode(Image.fromarray(values.astype(np.float32)), "TIFF"))


def test_sixteen_bit_colour(read):
    # Pillow writes no 48-bit PNG, so the file is put together here.
    row = b"\x00" + struct.pack(">HHH", 65535, 32896, 0) * 20
    header = struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(row * 20))):
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    data += b"\x00\x00\x00\x00IEND\xaeB\x60\x82"
    np.testing.assert_array_equal(read(data)[4, 4], (255, 128, 0))


def test_grey_and_one_bit(read):
    grey = np.arange(0, 200, 5).astype(np.uint8).repeat(20).reshape(40, 20)
    np.testing.assert_array_equal(
        read(encode(grey, "PNG")), grey[..., None].repeat(3, 2)
    )
    assert read(encode(Image.new("1", (20, 20), 1), "PNG")).min() == 255


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(read, format):
    frames = [Image.new("RGB", (24, 24), c) for c in ("red", "blue", "lime")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read(data)[9, 9], RED)


def test_colour_profile_becomes_srgb(read):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB", 5000)).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = read(encode(scene(), "PNG", icc_profile=srgb))
    np.testing.assert_allclose(same.astype(int), scene(), atol=1)
    # A profile of another kind of colour cannot be meant: the pixels stay.
    np.testing.assert_array_equal(
        read(encode(scene(), "PNG", icc_profile=lab)), scene()
    )
    np.testing.assert_array_equal(
        read(encode(scene(), "PNG", icc_profile=b"junk")), scene()
    )


def test_wide_gamut_profile(read):
    """A profile with red and green primaries exchanged exchanges the channels."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", srgb[128:132])[0]
    tags = {
        bytes(srgb[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)
    }
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    srgb[red + 4 : red + 12], srgb[green + 4 : green + 12] = (
        srgb[green + 4 : green + 12],
        srgb[red + 4 : red + 12],
    )
    loaded = read(encode(scene(), "PNG", icc_profile=bytes(srgb)))
    np.testing.assert_allclose(loaded.astype(int), scene()[..., [1, 0, 2]], atol=2)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated(read, format, kept):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    data = encode(noise, format)
    with pytest.raises(InputError, match=r"photo\.png: (truncated|cannot be decoded)"):
        read(data[: int(kept * len(data))])


def test_a_folder_with_everything_wrong_and_six_good_photos(tmp_path):
    for i in range(6):
        picture = scene(1024, 1100, seed=i)
        (tmp_path / f"good_{i}.jpg").write_bytes(encode(picture, "JPEG"))
    jpeg = encode(scene(300, 300), "JPEG")
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "bomb.png").write_bytes(png_claiming(50_000, 50_000))
    (tmp_path / "big.png").write_bytes(png_claiming(12_400, 12_400))
    (tmp_path / "pixel.gif").write_bytes(encode(scene(1, 1), "GIF"))
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "notes.txt").write_text("taken on Sunday")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "hidden_good.jpg").write_bytes(jpeg)
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere")

    intake = look(tmp_path)
    assert [p.name for p in intake.photos] == [f"good_{i}.jpg" for i in range(6)]
    assert all(p.stages == tuple(STAGES) for p in intake.photos)
    refused = reasons(intake.refused)
    assert set(refused) == {
        "zero.jpg", "half.jpg", "bomb.png", "big.png", "pixel.gif", "text.jpg",
        "lost.jpg",
    }  # fmt: skip
    assert "zero bytes" in refused["zero.jpg"]
    assert "truncated" in refused["half.jpg"]
    assert "bomb" in refused["bomb.png"]
    assert "12400 x 12400" in refused["big.png"]
    assert "1 x 1 px" in refused["pixel.gif"]
    assert "cannot be decoded" in refused["text.jpg"]
    skipped = reasons(intake.skipped)
    assert set(skipped) == {
        ".DS_Store", "Thumbs.db", "notes.txt", ".ipynb_checkpoints", "more",
    }  # fmt: skip
    assert "sub-folder" in skipped[".ipynb_checkpoints"]
    assert "hidden" in skipped[".DS_Store"]
    assert "'.txt'" in skipped["notes.txt"]
    assert intake.warnings == ()


def test_no_good_photo_lists_all_refused(tmp_path):
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "pixel.png").write_bytes(encode(scene(1, 1), "PNG"))
    (tmp_path / "Thumbs.db").touch()
    with pytest.raises(photos.NoGoodPhotos) as caught:
        look(tmp_path)
    assert caught.value.exit_code == 2
    assert {r.name for r in caught.value.intake.refused} == {"zero.jpg", "pixel.png"}
    for name in ("config.subject.photos", "zero.jpg", "pixel.png", "Thumbs.db"):
        assert name in str(caught.value)


def test_a_wrong_folder_is_named(tmp_path):
    (tmp_path / "dog.jpg").write_bytes(encode(scene(), "JPEG"))
    (tmp_path / "empty").mkdir()
    for folder, complaint in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "dog.jpg", "is a file"),
        (tmp_path / "empty", "is empty"),
    ):
        with pytest.raises(InputError, match=complaint) as caught:
            look(folder)
        assert f"config.subject.photos={folder}" in str(caught.value)
    with pytest.raises(InputError, match=r"config\.subject\.photos is not set"):
        photos.inspect("", STAGES, Crop(), WHITE)


def test_photo_record(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(scene(300, 200), "PNG", exif=exif)
    (tmp_path / "dog.jpg").write_bytes(data)  # a PNG with a wrong suffix
    (photo,) = look(tmp_path).photos
    assert (photo.width, photo.height, photo.format) == (200, 300, "PNG")
    assert photo.sha256 == hashlib.sha256(data).hexdigest()
    assert photo.notes == ("EXIF orientation 6 applied",)
    assert photos.load(photo.path, WHITE).shape == (300, 200, 3)


def test_small_photos_are_named_and_their_stage_uses_the_rest(tmp_path):
    for name, size in (("a.png", (1100, 700)), ("b.png", (1024, 1024))):
        picture = scene(*size, seed=size[1])
        (tmp_path / name).write_bytes(encode(picture, "PNG"))
    intake = look(tmp_path)
    assert [p.name for p in intake.large_enough_for("sr1024")] == ["b.png"]
    assert [p.name for p in intake.large_enough_for("sr256")] == ["a.png", "b.png"]
    (small,) = (w for w in intake.warnings if "too small" in w)
    assert small.startswith("a.png (1100 x 700): too small for the 1024 px stage")
    padded = look(tmp_path, "pad")  # 1100 px wide: nothing is enlarged
    assert len(padded.large_enough_for("sr1024")) == 2


def test_warnings(tmp_path):
    picture = scene(400, 400)
    smaller = Image.fromarray(picture).resize((300, 300))
    (tmp_path / "a.png").write_bytes(encode(picture, "PNG"))
    (tmp_path / "a copy.png").write_bytes(encode(picture, "PNG"))
    (tmp_path / "b.jpg").write_bytes(encode(smaller, "JPEG", quality=60))
    (tmp_path / "flat.png").write_bytes(encode(Image.new("L", (300, 300), 90), "PNG"))
    (tmp_path / "wide.png").write_bytes(encode(scene(900, 300, seed=1), "PNG"))
    soft = np.sin(np.linspace(0, 6, 300))[:, None] * np.cos(np.linspace(0, 5, 300))
    soft = (127 + 120 * soft).astype(np.uint8)
    (tmp_path / "soft.png").write_bytes(encode(soft, "PNG"))
    said = "\n".join(look(tmp_path).warnings)
    for sentence in (
        "a copy.png and a.png are the same file",
        "a copy.png and b.jpg look almost the same",
        "flat.png: almost no contrast",
        "soft.png: looks blurred",
        "wide.png (900 x 300, 67% outside the crop): the crop removes",
        "no photo is large enough for the 1024 px stage: sr1024 is not",
    ):
        assert sentence in said
    assert "wide.png: looks" not in said
    assert "wide.png and" not in said
    assert "crop removes" not in "".join(look(tmp_path, "pad").warnings)


def test_many_photos_with_one_fault_share_a_warning(tmp_path):
    """Video frames: each kind of warning comes once, whatever the number of photos."""
    frame = np.full((64, 64, 3), 90, np.uint8)
    for i in range(60):
        frame[0, 0] = i
        (tmp_path / f"{i:02}.png").write_bytes(encode(frame, "PNG"))
    for i in range(8):
        (tmp_path / f"copy {i}.png").write_bytes(encode(frame, "PNG"))
    warnings = look(tmp_path).warnings
    assert len(warnings) < 10
    assert "00.png, 01.png, 02.png and 57 more look almost the same" in "\n".join(
        warnings
    )
    assert "59.png, copy 0.png, copy 1.png and 6 more are the same file" in "\n".join(
        warnings
    )
    assert any(
        warning.startswith("68 photos (00.png, 01.png, 02.png and 65 more): almost no")
        for warning in warnings
    )


def test_a_refusal_of_many_files_is_short(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.jpg").touch()
        (tmp_path / f"{i}.txt").touch()
    with pytest.raises(photos.NoGoodPhotos) as caught:
        look(tmp_path)
    assert len(caught.value.intake.refused) == 300
    assert len(str(caught.value).splitlines()) == 3


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    """The photo is used, and every text about it can be encoded."""
    folder = os.fsencode(tmp_path) + b"/d\xe9j\xe0"
    os.mkdir(folder)
    contents = {
        b"caf\xe9.png": encode(scene(300, 300), "PNG"),
        b"z\xe9ro.jpg": b"",
        b"n\xe9.t\xe9": b"",
    }
    for name, data in contents.items():
        with open(folder + b"/" + name, "wb") as file:
            file.write(data)
    intake = look(os.fsdecode(folder))
    (photo,) = intake.photos
    assert photo.name == r"caf\xe9.png"
    assert photos.load(photo.path, WHITE).shape == (300, 300, 3)
    for entry in (*intake.refused, *intake.skipped):
        (entry.name + entry.reason).encode()
    "".join((*intake.warnings, intake.folder, photo.name)).encode()
    os.remove(folder + b"/caf\xe9.png")
    with pytest.raises(photos.NoGoodPhotos) as caught:
        look(os.fsdecode(folder))
    str(caught.value).encode()
    with pytest.raises(InputError, match="does not exist") as missing:
        look(os.fsdecode(folder + b"\xff"))
    str(missing.value).encode()


def test_large_metadata_does_not_spoil_a_png(read, tmp_path):
    """Text, workflows, XMP and profiles beyond Pillow's limit of 1 MiB a chunk."""

    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    data, text = encode(scene(), "PNG"), b"x" * 3_000_000
    for extra in (
        chunk(b"tEXt", b"prompt\0" + text),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(text)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(text)),
    ):
        np.testing.assert_array_equal(read(data[:33] + extra + data[33:]), scene())
    image_files.save_png(tmp_path / "own.png", scene(), {"prompt": text.decode()})
    assert (
        image_files.read_png_metadata(tmp_path / "own.png")["prompt"] == text.decode()
    )


def test_too_few_and_too_many(tmp_path):
    small = {"base": 16}
    for i in range(31):
        data = encode(scene(32, 32, seed=i), "PNG")
        (tmp_path / f"{i:02}.png").write_bytes(data)
        if i == 1:
            few = photos.inspect(str(tmp_path), small, Crop(), WHITE)
    assert any("only 2 usable photos" in w for w in few.warnings)
    many = photos.inspect(str(tmp_path), small, Crop(), WHITE)
    assert any(w.startswith("31 photos") for w in many.warnings)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (257, 256)])
def test_square_keeps_aspect(width, height):
    """A disc stays a disc, at the scale of the shorter or the longer side."""
    y, x = np.mgrid[:height, :width]
    radius = 60
    disc = (x - width / 2 + 0.5) ** 2 + (y - height / 2 + 0.5) ** 2 < radius**2
    image = np.where(disc[..., None], 255, 0).astype(np.uint8).repeat(3, 2)
    for mode, side in (("centre", min(width, height)), ("pad", max(width, height))):
        small = photos.square(image, 64, Crop(mode), (0, 0, 0))[..., 0] / 255
        assert small.shape == (64, 64)
        expected = 2 * radius * 64 / side
        assert small.sum(0).max() == pytest.approx(expected, abs=1)
        assert small.sum(1).max() == pytest.approx(expected, abs=1)


def test_square_shift_and_padding():
    image = corners(120, 40)
    size = 40
    for shift, left in ((-1, 0), (0, 40), (1, 80)):
        crop = Crop(shift=(shift, 0))
        np.testing.assert_array_equal(
            photos.square(image, size, crop, WHITE), image[:, left : left + size]
        )
    grey = (9, 9, 9)
    for shift, top in ((-1, 0), (0, 40), (1, 80)):
        padded = photos.square(image, 120, Crop("pad", (0, shift)), grey)
        np.testing.assert_array_equal(padded[top : top + 40], image)
        assert (np.delete(padded, np.s_[top : top + 40], 0) == 9).all()


def test_square_does_not_alias():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    small = photos.square(stripes, 100, Crop(), WHITE)
    assert np.ptp(small[:, 5:-5].astype(int)) <= 6  # all of it is even grey


def test_crop_refuses_what_it_does_not_know():
    with pytest.raises(InputError, match="'centre' or 'pad'"):
        Crop("squash")


def test_png_metadata_round_trip(tmp_path):
    story = {"prompt": 'a "zix" dog in the 雪, naïve', "seed": "7", "run": "dog\nnew"}
    path = tmp_path / "samples" / "0.png"
    image_files.save_png(path, scene(), story)
    assert image_files.read_png_metadata(path) == story
    np.testing.assert_array_equal(np.asarray(Image.open(path)), scene())
    assert [p.name for p in path.parent.iterdir()] == ["0.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "0.png"
    image_files.save_png(path, scene(seed=1))

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(photos.epath.Path(path)), "replace", full)
    with pytest.raises(StorageError, match=r"0\.png.*No space left"):
        image_files.save_png(path, scene(seed=2))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), scene(seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["0.png"]


def test_contact_sheet():
    images = [corners(64, 64), corners(200, 100), scene(30, 30)]
    plain = np.asarray(image_files.contact_sheet(images, None, 2, 128))
    gap = 2
    assert plain.shape == (2 * 128 + gap, 2 * 128 + gap, 3)
    # A 64 px picture is doubled pixel by pixel, a wide one keeps its aspect.
    doubled = images[0].repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(plain[:128, :128], doubled)
    assert (plain[:30, 128:] == plain[0, 129]).all()
    np.testing.assert_array_equal(plain[40, 140], RED)
    named = image_files.contact_sheet(
        images, ["one", "two", "a long name " * 9], 2, 128
    )
    assert named.height > plain.shape[0]
    band = np.asarray(named)[128 : 128 + 14, :128]
    assert band.max() > 150  # the caption's letters are there


@pytest.mark.parametrize("subject", ["clock", "dog6", "red_cartoon"])
def test_real_photos(subject):
    folder = DREAMBOOTH / subject
    if not folder.is_dir():
        pytest.skip(f"the DreamBooth photos are not at {folder}")
    intake = look(folder)
    assert not intake.refused
    assert not any("look almost" in w or "blurred" in w for w in intake.warnings)
    assert all(p.stages[:2] == ("base", "sr256") for p in intake.photos)
    if subject == "clock":
        small = [p for p in intake.photos if "sr1024" not in p.stages]
        assert small
        for photo in small:
            text = f"{photo.name} ({photo.width} x {photo.height}): too small"
            assert any(w.startswith(text) for w in intake.warnings)
