"""Do the intervals and tests of common/stats.py keep their promise? Made val splits, of which the truth is known.

python benchmarks/coverage.py               # a few minutes; beside the percentile bootstrap over products
python benchmarks/coverage.py --trials 300

A made split has 150 to 160 rows of products with one to three photos (as the bundled sample's val split) or with one to
six. A row is right where a sum of normal effects stays below its class's threshold: of the product and the photo (the
same for both models), of model and product, model and photo, of the seed, and of chance. So the true accuracy of each
class is the threshold's normal probability, and the true confusion matrix and all scores follow from it.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.metrics import COUNTED, counts_per_cluster, scores_of_counts
from common.stats import difference, estimate, holm, mcnemar, seeds_p_value

PRIORS = np.array([12, 11, 5, 13, 22, 6, 5, 11, 9, 14, 14, 8]) / 130  # of the sample's val classes
SIZES = {"1 to 3": np.array([0.6, 0.3, 0.1]), "1 to 6": np.full(6, 1 / 6)}  # photos of a product


@dataclass(frozen=True)
class World:
    """Where made splits come from. The effects are shares of a variance of 1; chance has the rest."""

    accuracy: tuple[float, ...]  # of each model, over all rows
    sizes: str = "1 to 3"
    seeds: int = 1
    product: float = 0.3
    photo: float = 0.3
    model_product: float = 0.1
    model_photo: float = 0.1
    seed: float = 0.0

    def thresholds(self, model: int) -> np.ndarray:
        """Per class, easy and hard ones, so that the accuracy over all is the wanted one."""
        spread = np.linspace(-0.5, 0.5, len(PRIORS))[np.argsort(np.argsort(np.sin(7 * np.arange(len(PRIORS)))))]
        low, high = -6.0, 6.0
        for _ in range(60):
            shift = (low + high) / 2
            low, high = (shift, high) if PRIORS @ norm.cdf(shift + spread) < self.accuracy[model] else (low, shift)
        return shift + spread

    def truth(self, model: int) -> np.ndarray:
        """The scores `COUNTED` of the true confusion matrix."""
        right = norm.cdf(self.thresholds(model))
        confusion = PRIORS[:, None] * np.where(np.eye(len(PRIORS)), right[:, None], (1 - right)[:, None] * CONFUSIONS)
        rows = 1e6 * confusion
        return scores_of_counts(rows.diagonal(), rows.sum(0), rows.sum(1))

    def spread_of_seeds(self) -> float:
        """The standard deviation of model 0's true accuracy over seeds: the normal density at its thresholds."""
        return float(PRIORS @ norm.pdf(self.thresholds(0)) * self.seed**0.5)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Labels (N,), clusters (N,) and each model's predictions (S, N) of one split."""
        n, chances, counts = rng.integers(150, 161), SIZES[self.sizes], []
        while sum(counts) < n:
            counts.append(1 + rng.choice(len(chances), p=chances))
        counts[-1] -= sum(counts) - n
        clusters = np.repeat(np.arange(len(counts)), counts)
        labels = rng.choice(len(PRIORS), len(counts), p=PRIORS)[clusters]
        shared = _effect(rng, self.product, len(counts))[clusters] + _effect(rng, self.photo, n)
        predictions = []
        for model in range(len(self.accuracy)):
            own = _effect(rng, self.model_product, len(counts))[clusters] + _effect(rng, self.model_photo, n)
            seed = _effect(rng, self.seed, (self.seeds, 1))
            left = 1 - self.product - self.photo - self.model_product - self.model_photo - self.seed
            latent = shared + own + seed + _effect(rng, left, (self.seeds, n))
            wrong = (CONFUSIONS.cumsum(1)[labels] < rng.random((self.seeds, n, 1))).sum(-1)
            predictions.append(np.where(latent < self.thresholds(model)[labels], labels, wrong))
        return labels, clusters, predictions


def _effect(rng: np.random.Generator, share: float, shape) -> np.ndarray:
    return rng.normal(scale=share**0.5, size=shape)


CONFUSIONS = 0.5 * np.roll(np.eye(len(PRIORS)), 1, axis=1) + 0.5 * (1 - np.eye(len(PRIORS))) / (len(PRIORS) - 1)


def leave_one_out(labels, clusters, predictions) -> tuple[np.ndarray, np.ndarray]:
    """Scores (S, 5) and those without each cluster (S, G, 5)."""
    counts = counts_per_cluster(labels, predictions, clusters, len(PRIORS))
    totals = [count.sum(1) for count in counts]
    without = [total[:, None] - count for total, count in zip(totals, counts, strict=True)]
    return scores_of_counts(*totals), scores_of_counts(*without)


