"""Batched augmentation, compared with Pillow for the same draws."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from common.augment import augment, augment_strong, change_color, draw_lab, draw_strong, flip_and_rotate
from common.config import IMAGENET, Normalization
from common.data.crop import crop_image
from common.data.pixels import normalize


def smooth(width, height, seed):
    """A random image without fine detail, for which different resampling methods agree."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def as_batch(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


ANGLES = [-15.0, -7.3, 0.0, 4.2, 15.0, 11.0]
FLIPS = [0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("aspect", [(96, 96), (160, 80), (70, 150)])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_equals_augmenting_the_crop_and_then_making_it_square(aspect, fit):
    size, border = 96, 4
    crops = [smooth(*aspect, seed=i) for i in range(len(ANGLES))]

    def square(image):
        return crop_image(image, size=size, fit=fit)[0]

    expected = []
    for crop, angle, flip in zip(crops, ANGLES, FLIPS, strict=True):
        flipped = ImageOps.mirror(crop) if flip else crop
        expected.append(square(flipped.rotate(angle, Image.Resampling.BILINEAR)))
    draws = torch.tensor([[f, a] for f, a in zip(FLIPS, ANGLES, strict=True)], dtype=torch.float32)
    images = as_batch([square(crop) for crop in crops]).float()
    ours = flip_and_rotate(images, torch.tensor([aspect] * len(crops)), draws, fit=fit)

    difference = (ours - as_batch(expected).float()).abs()[:, :, border:-border, border:-border]
    assert difference.mean() < 1.5, "grey levels of 255"
    assert (difference > 12).float().mean() < 0.02, "only the edges of the black corners may differ"


def test_no_draw_is_no_change_and_a_flip_is_exact():
    images = torch.rand(2, 3, 16, 16)
    sizes = torch.tensor([[3.0, 5.0], [4.0, 4.0]])
    for fit in ("squash", "pad"):
        same = flip_and_rotate(images, sizes, torch.zeros(2, 2), fit=fit)
        torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    flipped = flip_and_rotate(images, sizes, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), fit="squash")
    torch.testing.assert_close(flipped[0], images[0].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(flipped[1], images[1], atol=1e-5, rtol=0)


def test_lab_draws_have_the_labs_distribution():
    draws = draw_lab(20_000, np.random.default_rng(0))
    assert draws.shape == (20_000, 2) and set(draws[:, 0].tolist()) == {0.0, 1.0}
    assert draws[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    assert -15 <= draws[:, 1].min() < -14.9 and 14.9 < draws[:, 1].max() <= 15
    assert draws[:, 1].std() == pytest.approx(30 / 12**0.5, rel=0.02), "uniform"
    assert len(draws[:, 1].unique()) > 19_000


STILL = [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0]  # draws of `strong` that change nothing


def test_strong_colours_match_pillow():
    pictures = [smooth(40, 40, seed=i) for i in range(6)]
    factors = torch.tensor([[0.7, 1, 1], [1.3, 1, 1], [1, 0.7, 1], [1, 1.3, 1], [1, 1, 0.7], [1.2, 0.8, 1.3]])
    expected = []
    for picture, (brightness, contrast, saturation) in zip(pictures, factors.tolist(), strict=True):
        picture = ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(brightness)).enhance(contrast)
        expected.append(ImageEnhance.Color(picture).enhance(saturation))
    ours = change_color(as_batch(pictures).float(), *factors.T)
    assert (ours - as_batch(expected).float()).abs().max() < 3, "grey levels of 255; Pillow rounds each time"


@pytest.mark.parametrize("aspect", [(96, 96), (160, 80), (70, 150)])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_strong_geometry_matches_pillow(aspect, fit):
    """Expected: mirrored, rotated about the window centre and cut to the window, at the crop's aspect ratio."""
    size, (x, y, half_x, half_y) = 96, (0.2, -0.1, 0.6, 0.7)
    crops, expected = [smooth(*aspect, seed=i) for i in range(len(ANGLES))], []
    for crop, angle, flip in zip(crops, ANGLES, FLIPS, strict=True):
        picture = crop if fit == "squash" else crop_image(crop, size=size, fit=fit)[0]  # padding is rotated too
        picture = ImageOps.mirror(picture) if flip else picture
        center = (-x if flip else x), y
        about = [(1 + c) / 2 * side for c, side in zip(center, picture.size, strict=True)]
        picture = crop_image(picture.rotate(angle, Image.Resampling.BILINEAR, center=about), size=size)[0]
        left, top, right, bottom = (
            size * (1 + c + sign * half) / 2
            for sign in (-1, 1)
            for c, half in zip(center, (half_x, half_y), strict=True)
        )
        expected.append(picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))
    draws = torch.tensor(
        [[f, a, x, y, half_x, half_y, 1, 1, 1, 0, 0, 0, 0] for f, a in zip(FLIPS, ANGLES, strict=True)]
    )
    images = as_batch([crop_image(crop, size=size, fit=fit)[0] for crop in crops])
    ours = augment(images, torch.tensor([aspect] * len(crops)), draws, fit=fit, normalization=IMAGENET)
    difference = (ours - normalize(as_batch(expected), IMAGENET)).abs()[:, :, 12:-12, 12:-12] * 255 * 0.225
    assert difference.mean() < 2, "grey levels of 255"
    assert (difference > 12).float().mean() < 0.02


