"""Confidence intervals and tests for scores on a small val split with clustered rows, such as photos of a product.

A score has two sources of variance: the sample of val images, and the seed of the training. The first is estimated by
the jackknife over clusters (Quenouille, 1956; Tukey, 1958), which leaves out one product at a time; the second by the
variance over seeds in excess of what the images explain. Each has its own quantile of Student's t (Cochran, 1964),
because a variance over few seeds is itself uncertain. tests/test_stats.py checks the intervals and tests on simulated
data with known true values, and benchmarks/coverage.py reports their coverage (docs/statistics.md).
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from common.metrics import METRICS


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores, with its uncertainty.

    The variance of `value` is the sum of `image_variance`, which decreases with the number of val images, and
    `seed_variance`, which decreases with the number of seeds.
    """

    value: float
    bias: float  # the jackknife estimate of how much `value` exceeds the score on infinitely many images
    image_variance: float
    seed_variance: float  # 0 with a single seed, for which it cannot be estimated
    clusters: int
    seed_df: int  # degrees of freedom of the seed variance

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Symmetric confidence interval for a difference of scores, in which the biases cancel.

        If the variance is zero, for example because both models predict the same, half the width of the interval is the
        upper limit of Wilson's interval for a share of 0.
        """
        margin = self._margin(level) or wilson(0.0, _t(level, self.clusters - 1) ** 2 / self.clusters)[1]
        return max(-1.0, self.value - margin), min(1.0, self.value + margin)

    def score_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's confidence interval for a score in [0, 1], with the effective number of rows from the variance.

        Unlike a symmetric interval it stays within [0, 1] and keeps its coverage near 0 and 1. The bias is subtracted
        first: on 150 rows it amounts to a few percentage points in weighted precision and macro F1.
        """
        value = min(1.0, max(0.0, self.value - self.bias))
        row_variance = value * (1 - value)
        margin = self._margin(level)
        if row_variance == 0 or margin == 0:
            return wilson(value, _t(level, self.clusters - 1) ** 2 / self.clusters)
        return wilson(value, margin**2 / row_variance)

    def as_dict(self) -> dict:
        """The score and its `score_interval` at the 95 % level, for JSON files."""
        return {"value": self.value, "interval": list(self.score_interval())}

    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the true value is zero, at least 1e-15.

        It is 1 minus the level of the narrowest symmetric interval that contains zero.
        """
        if self.value == 0 or self.image_variance + self.seed_variance == 0:
            return float(self.value == 0)

        def excess(log_p: float) -> float:
            return self._margin(1 - math.exp(log_p)) - abs(self.value)

        smallest = math.log(1e-15)
        return math.exp(optimize.brentq(excess, smallest, 0)) if excess(smallest) > 0 else 1e-15

    def _margin(self, level: float) -> float:
        """Half the width of a symmetric interval."""
        variance = self.image_variance * _t(level, self.clusters - 1) ** 2
        if self.seed_variance:
            variance += self.seed_variance * _t(level, self.seed_df) ** 2
        return math.sqrt(variance)


def _t(level: float, df: int) -> float:
    """The two-sided quantile of Student's t distribution for an interval of the given level."""
    return float(stats.t.isf((1 - level) / 2, df))


def wilson(share: float, t2_n: float) -> tuple[float, float]:
    """Wilson's confidence interval (1927) for a share of n rows.

    `t2_n` is the squared quantile divided by n, such as 1.96**2 / n for a 95 % interval.
    """
    center = (share + t2_n / 2) / (1 + t2_n)
    half = math.sqrt(share * (1 - share) * t2_n + t2_n**2 / 4) / (1 + t2_n)
    return max(0.0, center - half), min(1.0, center + half)


def estimate(scores: np.ndarray, replicates: np.ndarray) -> Estimate:
    """The mean score of S seeds on rows in G clusters, with its uncertainty.

    Args:
        scores: (S,) the score of each seed on all rows.
        replicates: (S, G) the jackknife replicates: the score of each seed on all rows except those of one cluster.
    """
    seeds, clusters = replicates.shape
    mean = replicates.mean(axis=0)
    image_variance = _positive((clusters - 1) / clusters * ((mean - mean.mean()) ** 2).sum())
    seed_variance = 0.0
    if seeds > 1:
        # The pseudo-values (S, G) act as a score for each seed and cluster. Their interaction is the part of the
        # variance over seeds that is due to the sample of images; only the rest is added to `image_variance`.
        pseudo = clusters * scores[:, None] - (clusters - 1) * replicates
        interaction = pseudo - pseudo.mean(0) - pseudo.mean(1, keepdims=True) + pseudo.mean()
        explained = (interaction**2).sum() / ((seeds - 1) * (clusters - 1)) / (seeds * clusters)
        seed_variance = _positive(scores.var(ddof=1) / seeds - explained)
    bias = (clusters - 1) * (mean.mean() - scores.mean())
    return Estimate(float(scores.mean()), float(bias), float(image_variance), float(seed_variance), clusters, seeds - 1)


