"""The geometry of crops, compared with manually counted pixels; and boxes of another convention."""

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data.boxes import CONVENTIONS, convention_problem, upper_left_note
from common.data.crop import PAD_COLOR, box_problem, box_row, crop_image, grow_box, padding
from tests.helpers import encode, photo

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
        ((2, 3, 2, 2), None),
        ((2, 3, 1.99, 2), "smaller than 2 pixels"),
        ((2, 3, 2, 1), "smaller than 2 pixels"),
        ((0.2, 0.3, 0.5, 0.6), "smaller than 2 pixels"),
        ((0, 0, 4), "3 numbers"),
        ((0, 0, 4, 4, 4), "5 numbers"),
        ((0, float("nan"), 4, 4), "nan"),
        ((0, 0, float("inf"), 4), "inf"),
        ((0, 0, None, 4), "None"),
        (("0", "0", "4", "4"), "not a number"),
        ("0,0,4,4", "'0,0,4,4' is not a list"),
        ({"x": 0, "y": 0, "w": 4, "h": 4}, "is not a list"),
        ([[0, 0, 4, 4]], "list of lists"),
        ([2**64, 2**64, 2**64, 2**64], "outside"),
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


# Boxes of another convention -----------------------------------------------------------------------------------------


def table(seed, n, *, photos=True):
    """n random valid boxes, as `box_row` describes them: in photos of usual sizes, or in images of any size."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(300, 4000, (n, 2)) if photos else rng.integers(2, 4000, (n, 2))
    sides = np.maximum(2, rng.beta(*rng.uniform(1, 4, 2), (n, 2)) * sizes)
    starts = rng.random((n, 2)) * (sizes - sides)
    return np.hstack([np.floor([starts, sides]).transpose(1, 0, 2).reshape(n, 4), sizes, np.zeros((n, 1))])


def with_boxes(rows, boxes):
    return np.hstack([boxes, rows[:, 4:]])


def corners(rows):
    return with_boxes(rows, np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]]))


def centres(rows):
    return with_boxes(rows, np.hstack([rows[:, :2] + rows[:, 2:4] / 2, rows[:, 2:4]]))


def fractions(rows):
    return with_boxes(rows, rows[:, :4] / np.tile(rows[:, 4:6], 2))


seeds = st.integers(0, 2**32)


@settings(max_examples=300, deadline=None)
@given(seeds, st.integers(1, 300), st.booleans())
def test_valid_boxes_are_never_refused(seed, n, photos):
    assert convention_problem(table(seed, n, photos=photos)) is None


@settings(max_examples=300, deadline=None)
@given(seeds, st.integers(20, 300))
def test_boxes_of_another_convention_are_always_refused(seed, n):
    rows = table(seed, n)
    assert "corners x1, y1, x2, y2" in convention_problem(corners(rows))
    if n >= 40:
        assert "centre and size cx, cy, w, h" in convention_problem(centres(rows))
    for form in (rows, corners(rows), centres(rows)):
        assert "look like fractions of the image" in convention_problem(fractions(form))
    assert "first convert them to [x1, y1, x2 - x1, y2 - y1]" in convention_problem(fractions(corners(rows)))
    assert "first convert them to [cx - w / 2, cy - h / 2, w, h]" in convention_problem(fractions(centres(rows)))


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(40, 300))
def test_a_few_sloppy_boxes_are_bad_rows(seed, n):
    """A pixel or two outside, or far outside in a row or two: the others keep their meaning."""
    rows = table(seed, n)
    rng = np.random.default_rng(seed)
    sloppy = rng.choice(n, n // 10, replace=False)
    rows[sloppy, 2:4] = rows[sloppy, 4:6] - rows[sloppy, :2] + rng.integers(-2, 3, (len(sloppy), 2))
    rows[rng.choice(n, 1), 2:4] *= 3
    assert convention_problem(rows) is None


@pytest.mark.parametrize("n", [3, 30])
def test_boxes_for_larger_images(n):
    """No convention explains them. They are refused if most of them extend outside."""
    rows = table(0, n)
    rows[:, :4] *= 3
    assert "or were made for images of another size" in convention_problem(rows)


def test_full_image_boxes_are_the_same_as_x_y_width_height_and_as_corners():
    rows = table(0, 50)
    rows[:, :4] = np.hstack([np.zeros((50, 2)), rows[:, 4:6]])
    assert convention_problem(rows) is None
    rows[:5] = corners(table(0, 5))
    assert "look like corners" in convention_problem(rows), "the others decide"


def test_objects_in_the_exact_centre_as_corners():
    """As x, y, width, height, they reach the lower right corner of the image, or extend outside by a few pixels."""
    rng = np.random.default_rng(0)
    half = rng.integers(50, 300, (40, 2))
    boxes = np.hstack([400 - half, 400 + half]) + rng.integers(-3, 4, (40, 4))
    rows = np.hstack([boxes, np.full((40, 2), 800), np.zeros((40, 1))])
    assert "look like corners" in convention_problem(rows)


def test_a_single_row_does_not_decide():
    for n in (1, 5, 50):
        rows = table(1, n)
        rows[0] = [100, 80, 300, 240, 320, 260, 0]
        assert convention_problem(rows) is None
    rows = table(1, 5)
    rows[0, :4] = [0.1, 0.2, 0.3, 0.4]
    assert convention_problem(rows) is None
    assert "fractions" in convention_problem(rows[:1]), "it is never a box in pixels"


def test_boxes_that_are_not_four_usual_numbers_do_not_count():
    """They are bad rows. A number near the limit of float64 would overflow."""
    image = photo(400, 300)
    bad = [box_row(box, image) for box in (None, [1, 2, 3], [1, 2, float("nan"), 4], [1e308, 0, 1.7e308, 4])]
    assert convention_problem(np.vstack([table(1, 30), *10 * bad])) is None
    rows = np.vstack([corners(table(1, 30)), *10 * bad])
    assert " of 30 boxes extend outside" in convention_problem(rows)


def test_most_boxes_are_fractions():
    rows = table(0, 30)
    rows[:20] = fractions(rows)[:20]
    assert "(20 of 30) look like fractions" in convention_problem(rows)


@pytest.mark.parametrize("name", [name for name, _, _ in CONVENTIONS])
def test_the_formula_of_a_convention_is_its_function(name):
    """And the variables have the names that the convention gives them."""
    formula, convert = next((formula, convert) for other, formula, convert in CONVENTIONS if other == name)
    variables = re.findall(r"\w+", name)[-4:]
    numbers = [30, 40, 500, 600]
    assert eval(formula, dict(zip(variables, numbers, strict=True))) == convert(np.array([numbers]))[0].tolist()


def unrotated(orientation):
    """Rows of 40 photos of 640 x 480 pixels that EXIF rotates, with valid boxes of the image as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = as_file(Image.new("L", (640, 480)), exif=exif)
    rng = np.random.default_rng(0)
    sides = rng.integers(100, 300, (40, 2))
    starts = (rng.random((40, 2)) * ([640, 480] - sides)).astype(int)
    return np.array([box_row(box, image) for box in np.hstack([starts, sides]).tolist()])


