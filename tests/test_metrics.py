"""Scores, compared with manually computed values and with scikit-learn."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from common.metrics import (
    METRICS,
    calibration_bins,
    calibration_error,
    epoch_line,
    leave_one_out,
    row_losses,
    scores,
    scores_of_counts,
)


def random_run(rng, n, classes, seeds=1):
    """Labels (N,), predictions (S, N) and clusters (N,), each of which has rows of two classes."""
    labels = rng.integers(classes, size=n)
    predictions = np.where(rng.random((seeds, n)) < 0.6, labels, rng.integers(classes, size=(seeds, n)))
    clusters = np.unique(100 * (labels // 2) + rng.integers(9, size=n), return_inverse=True)[1]
    return labels, predictions, clusters


def sklearn_scores(labels, predictions):
    """The scores `METRICS` as scikit-learn computes them."""
    weighted = precision_recall_fscore_support(labels, predictions, average="weighted", zero_division=0)[:3]
    return [(labels == predictions).mean(), *weighted, f1_score(labels, predictions, average="macro", zero_division=0)]


def test_scores():
    labels = np.array([0, 0, 0, 1, 1, 2])
    logits = np.log(np.array([[8, 1, 1], [8, 1, 1], [1, 8, 1], [1, 8, 1], [8, 1, 1], [8, 1, 1]]) / 10)
    result = scores(labels, logits)
    # predicted 0, 0, 1, 1, 0, 0: precision 2/4, 1/2, none; recall 2/3, 1/2, 0
    f1 = [4 / 7, 1 / 2, 0]
    assert result["n"] == 6 and result["accuracy"] == pytest.approx(0.5) == result["recall"]
    assert result["precision"] == pytest.approx((3 * 0.5 + 2 * 0.5) / 6)
    assert result["f1"] == pytest.approx((3 * f1[0] + 2 * f1[1]) / 6)
    assert result["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert result["loss"] == pytest.approx(-(3 * np.log(0.8) + 3 * np.log(0.1)) / 6)
    assert "top5" not in result
    assert all(type(value) in (int, float) for value in result.values())


def test_top5_where_there_are_more_than_ten_classes():
    logits = np.tile(np.arange(11.0), (3, 1))
    assert scores(np.array([10, 6, 5]), logits)["top5"] == pytest.approx(2 / 3)


def test_losses_of_huge_logits_are_finite():
    np.testing.assert_allclose(row_losses(np.array([1]), np.array([[0.0, -1e4]], np.float32)), [1e4])


@pytest.mark.parametrize("n, classes", [(5, 4), (40, 3), (150, 12), (150, 60)])
def test_scores_of_counts_are_scikit_learns(n, classes):
    """Including classes that do not occur or are never predicted."""
    rng = np.random.default_rng(n + classes)
    for _ in range(20):
        labels, (predictions,), _ = random_run(rng, n, classes)
        counts = [np.bincount(numbers, minlength=classes) for numbers in (predictions, labels)]
        right = np.bincount(labels[labels == predictions], minlength=classes)
        expected = sklearn_scores(labels, predictions)
        np.testing.assert_allclose(scores_of_counts(right, *counts), expected, rtol=0, atol=1e-12)
        of_a_run = scores(labels, np.eye(classes)[predictions])
        np.testing.assert_allclose([of_a_run[name] for name in METRICS], expected, rtol=0, atol=1e-12)


def test_leaving_out_many_clusters_of_many_classes_takes_little_memory():
    """They are counted in parts: 4 seeds, 1,500 clusters and 400 classes would fill three arrays of 19 MB."""
    rng = np.random.default_rng(0)
    labels, predictions = np.arange(3000) % 400, rng.integers(400, size=(4, 3000))
    clusters = np.arange(3000) % 1500
    tracemalloc.start()
    _, without = leave_one_out(labels, predictions, clusters)
    assert tracemalloc.get_traced_memory()[1] < 15e6
    tracemalloc.stop()
    for cluster in (0, 249, 250, 1499):  # the first and last of a part
        kept = clusters != cluster
        np.testing.assert_allclose(without[3, cluster], sklearn_scores(labels[kept], predictions[3, kept]), atol=1e-12)


@pytest.mark.parametrize("named", [False, True], ids=["numbers", "class names"])
def test_leaving_a_cluster_out_is_leaving_its_rows_out(named):
    """Compared with scikit-learn on the remaining rows, for every metric, seed and cluster."""
    labels, predictions, clusters = random_run(np.random.default_rng(0), 60, 5, seeds=2)
    labels, predictions = labels + 3, predictions + 3  # not all of twelve classes
    if named:
        names = np.array([f"class {i}" for i in range(12)], dtype=object)
        labels, predictions = names[labels], names[predictions]
    every, without = leave_one_out(labels, predictions, clusters)
    assert every.shape == (2, 5) and without.shape == (2, clusters.max() + 1, 5)
    for seed, guesses in enumerate(predictions):
        np.testing.assert_allclose(every[seed], sklearn_scores(labels, guesses), atol=1e-12)
        for cluster in range(clusters.max() + 1):
            kept = clusters != cluster
            expected = sklearn_scores(labels[kept], guesses[kept])
            np.testing.assert_allclose(without[seed, cluster], expected, atol=1e-12)


def test_calibration_error_by_hand():
    probabilities, right = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 1.0]), np.array([1, 1, 1, 0, 1, 1.0])
    # the last bin has five of six rows: mean probability 0.96, four right; the other 0.55, right
    assert calibration_error(probabilities, right) == pytest.approx(5 / 6 * 0.16 + 1 / 6 * 0.45)
    np.testing.assert_allclose(calibration_bins(probabilities, right)[:, [5, 9]], [[1, 5], [0.55, 4.8], [1, 4]])


def test_the_line_of_an_epoch():
    result = {name: 0.1 * (i + 1) for i, name in enumerate(METRICS)} | {"loss": 1.5, "top5": 0.9}
    line = epoch_line(3, 10, 2.25, result, seconds_left=125)
    for shown in (
        "3/10",
        "2:05 left",
        "train loss 2.250",
        "loss 1.500",
        "accuracy 0.100",
        "macro_f1 0.500",
        "top5 0.9",
    ):
        assert shown in line