def _positive(variance: float) -> float:
    """`variance`, or 0 if it is negative or a rounding error."""
    return variance if variance > 1e-20 else 0.0


def difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> Estimate:
    """The paired difference b minus a of two mean scores on the same rows.

    `a` and `b` are the arguments of `estimate`, with the same clusters. Their seeds are treated as independent, and the
    variance over seeds is pooled, so that one experiment may have a single seed.
    """
    images = estimate((b[0].mean() - a[0].mean())[None], (b[1].mean(0) - a[1].mean(0))[None])
    seeds = [len(scores) for scores, _ in (a, b)]
    df = sum(seeds) - 2
    squares = [(s - 1) * s * estimate(*arguments).seed_variance for s, arguments in zip(seeds, (a, b), strict=True)]
    seed_variance = sum(squares) / df * sum(1 / s for s in seeds) if df else 0.0
    return Estimate(images.value, images.bias, images.image_variance, seed_variance, images.clusters, df)


def score_estimates(scores: np.ndarray, replicates: np.ndarray) -> dict[str, Estimate]:
    """The estimate of each of `METRICS`; the arguments are the two results of `common.metrics.leave_one_out`."""
    return {name: estimate(scores[:, k], replicates[:, :, k]) for k, name in enumerate(METRICS)}


def rounded(value: float, digits: int, *limits: float, sign: str = "") -> str:
    """`value` with `digits` decimals, or with more where these would show one of `limits` although it is another value.

    With the limit 0.05, for example, 0.0498 is "0.0498" and not "0.05".
    """
    for limit in limits:
        if abs(value - limit) < 1e-9:  # a rounding error
            value = limit
        while value != limit and round(value, digits) == limit:
            digits += 1
    return f"{value:{sign}.{digits}f}"


def format_share(value: float, digits: int = 3) -> str:
    """A number in [0, 1], such as "0.672"; only 0 and 1 themselves are printed as such."""
    return rounded(value, digits, 0, 1)


def format_score(value: float, interval: tuple[float, float], digits: int = 3) -> str:
    """A score with its interval, such as "0.672 [0.499, 0.808]"."""
    score, low, high = (format_share(v, digits) for v in (value, *interval))
    return f"{score} [{low}, {high}]"


def format_difference(value: float, interval: tuple[float, float]) -> str:
    """A difference of accuracies with its interval in percentage points, such as "+42.3 points [30.2, 54.4]"."""
    low, high = (rounded(100 * bound, 1, 0) for bound in interval)  # the side of zero that a bound is on is visible
    return f"{rounded(100 * value, 1, 0, sign='+')} points [{low}, {high}]"


def format_p(p: float, digits: int = 4) -> str:
    """A p-value, such as "0.0123" or "< 0.0001", that is on the same side of 0.05 as `p`."""
    return "< 0.0001" if p < 1e-4 else rounded(p, digits, 0, 0.05, 1)


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> float:
    """Exact p-value of McNemar's test (1947) for two models.

    `correct_a` and `correct_b` (N,) bool say which rows each model predicts correctly.
    """
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def seeds_p_value(scores_a: np.ndarray, scores_b: np.ndarray) -> float | None:
    """p-value of Student's t-test between the seeds of two experiments, which treats the val images as fixed.

    None unless both have at least two seeds.
    """
    if min(len(scores_a), len(scores_b)) < 2:
        return None
    if max(np.ptp(scores_a), np.ptp(scores_b)) < 1e-12:
        return float(abs(scores_a[0] - scores_b[0]) < 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all seeds of one experiment may have the same score
        return float(stats.ttest_ind(scores_a, scores_b).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """p-values after Holm's correction (1979), in the given order.

    The family-wise error is at most 5 % if the hypotheses with corrected p-values below 0.05 are rejected.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.array(p_values)[order] * factors))
    return corrected.tolist()


def rows_needed(change: Estimate, n: int, power: float = 0.8) -> int | None:
    """The number of similar val rows needed to detect a difference.

    With this many rows, a true difference of the size of `change`, which was estimated on n rows, is significant at the
    5 % level with probability `power`. None if no number of rows suffices, because the variance over seeds alone is too
    large.
    """
    required_variance = (change.value / (stats.norm.isf(0.025) + stats.norm.ppf(power))) ** 2
    if required_variance <= change.seed_variance:
        return None
    return math.ceil(n * change.image_variance / (required_variance - change.seed_variance))
