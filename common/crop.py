"""From an encoded photo and its bounding box to one square RGB image."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

PAD_COLOR = (124, 116, 104)  # the ImageNet mean, which is zero once normalised


def box_problem(bbox: Sequence[float] | None, width: int, height: int) -> str | None:
    """Why `bbox` is no box of a `width` x `height` image, in a few words, or None where it is one.

    A box is x, y, width, height in pixels of the upright image; it has an area and lies inside the image.
    """
    if bbox is None:
        return "no box"
    if len(bbox) != 4:
        return f"box {list(bbox)} has {len(bbox)} numbers, not 4"
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in bbox):
        return f"box {list(bbox)} holds something that is not a number"
    x, y, w, h = bbox
    if x + w <= x or y + h <= y:  # a width of 1e-300 has none either
        return f"box {list(bbox)} has no area"
    if x < 0 or y < 0 or x + w > width or y + h > height:
        return f"box {list(bbox)} reaches outside the {width} x {height} image"
    return None


def grow_box(bbox: Sequence[float], margin: float, width: int, height: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels: `bbox` grown by `margin` of its sides on each side, within the image."""
    x, y, w, h = bbox
    return (
        max(0, x - margin * w),
        max(0, y - margin * h),
        min(width, x + w + margin * w),
        min(height, y + h + margin * h),
    )


def padding(crop_size: Sequence[float], size: int) -> tuple[int, int]:
    """Pixels left and right of a crop, and above and below it, in a square of `size`: its centre stays the centre."""
    return tuple(min(round(size * (1 - side / max(crop_size)) / 2), (size - 1) // 2) for side in crop_size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16-bit grey is scaled to 8 bits, transparency lies on white; ValueError for 32-bit grey."""
    if image.mode in ("I", "F"):
        raise ValueError(f"unreadable image (32-bit grey, mode {image.mode}, has no known range)")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def crop_image(
    image: Image.Image,
    bbox: Sequence[float] | None = None,
    *,
    size: int,
    margin: float = 0.0,
    fit: str = "squash",
    fill: tuple[int, int, int] = PAD_COLOR,
) -> tuple[Image.Image, tuple[float, float]]:
    """The part of `image` in `bbox`, as a square.

    Args:
        image: a PIL image of any mode, best one whose pixels are not loaded yet: a big JPEG is then decoded at the
            smallest of its scales (1, 1/2, 1/4, 1/8) that still covers the target. EXIF orientation is applied.
        bbox: x, y, width, height in pixels of the upright image; None is the whole image.
        size: side of the result in pixels.
        margin: context kept on each side of the box, as a fraction of that side of the box.
        fit: "squash" stretches the crop to the square; "pad" keeps its aspect and centres it on `fill`.

    Returns:
        The RGB image (size, size), and the crop's own width and height in pixels of the upright image.

    Raises:
        ValueError: the box is no box of this image. OSError and others from PIL: the image cannot be decoded.
    """
    # Pillow turns a TIFF upright by itself, and says so in its size.
    orientation = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
    width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size  # these turn by 90 degrees
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

    # The crop in pixels of the decoded image, cut at whole pixels first so that no neighbour outside leaks in.
    fx, fy = image.width / width, image.height / height
    left, top, right, bottom = left * fx, top * fy, right * fx, bottom * fy
    outer = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    image = to_rgb(image.crop(outer))
    box = left - outer[0], top - outer[1], right - outer[0], bottom - outer[1]
    if fit == "squash":
        return image.resize((size, size), Image.Resampling.BILINEAR, box=box), crop_size
    pads = padding(crop_size, size)
    target = size - 2 * pads[0], size - 2 * pads[1]
    canvas = Image.new("RGB", (size, size), fill)
    canvas.paste(image.resize(target, Image.Resampling.BILINEAR, box=box), pads)
    return canvas, crop_size
