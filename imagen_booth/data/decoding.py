"""Decodes the bytes of an image file to the pixels that a viewer shows.

Turns the image upright, applies its colour profile, fills transparent pixels and
converts every depth to 8 bits. Damaged and dangerous files are refused with a reason.
"""

import functools
import io
import warnings

import numpy as np
from PIL import Image, ImageCms

from imagen_booth.errors import InputError

# Detected by content, never by name; without the formats that run other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "GIF", "TIFF", "BMP")
MIN_SIDE = 16  # pixels: below this a photo is an icon or a tracking pixel
MAX_PIXELS = 150_000_000  # above a 108 megapixel phone, about 0.5 GB decoded

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # the EXIF tag


def decode(
    data: bytes, background: tuple[int, int, int]
) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Decodes an image, or the first frame of an animation.

    Args:
        data: The whole file; its content decides the format.
        background: RGB 0..255 under transparent pixels.

    Returns:
        Pixels uint8 [H,W,3] in sRGB, the format ('JPEG', ...), and notes on the
        conversions.

    Raises:
        InputError: The reason why there are no pixels, without the file's name.
    """
    if not data:
        raise InputError("zero bytes long; copy the file again")
    formats = _readable_formats()
    if data[4:8] == b"ftyp" and b"avif" not in data[8:32] and "HEIF" not in formats:
        raise InputError(
            "HEIC needs pillow-heif (pip install pillow-heif), "
            "or export the photo as JPEG"
        )
    # Pillow warns of irregularities that it can read past: they become notes.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        except Image.DecompressionBombError as error:
            raise InputError(f"a decompression bomb: {error}") from error
        except Exception as error:  # a damaged header can break a reader in any way
            raise InputError(
                "cannot be decoded: truncated, damaged, or not an image"
            ) from error
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(
                f"a decompression bomb or too large: {width} x {height} px, more than "
                f"{MAX_PIXELS // 10**6} million pixels"
            )
        if min(width, height) < MIN_SIDE:
            raise InputError(
                f"too small: {width} x {height} px; "
                f"the shorter side needs at least {MIN_SIDE} px"
            )
        format_ = image.format or "unknown"
        try:
            with image:
                image.load()
                pixels, notes = _flatten(image, background)
        except InputError:
            raise
        except Exception as error:  # as for the header
            raise InputError(f"truncated or damaged: {error}") from error
    notes += [str(w.message) for w in caught if w.category is UserWarning]
    return pixels, format_, tuple(notes)


@functools.cache
def _readable_formats() -> list[str]:
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _flatten(
    image: Image.Image, background: tuple[int, int, int]
) -> tuple[np.ndarray, list[str]]:
    """A decoded image as uint8 [H,W,3], upright, sRGB, opaque; and notes."""
    notes = []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append(f"first of {getattr(image, 'n_frames', 'many')} frames")
    profile = image.info.get("icc_profile")
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not damage the pixels
        orientation = 1
        notes.append("EXIF data damaged, orientation ignored")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        notes.append(f"EXIF orientation {orientation} applied")
    if image.mode == "F":
        raise InputError("floating-point pixels have no defined range; save as 8-bit")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
        notes.append("16-bit values scaled to 8")
    # The three colour models that profiles describe.
    kind = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"), np.float32)[..., None] / 255
        notes.append(f"transparent pixels put over RGB {tuple(background)}")
    image = image.convert(kind)
    if profile:
        image, note = _to_srgb(image, profile)
        notes += [note] if note else []
    elif kind == "CMYK":
        notes.append("CMYK converted to RGB without a colour profile")
    pixels = np.array(image.convert("RGB"))
    if alpha is not None:
        below = np.asarray(background, np.float32)
        pixels = np.rint(alpha * pixels + (1 - alpha) * below).astype(np.uint8)
    return pixels, notes


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integer grey levels (I;16 in any byte order, or I), scaled to 8 bits."""
    values = np.asarray(image).astype(np.float64)
    full = 65535 if values.max() <= 65535 else 2**32 - 1
    grey = Image.fromarray(np.rint(values.clip(0) * (255 / full)).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(
            Image.fromarray(np.where(values == clear, 0, 255).astype("uint8"))
        )
    return grey


def _to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The image in sRGB, and a note if that changed it or failed, else ''."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ImportError) as error:
        return image, f"colour profile not applied ({error}), assumed sRGB"
    assert converted is not None  # None is for conversions in place
    name = ImageCms.getProfileDescription(source).strip()
    if name.startswith("sRGB"):
        return converted, ""  # the usual profile; nothing changed
    return converted, f"colour profile {name} converted to sRGB"
