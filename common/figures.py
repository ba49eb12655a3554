"""Figures of a finished run (learning curves, confusion matrix, wrong predictions), and parts for other figures."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import softmax

from common.config import printable
from common.data.dataset import ClassificationDataset
from common.files import atomic_path
from common.metrics import METRICS

MAX_NAMED = 150  # classes in a confusion matrix

matplotlib.rcParams["text.parse_math"] = False  # category names may contain $


def save_figure(path: Path, figure: Figure, *, metadata: dict[str, str] | None = None) -> None:
    """Writes `figure` to `path` as PNG, with texts as `metadata`."""
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in other scripts: shown as boxes
        quick = {"compress_level": 4}  # for photos, half the time of the default for 6 % more bytes
        figure.savefig(partial, format="png", dpi=120, metadata=metadata, pil_kwargs=quick)


def curves(log: list[dict]) -> Figure:
    """Learning curves: train loss, val loss and val scores by epoch. `log` holds the lines of log.jsonl."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    train = [line for line in log if "loss" in line]
    val = [line for line in log if "val_loss" in line]
    train_epochs = [line["epoch"] for line in train]
    val_epochs = [line["epoch"] for line in val]
    left.plot(train_epochs, [line["loss"] for line in train], color="tab:blue", label="train", linewidth=1)
    left.plot(val_epochs, [line["val_loss"] for line in val], color="tab:orange", label="val", marker=".")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None))
    for name in ("accuracy", "f1", "macro_f1"):
        right.plot(val_epochs, [line[f"val_{name}"] for line in val], label=f"val {METRICS[name]}", marker=".")
    right.set(xlabel="epoch", ylim=(0, 1))
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def confusion(val: ClassificationDataset, logits: np.ndarray) -> Figure:
    """The confusion matrix of the val rows; `logits` is (N, C)."""
    side = confusion_side(val.classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    counts = confusion_counts(val.labels.numpy(), logits.argmax(1), len(val.classes))
    draw_confusion(axis, counts, val.classes)
    axis.set_title(f"{counts.trace()} of {counts.sum()} val rows correct", fontsize=11)
    return figure


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was predicted for each class, (C, C), from class numbers (N,)."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def confusion_side(classes: Sequence[str]) -> float:
    """Width and height in inches of a confusion matrix, with space for the class names, if they are shown."""
    return min(2.5 + 0.45 * len(classes), 30) if len(classes) <= MAX_NAMED else 14


def draw_confusion(axis: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draws the confusion matrix `counts` (C, C), with a row for each true class.

    Colours show shares of the true class. With at most 60 classes, the counts are written into the cells. With more
    than `MAX_NAMED`, whose names would overlap, the axes show the numbers of the classes.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts) if len(classes) <= 60 else ():
        text = f"{counts[row, column]:.1f}".removesuffix(".0")
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    if len(classes) > MAX_NAMED:
        axis.set(xlabel="predicted (number of the class, in alphabetical order)", ylabel="true")
        return
    names = list(map(printable, classes))
    axis.set_xticks(range(len(classes)), names, rotation=90)
    axis.set_yticks(range(len(classes)), names)
    axis.set(xlabel="predicted", ylabel="true")


def mistakes(val: ClassificationDataset, logits: np.ndarray, limit: int = 24) -> Figure:
    """The wrong predictions with the highest probabilities, and their images as cropped for the model."""
    labels, probabilities = val.labels.numpy(), softmax(logits, axis=1)
    predictions = probabilities.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:limit]
    columns, width, height, title, space = 6, 1.8, 2.25, 0.4, 0.1  # in inches, except columns
    rows = max(1, -(-len(wrong) // columns))
    figure = Figure(figsize=(columns * width, title + height * rows))
    axis = figure.add_axes((0, 0, 1, 1))  # one for all images, because each takes time; unit: inch
    for position, i in enumerate(wrong):
        row, column = divmod(position, columns)
        left, bottom = column * width, title + (row + 1) * height - space
        side = width - 2 * space
        image = val.pixels[val.index[i]].transpose(1, 2, 0)
        axis.imshow(image, extent=(left + space, left + space + side, bottom, bottom - side))
        prediction = f"{_shortened(val.classes[predictions[i]])} {probabilities[i].max():.0%}"
        text = f"{prediction}\nlabel: {_shortened(val.classes[labels[i]])}"
        axis.text(left + width / 2, bottom - side - space / 2, text, ha="center", va="bottom", fontsize=9)
    axis.set(xlim=(0, columns * width), ylim=(title + rows * height, 0))
    axis.axis("off")
    figure.suptitle(f"{(predictions != labels).sum()} of {len(labels)} val rows wrong, most confident first")
    return figure


def _shortened(name: str) -> str:
    """A class name that fits above an image of `mistakes`."""
    name = printable(name)
    return name if len(name) <= 18 else f"{name[:17]}\u2026"
