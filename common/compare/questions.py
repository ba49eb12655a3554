"""The questions that a set of experiments answers, such as "does the crop help?", with tests of significance."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from common.compare.experiments import Experiment
from common.config import VARIANTS, InputError, count
from common.data.splits import connected_groups
from common.metrics import leave_one_out
from common.stats import (
    FAMILY_ERROR,
    Estimate,
    difference,
    estimate,
    format_difference,
    mcnemar,
    over_partitions,
    score_estimates,
)

STEPS = (  # pairs of variants to compare, the name for `--ask`, and what the second variant adds
    ("full", "crop", "crop", "crop"),
    ("crop", "crop-augment", "augment", "augmentation"),
    ("crop", "crop-strong", "strong", "strong augmentation"),
    ("full", "full-augment", "augment", "augmentation without the crop"),
    ("full", "full-strong", "strong", "strong augmentation without the crop"),
)
STEPS_WITHOUT_CROP = (  # further pairs for models that have no run of the variant "crop"
    ("full", "crop-augment", "crop", "crop and augmentation"),
    ("crop-augment", "crop-strong", "strong", "strong instead of lab augmentation"),
)
MODELS = "models"  # the name for `--ask` of the questions about pairs of models
MIN_SEEDS = 3  # with fewer, a conclusion is about the trained weights
MIN_CLUSTERS = 10  # with fewer products, no conclusion is drawn
SAME = 0.05  # a difference that is certainly smaller than this is reported as a finding


class ScoredExperiment:
    """The scores of an experiment on its N val rows, with their uncertainty.

    Raises:
        InputError: all rows show the same product or photo, so the variance over products cannot be estimated.
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
        self.clusters = connected_groups(ids["product_id"], ids["image_id"])  # (N,) int, see `connected_groups`
        self.products = int(ids["product_id"][ids["product_id"] != ""].nunique())  # without rows that have no id
        self.correct = self.predictions == self.labels  # (S, N) bool
        if self.clusters.max() == 0:
            raise InputError(
                f"{self.name} was validated on a single product or photo: confidence intervals need at least two."
            )

    @property
    def n(self) -> int:
        return len(self.labels)

    @cached_property
    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """The scores `METRICS` of each repetition (R, 5), and those without the rows of each product (R, G, 5).

        A repetition is a seed or, with folds, a partition, for which the scores are means over its seeds.
        """
        parts = leave_one_out(self.labels, self.predictions, self.clusters)
        repetitions = self.experiment.repetitions
        own = [repetitions == repetition for repetition in np.unique(repetitions)]
        scores, without = (np.stack([part[seeds].mean(0) for seeds in own]) for part in parts)
        return scores, without

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The estimate of each of `METRICS`."""
        estimates = score_estimates(*self.leave_one_out)
        return {k: over_partitions(e) for k, e in estimates.items()} if self.experiment.folds else estimates

    @cached_property
    def unseen(self) -> "ScoredExperiment | None":
        """The scores on products that are not in train; None if there are fewer than two, or no other rows."""
        products = self.experiment.ids["product_id"]
        unseen = (~products.isin(self.experiment.shared_products) & (products != "")).to_numpy()
        return (
            ScoredExperiment(self.experiment, unseen) if products[unseen].nunique() > 1 and not unseen.all() else None
        )


@dataclass(frozen=True)
class Question:
    """Whether `b` is more accurate than `a`. Every difference is b minus a, in text, tables and figures."""

    kind: str  # what b adds to a, the last item of one of `STEPS`; or "model"
    a: ScoredExperiment
    b: ScoredExperiment
    change: Estimate  # accuracy of b minus accuracy of a
    seeds: tuple[int, int]  # the numbers of seeds of a and b that are compared
    repetitions: int  # the smaller of them or, with folds, the number of common partitions
    mcnemar_p: float | None  # None unless a and b are single runs
    share: float = 1.0  # of the error, if the study has several looks (`common.compare.looks`), that this look has
    family: int = 1  # the number of questions of the comparison, for which intervals and decisions are corrected

    @property
    def p(self) -> float:
        """The p-value of this question alone, corrected for the looks at the study."""
        return min(1.0, max(self.change.p_value(), self.mcnemar_p or 0.0) / self.share)

    @property
    def corrected_p(self) -> float:
        """The p-value after Bonferroni's correction for all questions."""
        return min(1.0, self.p * self.family)

    @property
    def reason_against(self) -> str:
        """Why no conclusion can be drawn from data of this kind, whatever the numbers; "" if one can."""
        if self.change.clusters < MIN_CLUSTERS:
            number = self.change.clusters
            return f"no conclusion from only {number} products or photos (at least {MIN_CLUSTERS} are needed)"
        if self.a.experiment.folds and self.repetitions < MIN_SEEDS:
            return f"no conclusion from only {self._repetitions} (at least {MIN_SEEDS} partitions are needed)"
        return ""

    @property
    def decided(self) -> bool:
        """Whether the difference is significant at the 5 % level after the correction."""
        return self.corrected_p < FAMILY_ERROR and not self.reason_against

    @property
    def interval(self) -> tuple[float, float]:
        """The simultaneous interval: with at least 95 % confidence, those of all questions hold the true differences.

        It contains zero unless `decided`: if McNemar's test or `reason_against` forbids a decision that the variance
        allows, it is extended to zero.
        """
        return self._interval(FAMILY_ERROR / self.family, self.decided)

    @property
    def interval_alone(self) -> tuple[float, float]:
        """The 95 % interval of this question alone."""
        return self._interval(0.05, self.p < 0.05 and not self.reason_against)

    def _interval(self, error: float, decided: bool) -> tuple[float, float]:
        low, high = self.change.interval(1 - error * self.share)
        return (low, high) if decided else (min(low, 0.0), max(high, 0.0))

    @property
    def same(self) -> bool:
        """Whether the difference is certainly at most `SAME`, and not significant."""
        return not (self.decided or self.reason_against) and max(map(abs, self.interval)) <= SAME

    @property
    def answered(self) -> bool:
        """Whether the difference is significant or certainly small."""
        return self.decided or self.same

    @property
    def title(self) -> str:
        a, b = self.a.experiment, self.b.experiment
        if self.kind == "model":
            return f"{b.model} vs. {a.model}, {a.variant}"
        return f"{a.model}: {b.variant} vs. {a.variant}"

    @property
    def sentence(self) -> str:
        """The answer in one line, with the difference in percentage points and its simultaneous interval."""
        a, b = self.a.experiment, self.b.experiment
        size = format_difference(self.change.value, self.interval)
        subject = f"{b.model} vs. {a.model} ({a.variant})" if self.kind == "model" else f"{self.kind}, {a.model}"
        about_weights = self.repetitions < MIN_SEEDS and not a.folds
        better = self.change.value > 0
        at_look = f", with {self._repetitions}" if self.share < 1 else ""  # others may be about more seeds
        if self.decided and about_weights:
            return (
                f"{subject}: these weights score {'higher' if better else 'lower'}, {size}; "
                f"with {self._repetitions}, other seeds may differ"
            )
        if self.decided and self.kind == "model":
            return f"{b.model} {'beats' if better else 'loses to'} {a.model} ({a.variant}): {size}{at_look}"
        if self.decided:
            return f"{self.kind} {'helps' if better else 'harms'} {a.model}: {size}{at_look}"
        if self.reason_against:
            return f"{subject}: {self.reason_against}; {size}"
        if self.same:
            largest = _points(max(map(abs, self.interval)))
            return f"{subject}: {'these weights are ' * about_weights}the same within {largest}, {size}{at_look}"
        # McNemar's test may not find a difference that exceeds the margin
        unseen = max(self.change.margin(1 - FAMILY_ERROR * self.share / self.family), abs(self.change.value))
        return (
            f"{subject}: not distinguishable on {self.a.n} images with {self._repetitions}, {size}; differences of up "
            f"to {_points(unseen)} would go unseen"
        )

    def as_dict(self) -> dict:
        """The question and its answer for comparison.json."""
        return {
            "question": self.title,
            "a": self.a.name,
            "b": self.b.name,
            "seeds": list(self.seeds),
            "difference": self.change.value,
            "interval": list(self.interval),
            "interval_alone": list(self.interval_alone),
            "p": self.p,
            "corrected_p": self.corrected_p,
            "mcnemar_p": self.mcnemar_p,
            "decided": self.decided,
            "sentence": self.sentence,
        }

    @property
    def _repetitions(self) -> str:
        """The numbers of seeds or partitions, such as "1 and 6 seeds"."""
        a, b = self.a.experiment, self.b.experiment
        if a.folds:
            folds = " and ".join(map(str, sorted({a.folds, b.folds})))
            return f"{count(self.repetitions, 'partition')} into {folds} folds"
        seeds = sorted(set(self.seeds))
        return "one seed" if seeds == [1] else f"{' and '.join(map(str, seeds))} seeds"


