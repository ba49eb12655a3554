"""Classification scores, leave-one-cluster-out scores for the jackknife, and calibration."""

import numpy as np
from scipy.special import log_softmax

METRICS = {  # names and titles of the scores reported with intervals, in the order of `scores_of_counts`
    "accuracy": "accuracy",
    "precision": "weighted precision",
    "recall": "weighted recall",
    "f1": "weighted F1",
    "macro_f1": "macro F1",
}
MAX_COUNTS = 100_000  # numbers per array in `leave_one_out`


def row_losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The cross-entropy of each row in nats, (N,) float64, of `labels` (N,) int and `logits` (N, C)."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]


def scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Classification scores of `logits` (N, C) for `labels` (N,) int.

    Returns:
        n: number of rows.
        accuracy, macro_f1: in [0, 1].
        precision, recall, f1: means over the classes weighted by class support; the precision of a class without
            predictions is 0.
        loss: mean cross-entropy in nats.
        top5: share of rows whose label is among the five highest logits; only with more than ten classes.
    """
    predictions = logits.argmax(1)
    result = {"n": len(labels), **scores_of_predictions(labels, predictions)}
    result["loss"] = float(row_losses(labels, logits).mean())
    if logits.shape[1] > 10:
        highest = np.argsort(logits, axis=1, kind="stable")[:, -5:]
        result["top5"] = float((highest == labels[:, None]).any(1).mean())
    return result


def scores_of_counts(correct: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The scores `METRICS` from counts per class, as scikit-learn defines them.

    Handles thousands of sets of rows at once, for which scikit-learn takes minutes; importing it would take a run a
    second.

    Args:
        correct: (..., C) number of rows of each class that are predicted correctly.
        predicted: (..., C) number of rows that are predicted as each class.
        support: (..., C) number of rows of each class.

    Returns:
        (..., 5) float64.
    """
    n = support.sum(-1)
    recall = correct / np.maximum(support, 1)
    precision = correct / np.maximum(predicted, 1)
    f1 = 2 * correct / np.maximum(support + predicted, 1)
    weighted = [(support * score).sum(-1) / n for score in (precision, recall, f1)]
    present = (support + predicted > 0).sum(-1)  # macro F1 ignores classes without labels and predictions
    return np.stack([correct.sum(-1) / n, *weighted, f1.sum(-1) / present], axis=-1)


def scores_of_predictions(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The scores `METRICS` of predicted classes (N,) for labels (N,)."""
    classes, indices = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    true, predicted = np.split(indices, 2)
    counts = (np.bincount(i, minlength=len(classes)) for i in (true[true == predicted], predicted, true))
    return dict(zip(METRICS, scores_of_counts(*counts).tolist(), strict=True))


def leave_one_out(labels: np.ndarray, predictions: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores on all rows, and on all rows except those of one cluster.

    Args:
        labels: (N,) class names or numbers.
        predictions: (S, N) predicted classes of S seeds.
        clusters: (N,) int, the cluster of each row, from 0 to G - 1.

    Returns:
        The scores `METRICS` of each seed, (S, 5), and those without each cluster, (S, G, 5). Without the only cluster
        of a class, macro F1 would be a mean over other classes, and a class that is predicted, but has no rows, counts
        as 0: if a class has fewer than two clusters, macro F1 without a cluster is NaN.
    """
    classes, indices = np.unique(np.concatenate([labels, predictions.ravel()]), return_inverse=True)
    true = indices[: len(labels)]  # (N,)
    predictions = indices[len(labels) :].reshape(predictions.shape)
    number, size = clusters.max() + 1, len(classes)
    scores = np.empty((len(predictions), len(METRICS)))
    without_cluster = np.empty((len(predictions), number, len(METRICS)))
    for s, prediction in enumerate(predictions):
        hit = prediction == true
        # rows and their classes for each argument of `scores_of_counts`
        counted = (clusters[hit], true[hit]), (clusters, prediction), (clusters, true)
        totals = [np.bincount(of_class, minlength=size).astype(float) for _, of_class in counted]
        scores[s] = scores_of_counts(*totals)
        step = max(1, MAX_COUNTS // size)  # all clusters at once may need gigabytes
        for first in range(0, number, step):
            own = [(first <= cluster) & (cluster < first + step) for cluster, _ in counted]
            rows = min(step, number - first)
            counts = [
                np.bincount((cluster[i] - first) * size + of_class[i], minlength=rows * size).reshape(rows, size)
                for i, (cluster, of_class) in zip(own, counted, strict=True)
            ]
            without = [total - count for total, count in zip(totals, counts, strict=True)]
            without_cluster[s, first : first + rows] = scores_of_counts(*without)
    clusters_of_class = np.bincount(np.unique(clusters * size + true) % size, minlength=size)
    if clusters_of_class.min() < 2:
        without_cluster[:, :, list(METRICS).index("macro_f1")] = np.nan
    return scores, without_cluster


def calibration_bins(probabilities: np.ndarray, correct: np.ndarray, bins: int = 10) -> np.ndarray:
    """Rows by the probability of their predicted class, in bins of equal width.

    Args:
        probabilities: (N,) of the predicted classes, in [0, 1].
        correct: (N,) 1 if the prediction is correct, else 0.
        bins: number of bins.

    Returns:
        (3, bins) float64: number of rows, sum of their probabilities, and number of correct rows.
    """
    bin_of_row = np.minimum((probabilities * bins).astype(int), bins - 1)
    ones = np.ones(len(correct))
    return np.stack([np.bincount(bin_of_row, weights=w, minlength=bins) for w in (ones, probabilities, correct)])


def calibration_error(probabilities: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error (Guo et al., 2017) in [0, 1]; arguments as in `calibration_bins`."""
    _, expected, observed = calibration_bins(probabilities, correct)
    return float(np.abs(expected - observed).sum() / len(correct))


def epoch_line(epoch: int, epochs: int, train_loss: float, result: dict, seconds_left: float) -> str:
    """The terminal line of an epoch: time left, mean train loss in nats, and val scores (the result of `scores`)."""
    val_scores = "  ".join(f"{name} {result[name]:.3f}" for name in (*METRICS, "top5") if name in result)
    minutes, seconds = divmod(round(seconds_left), 60)
    progress = f"epoch {epoch:{len(str(epochs))}}/{epochs}  {minutes}:{seconds:02} left"
    return f"{progress}  train loss {train_loss:.3f}  val: loss {result['loss']:.3f}  {val_scores}"
