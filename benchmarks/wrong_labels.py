"""How many labels that were swapped on purpose are found among the 20 most suspicious rows, by several methods.

python -m benchmarks.wrong_labels custom_cnn --epochs 30
python -m benchmarks.wrong_labels custom_cnn --epochs 30 --cleanlab   # also by the functions of cleanlab (pip install)

In each draw, 5 % of the rows get another class at random. The models of folds by product are trained with these labels,
and each row is judged by models that have not seen its product. Further options are passed to the script. The same
command continues where it was stopped.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.sweep import fold_jobs, train_missing, write_rows
from common.compare.experiments import Experiment, group_runs, join_folds, split_of
from common.compare.summary import vote
from common.config import DataConfig, run
from common.data.sources import clean_categories, load_tables
from common.data.splits import Split
from common.files import markdown_table
from common.finished_run import FinishedRun

SWAPPED = 0.05  # share of rows
SHOWN = 20  # most suspicious rows


def swap_labels(names: list[str | None], rng: np.random.Generator) -> list[str | None]:
    """The same categories, but `SWAPPED` of them replaced by another one, each other one with the same probability."""
    classes = sorted({name for name in names if name})
    labelled = [i for i, name in enumerate(names) if name]
    result = list(names)
    for i in rng.choice(labelled, round(SWAPPED * len(labelled)), replace=False):
        result[i] = str(rng.choice([name for name in classes if name != names[i]]))
    return result


def votes(experiment: Experiment, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The weight of the class that wins the vote of the runs; negative if that is the label."""
    scores = np.zeros(len(labels))
    for i, label in enumerate(experiment.ids["label"]):
        predicted, weight = vote(experiment.predictions[:, i], experiment.probabilities[:, i])
        scores[i] = weight if predicted != label else -weight
    return scores


def self_confidence(experiment: Experiment, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability of the label, as in confident learning (Northcutt, Jiang and Chuang, 2021)."""
    return -probabilities[np.arange(len(labels)), labels]


def margin(experiment: Experiment, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The highest probability of another class minus that of the label, the same authors' normalised margin."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1
    return others.max(1) - probabilities[np.arange(len(labels)), labels]


METHODS = {"votes": votes, "self-confidence": self_confidence, "margin": margin}  # high scores are suspicious


def mean_probabilities(runs: Sequence[FinishedRun]) -> np.ndarray:
    """Out-of-fold probabilities (N, C) of the rows of an experiment, in their order, the mean over its seeds."""
    by_seed: dict[int, dict[Split, pd.DataFrame]] = {}
    for finished in runs:
        columns = pd.DataFrame(finished.probabilities, finished.rows.index).add_prefix("p")
        folds = by_seed.setdefault(finished.info.config["seed"], {})
        folds[split_of(finished)] = pd.concat([finished.rows, columns], axis=1)
    return np.mean([join_folds(folds).filter(regex=r"^p\d+$").to_numpy() for folds in by_seed.values()], axis=0)


def cleanlab_rankings(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """The rows in the order in which cleanlab suspects them, the most suspicious first, by method."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    rankings = {}
    for method in ("self_confidence", "normalized_margin"):
        scores = get_label_quality_scores(labels, probabilities, method=method)
        rankings[f"cleanlab, {method}"] = np.argsort(scores, kind="stable")
        rankings[f"cleanlab, find_label_issues by {method}"] = find_label_issues(
            labels, probabilities, return_indices_ranked_by=method, n_jobs=1
        )
    return rankings


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("model", help="NAME of a script train_NAME.py")
    parser.add_argument("--data", default="sample", help="as in the scripts")
    parser.add_argument("--draws", type=int, default=3, help="number of times that labels are swapped (default: 3)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, each with folds of its own (default: 1)")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--cleanlab", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/wrong_labels"))
    args, options = parser.parse_known_args(argv)
    rows = load_tables(DataConfig(data=args.data, crop=True, split_by="product_id"))["all"]
    names = clean_categories(rows)
    found: dict[str, list[float]] = {}
    for draw in range(args.draws):
        data = args.out / "data" / str(draw)
        write_rows(rows, data, category=swap_labels(names, np.random.default_rng(draw)))
        line, root = " ".join([f"--data {data}", *options]), args.out / args.model / str(draw)
        runs = train_missing(fold_jobs(f"train_{args.model}", line, seeds=args.seeds, folds=args.folds, root=root))
        (experiment,) = group_runs(runs)
        true = dict(zip(rows["image_id"], names, strict=True))
        labels = experiment.ids["label"].to_numpy()
        wrong = labels != [true[image_id] for image_id in experiment.ids["image_id"]]
        probabilities, numbers = mean_probabilities(runs), np.searchsorted(runs[0].info.classes, labels)
        rankings = {
            method: np.argsort(-score(experiment, numbers, probabilities), kind="stable")
            for method, score in METHODS.items()
        }
        if args.cleanlab:
            rankings |= cleanlab_rankings(numbers, probabilities)
        for method, ranking in rankings.items():
            found.setdefault(method, []).append(wrong[ranking[:SHOWN]].sum() / SHOWN)
        accuracy = (experiment.predictions == labels).mean()
        print(f"draw {draw}: {wrong.sum()} of {len(wrong)} labels swapped, accuracy {accuracy:.3f}", flush=True)
    table = [
        [method, f"{np.mean(shares):.2f}", ", ".join(f"{share:.2f}" for share in shares)]
        for method, shares in found.items()
    ]
    print("", *markdown_table(["method", f"precision at {SHOWN}", "of each draw"], table), sep="\n")


if __name__ == "__main__":
    run(main)