def _points(share: float) -> str:
    """Percentage points, rounded up, such as "3.5 points"."""
    return f"{math.ceil(1000 * share - 1e-6) / 10:.1f} points"


def ask(kind: str, a: ScoredExperiment, b: ScoredExperiment, seeds: int | None = None) -> Question:
    """Compares two experiments on the same val rows, by their first `seeds` seeds; None stands for all.

    The test takes the variance over products and over the seeds of each experiment into account. Between single runs,
    which may differ in only a few rows, McNemar's exact test has to agree. With folds, experiments are compared in the
    partitions that both have.

    Raises:
        InputError: the experiments have folds, but no partition in common.
    """
    (scores_a, without_a), (scores_b, without_b) = (
        (scores[:seeds, 0], without[:seeds, :, 0]) for scores, without in (a.leave_one_out, b.leave_one_out)
    )  # of accuracy
    compared = len(a.correct[:seeds]), len(b.correct[:seeds])
    if a.experiment.folds:
        of_a, of_b = (np.unique(scored.experiment.repetitions) for scored in (a, b))
        _, in_a, in_b = np.intersect1d(of_a, of_b, return_indices=True)
        if not len(in_a):
            raise InputError(f"{a.name} and {b.name} have no partition into folds in common: use the same seeds.")
        paired = estimate(scores_b[in_b] - scores_a[in_a], without_b[in_b] - without_a[in_a])
        return Question(kind, a, b, over_partitions(paired), compared, len(in_a), None)
    mcnemar_p = mcnemar(a.correct[0], b.correct[0]) if compared == (1, 1) else None
    change = difference((scores_a, without_a), (scores_b, without_b))
    return Question(kind, a, b, change, compared, min(compared), mcnemar_p)


