"""Coverage of the intervals and false alarms of the tests in common/stats.py, on simulated val splits.

python -m benchmarks.coverage                   # a few minutes
python -m benchmarks.coverage --trials 300

A split has 150 to 160 rows of products with one to three photos (as in the sample's val split) or with one to six.
A prediction is correct if a sum of normally distributed effects is below the threshold of its class: the effects of
product and photo (shared by both models), their interactions with the model, the effect of the seed, and noise. The
true accuracy of a class is the normal probability of its threshold, from which the true scores follow.
"""

import argparse
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from common.metrics import METRICS, leave_one_out, scores_of_counts
from common.stats import difference, estimate, holm, mcnemar, seeds_p_value

PRIORS = np.array([12, 11, 5, 13, 22, 6, 5, 11, 9, 14, 14, 8]) / 130  # of the sample's val classes
CLASSES = len(PRIORS)
DIFFICULTY = np.linspace(-0.5, 0.5, CLASSES)[np.argsort(np.argsort(np.sin(7 * np.arange(CLASSES))))]
# A wrong prediction is the next class half of the time, otherwise any other class.
CONFUSIONS = 0.5 * np.roll(np.eye(CLASSES), 1, axis=1) + 0.5 * (1 - np.eye(CLASSES)) / (CLASSES - 1)
SIZES = {"1 to 3": np.array([0.6, 0.3, 0.1]), "1 to 6": np.full(6, 1 / 6)}  # shares of products by number of photos


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
    """A distribution of val splits. Effects are shares of a total variance of 1; the remaining share is noise."""

    accuracy: tuple[float, float]  # of the two models, over all rows
    sizes: str = "1 to 3"
    seeds: int = 1
    product: float = 0.3
    photo: float = 0.3
    model_product: float = 0.1
    model_photo: float = 0.1
    seed: float = 0.0

    def seed_deviation(self) -> float:
        """The standard deviation of the first model's true accuracy over seeds."""
        return float(PRIORS @ norm.pdf(thresholds(self.accuracy[0])) * self.seed**0.5)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Labels (N,), clusters (N,) and the predictions (S, N) of both models for a random split."""
        n, shares, counts = rng.integers(150, 161), SIZES[self.sizes], []
        while sum(counts) < n:
            counts.append(1 + rng.choice(len(shares), p=shares))
        counts[-1] -= sum(counts) - n
        clusters = np.repeat(np.arange(len(counts)), counts)
        labels = rng.choice(CLASSES, len(counts), p=PRIORS)[clusters]

        def effect(share: float, shape) -> np.ndarray:
            return rng.normal(scale=share**0.5, size=shape)

        shared = effect(self.product, len(counts))[clusters] + effect(self.photo, n)
        noise = 1 - self.product - self.photo - self.model_product - self.model_photo - self.seed
        predictions = []
        for accuracy in self.accuracy:
            own = effect(self.model_product, len(counts))[clusters] + effect(self.model_photo, n)
            latent = shared + own + effect(self.seed, (self.seeds, 1)) + effect(noise, (self.seeds, n))
            wrong = (CONFUSIONS.cumsum(1)[labels] < rng.random((self.seeds, n, 1))).sum(-1)
            predictions.append(np.where(latent < thresholds(accuracy)[labels], labels, wrong))
        return labels, clusters, predictions


def coverage(world: World, trials: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Share of 95 % intervals that cover the true value: for `METRICS` (5,) of the first model, and for differences."""
    rng, truth = np.random.default_rng(seed), [true_scores(accuracy) for accuracy in world.accuracy]
    covered = {"score": np.zeros(len(METRICS)), "difference": np.zeros(len(METRICS))}
    for _ in range(trials):
        labels, clusters, predictions = world.draw(rng)
        parts = [leave_one_out(labels, guesses, clusters) for guesses in predictions]
        for k in range(len(METRICS)):
            a, b = [(scores[:, k], without[:, :, k]) for scores, without in parts]
            low, high = estimate(*a).score_interval()
            covered["score"][k] += low <= truth[0][k] <= high
            low, high = difference(a, b).interval()
            covered["difference"][k] += low <= truth[1][k] - truth[0][k] <= high
    return {name: counts / trials for name, counts in covered.items()}


def p_values(world: World, trials: int, seed: int = 0) -> np.ndarray:
    """The p-values (trials, 2) of two tests: McNemar's (several seeds: Student's), and that over products and seeds."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(trials):
        labels, clusters, (a, b) = world.draw(rng)
        sides = [accuracies(guesses == labels, clusters) for guesses in (a, b)]
        exact = mcnemar(a[0] == labels, b[0] == labels) if world.seeds == 1 else seeds_p_value(sides[0][0], sides[1][0])
        found.append((exact, difference(*sides).p_value()))
    return np.array(found)


def accuracies(right: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The accuracy of each seed (S,), and its accuracy without the rows of each cluster (S, G)."""
    sums = np.stack([np.bincount(clusters, weights=row) for row in right.astype(float)])
    return right.mean(1), (right.sum(1, keepdims=True) - sums) / (right.shape[1] - np.bincount(clusters))


WORLDS = {
    "one seed": World((0.65, 0.73)),
    "one seed, six photos": World((0.65, 0.73), sizes="1 to 6"),
    "one seed, high scores": World((0.88, 0.94)),
    "three seeds": World((0.65, 0.73), seeds=3, seed=0.005),
    "six seeds": World((0.65, 0.73), seeds=6, seed=0.005),
    "six seeds, six photos": World((0.65, 0.73), sizes="1 to 6", seeds=6, seed=0.005),
    "six seeds, the same model": World((0.7, 0.7), seeds=6, seed=0.005, model_product=0, model_photo=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="number of simulated splits of each kind")
    args = parser.parse_args()
    print(f"{'share of 95 % intervals covering the true value':52}  " + "  ".join(f"{name:>9}" for name in METRICS))
    for name, world in WORLDS.items():
        for method, shares in coverage(world, args.trials).items():
            print(f"{name + ': ' + method:52}  " + "  ".join(f"{share:9.3f}" for share in shares))
    print("\nfalse alarms: how often two sets of seeds of the same model are called different")
    for seeds, spread in ((1, 0.0), (2, 0.005), (2, 0.02), (3, 0.005), (3, 0.02), (6, 0.005), (6, 0.02)):
        world = World((0.7, 0.7), seeds=seeds, seed=spread, model_product=0, model_photo=0)
        both = p_values(world, 3 * args.trials)
        name = f"{seeds} seeds, whose accuracy varies by {100 * world.seed_deviation():.1f} points"
        for rule, p in (("products and seeds alone", both[:, 1]), ("and the exact test", both.max(1))):
            families = np.mean([min(holm(family)) < 0.05 for family in p.reshape(-1, 3).tolist()])
            print(f"{name + ': ' + rule:72}  one question {np.mean(p < 0.05):.3f}, of three corrected {families:.3f}")


if __name__ == "__main__":
    main()
