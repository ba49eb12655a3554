"""Whether the sets of `predict.py --risk` hold the right category as often as promised, and how large they are.

python study.py --data sample --models custom_cnn custom_vit resnet --weights none --image-size 64 --epochs 30 \
    --variants crop-strong --folds 3 --seeds 1 --out runs/sets
python -m benchmarks.prediction_sets runs/sets
python -m benchmarks.prediction_sets runs/sets --scores LAC APS RAPS   # other conformity scores

The val products of each run, none of which it was trained on, are divided at random into five parts. The sets of the
photos of each part are calibrated on the other four, so that neither training nor calibration has seen their products.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from common.compare.experiments import group_runs
from common.config import run
from common.conformal import calibration_rows, upper_bound
from common.files import markdown_table
from common.finished_run import FinishedRun, find_runs
from common.stats import format_score, score_estimate

PARTS = 5  # into which the products of val are divided
RAPS_PENALTY, RAPS_FREE = 0.1, 1  # for each category after the first


def lac(probabilities: np.ndarray) -> np.ndarray:
    """Scores (N, C), high for improbable categories: Sadinle, Lei and Wasserman (2019)."""
    return -probabilities


def aps(probabilities: np.ndarray) -> np.ndarray:
    """The sum of the probabilities down to this category: Romano, Sesia and Candès (2020), without random numbers."""
    order = np.argsort(-probabilities, axis=1)
    sums = np.take_along_axis(probabilities, order, axis=1).cumsum(1)
    return np.take_along_axis(sums, order.argsort(1), axis=1)


def raps(probabilities: np.ndarray) -> np.ndarray:
    """`aps` with a penalty for each further category: Angelopoulos et al. (2021)."""
    ranks = np.argsort(-probabilities, axis=1).argsort(1) + 1
    return aps(probabilities) + RAPS_PENALTY * np.maximum(0, ranks - RAPS_FREE)


SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"LAC": lac, "APS": aps, "RAPS": raps}


def parts(clusters: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Divides the clusters (N,) at random into `PARTS` parts, and yields which rows are in each, (N,) bool."""
    part_of = rng.permutation(clusters.max() + 1) % PARTS
    for part in range(PARTS):
        yield part_of[clusters] == part


def held_out_sets(
    scores: np.ndarray, labels: np.ndarray, clusters: np.ndarray, risk: float, rng: np.random.Generator
) -> np.ndarray:
    """The sets (N, C) bool of rows with scores (N, C), each calibrated on the parts that its cluster is not in."""
    sets = np.zeros(scores.shape, bool)
    of_label = scores[np.arange(len(labels)), labels]
    for part in parts(clusters, rng):
        sets[part] = scores[part] <= upper_bound(of_label[~part], clusters[~part], risk)
    return sets


def by_product(values: np.ndarray, products: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The mean over products of the means of their rows, and its 95 % confidence interval."""
    means = np.array([values[products == product].mean() for product in np.unique(products)])
    without = (means.sum() - means) / (len(means) - 1)
    found = score_estimate(np.array([means.mean()]), without[None])
    return found.value, found.score_interval()


def row_of(runs: Sequence[FinishedRun], name: str, risk: float, divisions: int) -> list[str]:
    """The cells of a row of the table for the runs of one experiment."""
    rng, covered, answered, wrong, sizes, products, fewest = np.random.default_rng(0), [], [], [], [], [], 10**9
    for finished in runs:
        rows, clusters, _ = calibration_rows(finished)
        probabilities = finished.probabilities[rows]
        labels = np.searchsorted(finished.info.classes, finished.rows["label"][rows])
        fewest = min(fewest, (clusters.max() + 1) * (PARTS - 1) // PARTS)
        for _ in range(divisions):
            sets = held_out_sets(SCORES[name](probabilities), labels, clusters, risk, rng)
            holds, single = sets[np.arange(len(labels)), labels], sets.sum(1) == 1
            covered.append(holds)
            answered.append(single)
            wrong.append(single & ~holds)
            sizes.append(sets.sum(1))
            products.append(finished.rows["product_id"][rows].to_numpy())
    ids = np.concatenate(products)
    share_answered, share_wrong = (by_product(np.concatenate(values), ids)[0] for values in (answered, wrong))
    return [
        format_score(*by_product(np.concatenate(covered), ids)),
        f"{np.concatenate(covered).mean():.3f}",
        f"{np.concatenate(sizes).mean():.1f}",
        f"{share_answered:.3f}",
        f"{share_wrong:.3f}",
        str(fewest),
    ]


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of run folders, with products of their own")
    parser.add_argument("--risks", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=["LAC"])
    parser.add_argument("--divisions", type=int, default=20, help="into parts, for each run (default: 20)")
    args = parser.parse_args(argv)
    runs, notes = find_runs(args.runs)
    print(*notes, sep="\n")
    table = []
    for experiment in group_runs(runs):
        correct = (experiment.predictions == experiment.ids["label"].to_numpy()).mean()
        for risk in args.risks:
            for name in args.scores:
                score = [name] if len(args.scores) > 1 else []
                title = f"{experiment.name} ({correct:.3f})"
                table.append([title, f"{1 - risk:g}", *score, *row_of(experiment.runs, name, risk, args.divisions)])
    header = ["experiment (accuracy)", "asked", *["score"] * (len(args.scores) > 1), "covered", "of photos"]
    print(*markdown_table([*header, "mean size", "answered", "wrong answers", "products"], table), sep="\n")


if __name__ == "__main__":
    run(main)
