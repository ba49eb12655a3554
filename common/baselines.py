"""What needs no network: the majority class, and the nearest neighbour by colours and edges."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import rgb_to_hsv
from sklearn.neighbors import KNeighborsClassifier

from common.data import ClassificationDataset
from common.finished import Experiment

CELLS = 4  # the picture is cut into 4 x 4 cells, each with histograms of its own


def majority(experiment: Experiment) -> Experiment:
    """The most frequent train class, for every row that `experiment` was validated on."""
    of_split = {run.run["config"]["split_by"]: run.report["majority"] for run in experiment.runs}
    predictions = experiment.ids["split_by"].map(of_split).to_numpy()[None]
    return _baseline("majority class", "", experiment, predictions)


def nearest_neighbour(experiment: Experiment) -> Experiment:
    """Each val row's most similar train row, by `describe_pixels` of the pixels that the experiment's runs read.

    Raises:
        InputError: the data is not there any more, or is not what it was.
    """
    guesses = {}
    for run in {run.run["config"]["split_by"]: run for run in experiment.runs}.values():
        train, val = run.splits()
        near = KNeighborsClassifier(1, metric="manhattan").fit(describe_split(train), train.labels.numpy())
        names = np.array(val.classes)[near.predict(describe_split(val))]
        ids = pd.DataFrame(val.ids()).assign(split_by=run.run["config"]["split_by"])
        guesses |= dict(zip(_row_keys(ids), names, strict=True))
    predictions = np.array([[guesses[row] for row in _row_keys(experiment.ids)]])
    what = "crop" if experiment.variant.startswith("crop") else "full"
    return _baseline("nearest neighbour", what, experiment, predictions)


def _baseline(name: str, what: str, experiment: Experiment, predictions: np.ndarray) -> Experiment:
    return Experiment(name, what, [0], experiment.ids, predictions, shared_products=experiment.shared_products)


def describe_split(split: ClassificationDataset, at_once: int = 256) -> np.ndarray:
    """`describe_pixels` of every row."""
    parts = [split.pixels[split.index[i : i + at_once]] for i in range(0, len(split), at_once)]
    return np.concatenate([describe_pixels(part) for part in parts])


def describe_pixels(images: np.ndarray) -> np.ndarray:
    """Histograms (B, D) float32 of uint8 images (B, 3, S, S): in each of 4 x 4 cells the colours (hue by saturation,
    and value) and the directions of edges, by their strength (HOG: Dalal and Triggs, 2005). Each kind sums to 1.
    """
    hsv = rgb_to_hsv(images.transpose(0, 2, 3, 1) / 255.0)
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    dy, dx = np.gradient(value, axis=(1, 2))
    angle, strength = np.arctan2(dy, dx) % np.pi / np.pi, np.hypot(dx, dy)
    ones = np.ones_like(value)
    kinds = [
        _histogram([(hue, 8), (saturation, 3)], ones),
        _histogram([(value, 8)], ones),
        _histogram([(angle, 9)], strength),
    ]
    return np.concatenate([kind / np.maximum(kind.sum(1, keepdims=True), 1e-9) for kind in kinds], axis=1).astype("f4")


def _histogram(axes: Sequence[tuple[np.ndarray, int]], weights: np.ndarray) -> np.ndarray:
    """Weighted counts per image, cell and bin (B, 16 x bins); `axes` are values in [0, 1] (B, S, S) and their bins."""
    b, size, _ = weights.shape
    cell = np.arange(size) * CELLS // size
    place = (np.arange(b)[:, None, None] * CELLS + cell[:, None]) * CELLS + cell  # (B, S, S)
    bins = CELLS * CELLS
    for values, count in axes:
        place, bins = place * count + np.minimum((values * count).astype(int), count - 1), bins * count
    return np.bincount(place.ravel(), weights=weights.ravel(), minlength=b * bins).reshape(b, bins)


def _row_keys(rows: pd.DataFrame) -> list[tuple]:
    """image_id, fold and, should an id occur twice there, its number among those."""
    keys = rows[["split_by", "image_id"]]
    return list(zip(keys["split_by"], keys["image_id"], keys.groupby(list(keys)).cumcount(), strict=True))
