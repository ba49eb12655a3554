"""Augmentation of a whole batch on its device. Every draw is made by the caller's generator, one per image."""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, per RGB channel
STD = (0.229, 0.224, 0.225)
MAX_ANGLE = 15.0  # degrees
WINDOW_AREA, WINDOW_RATIO = (
    (0.35, 1.0),
    4 / 3,
)  # of `draw_strong`: shares of the image, and the longer side by the other
ERASE, ERASED_AREA = 0.3, (0.02, 0.3)  # share of the images that lose a rectangle, and its share of the image
COLOR = 0.3  # most that brightness, contrast and saturation differ from 1


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Images (..., 3, H, W) in [0, 255], uint8 or float, to float32 with ImageNet's mean and deviation."""
    scale, shift = _scale_and_shift(images.device)
    return (images * scale).add_(shift)  # two passes over the pixels


@cache  # making a tensor on a GPU from numbers waits for the GPU
def _scale_and_shift(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return 1 / (255 * std), -mean / std


def draw_lab(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Draws (n, 2) float32 for `flip_and_rotate`: mirror (0 or 1, even odds), angle in degrees in [-15, 15]."""
    flip = rng.random(n) < 0.5
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE, n)
    return torch.from_numpy(np.stack([flip, angle], axis=1).astype(np.float32))


def flip_and_rotate(images: torch.Tensor, crop_sizes: torch.Tensor, draws: torch.Tensor, *, fit: str) -> torch.Tensor:
    """Mirrors and then rotates each image, as if it had been done to the crop before it was made square.

    Args:
        images: (B, 3, S, S) float, any range.
        crop_sizes: (B, 2) width and height of each crop before it was made square, in any unit.
        draws: (B, 2) mirror (0 or 1) and angle in degrees, counter-clockwise.
        fit: how the crop was made square: "squash" or "pad" (see `common.crop.crop_image`).

    Returns:
        (B, 3, S, S); bilinear, black where a corner of the crop turns in. Padding stays where it is.
    """
    mirror, angle = 1 - 2 * draws[:, :1], torch.deg2rad(draws[:, 1:])
    width, height = crop_sizes.float().split(1, dim=1)  # (B, 1) each, as are all that follow
    cos, sin, aspect = angle.cos(), angle.sin(), width / height
    size = images.shape[-1]
    centers = (torch.arange(size, device=images.device) + 0.5) * 2 / size - 1  # of the pixels; the edges are -1 and 1
    x_share = y_share = torch.ones_like(width)  # the crop's share of the square
    if fit == "pad":
        x_share, y_share = (
            1 - 2 * (size * (1 - side / torch.maximum(width, height)) / 2).round().clamp(max=(size - 1) // 2) / size
            for side in (width, height)
        )
    x, y = centers / x_share, centers / y_share  # (B, S), the crop's own edges are -1 and 1
    # From output to input; the aspect makes it a rotation in pixels. A sum of a row and a column is a grid (B, S, S).
    turned_x = (mirror * cos * x)[:, None, :] - (mirror * sin / aspect * y)[:, :, None]
    turned_y = (sin * aspect * x)[:, None, :] + (cos * y)[:, :, None]
    if fit == "squash":
        return F.grid_sample(images, torch.stack([turned_x, turned_y], dim=-1), align_corners=False)
    grid = torch.stack([turned_x * x_share[:, None], turned_y * y_share[:, None]], dim=-1)
    lit = (turned_x.abs() <= 1) & (turned_y.abs() <= 1)
    inside = (x.abs() <= 1)[:, None, :] & (y.abs() <= 1)[:, :, None]
    rotated = F.grid_sample(images, grid, align_corners=False) * lit[:, None]
    return torch.where(inside[:, None], rotated, images)


def draw_strong(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Draws (n, 13) float32 for `strong`: mirror (0 or 1); angle in degrees; centre x, y and half-sides of a window
    (Szegedy et al., 2015), where the image reaches from -1 to 1; factors of brightness, contrast and saturation;
    centre and half-sides of a rectangle that is erased (Zhong et al., 2017), where it has an area.
    """
    area, ratio = rng.uniform(*WINDOW_AREA, n), np.exp(rng.uniform(-1, 1, n) * math.log(WINDOW_RATIO))
    half_x, half_y = np.minimum(1, np.sqrt(area * ratio)), np.minimum(1, np.sqrt(area / ratio))
    x, y = rng.uniform(-1, 1, (2, n)) * (1 - np.stack([half_x, half_y]))
    factors = rng.uniform(1 - COLOR, 1 + COLOR, (3, n))
    erased = np.sqrt(np.where(rng.random(n) < ERASE, rng.uniform(*ERASED_AREA, n), 0))
    draws = [rng.random(n) < 0.5, rng.uniform(-MAX_ANGLE, MAX_ANGLE, n), x, y, half_x, half_y, *factors]
    draws += [*rng.uniform(-1, 1, (2, n)), erased, erased]
    return torch.from_numpy(np.stack(draws, axis=1).astype(np.float32))


def strong(images: torch.Tensor, crop_sizes: torch.Tensor, draws: torch.Tensor, *, fit: str) -> torch.Tensor:
    """Colour, then mirror, rotation and a window of each image, blown up to the whole square.

    Arguments as in `flip_and_rotate`, but for `draws` (B, 13), and images in [0, 255]. Returns the normalised model
    input (B, 3, S, S): zero, which is the mean colour, outside the square and where a rectangle is erased. Padding
    within the square is coloured, turned and cut as the crop is.
    """
    mirror, angle, x, y, half_x, half_y, brightness, contrast, saturation = draws[:, :9].T
    images = normalize(change_color(images, brightness, contrast, saturation))
    mirror, angle = 1 - 2 * mirror, torch.deg2rad(angle)
    aspect = crop_sizes[:, 0] / crop_sizes[:, 1] if fit == "squash" else torch.ones_like(angle)
    rows = [mirror * angle.cos() * half_x, -mirror * angle.sin() / aspect * half_y, x]
    rows += [angle.sin() * aspect * half_x, angle.cos() * half_y, y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    return images * ~rectangle(draws[:, 9:], images.shape[-1])[:, None]


def rectangle(draws: torch.Tensor, size: int) -> torch.Tensor:
    """(B, size, size) bool, true within the rectangles `draws` (B, 4): centre x, y, half-sides; the edges are -1, 1."""
    x, y, half_x, half_y = draws[:, :, None].unbind(1)  # (B, 1) each
    centers = (torch.arange(size, device=draws.device) + 0.5) * 2 / size - 1  # of the pixels
    return ((centers - x).abs() < half_x)[:, None, :] & ((centers - y).abs() < half_y)[:, :, None]


def change_color(
    images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    """Images (B, 3, H, W) float in [0, 255] with one factor (B,) each, where 1 changes nothing, as in Pillow's
    ImageEnhance but for rounding: brightness scales, contrast moves from the image's mean grey, saturation from grey.
    """
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in (brightness, contrast, saturation))
    images = (images * brightness).clamp_(0, 255)
    images = (to_gray(images).mean((2, 3), keepdim=True).lerp(images, contrast)).clamp_(0, 255)
    return to_gray(images).lerp(images, saturation).clamp_(0, 255)


def to_gray(images: torch.Tensor) -> torch.Tensor:
    """The luma (B, 1, H, W) of ITU-R 601-2, as in Pillow."""
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def augment(images: torch.Tensor, crop_sizes: torch.Tensor, draws: torch.Tensor | None, *, fit: str) -> torch.Tensor:
    """uint8 images (B, 3, S, S) to the float32 model input: augmented by `draws` where there are any, normalised."""
    if draws is None:
        return normalize(images)
    if draws.shape[1] > 2:
        return strong(images.float(), crop_sizes, draws, fit=fit)
    return normalize(flip_and_rotate(images.float(), crop_sizes, draws, fit=fit))
