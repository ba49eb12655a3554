"""The questions that a set of experiments answers, such as "does the crop help?", with tests of significance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from common.compare.experiments import Experiment
from common.config import VARIANTS, InputError
from common.data.splits import group_numbers
from common.metrics import leave_one_out
from common.stats import (
    Estimate,
    difference,
    format_difference,
    format_p,
    holm,
    mcnemar,
    rows_needed,
    score_estimates,
    seeds_p_value,
)

STEPS = (  # pairs of variants to compare, and what the second one adds, which names the question in its sentence
    ("full", "crop", "crop"),
    ("crop", "crop-augment", "augmentation"),
    ("crop", "crop-strong", "strong augmentation"),
    ("full", "full-augment", "augmentation without the crop"),
    ("full", "full-strong", "strong augmentation without the crop"),
)
STEPS_WITHOUT_CROP = (  # further pairs for models that have no run of the variant "crop"
    ("full", "crop-augment", "crop and augmentation"),
    ("crop-augment", "crop-strong", "strong instead of lab augmentation"),
)


class ScoredExperiment:
    """The scores of an experiment on its N val rows, with their uncertainty.

    Raises:
        InputError: all rows show the same product, so the variance over products cannot be estimated.
    """

    def __init__(self, experiment: Experiment, chosen: np.ndarray | None = None):
        """`chosen` (N,) bool restricts the scores to some of the rows."""
        chosen = np.ones(len(experiment.ids), bool) if chosen is None else chosen
        self.experiment = experiment
        self.name = experiment.name
        ids = experiment.ids[chosen]
        self.labels = ids["label"].to_numpy()  # (N,) class names
        self.predictions = experiment.predictions[:, chosen]  # (S, N) class names
        self.classes = np.unique(np.concatenate([self.labels, self.predictions.ravel()]))
        self.clusters = group_numbers(ids["product_id"])  # (N,) int, equal for rows of the same product
        self.products = int(ids["product_id"][ids["product_id"] != ""].nunique())  # without rows that have no id
        self.correct = self.predictions == self.labels  # (S, N) bool
        if self.clusters.max() == 0:
            raise InputError(
                f"{self.name} was validated on a single product: confidence intervals need at least two products."
            )

    @property
    def n(self) -> int:
        return len(self.labels)

    @cached_property
    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """The scores `METRICS` of each seed (S, 5), and those without the rows of each product (S, G, 5)."""
        return leave_one_out(self.labels, self.predictions, self.clusters)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The estimate of each of `METRICS`."""
        return score_estimates(*self.leave_one_out)

    @cached_property
    def unseen(self) -> "ScoredExperiment | None":
        """The scores on products that are not in train; None if there are fewer than two, or no other rows."""
        products = self.experiment.ids["product_id"]
        unseen = (~products.isin(self.experiment.shared_products) & (products != "")).to_numpy()
        return (
            ScoredExperiment(self.experiment, unseen) if products[unseen].nunique() > 1 and not unseen.all() else None
        )


