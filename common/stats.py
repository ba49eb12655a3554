"""Confidence intervals and tests for scores on a small val split with clustered rows, such as photos of a product.

A score has two sources of variance: the sample of val images, and the seed of the training. The first is estimated by
the jackknife over clusters (Quenouille, 1956; Tukey, 1958), which leaves out one product at a time; the second by the
variance over the seeds of each experiment in excess of what the images explain. Student's t has the effective number of
degrees of freedom of their sum (Satterthwaite, 1946; Welch, 1947), because a variance over few seeds is itself
uncertain. So is the variance of a score near 1, where all errors are in a few products: it gets a prior and its own
number of degrees of freedom. docs/statistics.md describes the methods; tests/test_stats.py and benchmarks/coverage.py
check them on simulated data with known true values.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from common.metrics import METRICS

SHARED_TRAIN_ROWS = 2 / 3  # variance due to train rows that folds share, as a share of that over images
FAMILY_ERROR = 0.05  # the probability that any interval of a comparison misses the true value


@dataclass(frozen=True)
class SeedVariance:
    """The variance of a mean score that is due to the seeds of one experiment."""

    observed: float  # the variance over seeds on the same val images, divided by the number of seeds
    explained: float  # the part of it that is due to the sample of images, and already in the variance over images
    seeds: int

    @property
    def excess(self) -> float:
        return _positive(self.observed - self.explained)


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores, with its uncertainty.

    The variance of `value` is the sum of `image_variance`, which decreases with the number of val images, and of the
    excess variance over seeds of each experiment that has several.
    """

    value: float
    bias: float  # the jackknife estimate of how much `value` exceeds the score on infinitely many images
    image_variance: float
    clusters: int
    seed_variances: tuple[SeedVariance, ...] = ()
    image_df: float | None = None  # degrees of freedom of `image_variance`; None stands for `clusters` - 1

    @property
    def unbiased(self) -> float:
        """A score minus its bias, in [0, 1]."""
        return min(1.0, max(0.0, self.value - self.bias))

    @property
    def variance(self) -> float:
        return self.image_variance + sum(part.excess for part in self.seed_variances)

    @property
    def df(self) -> float:
        """The effective number of degrees of freedom of `variance`.

        The excess of a variance over seeds is as uncertain as the observed variance. The seeds count for more where
        their numbers differ and, if the images vary too, where they are few: a large variance in the experiment with
        few seeds would otherwise be underestimated too often (docs/statistics.md).
        """
        image_df = self.image_df or self.clusters - 1
        if self.variance == 0 or not self.seed_variances:
            return image_df
        seeds = [part.seeds for part in self.seed_variances]
        uncertainty = sum(part.observed**2 / (part.seeds - 1) for part in self.seed_variances)
        uncertainty *= max(seeds) / (min(seeds) - (self.image_variance > 0))
        df = self.variance**2 / (self.image_variance**2 / image_df + uncertainty)
        return max(df, min(image_df, min(seeds) - 1))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Symmetric confidence interval for a difference of scores, in which the biases cancel."""
        margin = self.margin(level)
        return max(-1.0, self.value - margin), min(1.0, self.value + margin)

    def score_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's confidence interval for a score in [0, 1], with the effective number of rows from the variance.

        Unlike a symmetric interval it stays within [0, 1] and keeps its coverage near 0 and 1. Precision and macro F1
        are biased by a few percentage points on 150 rows, but where classes have few products, the jackknife may find
        several times the bias. So the bounds are the outer ones of the intervals with and without it. Both are NaN for
        a macro F1 without an interval (`leave_one_out`).
        """
        if math.isnan(self.bias):
            return math.nan, math.nan
        lows, highs = zip(*(self._interval_around(score, level) for score in (self.unbiased, self.value)), strict=True)
        return min(lows), max(highs)

    def _interval_around(self, score: float, level: float) -> tuple[float, float]:
        row_variance = score * (1 - score)
        if row_variance == 0 or self.variance == 0:
            return wilson(score, self._t(level) ** 2 / self.clusters)
        return wilson(score, self._half_width(level) ** 2 / row_variance)

    def as_dict(self) -> dict:
        """The score and its `score_interval` at the 95 % level, or None, for JSON files."""
        interval = self.score_interval()
        return {"value": self.value, "interval": None if math.isnan(interval[0]) else list(interval)}

    def margin(self, level: float = 0.95) -> float:
        """Half the width of `interval`.

        If the variance is zero, for example because both models predict the same, it is the upper limit of Wilson's
        interval for a share of 0.
        """
        return max(part._half_width(level) for part in (self, *self._seeds_alone))

    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the true value is zero.

        It is 1 minus the level of the narrowest `interval` that contains zero.
        """
        return max(part._p_value() for part in (self, *self._seeds_alone))

    @property
    def _seeds_alone(self) -> "list[Estimate]":
        """With several seeds in an experiment, the same difference with the val images taken as fixed.

        It has to be significant too, because a variance over few seeds is often far too small by chance.
        """
        parts = tuple(replace(part, explained=0.0) for part in self.seed_variances)
        alone = replace(self, image_variance=0.0, seed_variances=parts)
        return [alone] if alone.variance else []

    def _half_width(self, level: float) -> float:
        t = self._t(level)
        return t * math.sqrt(self.variance) if self.variance else wilson(0.0, t**2 / self.clusters)[1]

    def _p_value(self) -> float:
        size = abs(self.value)
        if self.variance:
            t = size / math.sqrt(self.variance)
        else:  # solves size = t**2 / (clusters + t**2), Wilson's limit
            t = math.sqrt(self.clusters * size / (1 - size)) if size < 1 else math.inf
        return 2 * float(special.stdtr(self.df, -t))

    def _t(self, level: float) -> float:
        return -float(special.stdtrit(self.df, (1 - level) / 2))  # 15 times faster than scipy.stats


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
    bias = (clusters - 1) * (mean.mean() - scores.mean())
    seed_variances: tuple[SeedVariance, ...] = ()
    if seeds > 1:
        # The pseudo-values (S, G) act as a score for each seed and cluster. Their interaction is the part of the
        # variance over seeds that is due to the sample of images.
        pseudo = clusters * scores[:, None] - (clusters - 1) * replicates
        interaction = pseudo - pseudo.mean(0) - pseudo.mean(1, keepdims=True) + pseudo.mean()
        explained = (interaction**2).sum() / ((seeds - 1) * (clusters - 1)) / (seeds * clusters)
        seed_variances = (SeedVariance(float(scores.var(ddof=1) / seeds), float(explained), seeds),)
    return Estimate(float(scores.mean()), float(bias), float(image_variance), clusters, seed_variances)


def score_estimate(scores: np.ndarray, replicates: np.ndarray) -> Estimate:
    """As `estimate`, for a score in [0, 1], with a prior for the variance over images and its degrees of freedom.

    If all errors are in a few products, the jackknife variance is often far too small by chance. Its ratio to the
    variance that products would have that are either entirely right or entirely wrong is therefore estimated with half
    a product of each kind in addition (as in the prior of Jeffreys, 1946). The degrees of freedom are Satterthwaite's:
    twice the squared sum of squares, divided by the variance of that sum, to which the prior adds nothing.
    """
    found = estimate(scores, replicates)
    mean, clusters, share = replicates.mean(axis=0), found.clusters, found.unbiased
    squares = ((clusters - 1) * (mean - mean.mean())) ** 2  # (G,) of the deviations of the pseudo-values
    prior, all_or_none = (share**2 + (1 - share) ** 2) / 2, share * (1 - share)
    total = squares.sum() + prior
    variance = all_or_none / (clusters - 1) * total / (clusters * all_or_none + prior)
    uncertainty = max(squares.sum() ** 2 / (clusters - 1), ((squares - squares.mean()) ** 2).sum() / 2, 1e-20)
    return replace(found, image_variance=float(variance), image_df=float(total**2 / uncertainty))


def _positive(variance: float) -> float:
    """`variance`, or 0 if it is negative or a rounding error."""
    return variance if variance > 1e-20 else 0.0


def difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> Estimate:
    """The paired difference b minus a of two mean scores on the same rows.

    `a` and `b` are the arguments of `estimate`, with the same clusters. Their seeds are treated as independent. An
    experiment with a single seed adds no variance: the difference is then about its trained weights.
    """
    images = estimate((b[0].mean() - a[0].mean())[None], (b[1].mean(0) - a[1].mean(0))[None])
    seed_variances = tuple(part for arguments in (a, b) for part in estimate(*arguments).seed_variances)
    return replace(images, seed_variances=seed_variances)


def over_partitions(repeated: Estimate) -> Estimate:
    """The uncertainty of a cross-validated score or difference; `repeated` has partitions in the place of seeds.

    Models of one data set share most of their train rows, so the rows vary together more than `estimate` knows, and no
    estimate of this part is unbiased (Bengio and Grandvalet, 2004). As Nadeau and Bengio (2003) do, it is taken for a
    fixed share of the variance over images. Theirs is 1 / (folds - 1); two thirds hold with three to ten folds and
    trained learners, among them nearest neighbours, on which each train row has most influence
    (benchmarks/coverage.py). The variance over partitions is counted in full.
    """
    return replace(
        repeated,
        image_variance=repeated.image_variance * (1 + SHARED_TRAIN_ROWS),
        seed_variances=tuple(replace(part, explained=0.0) for part in repeated.seed_variances),
    )


def score_estimates(scores: np.ndarray, replicates: np.ndarray) -> dict[str, Estimate]:
    """The estimate of each of `METRICS`; the arguments are the two results of `common.metrics.leave_one_out`."""
    return {name: score_estimate(scores[:, k], replicates[:, :, k]) for k, name in enumerate(METRICS)}


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
    """A score with its interval, such as "0.672 [0.499, 0.808]", or without one that is NaN."""
    if math.isnan(interval[0]):
        return format_share(value, digits)
    score, low, high = (format_share(v, digits) for v in (value, *interval))
    return f"{score} [{low}, {high}]"


def format_difference(value: float, interval: tuple[float, float]) -> str:
    """A difference of accuracies with its interval in percentage points, such as "+42.3 points [30.2, 54.4]"."""
    return f"{rounded(100 * value, 1, 0, sign='+')} points {format_points(interval)}"


def format_points(interval: tuple[float, float]) -> str:
    """The interval of a difference in percentage points, such as "[30.2, 54.4]"."""
    low, high = (rounded(100 * bound, 1, 0) for bound in interval)  # the side of zero that a bound is on is visible
    return f"[{low}, {high}]"


def format_p(p: float, digits: int = 4) -> str:
    """A p-value, such as "0.0123" or "< 0.0001", that is on the same side of 0.05 as `p`."""
    return "< 0.0001" if p < 1e-4 else rounded(p, digits, 0, 0.05, 1)


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> float:
    """Exact p-value of McNemar's test (1947) for two models.

    `correct_a` and `correct_b` (N,) bool say which rows each model predicts correctly.
    """
    from scipy.stats import binomtest  # slow to import, and runs do not need it

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
