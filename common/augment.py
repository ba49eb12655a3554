"""Augmentation of a whole batch on its device. Every draw is made by the caller's generator, one per image."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, per RGB channel
STD = (0.229, 0.224, 0.225)
MAX_ANGLE = 15.0  # degrees


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


def augment(images: torch.Tensor, crop_sizes: torch.Tensor, draws: torch.Tensor | None, *, fit: str) -> torch.Tensor:
    """uint8 images (B, 3, S, S) to the float32 model input: augmented by `draws` where there are any, normalised."""
    if draws is None:
        return normalize(images)
    return normalize(flip_and_rotate(images.float(), crop_sizes, draws, fit=fit))