@dataclass
class Question:
    """Whether `b` is more accurate than `a`. Every difference is b minus a, in text, tables and figures."""

    kind: str  # what b adds to a, the third item of one of `STEPS`; or "model"
    a: ScoredExperiment
    b: ScoredExperiment
    change: Estimate  # accuracy of b minus accuracy of a
    mcnemar_p: float | None  # None unless a and b are single runs
    seeds_p: float | None  # None unless a and b have several seeds; treats the val images as fixed
    p: float  # the p-value that the decision is based on
    holm_p: float = 1.0  # p corrected for all questions

    @property
    def decided(self) -> bool:
        """Whether the difference is significant at the 5 % level after the correction."""
        return self.holm_p < 0.05

    @property
    def title(self) -> str:
        a, b = self.a.experiment, self.b.experiment
        if self.kind == "model":
            return f"{b.model} vs. {a.model}, {a.variant}"
        return f"{a.model}: {b.variant} vs. {a.variant}"

    @property
    def sentence(self) -> str:
        """The answer in one line, with the difference in percentage points and its 95 % confidence interval."""
        a, b = self.a.experiment, self.b.experiment
        size = format_difference(self.change.value, self.change.interval())
        if not self.decided:
            subject = f"{b.model} vs. {a.model} ({a.variant})" if self.kind == "model" else f"{self.kind}, {a.model}"
            return f"{subject}: not distinguishable {self._sample_size}, {size}; {self._explanation()}"
        single_runs = [scored.name for scored in (self.a, self.b) if len(scored.correct) == 1]
        if single_runs:
            runs = "single runs" if len(single_runs) == 2 else f"a single run of {single_runs[0]}"
            size += f", from {runs}: other seeds may differ"
        better = self.change.value > 0
        if self.kind == "model":
            return f"{b.model} {'beats' if better else 'loses to'} {a.model} ({a.variant}): {size}"
        return f"{self.kind} {'helps' if better else 'harms'} {a.model}: {size}"

    def as_dict(self) -> dict:
        """The question and its answer for comparison.json."""
        return {
            "question": self.title,
            "a": self.a.name,
            "b": self.b.name,
            "difference": self.change.value,
            "interval": list(self.change.interval()),
            "p": self.p,
            "holm_p": self.holm_p,
            "mcnemar_p": self.mcnemar_p,
            "seeds_p": self.seeds_p,
            "decided": self.decided,
            "sentence": self.sentence,
        }

    @property
    def _sample_size(self) -> str:
        seeds = sorted({len(self.a.correct), len(self.b.correct)})
        if seeds == [1]:
            return f"on {self.a.n} images"
        return f"on {self.a.n} images with {' and '.join(map(str, seeds))} seeds"

    def _explanation(self) -> str:
        """Why the difference is not significant, or what would be needed to detect it."""
        if self.p < 0.05:
            alone = f"p = {format_p(self.p, 3)} alone".replace("= <", "<")
            return f"{alone}, but {format_p(self.holm_p, 3)} after correction for all questions"
        if abs(self.change.value) < 1e-9:
            return "both have the same accuracy"
        needed = rows_needed(self.change, self.a.n)
        if needed is None or self.seeds_p == self.p:
            return "more seeds would be needed"
        if needed <= self.a.n:
            return "slightly more images would be needed"
        step = 10 ** max(0, len(str(needed)) - 2)
        needed = math.ceil(needed / step) * step  # two significant digits
        return f"about {needed:,} images would be needed to detect a difference of this size"


def ask(kind: str, a: ScoredExperiment, b: ScoredExperiment) -> Question:
    """Compares two experiments on the same val rows.

    The first test takes the variance over products and seeds into account. The second is more reliable on little data:
    McNemar's exact test between single runs, which may differ in only a few rows, or Student's t-test over the seeds
    between experiments with several seeds each. The p-value is the larger of the two. Between one seed and several,
    only the first test applies.
    """
    (scores_a, without_a), (scores_b, without_b) = a.leave_one_out, b.leave_one_out
    change = difference((scores_a[:, 0], without_a[:, :, 0]), (scores_b[:, 0], without_b[:, :, 0]))  # of accuracy
    single = len(scores_a) == len(scores_b) == 1
    mcnemar_p = mcnemar(a.correct[0], b.correct[0]) if single else None
    seeds_p = seeds_p_value(scores_a[:, 0], scores_b[:, 0])
    p = max(change.p_value(), mcnemar_p or 0.0, seeds_p or 0.0)
    return Question(kind, a, b, change, mcnemar_p, seeds_p, p)


def questions(scored_experiments: Sequence[ScoredExperiment]) -> list[Question]:
    """All questions that the experiments answer, with p-values corrected for their number.

    Each variant of a model is compared with a simpler one (`STEPS`), and each pair of models in the last variant of
    `VARIANTS` that both have.
    """
    models: dict[str, dict[str, ScoredExperiment]] = {}
    for scored in scored_experiments:
        models.setdefault(scored.experiment.model, {})[scored.experiment.variant] = scored
    asked = []
    for variants in models.values():
        for before, after, kind in STEPS if "crop" in variants else STEPS + STEPS_WITHOUT_CROP:
            if {before, after} <= variants.keys():
                asked.append(ask(kind, variants[before], variants[after]))
    for a, b in combinations(models.values(), 2):
        shared = [variant for variant in VARIANTS if variant in a.keys() & b.keys()]
        if shared:
            asked.append(ask("model", a[shared[-1]], b[shared[-1]]))
    for question, p in zip(asked, holm([question.p for question in asked]), strict=True):
        question.holm_p = p
    return asked