def test_draws_that_change_nothing():
    still = augment_strong(
        torch.full((1, 3, 8, 8), 90.0),
        torch.ones(1, 2),
        torch.tensor([STILL]).float(),
        fit="squash",
        normalization=IMAGENET,
    )
    torch.testing.assert_close(still, normalize(torch.full((1, 3, 8, 8), 90.0), IMAGENET))


def test_strong_draws_are_within_their_ranges():
    draws = draw_strong(20_000, np.random.default_rng(0))
    mirror, angle, x, y, half_x, half_y, *factors = draws[:, :9].T
    assert mirror.mean() == pytest.approx(0.5, abs=0.02) and angle.abs().max() <= 15
    area = half_x * half_y
    assert 0.35 * 0.74 < area.min() < 0.36 and area.max() == pytest.approx(1, abs=0.01)
    assert (x.abs() + half_x).max() <= 1.0001 and (y.abs() + half_y).max() <= 1.0001, "within the image"
    assert (half_x / half_y).max() == pytest.approx(4 / 3, abs=0.01) == 1 / (half_x / half_y).min()
    for factor in factors:
        assert 0.7 <= factor.min() < 0.71 and 1.29 < factor.max() <= 1.3
    assert all(len(column.unique()) > 10_000 for column in (angle, x, y, half_x, *factors)), "each image has its own"


def test_three_in_ten_images_have_an_erased_rectangle():
    draws = draw_strong(20_000, np.random.default_rng(0))
    area = draws[:, 11] * draws[:, 12]
    assert (area > 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert 0.019 < area[area > 0].min() < 0.025 and 0.29 < area.max() < 0.301


def test_an_erased_rectangle_is_of_the_mean_colour():
    draws = torch.tensor([STILL, [*STILL[:9], 0.5, -0.5, 0.5, 0.5]]).float()
    white = torch.full((2, 3, 8, 8), 255.0)
    whole, erased = augment_strong(white, torch.ones(2, 2), draws, fit="squash", normalization=IMAGENET)
    assert (erased[:, :4, 4:] == 0).all() and (erased == 0).float().mean() == 0.25
    assert torch.equal(erased[:, 4:], whole[:, 4:]) and (whole != 0).all()


@pytest.mark.parametrize("normalization", [IMAGENET, Normalization((0.5, 0.4, 0.3), (0.5, 0.25, 1.0))])
def test_normalize_subtracts_the_mean_and_divides_by_the_deviation(normalization):
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = [(1 - mean) / std for mean, std in zip(normalization.mean, normalization.std, strict=True)]
    result = normalize(images, normalization)
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor(expected))
    assert torch.equal(normalize(images.float(), normalization), result)
    for draws in (None, torch.zeros(1, 2), torch.tensor([STILL]).float()):
        augmented = augment(images, torch.ones(1, 2), draws, fit="squash", normalization=normalization)
        torch.testing.assert_close(augmented, result)
