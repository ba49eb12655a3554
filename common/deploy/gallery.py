"""The figure of `predict.py --gallery`: photos with their boxes and predictions."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from common.data.crop import box_problem, crop_image
from common.data.pixels import open_image
from common.deploy.inputs import Inputs
from common.figures import save_figure

MAX_PHOTOS = 24
COLUMNS = 6  # of photos of one crop each
WIDE_COLUMNS = 4
MAX_LINES = 12  # captions below a photo of several crops
SIDE = 320  # longer side of each photo in pixels
SOFTWARE = "predict.py --gallery"  # in the PNG file


def save_gallery(
    path: Path, inputs: Inputs, captions: Sequence[str], correct: Sequence[bool | None], *, max_megapixels: int
) -> None:
    """Draws up to `MAX_PHOTOS` photos, evenly spaced in `inputs`, each with all its boxes.

    The caption of a photo's only crop is its title. If there are several crops, they are numbered, and up to
    `MAX_LINES` captions are below the photo, those of mistakes first.

    Args:
        path: PNG file.
        inputs: N crops; those of one image are drawn on one photo.
        captions: (N,) the caption of each crop, such as "chair 91%" or an error.
        correct: (N,) whether the prediction equals the label: green if it does, red if not, blue for None (no label, or
            no answer).
        max_megapixels: larger photos are drawn as grey squares, like those that cannot be read.
    """
    photos: dict[int, list[int]] = {}
    for i, image in enumerate(inputs.images):
        photos.setdefault(image, []).append(i)
    positions = np.linspace(0, len(photos) - 1, min(MAX_PHOTOS, len(photos))).round().astype(int)
    chosen = [list(photos.values())[position] for position in positions]
    lines = min(MAX_LINES + 1, max(map(len, chosen)))
    columns, width, height = (COLUMNS, 2.3, 2.6) if lines == 1 else (WIDE_COLUMNS, 3.4, 3.6 + 0.14 * lines)
    columns = min(columns, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    files = inputs.encoded([crops[0] for crops in chosen])
    for axis, encoded, crops in zip(axes.flat, files, chosen, strict=False):
        _draw_photo(axis, encoded, inputs, crops, captions, correct, max_megapixels)
    save_figure(path, figure, metadata={"Software": SOFTWARE})


def is_gallery(path: Path) -> bool:
    """Whether `path` is a file of `save_gallery`."""
    with open(path, "rb") as file:
        return f"Software\0{SOFTWARE}".encode() in file.read(1000)


def _draw_photo(
    axis: Axes,
    encoded: bytes | str,
    inputs: Inputs,
    crops: list[int],
    captions: Sequence[str],
    correct: Sequence[bool | None],
    max_megapixels: int,
) -> None:
    """Draws the photo that `crops`, indices into `inputs`, belong to, with their boxes and captions."""
    try:
        image = open_image(encoded, max_megapixels=max_megapixels)
        photo, sides = crop_image(image, size=SIDE, fit="pad", fill=(255, 255, 255))
    except Exception:  # broken image: the caption states the error
        photo, sides = Image.new("RGB", (SIDE, SIDE), "lightgray"), (SIDE, SIDE)
    scale = SIDE / max(sides)
    left, top = ((SIDE - scale * side) / 2 for side in sides)
    axis.imshow(photo, extent=(0, SIDE, SIDE, 0))
    axis.set_anchor("N")  # captions are below
    captions_below = []
    for number, i in enumerate(crops, 1):
        color, box = {None: "tab:blue", True: "tab:green", False: "tab:red"}[correct[i]], inputs.boxes[i]
        captions_below.append((correct[i] is not False, f"{number}: {captions[i]}", color))
        if box is not None and box_problem(box, *sides) is None:
            x, y, width, height = (scale * v for v in box)
            frame = Rectangle((left + x, top + y), width, height, fill=False, edgecolor=color, linewidth=2)
            axis.add_patch(frame)
            if len(crops) > 1:
                background = {"facecolor": color, "edgecolor": "none", "pad": 1}
                axis.text(left + x, top + y, str(number), fontsize=6, color="white", va="top", bbox=background)
    if len(crops) == 1:
        axis.set_title(textwrap.fill(captions[crops[0]], 30, replace_whitespace=False), color=color, fontsize=9)
    else:
        captions_below.sort(key=lambda caption: caption[0])  # mistakes first
        if len(crops) > MAX_LINES:
            captions_below[MAX_LINES:] = [(True, f"and {len(crops) - MAX_LINES} more", "black")]
        for line, (_, text, color) in enumerate(captions_below):
            text, place = textwrap.shorten(text, 58, placeholder="..."), (0, -5 - 9 * line)
            axis.annotate(text, (0, SIDE - top), place, textcoords="offset points", va="top", color=color, fontsize=7)
    axis.set(xlim=(0, SIDE), ylim=(SIDE, 0))
