"""Scores against values worked out by hand."""

import numpy as np
import pytest

from common.metrics import row_losses, scores


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