def questions(scored_experiments: Sequence[ScoredExperiment], asked: Sequence[str] | None = None) -> list[Question]:
    """The questions of the kinds `asked`, values of `--ask`, that the experiments answer; by default of all kinds.

    Each variant of a model is compared with a simpler one (`STEPS`), and each pair of models in the last variant of
    `VARIANTS` that both have. Intervals and decisions are corrected for the number of questions.
    """
    by_name = {(scored.experiment.model, scored.experiment.variant): scored for scored in scored_experiments}
    return correct([ask(kind, by_name[a], by_name[b]) for kind, a, b in pairs(by_name, asked)])


def pairs(
    experiments: Iterable[tuple[str, str]], asked: Sequence[str] | None = None
) -> Iterator[tuple[str, tuple[str, str], tuple[str, str]]]:
    """The kinds of questions that `experiments`, pairs of model and variant, answer, each with two of them."""
    models: dict[str, list[str]] = {}
    for model, variant in experiments:
        models.setdefault(model, []).append(variant)
    for model, variants in models.items():
        for before, after, name, kind in STEPS if "crop" in variants else STEPS + STEPS_WITHOUT_CROP:
            if (asked is None or name in asked) and {before, after} <= set(variants):
                yield kind, (model, before), (model, after)
    for a, b in combinations(models, 2) if asked is None or MODELS in asked else ():
        shared = [variant for variant in VARIANTS if variant in models[a] and variant in models[b]]
        if shared:
            yield "model", (a, shared[-1]), (b, shared[-1])


def correct(answers: Sequence[Question]) -> list[Question]:
    """The same questions as one family: intervals and decisions are corrected for their number."""
    return [replace(answer, family=len(answers)) for answer in answers]


def family_notes(answers: Sequence[Question]) -> list[str]:
    """Sentences about the questions that were asked, and about unequal numbers of seeds."""
    notes = []
    asked = answers[0].family if answers else 0
    if asked > 1:
        notes.append(
            f"{asked} questions were asked; their intervals hold simultaneously, with at least 95 % confidence"
        )
    seeds = sorted({number for answer in answers if len(set(answer.seeds)) > 1 for number in answer.seeds})
    if seeds:
        notes.append(f"the experiments have {seeds[0]} to {seeds[-1]} seeds: tests have most power with equal numbers")
    return notes