def bootstrap(rng, labels, clusters, predictions, draws: int = 400) -> np.ndarray:
    """Scores (models, draws, 5), seeds' means, of products drawn with replacement; the seeds are drawn too."""
    groups, results = clusters.max() + 1, []
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(float)  # (draws, G)
    for guesses in predictions:
        counts = counts_per_cluster(labels, guesses, clusters, len(PRIORS))
        scores = scores_of_counts(*(np.einsum("dg,sgc->sdc", weights, count) for count in counts))  # (S, draws, 5)
        chosen = rng.integers(len(guesses), size=(len(guesses), draws))
        results.append(scores[chosen, np.arange(draws)].mean(0))
    return np.stack(results)


def coverage(world: World, trials: int, seed: int = 0, with_bootstrap: bool = False) -> dict[str, np.ndarray]:
    """How often the 95 % intervals hold the truth: for model 0's scores and for the models' difference, each (5,)."""
    rng, truths = np.random.default_rng(seed), [world.truth(model) for model in range(len(world.accuracy))]
    held = {}

    def note(name, k, low, high, truth):
        held.setdefault(name, np.zeros(len(COUNTED)))[k] += low <= truth <= high

    for _ in range(trials):
        labels, clusters, predictions = world.draw(rng)
        parts = [leave_one_out(labels, clusters, guesses) for guesses in predictions]
        for k in range(len(COUNTED)):
            one, *two = [(scores[:, k], without[:, :, k]) for scores, without in parts]
            note("score", k, *estimate(*one).share_interval(), truths[0][k])
            if two:
                note("difference", k, *difference(one, two[0]).interval(), truths[1][k] - truths[0][k])
        if with_bootstrap:
            draws = bootstrap(rng, labels, clusters, predictions)
            for k in range(len(COUNTED)):
                note("bootstrap of score", k, *np.quantile(draws[0, :, k], (0.025, 0.975)), truths[0][k])
                if len(draws) > 1:
                    change = np.quantile(draws[1, :, k] - draws[0, :, k], (0.025, 0.975))
                    note("bootstrap of difference", k, *change, truths[1][k] - truths[0][k])
    return {name: counts / trials for name, counts in held.items()}


def p_values(world: World, trials: int, seed: int = 0) -> np.ndarray:
    """What `common.comparison.ask` takes the larger one of, for each trial (trials, 2): McNemar's p (of single runs) or
    that over the seeds alone, and that over products and seeds."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(trials):
        labels, clusters, (a, b) = world.draw(rng)
        sides = [((guesses == labels).mean(1), _without((guesses == labels), clusters)) for guesses in (a, b)]
        alone = mcnemar(a[0] == labels, b[0] == labels) if world.seeds == 1 else seeds_p_value(sides[0][0], sides[1][0])
        found.append((alone, difference(*sides).p_value()))
    return np.array(found)


def _without(right: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    sums = np.stack([np.bincount(clusters, weights=row) for row in right.astype(float)])
    return (right.sum(1, keepdims=True) - sums) / (right.shape[1] - np.bincount(clusters))


WORLDS = {
    "one seed": World((0.65, 0.73)),
    "one seed, six photos": World((0.65, 0.73), sizes="1 to 6"),
    "one seed, high scores": World((0.88, 0.94)),
    "three seeds": World((0.65, 0.73), seeds=3, seed=0.005),
    "six seeds": World((0.65, 0.73), seeds=6, seed=0.005),
    "six seeds, six photos": World((0.65, 0.73), sizes="1 to 6", seeds=6, seed=0.005),
    "six seeds, the same model": World((0.7, 0.7), seeds=6, seed=0.005, model_product=0, model_photo=0),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", action=argparse.BooleanOptionalAction, default=True, help="beside it")
    parser.add_argument("--trials", type=int, default=2000, help="made splits of each kind")
    args = parser.parse_args()
    print(f"{'share of 95 % intervals that hold the truth':52}  " + "  ".join(f"{name:>9}" for name in COUNTED))
    for name, world in WORLDS.items():
        for method, shares in coverage(world, args.trials, with_bootstrap=args.bootstrap).items():
            print(f"{name + ': ' + method:52}  " + "  ".join(f"{share:9.3f}" for share in shares))
    print("\nhow often two seeds, or sets of seeds, of one model are called different")
    for seeds, spread in ((1, 0.0), (2, 0.005), (2, 0.02), (3, 0.005), (3, 0.02), (6, 0.005), (6, 0.02)):
        world = World((0.7, 0.7), seeds=seeds, seed=spread, model_product=0, model_photo=0)
        both = p_values(world, 3 * args.trials)
        name = f"{seeds} seeds, whose accuracy varies by {100 * world.spread_of_seeds():.1f} points"
        for rule, p in (("products and seeds alone", both[:, 1]), ("and the exact test", both.max(1))):
            of_three = np.mean([min(holm(family)) < 0.05 for family in p.reshape(-1, 3).tolist()])
            print(f"{name + ': ' + rule:72}  one question {np.mean(p < 0.05):.3f}, of three corrected {of_three:.3f}")


if __name__ == "__main__":
    main()
