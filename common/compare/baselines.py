"""Baselines without a neural network: the majority class, and the nearest neighbour by colour and edge histograms."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import rgb_to_hsv
from sklearn.neighbors import KNeighborsClassifier

from common.compare.experiments import Experiment, join_folds, split_of
from common.compare.questions import ScoredExperiment
from common.config import InputError
from common.data.dataset import ClassificationDataset
from common.data.splits import Split
from common.finished_run import FinishedRun

CELLS = 4  # histograms are computed for each of 4 x 4 cells of an image


def find_baselines(experiments: Sequence[Experiment], **source: str) -> tuple[list[ScoredExperiment], list[str]]:
    """Scores the baselines on the val rows of `experiments`; `source` is passed to `FinishedRun.splits`.

    Returns:
        The majority class, and a nearest neighbour for full images and one for crops, if any experiment uses them; and
        a note for each nearest neighbour that could not be computed.
    """
    baselines, notes = [ScoredExperiment(majority(experiments[0]))], []
    for view in ("full", "crop"):
        experiment = next((e for e in experiments if e.variant.startswith(view)), None)
        if experiment is None:
            continue
        try:
            baselines.append(ScoredExperiment(nearest_neighbour(experiment, **source)))
        except InputError as error:
            notes.append(f"the nearest-neighbour baseline ({view}) is missing: {error}")
    return baselines, notes


def majority(experiment: Experiment) -> Experiment:
    """Predicts the most frequent train class for every val row of `experiment`."""
    return _baseline("majority class", "", experiment, lambda run: run.report["majority"])


def nearest_neighbour(experiment: Experiment, **source: str) -> Experiment:
    """Predicts for each val row the class of the most similar train row.

    Images are compared by the Manhattan distance between their `describe_pixels` histograms, computed from the same
    pixels that the runs of `experiment` use.

    Raises:
        InputError: the data is missing or has changed since the runs were trained.
    """

    def predict(run: FinishedRun) -> np.ndarray:
        train, val = run.splits(**source)
        classifier = KNeighborsClassifier(1, metric="manhattan").fit(describe_split(train), train.labels.numpy())
        return np.array(val.classes)[classifier.predict(describe_split(val))]

    view = "crop" if experiment.variant.startswith("crop") else "full"
    return _baseline("nearest neighbour", view, experiment, predict)


def _baseline(
    name: str, view: str, experiment: Experiment, predict: Callable[[FinishedRun], str | np.ndarray]
) -> Experiment:
    """The experiment of a baseline, which has no seeds but partitions.

    `predict` returns the predicted class of all val rows of a run, or of each. It is called once for each split.
    """
    partitions: dict[int, dict[Split, pd.DataFrame]] = {}
    for split, run in {split_of(run): run for run in experiment.runs}.items():
        partitions.setdefault(split.partition, {})[split] = run.rows.assign(prediction=predict(run))
    tables = [join_folds(partitions[partition]) for partition in sorted(partitions)]
    return Experiment(
        name,
        view,
        sorted(partitions),
        experiment.ids,
        splits=np.stack([table["split_by"] for table in tables]).astype(str),
        predictions=np.stack([table["prediction"] for table in tables]),
        shared_products=experiment.shared_products,
    )


def describe_split(split: ClassificationDataset, batch_size: int = 256) -> np.ndarray:
    """The `describe_pixels` histograms of all rows, (N, D) float32."""
    batches = [split.pixels[split.index[i : i + batch_size]] for i in range(0, len(split), batch_size)]
    return np.concatenate([describe_pixels(images) for images in batches])


def describe_pixels(images: np.ndarray) -> np.ndarray:
    """Histograms (B, D) float32 of RGB images (B, 3, S, S) uint8.

    Each of 4 x 4 cells has a histogram of hue and saturation, one of brightness (V in HSV), and one of edge
    directions weighted by edge strength (HOG: Dalal and Triggs, 2005). Each of the three sums to 1 over the cells of an
    image; the last is all zero for an image without edges.
    """
    hsv = rgb_to_hsv(images.transpose(0, 2, 3, 1) / 255.0)
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    dy, dx = np.gradient(value, axis=(1, 2))
    direction = np.arctan2(dy, dx) % np.pi / np.pi
    strength = np.hypot(dx, dy)
    ones = np.ones_like(value)
    histograms = [
        _histogram([(hue, 8), (saturation, 3)], ones),
        _histogram([(value, 8)], ones),
        _histogram([(direction, 9)], strength),
    ]
    return np.concatenate([h / np.maximum(h.sum(1, keepdims=True), 1e-9) for h in histograms], axis=1).astype("f4")


def _histogram(axes: Sequence[tuple[np.ndarray, int]], weights: np.ndarray) -> np.ndarray:
    """Weighted counts (B, 16 x bins) for each image, cell and bin.

    `axes` are pairs of values (B, S, S) in [0, 1] and their number of bins; `weights` is (B, S, S).
    """
    b, size, _ = weights.shape
    cell = np.arange(size) * CELLS // size
    index = (np.arange(b)[:, None, None] * CELLS + cell[:, None]) * CELLS + cell  # (B, S, S)
    bins = CELLS * CELLS
    for values, count in axes:
        index = index * count + np.minimum((values * count).astype(int), count - 1)
        bins *= count
    return np.bincount(index.ravel(), weights=weights.ravel(), minlength=b * bins).reshape(b, bins)
