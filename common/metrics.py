"""Scores of one set of predictions, by scikit-learn."""

import numpy as np


def row_losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Cross-entropy (N,) in nats of each row; `labels` (N,) int, `logits` (N, C)."""
    from scipy.special import log_softmax

    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """The scores of `logits` (N, C) on `labels` (N,) int, as plain numbers.

    Returns:
        n; accuracy; precision, recall and f1 weighted by class support (a class without predictions counts 0);
        macro_f1; loss, the mean cross-entropy in nats; top5, the share of rows whose label is among the five highest
        logits, where there are more than ten classes.
    """
    from sklearn.metrics import f1_score, precision_recall_fscore_support, top_k_accuracy_score  # takes seconds

    predictions = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions, average="weighted", zero_division=0)
    result = {
        "n": len(labels),
        "accuracy": float((predictions == labels).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
        "loss": float(row_losses(labels, logits).mean()),
    }
    if logits.shape[1] > 10:
        result["top5"] = float(top_k_accuracy_score(labels, logits, k=5, labels=np.arange(logits.shape[1])))
    return result


COUNTED = ("accuracy", "precision", "recall", "f1", "macro_f1")


def scores_of_counts(right: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The scores `COUNTED` (..., 5) from numbers of rows per class (..., C), as scikit-learn computes them.

    `right` are the rows of a class that are predicted as it, `predicted` all rows predicted as it, `support` all rows
    of it. For thousands of splits at once, which scikit-learn would take minutes for.
    """
    n = support.sum(-1)
    recall, precision = right / np.maximum(support, 1), right / np.maximum(predicted, 1)
    f1 = 2 * right / np.maximum(support + predicted, 1)
    weighted = [(support * score).sum(-1) / n for score in (precision, recall, f1)]
    there = (support + predicted > 0).sum(-1)  # a class that neither occurs nor is predicted has no F1
    return np.stack([right.sum(-1) / n, *weighted, f1.sum(-1) / there], axis=-1)


def counts_per_cluster(labels: np.ndarray, predictions: np.ndarray, clusters: np.ndarray, num_classes: int) -> tuple:
    """Arguments of `scores_of_counts` for each seed and cluster: `labels` and `clusters` (N,) int, clusters numbered
    from 0, `predictions` (S, N) int; each count is (S, G, C)."""
    shape = (len(predictions), clusters.max() + 1, num_classes)
    right, predicted, support = (np.zeros(shape) for _ in range(3))
    for s, guesses in enumerate(predictions):
        np.add.at(support[s], (clusters, labels), 1)
        np.add.at(predicted[s], (clusters, guesses), 1)
        hit = guesses == labels
        np.add.at(right[s], (clusters[hit], labels[hit]), 1)
    return right, predicted, support


def calibration_bins(probabilities: np.ndarray, right: np.ndarray, bins: int = 10) -> np.ndarray:
    """Rows, sum of probabilities and number right (3, bins) of predictions (N,) in equal bins of their probability."""
    numbers = np.minimum((probabilities * bins).astype(int), bins - 1)
    return np.stack(
        [np.bincount(numbers, weights=w, minlength=bins) for w in (np.ones(len(right)), probabilities, right)]
    )


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error of the predicted classes' probabilities (N,) (Guo et al., 2017)."""
    _, expected, there = calibration_bins(probabilities, right)
    return float(np.abs(expected - there).sum() / len(right))


def epoch_line(epoch: int, epochs: int, train_loss: float, result: dict, seconds_left: float) -> str:
    """One line of an epoch's scores and the time left."""
    names = ("accuracy", "precision", "recall", "f1", "macro_f1", "top5")
    shown = "  ".join(f"{name} {result[name]:.3f}" for name in names if name in result)
    minutes, seconds = divmod(round(seconds_left), 60)
    place = f"epoch {epoch:{len(str(epochs))}}/{epochs}  {minutes}:{seconds:02} left"
    return f"{place}  train loss {train_loss:.3f}  val: loss {result['loss']:.3f}  {shown}"
