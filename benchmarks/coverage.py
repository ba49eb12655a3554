"""Coverage of the intervals and false alarms of the tests in common/stats.py, on simulated val splits.

python -m benchmarks.coverage                          # hours on one core
python -m benchmarks.coverage --trials 200             # a tenth of that, with three times the standard error
python -m benchmarks.coverage --only differences

A split has 150 to 160 rows (others are named) of products with one to three photos (as in the sample's val split), or
with more. A prediction is correct if a sum of normally distributed effects is below the threshold of its class: the
effects of product and photo (shared by both models), their interactions with the model, the effects of the seed and of
the seed on each product, and noise. The true accuracy of a class is the normal probability of its threshold, from which
the true scores follow. Cross-validation is simulated with learners that are really trained, on two sets of features
with the same distribution, so that the true difference is exactly zero.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

from common.compare.experiments import Experiment
from common.compare.looks import Looks, follow, questions_at_looks
from common.compare.plan import measured_spread, smallest_differences
from common.compare.questions import Question, ScoredExperiment, ask, pairs
from common.metrics import METRICS, leave_one_out, scores_of_counts
from common.stats import FAMILY_ERROR, Estimate, difference, estimate, mcnemar, over_partitions, score_estimate

PRIORS = np.array([12, 11, 5, 13, 22, 6, 5, 11, 9, 14, 14, 8]) / 130  # of the sample's val classes
CLASSES = len(PRIORS)
DIFFICULTY = np.linspace(-0.5, 0.5, CLASSES)[np.argsort(np.argsort(np.sin(7 * np.arange(CLASSES))))]
# A wrong prediction is the next class half of the time, otherwise any other class.
CONFUSIONS = 0.5 * np.roll(np.eye(CLASSES), 1, axis=1) + 0.5 * (1 - np.eye(CLASSES)) / (CLASSES - 1)
MIN_SPLITS = 80  # with an interval of macro F1
SIZES = {3: np.array([0.6, 0.3, 0.1]), 6: np.full(6, 1 / 6), 8: np.full(8, 1 / 8)}  # products by number of photos


@cache
def thresholds(accuracy: float) -> np.ndarray:
    """The threshold of each class (C,) at which the accuracy over all rows is `accuracy`."""
    return DIFFICULTY + brentq(lambda shift: PRIORS @ norm.cdf(shift + DIFFICULTY) - accuracy, -6, 6)


def true_scores(accuracy: float) -> np.ndarray:
    """The scores `METRICS` (5,) of a model on infinitely many rows."""
    right = norm.cdf(thresholds(accuracy))[:, None]
    rows = 1e6 * PRIORS[:, None] * np.where(np.eye(CLASSES), right, (1 - right) * CONFUSIONS)
    return scores_of_counts(rows.diagonal(), rows.sum(0), rows.sum(1))


@dataclass(frozen=True)
class World:
    """A distribution of val splits and of models, of which two are compared unless `accuracy` names more.

    Effects are shares of a total variance of 1; the remaining share is noise.
    """

    accuracy: tuple[float, ...]  # of each model, over all rows and seeds
    photos: int = 3  # the largest number of photos of a product, a key of `SIZES`
    largest: float = 0.0  # one further product has this share of the rows
    rows: int = 150  # at least, and at most ten more
    copies: int = 1  # of the twelve classes; those of one copy are confused with each other only
    seeds: tuple[int, ...] = (1, 1)  # of each model
    spread: tuple[float, ...] = (0.0, 0.0)  # standard deviation over seeds of each model's true accuracy
    product: float = 0.3
    photo: float = 0.3
    model_product: float = 0.1
    model_photo: float = 0.1
    seed_product: float = 0.02

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Labels (N,), clusters (N,) and the predictions (S, N) of each model for a random split."""
        n, shares = rng.integers(self.rows, self.rows + 11), SIZES[self.photos]
        counts = [round(self.largest * n)] * (self.largest > 0)
        while sum(counts) < n:
            counts.append(1 + rng.choice(len(shares), p=shares))
        counts[-1] -= sum(counts) - n
        clusters = np.repeat(np.arange(len(counts)), counts)
        labels = rng.choice(CLASSES, len(counts), p=PRIORS)[clusters]

        def effect(share: float, shape) -> np.ndarray:
            return rng.normal(scale=share**0.5, size=shape)

        shared = effect(self.product, len(counts))[clusters] + effect(self.photo, n)
        constant = self.product + self.photo + self.model_product + self.model_photo + self.seed_product
        predictions = []
        for accuracy, seeds, spread in zip(self.accuracy, self.seeds, self.spread, strict=True):
            limits = thresholds(accuracy)
            seed_share = (spread / (PRIORS @ norm.pdf(limits))) ** 2
            own = effect(self.model_product, len(counts))[clusters] + effect(self.model_photo, n)
            own = own + effect(self.seed_product, (seeds, len(counts)))[:, clusters]
            noise = effect(1 - constant - seed_share, (seeds, n))
            latent = shared + own + effect(seed_share, (seeds, 1)) + noise
            wrong = (CONFUSIONS.cumsum(1)[labels] < rng.random((seeds, n, 1))).sum(-1)
            predictions.append(np.where(latent < limits[labels], labels, wrong))
        copy = rng.integers(self.copies, size=len(counts))[clusters] * CLASSES
        return labels + copy, clusters, [guesses + copy for guesses in predictions]


