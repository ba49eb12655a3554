"""The content of comparison.json: scores of each experiment as plain numbers, possible label errors, and notes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from common.compare.questions import MIN_CLUSTERS, ScoredExperiment
from common.conformal import clusters_needed
from common.finished_run import FinishedRun
from common.metrics import calibration_error
from common.stats import Estimate, over_partitions, score_estimate

SHARES = tuple(k / 10 for k in range(1, 11))  # of photos answered, at which the accuracy is reported
ERRORS = (0.01, 0.02, 0.05, 0.1)  # shares of wrong answers at which the share answered is reported


def experiment_summary(scored: ScoredExperiment) -> dict:
    """All scores of an experiment or a baseline as plain numbers."""
    experiment = scored.experiment
    accuracies = scored.correct.mean(1)  # of each seed
    summary: dict[str, Any] = {
        "name": scored.name,
        "model": experiment.model,
        "variant": experiment.variant,
        "n": scored.n,
        "products": scored.products,
        "seeds": experiment.seeds,
        **{name: estimate.as_dict() for name, estimate in scored.estimates.items()},
        "accuracy_of_seeds": accuracies.tolist(),
        "sd_over_seeds": float(accuracies.std(ddof=1)) if len(accuracies) > 1 else None,
    }
    if scored.unseen:
        accuracy = scored.unseen.estimates["accuracy"].as_dict()
        summary["unseen_products"] = {"n": scored.unseen.n, "accuracy": accuracy}
    summary["classes"] = per_class(scored)
    summary["confused"] = confused_pairs(scored)
    if experiment.runs:
        calibration_errors = [
            calibration_error(probabilities, correct)
            for probabilities, correct in zip(experiment.probabilities, scored.correct.astype(float), strict=True)
        ]
        summary["log_loss"] = float(experiment.losses.mean())
        summary["calibration_error"] = float(np.mean(calibration_errors))
        summary["risk_coverage"] = risk_coverage(scored)
        summary["parameters"] = experiment.mean_of("parameters")
        summary["runs"] = [run_summary(run) for run in experiment.runs]
    return summary


def run_summary(run: FinishedRun) -> dict[str, Any]:
    """What a run was made from and with: options, data, command, commit, versions and device.

    Its speed is left out, as it says nothing about a model unless each run had the machine to itself.
    """
    left_out = {"classes", "parameters", "seconds", "train_seconds", "images_per_second"}
    info = {name: value for name, value in asdict(run.info).items() if name not in left_out}
    return {"folder": run.name, **info}


def per_class(scored: ScoredExperiment) -> dict[str, dict]:
    """For each class with val rows: their number, precision, recall and F1, means over the seeds.

    The 95 % confidence interval of the recall accounts for the choice of products and seeds; it is None for a class
    whose rows show a single product or photo.
    """
    result = {}
    for name in sorted(set(scored.labels)):
        in_class = scored.labels == name
        rows = in_class.sum()
        hits = (scored.experiment.predictions[:, in_class] == name).sum(1)  # (S,)
        predicted = (scored.experiment.predictions == name).sum(1)  # (S,)
        several = len(set(scored.clusters[in_class])) > 1
        recall = ScoredExperiment(scored.experiment, in_class).estimates["accuracy"] if several else None
        result[name] = {
            "rows": int(rows),
            "precision": float((hits / np.maximum(predicted, 1)).mean()),
            "recall": float(hits.mean() / rows),
            "interval": list(recall.score_interval()) if recall else None,
            "f1": float((2 * hits / (predicted + rows)).mean()),
        }
    return result


def confused_pairs(scored: ScoredExperiment, limit: int = 5) -> list[dict]:
    """The most frequent errors: true class, predicted class, and number of rows (mean over the seeds)."""
    pairs: Counter[tuple[str, str]] = Counter()
    for predictions, correct in zip(scored.experiment.predictions, scored.correct, strict=True):
        pairs.update(zip(scored.labels[~correct], predictions[~correct], strict=True))
    seeds = len(scored.correct)
    return [
        {"true": true, "predicted": predicted, "rows": count / seeds}
        for (true, predicted), count in pairs.most_common(limit)
    ]


def risk_coverage(scored: ScoredExperiment) -> dict[str, Any]:
    """Accuracy against the share of photos that are answered, the risk-coverage curve of El-Yaniv and Wiener (2010)."""
    found = {share: answered_at(scored, share) for share in SHARES}
    return {
        "accuracy_of_answered": {f"{share:g}": e.as_dict() if e else None for share, e in found.items()},
        "answered_at_error": {f"{error:g}": share_at(scored, error) for error in ERRORS},
    }


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
    clusters = int((rows > 0).sum(1).min())
    if clusters < MIN_CLUSTERS:
        return None
    rows, right = (part[:, (rows > 0).any(0)] for part in (rows, right))
    scores, without = right.sum(1) / number, (right.sum(1, keepdims=True) - right) / (number - rows)
    repetitions = scored.experiment.repetitions
    own = [repetitions == repetition for repetition in np.unique(repetitions)]
    found = score_estimate(np.stack([scores[s].mean() for s in own]), np.stack([without[s].mean(0) for s in own]))
    found = replace(found, clusters=clusters)  # a seed answers photos of fewer products than all seeds together
    return over_partitions(found) if scored.experiment.folds else found


def share_at(scored: ScoredExperiment, error: float) -> float | None:
    """The largest share of rows that can be answered with at most this share of wrong answers among them.

    Only shares whose rows show enough products are considered: with fewer than 1 / error - 1, one wrong product is more
    than that. 0 if no share at all is that accurate; None if only shares that show too few products are.
    """
    needed = clusters_needed(error)
    if scored.clusters.max() + 1 < needed:
        return None
    smallest = max(
        np.sort(np.unique(scored.clusters[rows], return_index=True)[1])[needed - 1] for rows in ranked(scored)
    )
    within = np.flatnonzero(accuracy_of_answered(scored) >= 1 - error - 1e-9)
    if not len(within):
        return 0.0
    return (within[-1] + 1) / scored.n if within[-1] >= smallest else None


def vote(predictions: np.ndarray, probabilities: np.ndarray) -> tuple[str, float]:
    """The class that R runs predict for a row, and its weight: each votes for its prediction with its probability.

    Args:
        predictions: (R,) class names.
        probabilities: (R,) of the predictions.
    """
    votes: Counter[str] = Counter()
    for prediction, probability in zip(predictions, probabilities, strict=True):
        votes[prediction] += probability / len(predictions)
    return votes.most_common(1)[0]


def label_candidates(scored_experiments: Sequence[ScoredExperiment], limit: int = 10) -> list[dict]:
    """Val rows whose label may be wrong: most runs predict another class, and the label is improbable.

    In the `vote` of the runs, another class must have a weight above one half. Of these rows, those whose labels have
    the lowest mean probability are returned. This score, the self-confidence of confident learning (Northcutt, Jiang
    and Chuang, 2021), found more swapped labels than the weight of the votes (benchmarks/wrong_labels.py). "row" is the
    number of the row among `Experiment.ids`.
    """
    ids = scored_experiments[0].experiment.ids
    predictions, probabilities, losses = (
        np.concatenate([getattr(scored.experiment, name) for scored in scored_experiments])
        for name in ("predictions", "probabilities", "losses")
    )
    self_confidence = np.exp(-losses).mean(0)
    candidates = []
    for i in np.argsort(self_confidence, kind="stable").tolist():
        label = ids["label"][i]
        predicted, weight = vote(predictions[:, i], probabilities[:, i])
        if predicted != label and weight > 0.5:
            row = {"row": i, "image_id": ids["image_id"][i], "label": label, "predicted": predicted}
            candidates.append(row | {"weight": float(weight)})
        if len(candidates) == limit:
            break
    return candidates


def seed_and_leakage_notes(scored_experiments: Sequence[ScoredExperiment]) -> list[str]:
    """Sentences about the limits of a comparison: experiments with one seed, and products that are also in train."""
    notes = []
    if any(len(scored.correct) == 1 for scored in scored_experiments):
        notes.append("the interval of an experiment with one seed does not include the variance between seeds")
    first = scored_experiments[0]
    leaked = first.experiment.ids["product_id"].isin(first.experiment.shared_products).sum()
    if leaked:
        notes.append(
            f"{leaked} of {first.n} val rows show a product that also occurs in train: models may have memorised it"
        )
    return notes
