"""Accuracy against the share of photos that are answered: those with the highest probability of the predicted class.

This is the risk-coverage curve of selective classification (El-Yaniv and Wiener, 2010).
"""

from typing import Any

import numpy as np

from common.compare.questions import MIN_CLUSTERS, ScoredExperiment
from common.conformal import clusters_needed
from common.stats import Estimate, estimate, over_partitions

SHARES = tuple(k / 10 for k in range(1, 11))  # answered, at which the accuracy is reported
ERRORS = (0.01, 0.02, 0.05, 0.1)  # shares of wrong answers at which the share answered is reported


def ranked(scored: ScoredExperiment) -> np.ndarray:
    """The val rows of each seed, (S, N) int, by falling probability of the predicted class.

    With folds, these are out-of-fold predictions of all folds together.
    """
    return np.argsort(-scored.experiment.probabilities, axis=1, kind="stable")


def accuracy_of_answered(scored: ScoredExperiment) -> np.ndarray:
    """(N,) the accuracy of the first 1, 2, ... N rows of `ranked`, the mean over the seeds."""
    correct = np.take_along_axis(scored.correct, ranked(scored), axis=1)
    return (correct.cumsum(1) / np.arange(1, scored.n + 1)).mean(0)


def answered_at(scored: ScoredExperiment, share: float) -> Estimate | None:
    """The accuracy of the share of rows that each seed is most certain of; None if they show too few products.

    The uncertainty is that of the accuracy above the probability at which this share is answered, over products and
    seeds.
    """
    number = max(1, round(share * scored.n))
    answered = np.zeros(scored.correct.shape, bool)
    np.put_along_axis(answered, ranked(scored)[:, :number], True, axis=1)
    size = scored.clusters.max() + 1
    rows, right = (
        np.stack([np.bincount(scored.clusters, row, size) for row in part.astype(float)])
        for part in (answered, answered & scored.correct)
    )  # (S, G)
    if (rows > 0).sum(1).min() < MIN_CLUSTERS:
        return None
    scores, without = right.sum(1) / number, (right.sum(1, keepdims=True) - right) / (number - rows)
    repetitions = scored.experiment.repetitions
    own = [repetitions == repetition for repetition in np.unique(repetitions)]
    found = estimate(np.stack([scores[s].mean() for s in own]), np.stack([without[s].mean(0) for s in own]))
    return over_partitions(found) if scored.experiment.folds else found


def share_at(scored: ScoredExperiment, error: float) -> float | None:
    """The largest share of rows that can be answered with at most this share of wrong answers among them.

    Only shares whose rows show enough products are considered: with fewer than 1 / error - 1, one wrong product is more
    than that. 0 if none of them is that accurate; None if all val rows show too few.
    """
    needed = clusters_needed(error)
    if scored.clusters.max() + 1 < needed:
        return None
    smallest = max(
        np.sort(np.unique(scored.clusters[rows], return_index=True)[1])[needed - 1] for rows in ranked(scored)
    )
    within = np.flatnonzero(accuracy_of_answered(scored) >= 1 - error - 1e-9)
    return (within[-1] + 1) / scored.n if len(within) and within[-1] >= smallest else 0.0


def risk_coverage(scored: ScoredExperiment) -> dict[str, Any]:
    """The curve as plain numbers for comparison.json."""
    found = {share: answered_at(scored, share) for share in SHARES}
    return {
        "accuracy_of_answered": {f"{share:g}": e.as_dict() if e else None for share, e in found.items()},
        "answered_at_error": {f"{error:g}": share_at(scored, error) for error in ERRORS},
    }
