"""Augmentation of a whole batch on its device. Every draw is made by the caller's generator, one per image."""

import numpy as np
import torch
import torch.nn.functional as F

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, per RGB channel
STD = (0.229, 0.224, 0.225)
MAX_ANGLE = 15.0  # degrees


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Images (..., 3, H, W), uint8 in [0, 255] or float in [0, 1], to float32 with ImageNet's mean and deviation."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


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
    mirror, angle = 1 - 2 * draws[:, 0], torch.deg2rad(draws[:, 1])
    width, height = crop_sizes.float().unbind(1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Output to input in the crop's own frame, both axes in [-1, 1]; the aspect makes it a rotation in pixels.
    theta = torch.stack(
        [mirror * cos, -mirror * sin * height / width, zero, sin * width / height, cos, zero], dim=1
    ).view(-1, 2, 3)
    if fit == "squash":
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    size = images.shape[-1]
    sides = torch.stack([width, height], dim=1) / torch.maximum(width, height)[:, None]
    frame = 1 - 2 * (size * (1 - sides) / 2).round().clamp(max=(size - 1) // 2) / size  # the crop's share of the square
    square = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), images.shape, align_corners=False)
    square = square.to(images.device)  # (B, S, S, 2)
    own = square / frame[:, None, None]
    turned = (torch.cat([own, torch.ones_like(own[..., :1])], dim=-1).flatten(1, 2) @ theta.mT).view_as(own)
    rotated = F.grid_sample(images, turned * frame[:, None, None], align_corners=False)
    rotated = rotated * (turned.abs() <= 1).all(-1)[:, None]
    return torch.where((own.abs() <= 1).all(-1)[:, None], rotated, images)


def augment(images: torch.Tensor, crop_sizes: torch.Tensor, draws: torch.Tensor | None, *, fit: str) -> torch.Tensor:
    """uint8 images (B, 3, S, S) to the float32 model input: augmented by `draws` where there are any, normalised."""
    if draws is None:
        return normalize(images)
    return normalize(flip_and_rotate(images.float() / 255, crop_sizes, draws, fit=fit))
