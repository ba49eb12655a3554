"""The geometry of crops, compared with manually counted pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from common.data.crop import PAD_COLOR, box_problem, crop_image, grow_box, padding
from tests.helpers import encode

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def numbered(width=8, height=6):
    """An image whose pixel at (x, y) is (10 x, 10 y, 0)."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([10 * x, 10 * y, 0 * x], axis=-1).astype(np.uint8))


def test_box_is_x_y_width_height():
    crop, crop_size = crop_image(numbered(), (2, 1, 3, 3), size=3)
    x, y = np.meshgrid([20, 30, 40], [10, 20, 30])
    np.testing.assert_array_equal(np.asarray(crop), np.stack([x, y, 0 * x], axis=-1))
    assert crop_size == (3, 3)


def test_no_box_is_the_whole_image():
    crop, crop_size = crop_image(Image.new("RGB", (40, 20), RED), size=10)
    assert crop.size == (10, 10) and crop_size == (40, 20)


def test_squash_stretches_and_nothing_outside_the_box_leaks_in():
    image = Image.new("RGB", (30, 20), BLUE)
    image.paste(RED, (10, 5, 16, 8))  # 6 x 3
    crop = np.asarray(crop_image(image, (10, 5, 6, 3), size=12)[0])
    assert (crop == RED).all()


def test_margin_is_a_fraction_of_each_side_and_stops_at_the_border():
    assert grow_box((10, 20, 8, 4), 0.25, 100, 100) == (8, 19, 20, 25)
    assert grow_box((1, 0, 8, 4), 0.5, 10, 100) == (0, 0, 10, 6)
    crop, crop_size = crop_image(numbered(), (2, 2, 2, 2), size=4, margin=0.5)
    np.testing.assert_array_equal(np.asarray(crop)[:, :, 0], [[10, 20, 30, 40]] * 4)
    assert crop_size == (4, 4)


def test_pad_keeps_the_aspect():
    crop = np.asarray(crop_image(Image.new("RGB", (40, 20), RED), size=8, fit="pad")[0])
    assert (crop[:2] == PAD_COLOR).all() and (crop[2:6] == RED).all() and (crop[6:] == PAD_COLOR).all()


def as_file(image, kind="JPEG", **options):
    """The image after writing it to a file and opening it, with its pixels not yet loaded."""
    return Image.open(io.BytesIO(encode(image, kind, **options)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_box_is_in_the_upright_image(orientation):
    """The red quarter of the upright image is cropped correctly from every stored orientation."""
    upright = Image.new("RGB", (64, 32), BLUE)
    upright.paste(RED, (32, 0, 64, 16))
    stored = {
        1: lambda im: im,
        2: lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda im: im.transpose(Image.Transpose.ROTATE_180),
        4: lambda im: im.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda im: im.transpose(Image.Transpose.TRANSPOSE),
        6: lambda im: im.transpose(Image.Transpose.ROTATE_90),
        7: lambda im: im.transpose(Image.Transpose.TRANSVERSE),
        8: lambda im: im.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size in (16, 4):  # 4: the JPEG is decoded at a smaller scale
        crop, crop_size = crop_image(as_file(stored, quality=95, exif=exif), (32, 0, 32, 16), size=size)
        assert crop_size == (32, 16)
        assert np.abs(np.asarray(crop)[1:-1, 1:-1].astype(int) - RED).max() < 40


def test_pillow_rotates_tiff_files():
    stored = Image.new("RGB", (32, 64), BLUE)
    stored.paste(RED, (0, 0, 16, 32))  # the upper right quarter once it is upright
    exif = Image.Exif()
    exif[0x0112] = 6
    crop, crop_size = crop_image(as_file(stored, "TIFF", exif=exif), (32, 0, 32, 16), size=16)
    assert crop_size == (32, 16) and (np.asarray(crop) == RED).all()


def test_a_large_jpeg_is_decoded_at_a_reduced_scale():
    x, y = np.meshgrid(np.linspace(0, 1, 640), np.linspace(0, 1, 480))
    smooth = np.stack([np.sin(3 * x + y), np.cos(2 * y), x * y], axis=-1)
    image = Image.fromarray((127 + 100 * smooth).clip(0, 255).astype(np.uint8))
    encoded = as_file(image, quality=95)
    small = np.asarray(crop_image(encoded, (80, 60, 480, 360), size=32)[0]).astype(float)
    assert encoded.size == (80, 60), "480 x 360 to 32 pixels leaves room for the scale 1/8"
    full = np.asarray(crop_image(image, (80, 60, 480, 360), size=32)[0]).astype(float)
    assert np.abs(small - full).mean() < 2


def test_a_jpeg_is_never_decoded_smaller_than_the_target():
    """The short side of a flat box determines the scale, as it is stretched, unless the aspect ratio is kept."""
    for fit, decoded in (("squash", (640, 480)), ("pad", (80, 60))):
        encoded = as_file(Image.new("RGB", (640, 480), RED))
        crop_image(encoded, (0, 0, 512, 40), size=32, fit=fit)
        assert encoded.size == decoded


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 200, (200,) * 3),
        ("1", 1, (255,) * 3),
        ("P", 0, None),
        ("CMYK", (0, 255, 255, 0), RED),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("LA", (0, 255), (0, 0, 0)),
        ("I;16", 200 * 256, (200,) * 3),
    ],
)
def test_every_mode_becomes_rgb(mode, color, expected):
    crop = crop_image(Image.new(mode, (8, 8), color), size=4)[0]
    assert crop.mode == "RGB"
    if expected:
        assert np.abs(np.asarray(crop).astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((0, 0, 8, 6), None),
        ((-1, 0, 4, 4), "outside the 8 x 6"),
        ((5, 0, 4, 4), "outside"),
        ((0, 3, 4, 4), "outside"),
        ((0, 0, 0, 4), "no area"),
        ((0, 0, 4, -1), "no area"),
        ((2, 3, 1e-300, 4), "no area"),
        ((0, 0, 4), "3 numbers"),
        ((0, 0, 4, 4, 4), "5 numbers"),
        ((0, float("nan"), 4, 4), "nan"),
        ((0, 0, float("inf"), 4), "inf"),
        ((0, 0, None, 4), "None"),
        (None, "no box"),
    ],
)
def test_a_wrong_box_is_named(box, words):
    problem = box_problem(box, 8, 6)
    assert problem is None if words is None else words in problem
    if words and box is not None:
        with pytest.raises(ValueError, match="box"):
            crop_image(numbered(), box, size=4)


def test_padding_keeps_the_centre_and_leaves_a_pixel():
    assert padding((40, 20), 8) == (0, 2) and padding((20, 40), 8) == (2, 0)
    assert padding((1, 5000), 16) == (7, 0)
