"""Intervals and tests for scores of runs on a small val split whose rows come in clusters, such as photos of a product.

A score varies for two reasons: other val images would have been drawn, and another seed would have trained another
model. The variance of the first is the jackknife's (Tukey, 1958; Quenouille, 1956), which leaves out one product at a
time; that of the second is the spread over seeds beyond what the images explain. Both are tried in tests/test_stats.py
on made data whose truth is known; benchmarks/coverage.py compares them with the percentile bootstrap.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores, with its uncertainty.

    bias, the jackknife's, is how much `value` tends to exceed the score on endless data. image_variance falls with the
    number of val images, seed_variance with the number of seeds; df are the degrees of freedom of their sum
    (Satterthwaite, 1946).
    """

    value: float
    bias: float
    image_variance: float
    seed_variance: float
    df: float
    clusters: int

    @property
    def variance(self) -> float:
        return self.image_variance + self.seed_variance

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Symmetric t interval: for differences, whose biases cancel."""
        half = _t(level, self.df) * math.sqrt(self.variance)
        return self.value - half, self.value + half

    def share_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval for a score in [0, 1], with the effective number of rows that the variance implies.

        Near 0 and 1 it stays inside and covers, where a symmetric one does neither. It lies around the value less its
        bias: on 150 rows, weighted precision and macro F1 come out too high or too low by some points.
        """
        value = min(1.0, max(0.0, self.value - self.bias))
        spread = value * (1 - value)
        n = spread / self.variance if self.variance > 0 and spread > 0 else self.clusters
        return wilson(value, n, _t(level, self.df))

    def p_value(self) -> float:
        """Two-sided, of the value being zero."""
        if self.value == 0 or self.variance == 0:
            return float(self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / math.sqrt(self.variance), self.df))


def wilson(share: float, n: float, t: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share of n rows; `t` is the quantile, 1.96 for 95 %."""
    center = (share + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * math.sqrt(share * (1 - share) / n + t**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)


def estimate(scores: np.ndarray, without: np.ndarray) -> Estimate:
    """A score from S seeds and G clusters of rows.

    Args:
        scores: (S,) the score of each seed.
        without: (S, G) the score of each seed on all rows but those of one cluster.
    """
    seeds, clusters = without.shape
    mean = without.mean(axis=0)
    image = (clusters - 1) / clusters * ((mean - mean.mean()) ** 2).sum()
    seed = 0.0
    if seeds > 1:
        pseudo = clusters * scores[:, None] - (clusters - 1) * without  # (S, G), as if each cluster had a score
        rest = pseudo - pseudo.mean(0) - pseudo.mean(1, keepdims=True) + pseudo.mean()
        chance = (rest**2).sum() / ((seeds - 1) * (clusters - 1)) / (seeds * clusters)
        seed = max(0.0, scores.var(ddof=1) / seeds - chance)  # what the images explain is in `image` already
    df = _satterthwaite([(image, clusters - 1), (seed, seeds - 1)])
    bias = (clusters - 1) * (mean.mean() - scores.mean())
    return Estimate(float(scores.mean()), float(bias), float(image), float(seed), df, clusters)


def difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> Estimate:
    """b minus a, each the arguments of `estimate` for the same clusters; their seeds count as independent."""
    parts = [estimate(*one) for one in (a, b)]
    images = estimate((b[0].mean() - a[0].mean())[None], (b[1].mean(0) - a[1].mean(0))[None])
    seed = sum(part.seed_variance for part in parts)
    df = _satterthwaite(
        [(images.image_variance, images.clusters - 1)]
        + [(part.seed_variance, len(one[0]) - 1) for part, one in zip(parts, (a, b), strict=True)]
    )
    return Estimate(images.value, images.bias, images.image_variance, seed, df, images.clusters)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact p-value of McNemar's test (1947) of two models, from whether each has each row right: (N,) bool."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def seeds_p_value(scores_a: np.ndarray, scores_b: np.ndarray) -> float | None:
    """Paired t-test over seeds, Welch's where their numbers differ; None below two. The val images count as given."""
    if min(len(scores_a), len(scores_b)) < 2:
        return None
    if np.ptp(scores_a) == np.ptp(scores_b) == 0:
        return float(scores_a[0] == scores_b[0])
    if len(scores_a) != len(scores_b):
        return float(stats.ttest_ind(scores_a, scores_b, equal_var=False).pvalue)
    if np.ptp(scores_b - scores_a) == 0:
        return float(scores_a[0] == scores_b[0])
    return float(stats.ttest_rel(scores_a, scores_b).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979): below 0.05 with a 5 % risk of any false one among them."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.array(p_values)[order] * factors))
    return corrected.tolist()


def rows_needed(found: Estimate, n: int, power: float = 0.8) -> int | None:
    """Val rows of the same kind with which a difference as large as `found`, on n rows, is found at the 5 % level.

    None where no number of rows does it, as the seeds alone leave too much open.
    """
    wanted = (found.value / (stats.norm.isf(0.025) + stats.norm.ppf(power))) ** 2  # the variance at which it is found
    if wanted <= found.seed_variance:
        return None
    return math.ceil(n * found.image_variance / (wanted - found.seed_variance))


def _t(level: float, df: float) -> float:
    return float(stats.t.ppf(0.5 + level / 2, df))


def _satterthwaite(parts: list[tuple[float, float]]) -> float:
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / df for variance, df in parts if variance > 0)
    return total**2 / below if below > 0 else max(1.0, parts[0][1])
