"""Boxes of several formats, and a check of all boxes of a table together: are they what they are taken for?

A single box can rarely tell. [100, 80, 300, 240] lies inside a photo as x, y, width, height, but also as corners. In a
whole table, boxes of another convention extend outside their images when read as x, y, width, height, and all of them
fit when read as what they are.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from common.config import count
from common.data.crop import edge_slack, malformed_box

FIT = 0.95  # a table follows a convention if at least this share of its boxes fits
DOUBTFUL = 0.1  # share of boxes clearly outside their images that makes another convention plausible
MANY = 20  # boxes; in a smaller table, those that extend outside by a pixel or two do not count

# Meaning of four numbers, how to convert them, and the function that does it: (N, 4) to x, y, width, height (N, 4)
CONVENTIONS: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    ("corners x1, y1, x2, y2", "[x1, y1, x2 - x1, y2 - y1]", lambda b: np.hstack([b[:, :2], b[:, 2:] - b[:, :2]])),
    (
        "YOLO's centre and size cx, cy, w, h",
        "[cx - w / 2, cy - h / 2, w, h]",
        lambda b: np.hstack([b[:, :2] - b[:, 2:] / 2, b[:, 2:]]),
    ),
]


def to_pixels(bbox: Any, box_format: str, size: Sequence[float]) -> Any:
    """A box as x, y, width, height in pixels, rounded to a thousandth of a pixel.

    Args:
        bbox: the box. Anything that is not four numbers is returned unchanged, for `box_problem` to refuse.
        box_format: "xywh", "xyxy" or "cxcywh", followed by " fractions" for fractions of the image; with "", which
            stands for x, y, width, height in pixels, the box is returned unchanged.
        size: width and height of the upright image.
    """
    if not box_format or bbox is None or malformed_box(bbox):
        return bbox
    name, _, fractions = box_format.partition(" ")
    a, b, c, d = (float(value) * (size[i % 2] if fractions else 1) for i, value in enumerate(bbox))
    if name == "xyxy":
        c, d = c - a, d - b
    elif name == "cxcywh":
        a, b = a - c / 2, b - d / 2
    return [round(value, 3) for value in (a, b, c, d)]


def are_fractions(boxes: Iterable[Any]) -> bool:
    """Whether most of the boxes, of any format, are fractions of their images. What is no box does not count."""
    values = np.array([[float(v) for v in box] for box in boxes if box is not None and not malformed_box(box)])
    return len(values) > 0 and bool((abs(values) <= 1.01).all(axis=1).mean() > 0.5)


def count_outside(rows: np.ndarray) -> int:
    """How many boxes extend outside their images, by however little; `rows` are those of `convention_problem`."""
    return int((~_fits(rows[:, :4], rows[:, 4:6])).sum())


def convention_problem(rows: np.ndarray) -> str | None:
    """Why boxes cannot be x, y, width, height in pixels of the upright images, and the conversion; None if they can.

    Args:
        rows: (N, 7), see `common.data.crop.box_row`. Rows with NaN or with absurd numbers are ignored.
    """
    rows = rows[(abs(rows) < 1e9).all(axis=1)]
    boxes, sizes, rotated = rows[:, :4], rows[:, 4:6], rows[:, 6] > 0
    fractions = np.all(abs(boxes) <= 1.01, axis=1) & np.all(boxes[:, 2:] > 0, axis=1)
    if fractions.sum() > len(boxes) / 2:
        conversions = [
            f" If they are {name}, first convert them to {formula}."
            for name, formula in _fitting(boxes[fractions], np.ones(2), slack=0.01)
        ]
        return (
            f"boxes such as {_examples(boxes[fractions])} ({fractions.sum():,} of {len(boxes):,}) look like fractions "
            "of the image, but a box is x, y, width, height in pixels: multiply x and width by the width of the image, "
            f"and y and height by its height.{''.join(conversions)}"
        )
    slack = np.maximum(2, sizes / 100)  # boxes drawn by hand extend a little outside
    if _is_doubtful(boxes[rotated], sizes[rotated], slack[rotated]):
        if _fits(boxes[rotated], sizes[rotated, ::-1], slack[rotated, ::-1]).mean() >= FIT:
            outside = rotated & ~_fits(boxes, sizes)
            return (
                f"{outside.sum()} of {rotated.sum()} boxes of photos that EXIF rotates extend outside the upright "
                f"image, such as {_examples(boxes[outside], sizes[outside])}. They look like boxes of the image as it "
                "is stored, of W x H pixels: convert them to [H - y - h, x, h, w] for orientation 6 and to "
                "[y, W - x - w, h, w] for 8."
            )
    outside = ~_fits(boxes, sizes)
    counted = outside if len(boxes) >= MANY else ~_fits(boxes, sizes, slack)
    most_outside = counted.sum() > max(1, len(boxes) / 2)
    conventions = _fitting(boxes, sizes, slack) if most_outside or _is_doubtful(boxes, sizes, slack) else []
    clipped = ~outside | _fits(boxes, sizes, edge_slack(sizes))
    if not conventions and (not most_outside or (~clipped).sum() <= max(1, len(boxes) / 2)):
        return None
    problem = f"{_share(outside)} extend outside their images, such as {_examples(boxes[outside], sizes[outside])}."
    if not conventions:
        return (
            f"{problem} A box is x, y, width, height in pixels of the upright image: convert them if they follow "
            "another convention or were made for images of another size."
        )
    names, formulas = (" or ".join(words) for words in zip(*conventions, strict=True))
    return (
        f"{problem} They look like {names}, but a box is x, y, width, height in pixels of the upright image: convert "
        f"them to {formulas}."
    )


def upper_left_note(rows: np.ndarray) -> str | None:
    """A sentence if the boxes all lie in the upper left quarter of their images, which is possible but suspicious.

    Args:
        rows: (N, 7), see `common.data.crop.box_row`. Rows with NaN are ignored. There is no sentence on fewer than
            `MANY` others.
    """
    rows = rows[np.isfinite(rows).all(axis=1)]
    upper_left = np.all(rows[:, :2] + rows[:, 2:4] <= rows[:, 4:6] / 2, axis=1)
    if len(rows) < MANY or upper_left.mean() < FIT:
        return None
    return (
        f"{_share(upper_left)} lie in the upper left quarter of their images: if they are percentages, or were made "
        "for smaller images, convert them to pixels of these images."
    )


def _fits(boxes: np.ndarray, sizes: np.ndarray, slack: Any = 0) -> np.ndarray:
    """Whether boxes x, y, width, height (N, 4) lie within images of `sizes` (N, 2), extended by `slack`."""
    starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return ((ends > starts) & (starts >= -slack) & (ends <= sizes + slack)).all(axis=1)


def _fitting(boxes: np.ndarray, sizes: np.ndarray, slack: Any) -> list[tuple[str, str]]:
    """Names and formulas of the other conventions that the boxes follow."""
    return [
        (name, formula) for name, formula, convert in CONVENTIONS if _fits(convert(boxes), sizes, slack).mean() >= FIT
    ]


def _is_doubtful(boxes: np.ndarray, sizes: np.ndarray, slack: np.ndarray) -> bool:
    """Whether at least two boxes, and a tenth of those that do not start at 0, 0, are clearly outside."""
    return (~_fits(boxes, sizes, slack)).sum() >= max(2, DOUBTFUL * boxes[:, :2].any(axis=1).sum())


def _share(chosen: np.ndarray) -> str:
    return f"{chosen.sum():,} of {count(len(chosen), 'box')}"


def _examples(boxes: np.ndarray, sizes: np.ndarray | None = None) -> str:
    """The first three boxes and, if given, the sizes of their images."""
    texts = [f"[{', '.join(f'{value:g}' for value in box)}]" for box in boxes[:3].round(3)]
    if sizes is not None:
        texts = [f"{text} in {w:g} x {h:g}" for text, (w, h) in zip(texts, sizes[:3], strict=True)]
    return ", ".join(texts)
