"""Plain measures of likeness, on pictures whose likeness is known."""

import numpy as np
import pytest

from imagen_booth.data import similarity


def plain(colour, side=32):
    return np.full((side, side, 3), colour, np.uint8)


def halves(left, right, side=32):
    image = plain(left, side)
    image[:, side // 2 :] = right
    return image


def noise(seed, side=32):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


RED, BLUE = (220, 10, 10), (10, 10, 220)


@pytest.mark.parametrize(
    ("image", "photo", "share"),
    [
        (plain(RED), plain(RED, 48), 1.0),
        (plain(RED), plain(BLUE), 0.0),
        (halves(RED, BLUE), plain(RED), 0.5),
        (halves(RED, BLUE), halves(BLUE, RED), 1.0),
        (halves(RED, (10, 220, 10)), halves(BLUE, RED), 0.5),
        # a bin is 42 to 43 levels wide: 0..42 is the first
        (plain((0, 0, 0)), plain((42, 42, 42)), 1.0),
        (plain((0, 0, 0)), plain((0, 0, 43)), 0.0),
        (plain((255, 255, 255)), plain((214, 214, 214)), 1.0),
    ],
)
def test_colour_is_the_share_in_common(image, photo, share):
    assert similarity.colour_similarity(image, photo) == pytest.approx(share)
    assert similarity.colour_similarity(photo, image) == pytest.approx(share)


def test_layout_is_a_correlation():
    image = noise(0)
    assert similarity.layout_similarity(image, image) == pytest.approx(1.0)
    assert similarity.layout_similarity(image, 255 - image) == pytest.approx(
        -1.0, abs=0.01
    )
    # blind to contrast and brightness, and to size
    paler = image // 2 + 60
    assert similarity.layout_similarity(image, paler) == pytest.approx(1.0, abs=0.02)
    larger = image.repeat(2, 0).repeat(2, 1)
    assert similarity.layout_similarity(image, larger) == pytest.approx(1.0, abs=0.01)
    assert abs(similarity.layout_similarity(image, noise(1))) < 0.3
    # left dark, right bright; top dark, bottom bright: nothing in common
    across = halves(0, 255)
    down = across.transpose(1, 0, 2)
    assert similarity.layout_similarity(across, down) == pytest.approx(0.0, abs=1e-6)


def test_a_flat_picture_has_no_layout():
    assert similarity.layout_similarity(plain(90), noise(0)) == 0.0


def test_the_mean_is_over_all_pairs():
    found = similarity.to_photos(
        (image for image in [plain(RED), plain(BLUE), halves(RED, BLUE)]),
        [plain(RED), noise(0)[:16]],
    )
    noisy = [
        similarity.colour_similarity(image, noise(0)[:16])
        for image in (plain(RED), plain(BLUE), halves(RED, BLUE))
    ]
    assert found["colour"] == pytest.approx((1.0 + 0.0 + 0.5 + sum(noisy)) / 6)
    assert set(found) == {"colour", "layout"}


@pytest.mark.parametrize("off", [1, 16, 255])
def test_psnr_of_a_constant_error(off):
    got = similarity.psnr(plain(off), plain(0))
    assert got == pytest.approx(20 * np.log10(255 / off), abs=1e-9)


def test_psnr_of_equals_is_finite():
    assert similarity.psnr(noise(0), noise(0)) == pytest.approx(100.0)
