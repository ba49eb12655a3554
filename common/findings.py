"""A comparison in plain numbers, as comparison.json holds them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from common.comparison import Question, Scored
from common.metrics import calibration_error
from common.stats import Estimate, wilson


def numbers(one: Scored) -> dict:
    """All of an experiment's scores, as plain numbers."""
    experiment = one.experiment
    result = {"name": one.name, "model": experiment.model, "variant": experiment.variant}
    result |= {"n": one.n, "products": one.estimates["accuracy"].clusters, "seeds": experiment.seeds}
    result |= {name: estimate_numbers(found) for name, found in one.estimates.items()}
    accuracies = one.right.mean(1)
    result["accuracy_of_seeds"] = accuracies.tolist()
    result["sd_over_seeds"] = float(accuracies.std(ddof=1)) if len(accuracies) > 1 else None
    if one.unseen:
        result["unseen_products"] = {"n": one.unseen.n, "accuracy": estimate_numbers(one.unseen.estimates["accuracy"])}
    result["classes"] = per_class(one)
    result["confused"] = confused_pairs(one)
    if experiment.runs:
        errors = [
            calibration_error(p, right)
            for p, right in zip(experiment.probabilities, one.right.astype(float), strict=True)
        ]
        result |= {"log_loss": float(experiment.losses.mean()), "calibration_error": float(np.mean(errors))}
        names = ("parameters", "images_per_second", "seconds")
        result |= {name: experiment.mean_of(name) for name in names}
        result["runs"] = [str(run.folder) for run in experiment.runs]
    return result


def estimate_numbers(found: Estimate) -> dict:
    return {"value": found.value, "interval": list(found.share_interval())}


def question_numbers(question: Question) -> dict:
    return {
        "question": question.title,
        "a": question.a.name,
        "b": question.b.name,
        "difference": question.change.value,
        "interval": list(question.change.interval()),
        "p": question.p,
        "holm_p": question.holm_p,
        "mcnemar_p": question.mcnemar_p,
        "seeds_p": question.seeds_p,
        "decided": question.decided,
        "sentence": question.sentence,
    }


def per_class(one: Scored) -> dict[str, dict]:
    """For each class that occurs: rows, mean precision and F1 over the seeds, and recall with its 95 % interval.

    The interval is Wilson's and takes the rows as independent: few classes have products enough for more.
    """
    result = {}
    for name in sorted(set(one.labels)):
        rows = one.labels == name
        hits = (one.experiment.predictions[:, rows] == name).sum(1)
        guesses = (one.experiment.predictions == name).sum(1)
        recall = float(hits.mean() / rows.sum())
        result[name] = {
            "rows": int(rows.sum()),
            "precision": float((hits / np.maximum(guesses, 1)).mean()),
            "recall": recall,
            # Seeds see the same rows, so they count as one look at them.
            "interval": list(wilson(recall, 1.96**2 / rows.sum())),
            "f1": float((2 * hits / (guesses + rows.sum())).mean()),
        }
    return result


def confused_pairs(one: Scored, most: int = 5) -> list[dict]:
    """The most frequent mistakes: true class, predicted class, rows (mean over the seeds)."""
    pairs = Counter()
    for guesses, right in zip(one.experiment.predictions, one.right, strict=True):
        pairs.update(zip(one.labels[~right], guesses[~right], strict=True))
    seeds = len(one.right)
    return [{"true": a, "predicted": b, "rows": count / seeds} for (a, b), count in pairs.most_common(most)]


def label_candidates(scored: Sequence[Scored], most: int = 10) -> list[dict]:
    """Val rows that most runs call the same other class with confidence: is the label wrong, or the photo unclear?

    Each run votes for its predicted class with its probability, as in confident learning (Northcutt et al., 2021).
    """
    ids, found = scored[0].experiment.ids, []
    predictions = np.concatenate([one.experiment.predictions for one in scored])
    probabilities = np.concatenate([one.experiment.probabilities for one in scored])
    for i, label in enumerate(ids["label"]):
        votes = Counter()
        for guess, probability in zip(predictions[:, i], probabilities[:, i], strict=True):
            votes[guess] += probability / len(predictions)
        guess, weight = votes.most_common(1)[0]
        if guess != label and weight > 0.5:
            found.append({"image_id": ids["image_id"][i], "label": label, "predicted": guess, "weight": float(weight)})
    return sorted(found, key=lambda row: -row["weight"])[:most]
