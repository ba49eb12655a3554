"""One picture of what predict.py says: photos with their boxes, categories and probabilities."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from common.crop import box_problem, crop_image
from common.inputs import Inputs
from common.pixels import encoded_bytes
from common.report import plt, save_figure

MOST, COLUMNS = 24, 6  # photos in all and in a line
SIDE = 320  # pixels of a photo's longer side


def save_gallery(path: Path, inputs: Inputs, texts: Sequence[str], right: Sequence[bool | None]) -> None:
    """Draws up to `MOST` photos, evenly chosen, with every box of each.

    Args:
        texts: (N,) what is said of each item, such as "chair 91%", or why nothing is.
        right: (N,) whether that is its label, which decides the colour; None where there is no label.
    """
    photos: dict[int, list[int]] = {}
    for i, image in enumerate(inputs.images):
        photos.setdefault(image, []).append(i)
    numbers = np.linspace(0, len(photos) - 1, min(MOST, len(photos))).round().astype(int)
    chosen = [list(photos.values())[number] for number in numbers]
    columns, lines = min(COLUMNS, len(chosen)), -(-len(chosen) // COLUMNS)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.3 * columns, 2.6 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, items in zip(axes.flat, chosen, strict=False):
        _draw(axis, inputs, items, texts, right)
    save_figure(path, figure)


def _draw(axis: plt.Axes, inputs: Inputs, items: list[int], texts: Sequence[str], right: Sequence[bool | None]) -> None:
    """One photo and its items."""
    try:
        image = Image.open(io.BytesIO(encoded_bytes(inputs.stored(items[0], items[0] + 1)[0])))
        photo, sides = crop_image(image, size=SIDE, fit="pad", fill=(255, 255, 255))
    except Exception:  # it cannot be shown; the text says why
        photo, sides = Image.new("RGB", (SIDE, SIDE), "lightgray"), (SIDE, SIDE)
    scale = SIDE / max(sides)
    left, top = ((SIDE - scale * side) / 2 for side in sides)
    axis.imshow(photo, extent=(0, SIDE, SIDE, 0))
    for i in items:
        color = {None: "tab:blue", True: "tab:green", False: "tab:red"}[right[i]]
        if box_problem(inputs.boxes[i], *sides) is None:
            x, y, width, height = (scale * v for v in inputs.boxes[i])
            frame = plt.Rectangle((left + x, top + y), width, height, fill=False, edgecolor=color, linewidth=2)
            axis.add_patch(frame)
            if len(items) > 1:
                words = dict(fontsize=7, color="white", backgroundcolor=color, va="bottom", clip_on=True)
                axis.text(left + x, top + y, texts[i], **words).set_in_layout(False)
    if len(items) == 1:
        axis.set_title(textwrap.fill(texts[items[0]], 30, replace_whitespace=False), color=color, fontsize=9)
    axis.set(xlim=(0, SIDE), ylim=(SIDE, 0))
