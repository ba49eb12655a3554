"""What a study can find, before it is trained: the smallest difference that its seeds and val images can show."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from common.compare.experiments import group_runs
from common.compare.grid import Job, decode_data, finished_run, time_left
from common.compare.looks import Looks, check_looks, current_look
from common.compare.questions import MIN_CLUSTERS, MIN_SEEDS, ScoredExperiment, pairs, questions
from common.config import count
from common.data.dataset import load_splits
from common.data.splits import connected_groups
from common.finished_run import FinishedRun
from common.stats import FAMILY_ERROR, Estimate, SeedVariance

POWER = 0.8  # the probability with which the smallest difference is found
DRAWS = 20_000  # of the estimates of a study; the probability is then exact to 0.3 points
SEEDS = (3, 6, 10)  # numbers of seeds to choose from, beside that of the study
TIMES_IMAGES = (1, 2, 4)  # numbers of val images to choose from, as multiples of the present one


@dataclass(frozen=True)
class Spread:
    """Standard deviations of what a difference in accuracy between two experiments consists of, as shares of 1.

    The score of seed s of experiment e on product g is modelled as a constant of e, plus normal effects of g, of s, and
    of s on g.
    """

    products: float  # of the difference in accuracy between experiments over products, for infinitely many seeds
    interaction: float  # of the effect of a seed of one experiment on one product
    seeds: float  # of the accuracy of one experiment over seeds, for infinitely many images


# Means over the questions of the study in docs/results.md, while its last seeds were being trained
MEASURED_ON_SAMPLE = Spread(products=0.22, interaction=0.23, seeds=0.01)


def measured_spread(changes: Sequence[Estimate]) -> Spread:
    """The spread that the differences `changes` have on average; each experiment needs several seeds."""
    products, interactions, seeds = [], [], []
    for change in changes:
        own = [part.explained * part.seeds * change.clusters for part in change.seed_variances]
        parts = [value / part.seeds for value, part in zip(own, change.seed_variances, strict=True)]
        products.append(change.clusters * change.image_variance - sum(parts))
        interactions += own
        seeds += [part.seeds * (part.observed - part.explained) for part in change.seed_variances]
    return Spread(*(math.sqrt(max(0.0, float(np.mean(values)))) for values in (products, interactions, seeds)))


def smallest_differences(spread: Spread, *, seeds: int, clusters: int, families: Sequence[float]) -> list[float]:
    """The true differences that studies find with the probability `POWER`, for each number of questions in `families`.

    At a look that has a share of the error (`common.compare.looks`), the number is divided by that share.

    A study finds a difference if its estimate exceeds the margin of its interval (`Estimate.margin`), so the answer is
    a quantile of margin minus error over simulated studies. Both experiments have `seeds` seeds.
    """
    rng = np.random.default_rng(0)

    def mean_square(df: int, *sides: int) -> np.ndarray:
        """Draws of an estimated variance with `df` degrees of freedom, whose true value is 1."""
        return rng.chisquare(df, (DRAWS, *sides)) / df

    own = spread.interaction**2 / (seeds * clusters)  # of one experiment
    images = spread.products**2 / clusters + 2 * own
    errors = rng.normal(scale=math.sqrt(images + 2 * spread.seeds**2 / seeds), size=DRAWS)
    # The estimates are independent, as in any balanced analysis of variance.
    estimates = zip(
        images * mean_square(clusters - 1),
        (spread.seeds**2 / seeds + own) * mean_square(seeds - 1, 2),
        own * mean_square((seeds - 1) * (clusters - 1), 2),
        strict=True,
    )
    changes = [
        Estimate(0.0, 0.0, image_variance, clusters, tuple(map(SeedVariance, observed, explained, (seeds, seeds))))
        for image_variance, observed, explained in estimates
    ]
    margins = ([change.margin(1 - FAMILY_ERROR / family) for change in changes] for family in families)
    return [float(np.quantile(np.array(margin) - errors, POWER)) for margin in margins]


def plan_report(jobs: Sequence[Job], looks: Looks | None = None, *, workers: int) -> str:
    """The runs of a study, the time they will take, and the smallest differences that it finds, as text.

    `jobs` are all that it may train if it has `looks`, and `workers` of them are run at the same time.

    The data is decoded into the cache, which the study does first anyway; nothing is trained.

    Raises:
        InputError: the data cannot be used, a run folder holds another run, or the study has other looks.
    """
    check_looks(jobs[0].folder.parent, looks)
    fingerprints = decode_data(jobs)
    finished = {job: run for job in jobs if (run := finished_run(job, fingerprints[job.data_key]))}
    experiments = list(dict.fromkeys((job.script, job.variant) for job in jobs))
    asked = len(list(pairs(experiments)))
    of = f"of {count(len(experiments), 'experiment')}"
    if looks and all(job in finished for job in current_look(jobs, looks, record=False)):
        lines = [f"{count(len(finished), 'run')} {of} finished, no question is open"]
    else:
        seconds = {job: run.info.seconds or 0.0 for job, run in finished.items()}
        left = time_left([job for job in jobs if job not in finished], seconds, workers)
        lines = [f"{'at most ' * bool(looks)}{count(len(jobs), 'run')} {of}: {len(finished)} finished, {left}"]
    if looks:
        lines.append(f"There are looks after {looks}; a question that is answered needs no more runs.")
    elif not finished:
        lines.append("The time is estimated from finished runs. The study keeps those that --seeds 1 trains.")
    if not asked:
        lines.append("compare.py has no question about these experiments.")
    elif jobs[0].config.split_by:
        lines.append("The smallest difference that cross-validation finds is not known before it is run.")
    else:
        runs = list(finished.values())
        lines += ["", *_smallest_differences_table(jobs, looks, runs, experiments=len(experiments), asked=asked)]
    return "\n".join(lines)


def _smallest_differences_table(
    jobs: Sequence[Job], looks: Looks | None, finished: Sequence[FinishedRun], *, experiments: int, asked: int
) -> list[str]:
    """Lines with the smallest difference for several numbers of seeds and images, one question and all `asked`.

    The numbers of seeds are those of the looks, if there are any, each of which finds the difference by itself.
    """
    val = load_splits(jobs[0].config)[1]
    ids = val.ids()
    clusters = 1 + int(connected_groups(ids["product_id"], ids["image_id"]).max())
    if clusters < MIN_CLUSTERS:
        return [f"val shows {clusters} products or photos: no conclusion is drawn from fewer than {MIN_CLUSTERS}."]
    answers = questions([ScoredExperiment(experiment) for experiment in group_runs(finished)]) if finished else []
    changes = [answer.change for answer in answers if answer.repetitions > 1]
    spread = measured_spread(changes) if changes else MEASURED_ON_SAMPLE
    source = f"measured in finished runs, n = {len(changes)}" if changes else "assumed, as on the sample"
    over_products, on_a_product, over_seeds = (100 * sd for sd in astuple(spread))
    unit = "product" if any(ids["product_id"]) else "photo"
    lines = [
        f"Smallest difference in accuracy, in points, that is found with a probability of {POWER:.0%}"
        f"{' at a look alone' * bool(looks)}. Standard",
        f"deviations in points ({source}): {over_products:.0f} of a difference over {unit}s,",
        f"{on_a_product:.0f} of a model over seeds on one {unit}, {over_seeds:.1f} of a model over seeds on many.",
        "",
        "| seeds | runs | questions |"
        + "".join(f" {count(k * len(val), 'row')} of {count(k * clusters, unit)} |" for k in TIMES_IMAGES),
        "| --- " * (3 + len(TIMES_IMAGES)) + "|",
    ]
    own_seeds = len(jobs) // experiments
    families = sorted({1, asked})
    shares = dict.fromkeys(sorted({*SEEDS, *[own_seeds] * (own_seeds >= MIN_SEEDS)}), 1.0)
    for seeds, share in (dict(zip(looks.seeds, looks.shares, strict=True)) if looks else shares).items():
        corrected = [family / share for family in families]
        columns = [
            smallest_differences(spread, seeds=seeds, clusters=k * clusters, families=corrected) for k in TIMES_IMAGES
        ]
        for family, cells in zip(families, zip(*columns, strict=True), strict=True):
            numbers = " | ".join(f"{100 * cell:.1f}" if cell < 1 else "none" for cell in cells)
            lines.append(f"| {seeds} | {seeds * experiments} | {family} | {numbers} |")
    return lines