@pytest.mark.parametrize("orientation", [6, 8])
def test_boxes_of_photos_as_they_are_stored(orientation):
    rows = unrotated(orientation)
    assert rows[0, 4:].tolist() == [480, 640, 1]
    problem = convention_problem(np.vstack([table(0, 500), rows]))
    assert "of 40 boxes of photos that EXIF rotates extend outside" in problem
    formula = re.search(rf"(\[[^]]*\])(?: for orientation)? {'for ' * (orientation == 8)}{orientation}", problem)[1]
    for x, y, w, h in rows[:, :4]:
        red = Image.new("RGB", (640, 480), BLUE)
        red.paste(RED, (int(x), int(y), int(x + w), int(y + h)))
        exif = Image.Exif()
        exif[0x0112] = orientation
        converted = eval(formula, dict(x=x, y=y, w=w, h=h, W=640, H=480))
        assert (np.asarray(crop_image(as_file(red, "PNG", exif=exif), converted, size=8)[0]) == RED).all()
    rows[:, :4] = [100, 100, 300, 500]  # of the upright image
    assert convention_problem(np.vstack([table(0, 500), rows])) is None


def test_percentages_are_pointed_out():
    """They are valid boxes in pixels, but all in one corner."""
    rows = table(0, 50)
    assert upper_left_note(rows) is None
    percentages = with_boxes(rows, 100 * fractions(rows)[:, :4])
    assert "50 of 50 boxes lie in the upper left quarter" in upper_left_note(percentages)
    assert upper_left_note(percentages[:19]) is None, "too few"
