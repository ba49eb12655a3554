"""Crops an image to its bounding box and resizes the crop to a square RGB image."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

MIN_BOX = 2  # pixels
MAX_CROPS = 64  # of a photo that are in memory together: those of a crowd would fill it
PAD_COLOR = (124, 116, 104)  # the ImageNet mean; models with another normalisation have their own


def box_problem(bbox: Sequence[float] | None, width: float, height: float) -> str | None:
    """Why `bbox` is invalid for an image of `width` x `height` pixels, in a few words; None if it is valid.

    A valid box is x, y, width, height in pixels of the upright image, is at least `MIN_BOX` pixels wide and high, and
    lies within the image.
    """
    if bbox is None:
        return "no box"
    if problem := malformed_box(bbox):
        return problem
    x, y, w, h = bbox
    if x + w <= x or y + h <= y:  # also true if w or h is too small to change the sum, such as 1e-300
        return f"box {list(bbox)} has no area"
    if min(w, h) < MIN_BOX:
        return f"box {list(bbox)} is smaller than {MIN_BOX} pixels"
    if x < 0 or y < 0 or x + w > width or y + h > height:
        return f"box {list(bbox)} extends outside the {width} x {height} image"
    return None


def edge_slack(sides: Any) -> Any:
    """By how many pixels a box may reach over the edge of an image of these sides, in pixels: 1, or 1 % of the side."""
    return np.maximum(1, np.asarray(sides) / 100)


def clip_box(bbox: Any, width: float, height: float) -> Any:
    """`bbox` within the image if it reaches over its edges by at most `edge_slack`; otherwise, `bbox` unchanged."""
    if bbox is None or malformed_box(bbox):
        return bbox
    x, y, w, h = bbox
    right, bottom = x + w, y + h
    if x >= 0 and y >= 0 and right <= width and bottom <= height:
        return bbox
    over = max(-x, right - width) <= edge_slack(width) and max(-y, bottom - height) <= edge_slack(height)
    if not over or w <= 0 or h <= 0:
        return bbox
    x, y = max(0, x), max(0, y)
    return [x, y, min(right, width) - x, min(bottom, height) - y]


def malformed_box(bbox: Any) -> str | None:
    """Why `bbox` is not a list of four numbers, in a few words; None if it is."""
    if isinstance(bbox, str) or not isinstance(bbox, Sequence):
        return f"box {bbox!r} is not a list of x, y, width, height"
    if any(isinstance(v, Sequence) and not isinstance(v, str) for v in bbox):
        return f"box {list(bbox)} is a list of lists, not one box"
    if len(bbox) != 4:
        return f"box {list(bbox)} has {len(bbox)} numbers, not 4"
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in bbox):
        return f"box {list(bbox)} contains a value that is not a number"
    return None


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8; 1 means upright."""
    # Pillow applies the orientation of a TIFF while loading it, and `size` already takes it into account.
    return 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)


