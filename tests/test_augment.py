"""Batched flip and rotation, against PIL on the same angles."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from common.augment import MEAN, STD, augment, draw_lab, flip_and_rotate, normalize
from common.crop import crop_image


def smooth(width, height, seed):
    """A random picture without fine detail, so that two ways of resampling it agree."""
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


def test_draws_are_the_labs_and_each_image_has_its_own():
    draws = draw_lab(20_000, np.random.default_rng(0))
    assert draws.shape == (20_000, 2) and set(draws[:, 0].tolist()) == {0.0, 1.0}
    assert draws[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    assert -15 <= draws[:, 1].min() < -14.9 and 14.9 < draws[:, 1].max() <= 15
    assert draws[:, 1].std() == pytest.approx(30 / 12**0.5, rel=0.02), "uniform"
    assert len(draws[:, 1].unique()) > 19_000


def test_normalize_is_that_of_imagenet():
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = [(1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    torch.testing.assert_close(normalize(images)[0, :, 0, 0], torch.tensor(expected))
    assert torch.equal(augment(images, torch.ones(1, 2), None, fit="squash"), normalize(images))
    assert torch.equal(normalize(images.float()), normalize(images))
