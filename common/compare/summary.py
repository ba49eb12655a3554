"""The content of comparison.json: scores of each experiment as plain numbers, possible label errors, and notes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from common.compare.questions import ScoredExperiment
from common.compare.selective import risk_coverage
from common.finished_run import FinishedRun
from common.metrics import calibration_error


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
    return {"folder": str(run.folder), **info}


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


def label_candidates(scored_experiments: Sequence[ScoredExperiment], limit: int = 10) -> list[dict]:
    """Val rows whose label may be wrong: most runs agree on another class, with high probability.

    Each run votes for its predicted class with its probability, as in confident learning (Northcutt et al., 2021).
    """
    ids = scored_experiments[0].experiment.ids
    predictions = np.concatenate([scored.experiment.predictions for scored in scored_experiments])
    probabilities = np.concatenate([scored.experiment.probabilities for scored in scored_experiments])
    candidates = []
    for i, label in enumerate(ids["label"]):
        votes: Counter[str] = Counter()
        for prediction, probability in zip(predictions[:, i], probabilities[:, i], strict=True):
            votes[prediction] += probability / len(predictions)
        predicted, weight = votes.most_common(1)[0]
        if predicted != label and weight > 0.5:
            candidates.append(
                {"image_id": ids["image_id"][i], "label": label, "predicted": predicted, "weight": float(weight)}
            )
    return sorted(candidates, key=lambda row: -row["weight"])[:limit]


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
