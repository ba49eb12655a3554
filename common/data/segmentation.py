"""Masks of objects as annotations have them: polygons, or COCO's run-length encoding."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from common.data.table import parse_box


def segmentation_of(value: Any) -> list[list[float]] | dict | None:
    """The polygons or the run-length encoding in an annotation; None if there is neither.

    A polygon has at least three points.
    """
    if isinstance(value, dict) and {"counts", "size"} <= value.keys():
        return {"counts": value["counts"], "size": value["size"]}
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        return None
    polygons = [parse_box(polygon) or [] for polygon in value]
    kept = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return kept if kept and np.isfinite(np.concatenate(kept)).all() else None


def bounds(points: Sequence[float]) -> list[float]:
    """x, y, width, height of the points x1, y1, x2, y2, ..."""
    xs, ys = points[::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def draw_mask(text: str | None, size: tuple[int, int]) -> Image.Image:
    """The mask of an object in an upright image of `size` (width, height): 255 within it, 0 elsewhere.

    Args:
        text: a value of a column of type `common.data.table.SEGMENTATION`.

    Raises:
        ValueError: there is no mask, or it is not one of this image.
    """
    value = json.loads(text) if text else None
    if not value:
        raise ValueError("it has no outline")
    if isinstance(value, list):
        return _draw_polygons(value, size)
    if "fractions" in value:
        return _draw_polygons([np.ravel(np.reshape(value["fractions"], (-1, 2)) * size).tolist()], size)
    width, height = size
    if value["size"] != [height, width]:
        raise ValueError(f"its size (height, width) is {value['size']}, but that of the image is {[height, width]}")
    return Image.fromarray(decode_runs(value["counts"], height, width) * np.uint8(255))


def _draw_polygons(polygons: list[list[float]], size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    for polygon in polygons:
        points = np.clip(np.asarray(polygon), -1e5, 1e5).reshape(-1, 2)
        starts = np.clip(np.floor(points.min(0)), 0, size).astype(int)
        ends = np.clip(np.ceil(points.max(0)), 0, size).astype(int)
        width, height = (ends - starts).tolist()
        if min(width, height) > 0:
            scale = 4 if width * height < 1_000_000 else 1  # Pillow also fills the pixels that an edge touches
            part = Image.new("L", (width * scale, height * scale))
            ImageDraw.Draw(part).polygon(((points - starts) * scale).ravel().tolist(), fill=255)
            box = (*starts.tolist(), *ends.tolist())
            mask.paste(ImageChops.lighter(mask.crop(box), part.reduce(scale)), box)
    return mask


def decode_runs(counts: Any, height: int, width: int) -> np.ndarray:
    """A mask (height, width) uint8 of 0 and 1 from COCO's run-length encoding.

    The runs go down the columns, from left to right, and are alternately of zeros and of ones; the first is of zeros.

    Args:
        counts: the lengths of the runs, or a text of them as pycocotools compresses it.

    Raises:
        ValueError: these are no lengths, or their sum is not the number of pixels.
    """
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("its run-length encoding is damaged")
    if sum(runs) != height * width:
        raise ValueError(f"its run-length encoding has {sum(runs)} pixels instead of {height} x {width}")
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """The lengths in a text of characters with 6 bits each, 48 added: 5 bits of a number, the lowest first, and whether
    more follow. Numbers are signed; from the fourth on, each is the difference to the one two places before."""
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its run-length encoding is damaged")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) << 1 << shift - 5
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
