"""Data augmentation of batches on their device: flips, rotations, windows, colour, mixup, CutMix, backgrounds.

The `draw_*` functions draw the random numbers for each image from a given generator; the other functions apply them.
Coordinates of windows and rectangles are relative to the image, which extends from -1 to 1 in both directions.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from common.config import Normalization
from common.data.pixels import normalize

MAX_ANGLE = 15.0  # maximum rotation in degrees, in either direction

# Strong augmentation
WINDOW_AREA = (0.35, 1.0)  # range of the window's share of the image area
WINDOW_RATIO = 4 / 3  # maximum ratio of the longer to the shorter side of the window
ERASE_SHARE = 0.3  # share of images in which a rectangle is erased
ERASED_AREA = (0.02, 0.3)  # range of the rectangle's share of the image area
COLOR = 0.3  # brightness, contrast and saturation are multiplied by 1 - COLOR to 1 + COLOR
MIXUP_SHARE = 0.4  # share of images with mixup
CUTMIX_SHARE = 0.4  # share of images with CutMix; the remaining images are not mixed
MIXUP_ALPHA = 0.4  # both parameters of the Beta distribution of the image's share in mixup
CUTMIX_ALPHA = 1.0  # both parameters of the Beta distribution of the pasted area in CutMix


def draw_lab(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Random numbers (n, 2) float32 for `flip_and_rotate`.

    Columns: flip (0 or 1, with equal probability), and angle in degrees (uniform in [-15, 15]).
    """
    flip = rng.random(n) < 0.5
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE, n)
    return torch.from_numpy(np.stack([flip, angle], axis=1).astype(np.float32))


