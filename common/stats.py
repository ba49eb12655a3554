"""Intervals and tests for scores of runs on a small val split whose rows come in clusters, such as photos of a product.

A score varies for two reasons: other val images would have been drawn, and another seed would have trained another
model. The variance of the first is the jackknife's (Quenouille, 1956; Tukey, 1958), which leaves out one product at a
time; that of the second is the spread over seeds beyond what the images explain. Each comes with its own quantile of
Student's t (Cochran, 1964), as a few seeds say little of their own spread. tests/test_stats.py tries all this on made
data whose truth is known; benchmarks/coverage.py sets it beside the percentile bootstrap.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores, with its uncertainty.

    bias, the jackknife's, is how much `value` tends to exceed the score on endless data. image_variance falls with the
    number of val images, seed_variance (0 where there is one seed, which says nothing of others) with that of seeds.
    """

    value: float
    bias: float
    image_variance: float
    seed_variance: float
    clusters: int
    seed_df: int  # degrees of freedom of the seed variance

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Symmetric interval: for differences, whose biases cancel. Where no row differs, as wide as Wilson's."""
        margin = self._margin(level) or wilson(0.0, _t(level, self.clusters - 1) ** 2 / self.clusters)[1]
        return max(-1.0, self.value - margin), min(1.0, self.value + margin)

    def share_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval for a score in [0, 1], with the effective number of rows that the variance implies.

        Near 0 and 1 it stays inside and covers, where a symmetric one does neither. It lies around the value less its
        bias: on 150 rows, weighted precision and macro F1 come out too high or too low by some points.
        """
        value = min(1.0, max(0.0, self.value - self.bias))
        spread, margin = value * (1 - value), self._margin(level)
        if spread == 0 or margin == 0:
            return wilson(value, _t(level, self.clusters - 1) ** 2 / self.clusters)
        return wilson(value, margin**2 / spread)

    def p_value(self) -> float:
        """Two-sided, of the value being zero: one less the level of the interval that just reaches zero."""
        if self.value == 0 or self.image_variance + self.seed_variance == 0:
            return float(self.value == 0)
        beyond = lambda log_p: self._margin(1 - math.exp(log_p)) - abs(self.value)  # noqa: E731
        smallest = math.log(1e-15)
        return math.exp(optimize.brentq(beyond, smallest, 0)) if beyond(smallest) > 0 else 1e-15

    def _margin(self, level: float) -> float:
        variance = self.image_variance * _t(level, self.clusters - 1) ** 2
        if self.seed_variance:
            variance += self.seed_variance * _t(level, self.seed_df) ** 2
        return math.sqrt(variance)


def _t(level: float, df: int) -> float:
    return float(stats.t.isf((1 - level) / 2, df))


def wilson(share: float, t2_n: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share; `t2_n` is the squared quantile over the number of rows: 1.96**2 / n."""
    center = (share + t2_n / 2) / (1 + t2_n)
    half = math.sqrt(share * (1 - share) * t2_n + t2_n**2 / 4) / (1 + t2_n)
    return max(0.0, center - half), min(1.0, center + half)


def estimate(scores: np.ndarray, without: np.ndarray) -> Estimate:
    """A score from S seeds and G clusters of rows.

    Args:
        scores: (S,) the score of each seed.
        without: (S, G) the score of each seed on all rows but those of one cluster.
    """
    seeds, clusters = without.shape
    mean = without.mean(axis=0)
    image = _or_zero((clusters - 1) / clusters * ((mean - mean.mean()) ** 2).sum())
    seed = 0.0
    if seeds > 1:
        pseudo = clusters * scores[:, None] - (clusters - 1) * without  # (S, G), as if each cluster had a score
        rest = pseudo - pseudo.mean(0) - pseudo.mean(1, keepdims=True) + pseudo.mean()
        chance = (rest**2).sum() / ((seeds - 1) * (clusters - 1)) / (seeds * clusters)
        seed = _or_zero(scores.var(ddof=1) / seeds - chance)  # what the images explain is in `image` already
    bias = (clusters - 1) * (mean.mean() - scores.mean())
    return Estimate(float(scores.mean()), float(bias), float(image), float(seed), clusters, seeds - 1)


def _or_zero(variance: float) -> float:
    return variance if variance > 1e-20 else 0.0  # what rounding leaves


def difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> Estimate:
    """b minus a, each the arguments of `estimate` for the same clusters. The seeds of a and b count as independent."""
    images = estimate((b[0].mean() - a[0].mean())[None], (b[1].mean(0) - a[1].mean(0))[None])
    seeds = [len(scores) for scores, _ in (a, b)]
    df = sum(seeds) - 2
    spread = [(s - 1) * s * estimate(*one).seed_variance for s, one in zip(seeds, (a, b), strict=True)]
    seed = sum(spread) / df * sum(1 / s for s in seeds) if df else 0.0  # pooled, so that one seed may meet several
    return Estimate(images.value, images.bias, images.image_variance, seed, images.clusters, df)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact p-value of McNemar's test (1947) of two models, from whether each has each row right: (N,) bool."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def seeds_p_value(scores_a: np.ndarray, scores_b: np.ndarray) -> float | None:
    """Student's t-test of two experiments over their seeds, the val images as given; None below two seeds each."""
    if min(len(scores_a), len(scores_b)) < 2:
        return None
    if max(np.ptp(scores_a), np.ptp(scores_b)) < 1e-12:
        return float(abs(scores_a[0] - scores_b[0]) < 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the seeds of one experiment may all score the same
        return float(stats.ttest_ind(scores_a, scores_b).pvalue)


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