NASTY = {"product": 0.5, "photo": 0.1, "model_product": 0.1, "model_photo": 0.05, "seed_product": 0.05}  # .6 and more
SIMILAR = {"product": 0.5, "photo": 0.2, "model_product": 0.0, "model_photo": 0.0, "seed_product": 0.03}
KINDS: dict[str, dict] = {"ordinary": {}, "correlated": {"photos": 8, **NASTY}, "similar models": SIMILAR}
SCORES = {
    "one seed": World((0.65, 0.73)),
    "one seed, up to six photos": World((0.65, 0.73), photos=6),
    "one seed, high scores": World((0.88, 0.94)),
    "six seeds": World((0.65, 0.73), seeds=(6, 6), spread=(0.025, 0.025)),
    "six seeds, up to eight photos": World((0.65, 0.73), photos=8, seeds=(6, 6), spread=(0.025, 0.025), **NASTY),
    "six seeds, up to eight photos, accuracy .95": World(
        (0.95, 0.95), photos=8, seeds=(6, 6), spread=(0.01, 0.01), **NASTY
    ),
    "one seed, up to eight photos, accuracy .95": World((0.95, 0.95), photos=8, **NASTY),
    "six seeds, up to eight photos, accuracy .99": World(
        (0.99, 0.99), photos=8, seeds=(6, 6), spread=(0.005, 0.005), **NASTY
    ),
    "one seed, a third of the rows in one product": World((0.88, 0.94), largest=1 / 3, **NASTY),
    "one seed, 84 classes, 1,000 rows": World((0.75, 0.8), rows=1000, copies=7),
    "one seed, 84 classes, 1,000 rows, up to eight photos": World((0.75, 0.8), photos=8, rows=1000, copies=7, **NASTY),
}
DIFFERENCES = {  # true differences of 0; weights of a single seed have exactly the mean accuracy
    f"{kind}, {seeds[0]} and {seeds[1]} seeds, spreads {100 * spread[0]:.0f} and {100 * spread[1]:.0f} points": World(
        (0.7, 0.7), seeds=seeds, spread=spread, **effects
    )
    for kind, effects in KINDS.items()
    for seeds, spreads in {
        (1, 1): [(0.0, 0.0)],
        (1, 6): [(0.0, 0.01), (0.0, 0.05)],
        (2, 2): [(0.01, 0.01), (0.05, 0.01), (0.05, 0.05)],
        (2, 6): [(0.01, 0.01), (0.05, 0.01), (0.01, 0.05)],
        (3, 3): [(0.01, 0.01), (0.05, 0.01)],
        (3, 6): [(0.01, 0.01), (0.05, 0.01), (0.01, 0.05)],
        (3, 10): [(0.01, 0.01), (0.05, 0.01), (0.01, 0.05)],
        (6, 6): [(0.01, 0.01), (0.05, 0.01)],
        (10, 10): [(0.01, 0.01), (0.05, 0.01)],
    }.items()
    for spread in spreads
} | {
    f"accuracy .95, {n} and {n} seeds": World(
        (0.95, 0.95), photos=8, seeds=(n, n), spread=(0.01 * (n > 1),) * 2, **NASTY
    )
    for n in (1, 3, 6)
}
LARGE = {  # splits in which the seeds matter more than the images
    f"{rows:,} rows, {n} and {n} seeds, spreads 5 and 1 points": World(
        (0.7, 0.7), rows=rows, seeds=(n, n), spread=(0.05, 0.01)
    )
    for rows in (600, 2400)
    for n in (3, 6)
}
POWER = {
    f"8 points, {seeds} seeds": World((0.7, 0.78), seeds=(seeds, seeds), spread=(0.025, 0.025)) for seeds in (3, 6, 10)
}
PLANNED = {  # of which `study.py --plan` gives the smallest difference
    f"{kind}, {seeds} seeds": World((0.7, 0.7), photos=photos, seeds=(seeds, seeds), spread=spread, **effects)
    for kind, photos, spread, effects in (
        ("ordinary, spreads 2.5 points", 3, (0.025, 0.025), {}),
        ("correlated, spreads 2.5 points", 8, (0.025, 0.025), NASTY),
        ("similar models, spreads 1 point", 3, (0.01, 0.01), SIMILAR),
    )
    for seeds in (3, 6, 10)
}
PAIRS = [(4 * m + a, 4 * m + b) for m in range(3) for a, b in ((0, 1), (1, 2), (1, 3))] + [(3, 7), (3, 11), (7, 11)]
FAMILIES = {  # three models in four variants
    "12 questions, 6 seeds, spreads 2 points": World((0.7,) * 12, seeds=(6,) * 12, spread=(0.02,) * 12),
    "12 questions, 3 seeds, spreads 5 and 1 points": World(
        (0.7,) * 12, seeds=(3,) * 12, spread=(0.05, 0.01) * 6, photos=8, **NASTY
    ),
    "12 questions, 3 and 10 seeds, spreads 5 and 1 points": World(
        (0.7,) * 12, seeds=(3, 10) * 6, spread=(0.05, 0.01) * 6, **SIMILAR
    ),
    "12 questions, 3 and 6 seeds, spreads 5 and 1 points": World(
        (0.7,) * 12, seeds=(3, 6) * 6, spread=(0.05, 0.01) * 6, photos=8, **NASTY
    ),
    **{
        f"12 questions, 600 rows, {n} seeds, spreads 5 and 1 points": World(
            (0.7,) * 12, rows=600, seeds=(n,) * 12, spread=(0.05, 0.01) * 6
        )
        for n in (3, 6)
    },
}
UNTIL_DECIDED = {  # true differences of 0; the numbers of seeds are the largest
    f"{kind}, spreads {100 * a:.0f} and {100 * b:.0f} points, {seeds} seeds": World(
        (0.7, 0.7), seeds=(seeds, seeds), spread=(a, b), **effects
    )
    for kind, effects in KINDS.items()
    for a, b, seeds in ((0.01, 0.01, 12), (0.05, 0.01, 12), (0.05, 0.05, 12), (0.05, 0.05, 6), (0.05, 0.05, 24))
} | {
    "accuracy .95, spreads 1 and 1 points, 12 seeds": World(
        (0.95, 0.95), photos=8, seeds=(12, 12), spread=(0.01, 0.01), **NASTY
    ),
    "12 questions, spreads 2 points, 12 seeds": World((0.7,) * 12, seeds=(12,) * 12, spread=(0.02,) * 12),
    "12 questions, correlated, spreads 5 and 1 points, 12 seeds": World(
        (0.7,) * 12, seeds=(12,) * 12, spread=(0.05, 0.01) * 6, photos=8, **NASTY
    ),
    "12 questions, similar models, spreads 5 and 1 points, 12 seeds": World(
        (0.7,) * 12, seeds=(12,) * 12, spread=(0.05, 0.01) * 6, **SIMILAR
    ),
}
MIXED = (0.54, 0.7, 0.7, 0.78, 0.54, 0.7, 0.7, 0.78, 0.46, 0.62, 0.62, 0.7)  # differences of 0, 8 and 16 points
UNTIL_DECIDED_POWER = {
    f"{kind}, {points} points, spreads {100 * spread:g} points": World(
        (0.7, 0.7 + points / 100), seeds=(12, 12), spread=(spread, spread), **KINDS[kind]
    )
    for kind, spread, sizes in (
        ("ordinary", 0.025, (4, 8, 12, 16)),
        ("correlated", 0.025, (8, 16)),
        ("similar models", 0.01, (4, 8)),
    )
    for points in sizes
} | {
    f"12 questions, {kind}, 0 to 16 points, spreads {100 * spread:g} points": World(
        MIXED, seeds=(12,) * 12, spread=(spread,) * 12, **KINDS[kind]
    )
    for kind, spread in (("ordinary", 0.025), ("correlated", 0.025), ("similar models", 0.01))
}