def is_rotated(image: Image.Image) -> bool:
    """Whether the upright image has the sides of the stored image swapped."""
    return orientation_of(image) in (5, 6, 7, 8)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the upright image."""
    width, height = image.size
    return (height, width) if is_rotated(image) else (width, height)


def box_row(bbox: Sequence[float] | None, image: Image.Image) -> np.ndarray:
    """What the check needs to know about a box, (7,) float64; NaN if `bbox` is not four numbers.

    The four numbers, width and height of the upright image, and 1 if EXIF rotates the image by 90 degrees, otherwise 0.
    """
    if bbox is None or malformed_box(bbox):
        return np.full(7, np.nan)
    return np.array([*bbox, *upright_size(image), is_rotated(image)], np.float64)


def grow_box(bbox: Sequence[float], margin: float, width: int, height: int) -> tuple[float, float, float, float]:
    """Extends `bbox` by `margin` times its width left and right and `margin` times its height above and below.

    Returns (left, top, right, bottom) in pixels, clipped to the image.
    """
    x, y, w, h = bbox
    return (
        max(0, x - margin * w),
        max(0, y - margin * h),
        min(width, x + w + margin * w),
        min(height, y + h + margin * h),
    )


def padding(crop_size: Sequence[float], size: int) -> tuple[int, int]:
    """Padding in pixels on each side, (horizontal, vertical), that centres a crop in a square of `size` pixels.

    `crop_size` is the crop's (width, height) in any unit; its longer side fills the square.
    """
    horizontal, vertical = (min(round(size * (1 - side / max(crop_size)) / 2), (size - 1) // 2) for side in crop_size)
    return horizontal, vertical


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB.

    16-bit greyscale is scaled to 8 bits, and transparent images are composited on white.

    Raises:
        ValueError: the image is 32-bit greyscale, whose value range is not defined.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"unreadable image (mode {image.mode}: the value range of 32-bit greyscale is not defined)")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def crop_image(
    image: Image.Image,
    bbox: Sequence[float] | None = None,
    *,
    size: int,
    margin: float = 0.0,
    fit: str = "squash",
    fill: tuple[int, int, int] = PAD_COLOR,
    reduce: bool = False,
) -> tuple[Image.Image, tuple[float, float]]:
    """Crops `image` to `bbox` and resizes the crop to a square, with bilinear interpolation.

    Args:
        image: a PIL image of any mode. EXIF orientation is applied. If the pixels are not loaded yet, a large JPEG is
            decoded at the smallest scale (1, 1/2, 1/4 or 1/8) that still covers the target size, which saves time.
        bbox: x, y, width, height in pixels of the upright image; None means the whole image.
        size: side of the result in pixels.
        margin: context kept on each side of the box, as a fraction of the box's width or height.
        fit: "squash" stretches the crop to a square; "pad" keeps its aspect ratio and centres it on `fill`.
        fill: RGB colour of the padding, in [0, 255].
        reduce: average blocks of 2 x 2, 4 x 4 or 8 x 8 pixels of a decoded image where a JPEG would be decoded at the
            scale 1/2, 1/4 or 1/8, which is about the same and as much faster.

    Returns:
        The RGB image of size x size pixels, and the width and height of the crop in pixels of the upright image.

    Raises:
        ValueError: the box is invalid for this image, or the image is 32-bit greyscale.
        OSError: the image cannot be decoded. PIL also raises other exceptions for broken files.
    """
    orientation, (width, height) = orientation_of(image), upright_size(image)
    problem = box_problem(bbox, width, height) if bbox is not None else None
    if problem:
        raise ValueError(problem)

    left, top, right, bottom = grow_box(bbox or (0, 0, width, height), margin, width, height)
    crop_size = right - left, bottom - top
    scale = size / (min(crop_size) if fit == "squash" else max(crop_size))
    if scale < 1:
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    if orientation != 1:
        image = ImageOps.exif_transpose(image)

    # Convert to pixels of the decoded image. Crop at whole pixels first, so that resizing reads no pixel beyond them.
    fx, fy = image.width / width, image.height / height
    left, top, right, bottom = left * fx, top * fy, right * fx, bottom * fy
    block = next(n for n in (8, 4, 2, 1) if n * scale <= 1 or n == 1) if reduce else 1
    start = math.floor(left / block) * block, math.floor(top / block) * block
    end = math.ceil(right / block) * block, math.ceil(bottom / block) * block
    if block > 1:
        end = min(end[0], image.width), min(end[1], image.height)
    image = to_rgb(image.reduce(block, (*start, *end)) if block > 1 else image.crop((*start, *end)))
    left, right = ((edge - start[0]) / block for edge in (left, right))
    top, bottom = ((edge - start[1]) / block for edge in (top, bottom))
    box = left, top, right, bottom
    if fit == "squash":
        return image.resize((size, size), Image.Resampling.BILINEAR, box=box), crop_size
    pads = padding(crop_size, size)
    target = size - 2 * pads[0], size - 2 * pads[1]
    canvas = Image.new("RGB", (size, size), fill)
    canvas.paste(image.resize(target, Image.Resampling.BILINEAR, box=box), pads)
    return canvas, crop_size
