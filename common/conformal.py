"""Sets of categories that hold the right one with a chosen probability, also for new products.

This is split conformal prediction (Papadopoulos et al., 2002; Vovk et al., 2005) for rows in clusters, such as photos
of products: hierarchical conformal prediction (Dunn, Wasserman and Ramdas, 2022; Lee, Barber and Willett, 2023). A
category is in the set of a photo if its probability is high enough (Sadinle, Lei and Wasserman, 2019).
docs/statistics.md says what is guaranteed and what is not.
"""

import math
from dataclasses import dataclass

import numpy as np

from common.config import InputError, count
from common.data.splits import connected_groups
from common.finished_run import FinishedRun

ROUNDING = 1e-9  # of sums of weights


@dataclass(frozen=True)
class Calibration:
    """Which categories are possible for a photo, and whether it may show none of them, at a given risk."""

    risk: float  # the largest probability that the set of a photo of a new product lacks the right category
    least: float  # the lowest probability of a category in a set
    familiar: float  # the lowest probability of the predicted category of a photo that is not `unlike`
    rows: int  # that it was calibrated on
    clusters: int  # of these rows: K products, or photos
    unit: str  # what a cluster is: "product" or "photo"

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Which categories are in the set of each photo, (N, C) bool, for probabilities (N, C)."""
        return probabilities.astype(np.float32) >= np.float32(self.least)  # in the precision of the run's file

    def unlike(self, probabilities: np.ndarray) -> np.ndarray:
        """Which photos may show none of the categories, (N,) bool.

        This is wrong for a photo of a new product with a probability of at most `risk`, too.

        Their highest probability is below `familiar` (Hendrycks and Gimpel, 2017).
        """
        return probabilities.astype(np.float32).max(1) < np.float32(self.familiar)

    @property
    def promise(self) -> str:
        """The guarantee in one sentence."""
        photo = "a random photo of a new product" if self.unit == "product" else "a random object in a new photo"
        return (
            f"--risk {self.risk:g}, calibrated on {count(self.rows, 'val row')} of "
            f"{count(self.clusters, self.unit)}: if new {self.unit}s are like these, the set of {photo} holds the "
            f"right category with a probability of at least {100 * (1 - self.risk):g} %; a wrong answer, and being "
            f"taken for something else, each have a probability of at most {100 * self.risk:g} %"
        )


def upper_bound(scores: np.ndarray, clusters: np.ndarray, risk: float) -> float:
    """A value that a random score of a new cluster exceeds with a probability of at most `risk`.

    It is the (1 - risk) quantile of the distribution in which each of K clusters has the weight 1 / (K + 1), shared by
    its rows, and infinity has the remaining 1 / (K + 1): inf if `risk` is below that.

    Args:
        scores: (N,).
        clusters: (N,) int, the cluster of each row.
        risk: in (0, 1).
    """
    _, inverse, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    sums = np.cumsum(1 / counts[inverse[order]])  # of the weights, multiplied by K + 1
    position = np.searchsorted(sums, (1 - risk) * (len(counts) + 1) - ROUNDING)
    return float(scores[order[position]]) if position < len(scores) else math.inf


def clusters_needed(risk: float) -> int:
    """The smallest number of clusters for which `upper_bound` is finite."""
    return math.ceil(1 / risk - 1 - ROUNDING)


def calibration_rows(run: FinishedRun) -> tuple[np.ndarray, np.ndarray, str]:
    """The val rows of a run whose products do not occur in train.

    Returns:
        Which of the N val rows these are, (N,) bool; the cluster of each of the M rows, (M,) int: rows that share a
        product or a photo; and what a cluster is, "product" or "photo".
    """
    products = run.report["products"]
    new = ~run.rows["product_id"].isin(products["shared"] if products else []).to_numpy()
    rows = run.rows[new]
    unit = "product" if products and (rows["product_id"] != "").all() else "photo"
    clusters = connected_groups(rows["product_id"], rows["image_id"]) if len(rows) else np.empty(0, np.int64)
    return new, clusters, unit


def calibrate(run: FinishedRun, risk: float) -> Calibration:
    """The calibration on the `calibration_rows` of a run.

    Raises:
        InputError: they have too few clusters for this risk, or the run has no probabilities of all classes.
    """
    new, clusters, unit = calibration_rows(run)
    number, needed = len(np.unique(clusters)), clusters_needed(risk)
    if number < needed:
        column = "product_id" if run.report["products"] else "image_id"
        folds = run.info.config["split_by"].startswith(column)
        advice = "train with fewer folds" if folds else f"train with --split-by {column}"
        smallest = math.ceil(1e4 / (number + 1)) / 1e4
        instead = f", or choose --risk {smallest:g} or more" if number else ""
        raise InputError(
            f"--risk {risk:g} needs at least {count(needed, unit)} in val that are not in train, and {run.name} has "
            f"{number}: {advice}{instead}."
        )
    labels = np.searchsorted(run.info.classes, run.rows["label"][new])
    probabilities = run.probabilities[new]
    of_label = probabilities[np.arange(len(labels)), labels]
    least, familiar = (-upper_bound(-values, clusters, risk) for values in (of_label, probabilities.max(1)))
    return Calibration(risk, least, familiar, len(labels), number, unit)
