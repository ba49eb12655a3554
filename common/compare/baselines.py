"""Baselines that train no network: the majority class, neighbours by colour and edges, and frozen ImageNet features."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torchvision
from accelerate import Accelerator
from matplotlib.colors import rgb_to_hsv
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from common.compare.experiments import Experiment, join_folds
from common.compare.questions import ScoredExperiment
from common.config import IMAGENET, InputError
from common.data.dataset import ClassificationDataset
from common.data.pixels import normalize
from common.data.splits import Split
from common.evaluate import EVAL_BATCH
from common.pretrained import load_backbone, read_state_dict, weights_file

BACKBONE = "resnet18"  # of torchvision
PROBE_C = 0.01  # inverse strength of the regularisation, chosen by folds of the products in the sample's train split
Classifier = Callable[[ClassificationDataset, ClassificationDataset], np.ndarray]
CELLS = 4  # histograms are computed for each of 4 x 4 cells of an image


def find_baselines(experiments: Sequence[Experiment], **source: str) -> tuple[list[ScoredExperiment], list[str]]:
    """Scores the baselines on the val rows of `experiments`; `source` is passed to `FinishedRun.splits`.

    Returns:
        The majority class, and for full images and for crops, if any experiment uses them: a nearest neighbour and, if
        the weights of `BACKBONE` are in the cache, a nearest neighbour and a linear classifier on its features. And a
        note for each kind of image whose baselines could not be computed.
    """
    baselines, notes = [ScoredExperiment(majority(experiments[0]))], []
    try:
        features = Features.from_cache()
    except InputError as error:
        features, notes = None, [f"the baselines on ImageNet features are missing: {error}"]
    for view in ("full", "crop"):
        members = [e for e in experiments if e.variant.startswith(view)]
        if not members:
            continue
        try:
            found = image_baselines({"nearest neighbour": nearest_histogram}, view, members[0], **source)
            if features:
                # ImageNet weights suit large images
                largest = max(members, key=lambda experiment: experiment.runs[0].info.config["image_size"])
                found += image_baselines(features.classifiers(), view, largest, **source)
            baselines += [ScoredExperiment(baseline) for baseline in found]
        except InputError as error:
            notes.append(f"the nearest-neighbour baseline ({view}) is missing: {error}")
    return baselines, notes


def majority(experiment: Experiment) -> Experiment:
    """Predicts the most frequent train class for every val row of `experiment`."""
    predictions = {split: run.report["majority"] for split, run in experiment.run_of_split.items()}
    return _baseline("majority class", "", experiment, predictions)


def image_baselines(
    classifiers: dict[str, Classifier], view: str, experiment: Experiment, **source: str
) -> list[Experiment]:
    """The experiment of each of `classifiers`, by name, on the pixels that the runs of `experiment` use.

    Raises:
        InputError: the data is missing or has changed since the runs were trained.
    """
    predictions: dict[str, dict[Split, np.ndarray]] = {name: {} for name in classifiers}
    for split, run in experiment.run_of_split.items():
        train, val = run.splits(**source)
        for name, classify in classifiers.items():
            predictions[name][split] = np.array(val.classes)[classify(train, val)]
    return [_baseline(name, view, experiment, predictions[name]) for name in classifiers]


def nearest_histogram(train: ClassificationDataset, val: ClassificationDataset) -> np.ndarray:
    """The class numbers (N,) of the train rows most similar to the N val rows.

    Images are compared by the Manhattan distance between their `describe_pixels` histograms.
    """
    classifier = KNeighborsClassifier(1, metric="manhattan").fit(describe_split(train), train.labels.numpy())
    return classifier.predict(describe_split(val))


class Features:
    """The features of a frozen torchvision model pretrained on ImageNet, and classifiers on them."""

    def __init__(self, model: nn.Module):
        self.device = Accelerator().device
        self.model = model.to(self.device).eval()
        self.of_file: dict[str, np.ndarray] = {}  # the folds of a study are parts of the same pixel file

    @classmethod
    def from_cache(cls) -> "Features | None":
        """Those of `BACKBONE`; None if its weights are not in the cache, as nothing is downloaded.

        Raises:
            InputError: the file is damaged, or holds weights of another model.
        """
        path = weights_file(BACKBONE)
        if not path.is_file():
            return None
        model = torchvision.models.get_model(BACKBONE)
        model.fc = nn.Identity()
        load_backbone(model, read_state_dict(str(path)), source=str(path), head="fc.")
        return cls(model)

    def classifiers(self) -> dict[str, Classifier]:
        return {
            f"nearest neighbour ({BACKBONE})": self.nearest,
            f"linear probe ({BACKBONE})": self.linear_probe,
        }

    @torch.no_grad()
    def of(self, split: ClassificationDataset) -> np.ndarray:
        """The features (N, D) float64 of a split, as the cosine of similar features is close to 1."""
        name = str(getattr(split.pixels, "filename", id(split.pixels)))
        if name not in self.of_file:
            batches = (split.pixels[i : i + EVAL_BATCH] for i in range(0, len(split.pixels), EVAL_BATCH))
            images = (normalize(torch.from_numpy(batch.copy()).to(self.device), IMAGENET) for batch in batches)
            self.of_file[name] = torch.cat([self.model(batch).double().cpu() for batch in images]).numpy()
        return self.of_file[name][split.index]

    def nearest(self, train: ClassificationDataset, val: ClassificationDataset) -> np.ndarray:
        """The class of the train row with the most similar features, by the cosine of their angle."""
        return KNeighborsClassifier(1, metric="cosine").fit(self.of(train), train.labels.numpy()).predict(self.of(val))

    def linear_probe(self, train: ClassificationDataset, val: ClassificationDataset) -> np.ndarray:
        """Logistic regression on standardised features."""
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=1000))
        return probe.fit(self.of(train), train.labels.numpy()).predict(self.of(val))


def _baseline(
    name: str, view: str, experiment: Experiment, predictions: Mapping[Split, str | np.ndarray]
) -> Experiment:
    """The experiment of a baseline, which has no seeds but partitions.

    `predictions` has the predicted class of all val rows of a split, or of each.
    """
    runs = experiment.run_of_split
    partitions: dict[int, dict[Split, pd.DataFrame]] = {}
    for split, prediction in predictions.items():
        partitions.setdefault(split.partition, {})[split] = runs[split].rows.assign(prediction=prediction)
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