def score_coverage(world: World, trials: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Share of 95 % intervals that cover the true value: for `METRICS` (5,) of the first model, and for differences.

    "splits" are the shares of splits (5,) in which the scores of both models have an interval; others are left out.
    """
    rng, truth = np.random.default_rng(seed), [true_scores(accuracy) for accuracy in world.accuracy]
    covered: dict[str, list] = {"score": [], "difference": []}
    for _ in range(trials):
        labels, clusters, predictions = world.draw(rng)
        parts = [leave_one_out(labels, guesses, clusters) for guesses in predictions]
        pairs = [[(scores[:, k], without[:, :, k]) for scores, without in parts] for k in range(len(METRICS))]
        known = ~np.any([np.isnan(without).any(axis=(0, 1)) for _, without in parts], axis=0)
        for name, intervals, true in (
            ("score", [score_estimate(*a).score_interval() for a, _ in pairs], truth[0]),
            ("difference", [difference(a, b).interval() for a, b in pairs], truth[1] - truth[0]),
        ):
            low, high = np.array(intervals).T
            covered[name].append(np.where(known, (low <= true) & (true <= high), np.nan))
    splits = 1 - np.isnan(covered["score"]).mean(0)
    return {name: np.nanmean(shares, axis=0) for name, shares in covered.items()} | {"splits": splits}


def recall_coverage(world: World, trials: int, seed: int = 0) -> float:
    """Share of 95 % intervals that cover the true recall of a class, over the classes with several products."""
    rng, covered = np.random.default_rng(seed), []
    for _ in range(trials):
        labels, clusters, predictions = world.draw(rng)
        for label in np.unique(labels):
            own = labels == label
            groups = np.unique(clusters[own], return_inverse=True)[1]
            if groups.max() > 0:
                low, high = score_estimate(*accuracies(predictions[0][:, own] == label, groups)).score_interval()
                covered.append(low <= norm.cdf(thresholds(world.accuracy[0])[label % CLASSES]) <= high)
    return float(np.mean(covered))


def accuracies(right: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The accuracy of each seed (S,), and its accuracy without the rows of each cluster (S, G), from `right` (S, N)."""
    sums = np.stack([np.bincount(clusters, weights=row) for row in right.astype(float)])
    return right.mean(1), (right.sum(1, keepdims=True) - sums) / (right.shape[1] - np.bincount(clusters))


def difference_coverage(
    world: World, trials: int, *, seed: int = 0, pairs=((0, 1),), compare: Callable[..., Estimate] = difference
) -> tuple[float, float, float]:
    """How reliable a comparison of the `pairs` of models is.

    Returns:
        The shares of splits in which the simultaneous intervals of all pairs cover the true differences, in which a
        difference is reported where there is none or one of the other sign, and in which any difference is reported.
    """
    rng, results = np.random.default_rng(seed), []
    level = 1 - FAMILY_ERROR / len(pairs)
    for _ in range(trials):
        labels, clusters, predictions = world.draw(rng)
        right = [guesses == labels for guesses in predictions]
        sides = [accuracies(rows, clusters) for rows in right]
        covered, false, found = True, False, False
        for a, b in pairs:
            change, true = compare(sides[a], sides[b]), world.accuracy[b] - world.accuracy[a]
            single = len(right[a]) == len(right[b]) == 1
            decided = change.p_value() < 1 - level and not (single and mcnemar(right[a][0], right[b][0]) > 1 - level)
            low, high = change.interval(level)
            # As in `Question.interval`, an interval is extended to zero where McNemar's test forbids a decision.
            low, high = (low, high) if decided else (min(low, 0), max(high, 0))
            covered &= low <= true <= high
            false |= decided and change.value * true <= 0
            found |= decided
        results.append((covered, false, found))
    return tuple(np.mean(results, axis=0))


def planned_power(world: World, trials: int, *, family: int, seed: int = 0) -> tuple[float, float]:
    """The smallest difference that `study.py --plan` gives for one of `family` questions, and how often it is found.

    The spread over products depends on the difference, so it is measured in studies with the difference that is given.
    """
    rng = np.random.default_rng(seed)

    def studies(size: float) -> list[Estimate]:
        accuracy = tuple(np.mean(world.accuracy) + np.array([-size, size]) / 2)
        draws = (replace(world, accuracy=accuracy).draw(rng) for _ in range(trials))
        return [difference(*[accuracies(p == labels, groups) for p in guesses]) for labels, groups, guesses in draws]

    changes = studies(0.08)
    for _ in range(3):
        clusters = round(np.mean([change.clusters for change in changes]))
        spread = measured_spread(changes)
        (size,) = smallest_differences(spread, seeds=world.seeds[0], clusters=clusters, families=[family])
        changes = studies(size)
    return size, float(np.mean([change.p_value() * family < FAMILY_ERROR for change in changes]))


class SimulatedExperiment(ScoredExperiment):
    """An experiment on simulated rows, of which only the accuracy is computed."""

    def __init__(self, name: tuple[str, str], correct: np.ndarray, clusters: np.ndarray):
        """`name` are model and variant; `correct` (S, N) bool are the rows that each seed predicts correctly."""
        number = len(correct)
        self.experiment = Experiment(*name, [*range(number)], pd.DataFrame(), np.full((number, 1), ""), correct)
        self.name, self.correct = self.experiment.name, correct
        scores, without = accuracies(correct, clusters)
        self.leave_one_out = scores[:, None], without[:, :, None]


@dataclass(frozen=True)
class UntilDecided:
    """What studies until decided find in a world, as shares of the simulated studies, and what fixed studies find."""

    covered: float  # all intervals cover the true differences
    false: float  # any difference is reported where there is none or one of the other sign
    score_covered: float  # the intervals of accuracies that cover the true one, without correction for the looks
    each_seed: float  # as `false`, for tests after each seed from the third, without correction for the looks
    found: float  # share of the true differences that are found
    seeds: float  # mean number of seeds of an experiment
    fixed: dict[int, float]  # as `found`, by the number of seeds of a study in which it is fixed

    @property
    def equal_seeds(self) -> float:
        """The fixed number of seeds that finds as many differences, by interpolation."""
        shares = np.maximum.accumulate([*self.fixed.values()])
        first = int(np.argmax(shares >= self.found)) if shares[-1] >= self.found else len(shares) - 1
        nearest = slice(max(first - 1, 0), first + 1)
        return float(np.interp(self.found, shares[nearest], [*self.fixed][nearest]))


def until_decided(world: World, trials: int, *, seed: int = 0) -> UntilDecided:
    """Simulates `study.py --until-decided` and what `compare.py` says, with their own code.

    The seeds of `world` are the largest number. The models of a world with two are two models in one variant; those of
    a larger world are models in four variants each.
    """
    rng, most = np.random.default_rng(seed), world.seeds[0]
    looks, fixed_seeds = Looks(most), range(3, most + 1)
    variants = ["crop"] if len(world.accuracy) == 2 else ["full", "crop", "crop-augment", "crop-strong"]
    names = [(f"model {k // len(variants)}", variants[k % len(variants)]) for k in range(len(world.accuracy))]
    accuracy, asked = dict(zip(names, world.accuracy, strict=True)), list(pairs(names))
    true = np.array([accuracy[b] - accuracy[a] for _, a, b in asked])
    results, found, found_by_seeds = [], [], []
    for _ in range(trials):
        labels, clusters, predictions = world.draw(rng)
        correct = dict(zip(names, (guesses == labels for guesses in predictions), strict=True))
        complete = {name: SimulatedExperiment(name, correct[name], clusters) for name in names}
        reached: dict[tuple[str, str], int] = {}
        for going_on, seeds in follow(asked, looks, lambda *_, complete=complete: complete):
            reached |= dict.fromkeys(going_on, seeds)
        trained = [SimulatedExperiment(name, correct[name][: reached[name]], clusters) for name in names]
        answers, _ = questions_at_looks(trained, looks)
        low, high = np.array([answer.interval for answer in answers]).T
        parts = [(scores[:, 0], without[:, :, 0]) for scores, without in (each.leave_one_out for each in trained)]
        score_low, score_high = np.array([score_estimate(*part).score_interval() for part in parts]).T
        decided, right = decisions(answers, true)
        at_seeds = [
            decisions(
                [replace(ask(kind, complete[a], complete[b], n), family=len(asked)) for kind, a, b in asked], true
            )
            for n in fixed_seeds
        ]
        results.append(
            (
                ((low <= true) & (true <= high)).all(),
                (decided & ~right).any(),
                ((score_low <= world.accuracy) & (world.accuracy <= score_high)).mean(),
                any((decided & ~right).any() for decided, right in at_seeds),
                np.mean([*reached.values()]),
            )
        )
        found.append((decided & right).sum())
        found_by_seeds.append([(decided & right).sum() for decided, right in at_seeds])
    differences = max(1, (true != 0).sum())
    fixed = dict(zip(fixed_seeds, (np.mean(found_by_seeds, axis=0) / differences).tolist(), strict=True))
    covered, false, score_covered, each_seed, seeds = np.mean(results, axis=0)
    return UntilDecided(covered, false, score_covered, each_seed, np.mean(found) / differences, seeds, fixed)


def decisions(answers: Sequence[Question], true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the differences are significant, and which have the sign of the `true` ones, both (Q,) bool."""
    values = np.array([answer.change.value for answer in answers])
    return np.array([answer.decided for answer in answers]), values * true > 0


LEARNERS: dict[str, Callable] = {  # each takes a seed
    "linear discriminant analysis": lambda seed: LinearDiscriminantAnalysis(),
    "a decision tree": lambda seed: DecisionTreeClassifier(random_state=seed),
    "five extra trees": lambda seed: ExtraTreesClassifier(5, random_state=seed),
    "the nearest neighbour": lambda seed: KNeighborsClassifier(1),
}
CLASS_MEANS = 0.75 * np.random.default_rng(7).normal(size=(6, 6))


def fold_differences(learner: Callable, trials: int, *, folds: int, partitions: int, seed: int = 0) -> list[Estimate]:
    """The cross-validated difference in accuracy between one learner on two sets of features, for each simulated data
    set of 100 products with one to three photos.

    Both sets have six features of their own and three in common, all with the same distribution.
    """
    rng, changes = np.random.default_rng(seed), []
    for _ in range(trials):
        clusters = np.repeat(np.arange(100), rng.choice([1, 2, 3], 100, p=SIZES[3]))
        labels = (np.arange(100) % 6)[clusters]
        common = _features(rng, labels, clusters, 3)
        sides = [np.hstack([_features(rng, labels, clusters, 6), common]) for _ in range(2)]
        right = np.zeros((2, partitions, len(labels)), bool)
        for p in range(partitions):
            split = StratifiedGroupKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
            for train, val in split.split(labels, labels, clusters):
                for side, rows in enumerate(sides):
                    model = learner(int(rng.integers(2**31))).fit(rows[train], labels[train])
                    right[side, p, val] = model.predict(rows[val]) == labels[val]
        a, b = (accuracies(rows, clusters) for rows in right)
        changes.append(over_partitions(estimate(b[0] - a[0], b[1] - a[1])))
    return changes


def _features(rng: np.random.Generator, labels: np.ndarray, clusters: np.ndarray, width: int) -> np.ndarray:
    """Features (N, width): the mean of the class, an effect of the product and noise."""
    product = rng.normal(scale=0.7, size=(clusters.max() + 1, width))[clusters]
    return CLASS_MEANS[labels, :width] + product + rng.normal(scale=0.7, size=(len(labels), width))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="number of simulated splits of each kind")
    parts = ("scores", "differences", "large", "families", "power", "planning", "sequential", "folds")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of scikit-learn, about classes with fewer products than folds
    if "scores" in args.only:
        print(
            "| 95 % intervals that cover the true value | | " + " | ".join(METRICS) + " (splits) | recall of a class |"
        )
        print("| --- " * (3 + len(METRICS)) + "|")
        for name, world in SCORES.items():
            recall, shares = recall_coverage(world, -(-args.trials // 5)), score_coverage(world, args.trials)
            for method, last in (("score", f"{recall:.3f}"), ("difference", "")):
                *cells, macro_f1 = (f"{share:.3f}" for share in shares[method])
                known = shares["splits"][-1]  # too few splits say nothing
                cells.append(f"{macro_f1 if known * args.trials >= MIN_SPLITS else ''} ({known:.3f})".strip())
                print(f"| {name} | {method} | {' | '.join(cells)} | {last} |", flush=True)
    for part, worlds in (("differences", DIFFERENCES), ("large", LARGE), ("families", FAMILIES), ("power", POWER)):
        if part in args.only:
            print(f"\n| {part} | intervals cover (all) | false alarms | found |\n| --- | --- | --- | --- |")
            for i, (name, world) in enumerate(worlds.items()):
                pairs = PAIRS if part == "families" else ((0, 1),)
                shares = difference_coverage(world, args.trials, seed=i, pairs=pairs)
                print(f"| {name} | " + " | ".join(f"{share:.3f}" for share in shares) + " |", flush=True)
    if "planning" in args.only:
        print("\n| planning | questions | smallest difference | found |\n| --- | --- | --- | --- |")
        for i, (name, world) in enumerate(PLANNED.items()):
            for family in (1, 12):
                size, found = planned_power(world, args.trials, family=family, seed=i)
                print(f"| {name} | {family} | {100 * size:.1f} points | {found:.3f} |", flush=True)
    if "sequential" in args.only:
        header = ("intervals cover (all)", "false alarms", "accuracies cover", "seeds", "false alarms after each seed")
        print(f"\n| sequential | {' | '.join(header)} |\n| --- " + "| --- " * len(header) + "|")
        results = {}
        for i, (name, world) in enumerate((UNTIL_DECIDED | UNTIL_DECIDED_POWER).items()):
            result = results[name] = until_decided(world, args.trials, seed=i)
            cells = f"{result.covered:.3f} | {result.false:.3f} | {result.score_covered:.3f} | {result.seeds:.1f}"
            print(f"| {name} | {cells} | {result.each_seed:.3f} |", flush=True)
        print("\n| sequential | found | seeds | found with 3, 6, 12 seeds | seeds that find as many | runs saved |")
        print("| --- " * 6 + "|")
        for name in UNTIL_DECIDED_POWER:
            result = results[name]
            fixed = ", ".join(f"{result.fixed[seeds]:.3f}" for seeds in (3, 6, 12))
            cells = f"{result.found:.3f} | {result.seeds:.1f} | {fixed} | {result.equal_seeds:.1f}"
            print(f"| {name} | {cells} | {1 - result.seeds / result.equal_seeds:.0%} |")
    if "folds" in args.only:
        print("\n| folds, partitions | " + " | ".join(LEARNERS) + " |\n" + "| --- " * (1 + len(LEARNERS)) + "|")
        for folds, partitions in ((3, 3), (5, 3), (5, 6), (10, 3)):
            cells = []
            for name, learner in LEARNERS.items():
                trials = args.trials if name == "the nearest neighbour" else -(-args.trials // 4)  # the hardest case
                changes = fold_differences(learner, trials, folds=folds, partitions=partitions)
                cells.append(f"{np.mean([abs(change.value) <= change.margin() for change in changes]):.3f}")
            print(f"| {folds} folds, {partitions} partitions | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
