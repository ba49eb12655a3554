"""The questions that a set of experiments answers, and how sure the answers are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from common.config import VARIANTS, InputError
from common.finished import Experiment
from common.folds import group_numbers
from common.metrics import COUNTED, counts_per_cluster, scores_of_counts
from common.stats import Estimate, difference, estimate, holm, mcnemar, rows_needed, seeds_p_value

STEPS = (  # variants that are compared, and what tells them apart
    ("full", "crop", "crop"),
    ("crop", "crop-augment", "augmentation"),
    ("crop", "crop-strong", "strong augmentation"),
    ("full", "full-augment", "augmentation"),
    ("full", "full-strong", "strong augmentation"),
)
STEPS_WITHOUT_CROP = (  # further ones, where there is no crop alone
    ("full", "crop-augment", "crop and augmentation"),
    ("crop-augment", "crop-strong", "strong augmentation"),
)


class Scored:
    """An experiment's scores on its N val rows, with their uncertainty."""

    def __init__(self, experiment: Experiment, chosen: np.ndarray | None = None):
        """`chosen` (N,) bool: only these rows."""
        chosen = np.ones(len(experiment.ids), bool) if chosen is None else chosen
        self.experiment, self.name = experiment, experiment.name
        ids, predictions = experiment.ids[chosen], experiment.predictions[:, chosen]
        self.labels = ids["label"].to_numpy()
        self.classes, numbers = np.unique(np.concatenate([self.labels, predictions.ravel()]), return_inverse=True)
        self.label_numbers = numbers[: len(ids)]
        self.prediction_numbers = numbers[len(ids) :].reshape(predictions.shape)
        self.clusters = group_numbers(ids["product_id"])  # rows of one product
        self.right = predictions == self.labels  # (S, N)
        if self.clusters.max() == 0:
            raise InputError(f"{self.name} was validated on one product only: nothing can be said of others.")

    @property
    def n(self) -> int:
        return len(self.labels)

    @cached_property
    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """The scores `COUNTED` (S, 5) of each seed, and those (S, G, 5) without the rows of each product."""
        counts = counts_per_cluster(self.label_numbers, self.prediction_numbers, self.clusters, len(self.classes))
        totals = [count.sum(1) for count in counts]
        without = [total[:, None] - count for total, count in zip(totals, counts, strict=True)]
        return scores_of_counts(*totals), scores_of_counts(*without)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        scores, without = self.leave_one_out
        return {name: estimate(scores[:, k], without[:, :, k]) for k, name in enumerate(COUNTED)}

    @cached_property
    def unseen(self) -> "Scored | None":
        """The scores on rows of products that train never shows, where there are rows of both kinds."""
        products = self.experiment.ids["product_id"]
        new = (~products.isin(self.experiment.shared_products) & (products != "")).to_numpy()
        return Scored(self.experiment, new) if products[new].nunique() > 1 and not new.all() else None


@dataclass
class Question:
    """Whether `b` is better than `a`: `kind` is one of `STEPS`, or "model"."""

    kind: str
    a: Scored
    b: Scored
    change: Estimate  # accuracy of b minus that of a
    mcnemar_p: float | None  # of single runs
    seeds_p: float | None  # of several seeds, the val images taken as given
    p: float  # which decides
    holm_p: float = 1.0  # corrected for all questions asked

    @property
    def decided(self) -> bool:
        return self.holm_p < 0.05

    @property
    def title(self) -> str:
        if self.kind == "model":
            return f"{self.b.experiment.model} against {self.a.experiment.model}, {self.a.experiment.variant}"
        return f"{self.a.experiment.model}: {self.b.experiment.variant} against {self.a.experiment.variant}"

    @property
    def sentence(self) -> str:
        """The answer in plain words, with the difference in points (hundredths of accuracy) and its 95 % interval."""
        low, high = self.change.interval()
        a, b, change = self.a.experiment, self.b.experiment, self.change.value
        if self.kind == "model" and change < 0 and self.decided:
            a, b, change, low, high = b, a, -change, -high, -low
        points = f"{100 * change:+.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
        if not self.decided:
            what = f"{b.model} against {a.model} ({a.variant})" if self.kind == "model" else f"{self.kind}, {a.model}"
            return f"{what}: not distinguishable {self._on}, {points}; {self._what_it_takes()}"
        if self.single:
            points += ", of single runs: other seeds may differ"
        if self.kind == "model":
            return f"{b.model} beats {a.model} ({a.variant}): {points}"
        return f"{self.kind} {'helps' if change > 0 else 'harms'} {a.model}: {points}"

    @property
    def single(self) -> bool:
        return min(len(self.a.right), len(self.b.right)) == 1

    @property
    def _on(self) -> str:
        seeds = sorted({len(self.a.right), len(self.b.right)})
        return f"on {self.a.n} images" + ("" if self.single else f" with {' and '.join(map(str, seeds))} seeds")

    def _what_it_takes(self) -> str:
        if self.p < 0.05:
            return f"p = {self.p:.3f} alone, but {self.holm_p:.3f} among all questions asked"
        if self.change.value == 0:
            return "the two are equal"
        needed = rows_needed(self.change, self.a.n)
        if needed is None or self.seeds_p == self.p:
            return "more seeds would be needed"
        if needed <= self.a.n:
            return "some more images would be needed"
        step = 10 ** max(0, len(str(needed)) - 2)
        return f"about {math.ceil(needed / step) * step:,} images would be needed for a difference of this size"


def ask(kind: str, a: Scored, b: Scored) -> Question:
    """Two experiments differ if two tests say so: one with the variance over products and seeds, and one that is exact
    where the first is not: McNemar's for single runs with few rows that differ, Student's over the seeds for few seeds.
    """
    (scores_a, without_a), (scores_b, without_b) = a.leave_one_out, b.leave_one_out
    change = difference((scores_a[:, 0], without_a[:, :, 0]), (scores_b[:, 0], without_b[:, :, 0]))
    single = len(scores_a) == len(scores_b) == 1
    exact = mcnemar(a.right[0], b.right[0]) if single else None
    seeds = seeds_p_value(scores_a[:, 0], scores_b[:, 0])
    return Question(kind, a, b, change, exact, seeds, max(change.p_value(), exact or 0.0, seeds or 0.0))


def questions(scored: Sequence[Scored]) -> list[Question]:
    """What can be asked: each variant against the simpler one, and the models in the last variant that two share."""
    models: dict[str, dict[str, Scored]] = {}
    for one in scored:
        models.setdefault(one.experiment.model, {})[one.experiment.variant] = one
    asked = []
    for variants in models.values():
        for before, after, kind in STEPS if "crop" in variants else STEPS + STEPS_WITHOUT_CROP:
            if {before, after} <= variants.keys():
                asked.append(ask(kind, variants[before], variants[after]))
    for one, other in combinations(models.values(), 2):
        common = [variant for variant in VARIANTS if variant in one.keys() & other.keys()]
        if common:
            asked.append(ask("model", one[common[-1]], other[common[-1]]))
    for question, p in zip(asked, holm([question.p for question in asked]), strict=True):
        question.holm_p = p
    return asked