def flip_and_rotate(images: torch.Tensor, crop_sizes: torch.Tensor, draws: torch.Tensor, *, fit: str) -> torch.Tensor:
    """Flips each image horizontally and rotates it, as if this had been done before the crop was made square.

    Args:
        images: (B, 3, S, S) float, any range.
        crop_sizes: (B, 2) width and height of each crop before it was made square, in any unit.
        draws: (B, 2) flip (0 or 1) and angle in degrees, counter-clockwise.
        fit: how the crop was made square, "squash" or "pad" (see `common.data.crop.crop_image`).

    Returns:
        (B, 3, S, S), with bilinear interpolation. Corners without a source pixel are black; padding is not rotated.
    """
    mirror, angle = 1 - 2 * draws[:, :1], torch.deg2rad(draws[:, 1:])  # mirror is 1 or -1
    width, height = crop_sizes.float().split(1, dim=1)  # (B, 1) each
    cos, sin, aspect = angle.cos(), angle.sin(), width / height
    size = images.shape[-1]
    centers = (torch.arange(size, device=images.device) + 0.5) * 2 / size - 1  # pixel centres in [-1, 1]
    x_share = y_share = torch.ones_like(width)  # width and height of the crop as shares of the square
    if fit == "pad":
        x_share, y_share = (
            1 - 2 * (size * (1 - side / torch.maximum(width, height)) / 2).round().clamp(max=(size - 1) // 2) / size
            for side in (width, height)
        )
    x, y = centers / x_share, centers / y_share  # (B, S), the edges of the crop are at -1 and 1
    # Map output to input coordinates. The aspect ratio makes this a rotation in the original crop. The sum of a row
    # (B, 1, S) and a column (B, S, 1) is a grid (B, S, S).
    turned_x = (mirror * cos * x)[:, None, :] - (mirror * sin / aspect * y)[:, :, None]
    turned_y = (sin * aspect * x)[:, None, :] + (cos * y)[:, :, None]
    if fit == "squash":
        return F.grid_sample(images, torch.stack([turned_x, turned_y], dim=-1), align_corners=False)
    grid = torch.stack([turned_x * x_share[:, None], turned_y * y_share[:, None]], dim=-1)
    from_crop = (turned_x.abs() <= 1) & (turned_y.abs() <= 1)  # the source pixel is in the crop
    in_crop = (x.abs() <= 1)[:, None, :] & (y.abs() <= 1)[:, :, None]  # the output pixel is in the crop
    rotated = F.grid_sample(images, grid, align_corners=False) * from_crop[:, None]
    return torch.where(in_crop[:, None], rotated, images)


def draw_strong(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Random numbers (n, 13) float32 for `strong`.

    Columns:
        0: flip (0 or 1).
        1: angle in degrees.
        2-5: the window of a random resized crop (Szegedy et al., 2015): x and y of the centre, half width, half height.
        6-8: factors for brightness, contrast and saturation.
        9-12: an erased rectangle (Zhong et al., 2017), in the format of the window; of size zero for most images.
    """
    area = rng.uniform(*WINDOW_AREA, n)
    ratio = np.exp(rng.uniform(-1, 1, n) * math.log(WINDOW_RATIO))  # width / height
    half_width = np.minimum(1, np.sqrt(area * ratio))
    half_height = np.minimum(1, np.sqrt(area / ratio))
    x, y = rng.uniform(-1, 1, (2, n)) * (1 - np.stack([half_width, half_height]))
    factors = rng.uniform(1 - COLOR, 1 + COLOR, (3, n))
    erased_half_side = np.sqrt(np.where(rng.random(n) < ERASE_SHARE, rng.uniform(*ERASED_AREA, n), 0))
    flip = rng.random(n) < 0.5
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE, n)
    erased_center = rng.uniform(-1, 1, (2, n))
    columns = [flip, angle, x, y, half_width, half_height, *factors]
    columns += [*erased_center, erased_half_side, erased_half_side]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def augment_strong(
    images: torch.Tensor, crop_sizes: torch.Tensor, draws: torch.Tensor, *, fit: str, normalization: Normalization
) -> torch.Tensor:
    """Changes the colour of each image, flips and rotates it, enlarges a window to full size, and erases a rectangle.

    Padding is transformed together with the crop.

    Args:
        images: (B, 3, S, S) float in [0, 255].
        crop_sizes, fit: as in `flip_and_rotate`.
        draws: (B, 13), see `draw_strong`.

    Returns:
        (B, 3, S, S), the normalised model input. Erased pixels and pixels from outside the image are zero, which is the
        mean colour.
    """
    mirror, angle, x, y, half_width, half_height, brightness, contrast, saturation = draws[:, :9].T
    images = normalize(change_color(images, brightness, contrast, saturation), normalization)
    mirror, angle = 1 - 2 * mirror, torch.deg2rad(angle)  # mirror is 1 or -1
    aspect = crop_sizes[:, 0] / crop_sizes[:, 1] if fit == "squash" else torch.ones_like(angle)
    x_row = [mirror * angle.cos() * half_width, -mirror * angle.sin() / aspect * half_height, x]
    y_row = [angle.sin() * aspect * half_width, angle.cos() * half_height, y]
    matrices = torch.stack(x_row + y_row, dim=1).view(-1, 2, 3)  # from output to input coordinates
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    return images * ~rectangle(draws[:, 9:], images.shape[-1])[:, None]


def rectangle(draws: torch.Tensor, size: int) -> torch.Tensor:
    """Masks (B, size, size) bool of the rectangles `draws` (B, 4): x and y of the centre, half width, half height."""
    x, y, half_width, half_height = draws[:, :, None].unbind(1)  # (B, 1) each
    centers = (torch.arange(size, device=draws.device) + 0.5) * 2 / size - 1  # pixel centres in [-1, 1]
    return ((centers - x).abs() < half_width)[:, None, :] & ((centers - y).abs() < half_height)[:, :, None]


def change_color(
    images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    """Changes brightness, contrast and saturation, in this order, like Pillow's ImageEnhance but without rounding.

    Args:
        images: (B, 3, H, W) float in [0, 255].
        brightness: (B,) factors; 0 gives black, and 1 leaves an image as it is.
        contrast: (B,) factors; 0 gives the mean grey of the image.
        saturation: (B,) factors; 0 gives a greyscale image.

    Returns:
        (B, 3, H, W) in [0, 255].
    """
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in (brightness, contrast, saturation))
    images = (images * brightness).clamp_(0, 255)
    images = (to_gray(images).mean((2, 3), keepdim=True).lerp(images, contrast)).clamp_(0, 255)
    return to_gray(images).lerp(images, saturation).clamp_(0, 255)


def to_gray(images: torch.Tensor) -> torch.Tensor:
    """The luma (B, 1, H, W) of RGB images (B, 3, H, W) as defined in ITU-R 601-2 and used by Pillow."""
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def augment(
    images: torch.Tensor,
    crop_sizes: torch.Tensor,
    draws: torch.Tensor | None,
    *,
    fit: str,
    normalization: Normalization,
) -> torch.Tensor:
    """Converts images to the normalised model input, with augmentation if there are `draws`.

    Args:
        images: (B, 3, S, S) in [0, 255], uint8 or float.
        crop_sizes, fit: as in `flip_and_rotate`.
        draws: None, or the result of `draw_lab` (B, 2) or `draw_strong` (B, 13).
        normalization: that of the model.

    Returns:
        (B, 3, S, S) float32.
    """
    if draws is None:
        return normalize(images, normalization)
    if draws.shape[1] > 2:
        return augment_strong(images.float(), crop_sizes, draws, fit=fit, normalization=normalization)
    return normalize(flip_and_rotate(images.float(), crop_sizes, draws, fit=fit), normalization)


def draw_mix(n: int, rng: np.random.Generator) -> tuple[np.ndarray, torch.Tensor]:
    """Random numbers for mixing n images by mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019).

    Returns:
        partner: (n,) int64, the image that each image is mixed with.
        draws: (n, 5) float32 for `mix`: the image's own share in mixup, or 1; and the rectangle of CutMix that the
            partner fills, of size zero for images without CutMix (x and y of the centre, half width, half height).
    """
    kind = rng.random(n)
    share = np.where(kind < MIXUP_SHARE, rng.beta(MIXUP_ALPHA, MIXUP_ALPHA, n), 1.0)
    area = np.where(
        (kind >= MIXUP_SHARE) & (kind < MIXUP_SHARE + CUTMIX_SHARE), rng.beta(CUTMIX_ALPHA, CUTMIX_ALPHA, n), 0.0
    )
    center = rng.uniform(-1, 1, (2, n))
    half_side = np.sqrt(area)
    partner = rng.permutation(n)
    draws = np.stack([share, *center, half_side, half_side], axis=1).astype(np.float32)
    return partner, torch.from_numpy(draws)


def mix(images: torch.Tensor, others: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes each of `images` with one of `others`, both (B, 3, S, S), by `draws` (B, 5) from `draw_mix`.

    Returns:
        The mixed images (B, 3, S, S), and the share of the original image in each, (B, 1).
    """
    weight = draws[:, 0, None, None] * ~rectangle(draws[:, 1:], images.shape[-1])  # (B, S, S), of `images`
    return others.lerp(images, weight[:, None]), weight.mean((1, 2))[:, None]


def replace_background(
    images: torch.Tensor,
    masks: torch.Tensor,
    others: torch.Tensor,
    other_masks: torch.Tensor,
    kind: str,
    mean_color: tuple[int, int, int],
) -> torch.Tensor:
    """Replaces the background of each image and keeps its product.

    Args:
        images: (B, 3, S, S) float in [0, 255].
        masks: (B, 1, S, S) in [0, 1], 1 on the product.
        others: (B, 3, S, S), the images whose backgrounds are used by "swap". Their products are filled with the mean
            colour of their backgrounds.
        other_masks: (B, 1, S, S), the masks of `others`.
        kind: "gray", "blur" or "swap".
        mean_color: the background of "gray", RGB in [0, 255].

    Returns:
        (B, 3, S, S) float in [0, 255].
    """
    if kind == "gray":
        background = torch.tensor(mean_color, device=images.device, dtype=images.dtype).view(3, 1, 1)
    elif kind == "blur":
        from torchvision.transforms.v2.functional import gaussian_blur  # slow to import

        radius = max(1, images.shape[-1] // 8)
        background = gaussian_blur(images, [2 * radius + 1] * 2, [radius / 2] * 2)
    else:
        visible = 1 - other_masks
        mean = (others * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp(min=1)
        background = torch.lerp(mean, others, visible)
    return torch.lerp(background, images, masks)
