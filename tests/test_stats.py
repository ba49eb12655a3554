"""The statistics, compared with libraries and manual results, and on simulated data with known true scores."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from benchmarks.coverage import (
    LEARNERS,
    NASTY,
    PRIORS,
    SCORES,
    SIMILAR,
    World,
    difference_coverage,
    fold_differences,
    recall_coverage,
    score_coverage,
)
from common.metrics import METRICS, leave_one_out
from common.stats import (
    Estimate,
    SeedVariance,
    difference,
    estimate,
    format_difference,
    format_p,
    format_score,
    mcnemar,
    over_partitions,
    score_estimate,
    score_estimates,
    wilson,
)


def test_the_jackknife_of_a_mean_is_the_usual_standard_error():
    right = np.random.default_rng(0).random(50) < 0.7
    without = (right.sum() - right) / 49
    found = estimate(np.array([right.mean()]), without[None])
    assert found.image_variance == pytest.approx(right.var(ddof=1) / 50) and found.bias == pytest.approx(0)
    assert found.interval() == pytest.approx(scipy_stats.t.interval(0.95, 49, right.mean(), scipy_stats.sem(right)))
    assert found.p_value() == pytest.approx(scipy_stats.ttest_1samp(right, 0).pvalue, abs=1e-14)


def test_rounding_errors_do_not_give_zero_width_intervals():
    """Ten products with three rows each, one of which is correct: leaving a product out changes nothing."""
    without = np.full((1, 10), 9 / 27) + np.linspace(-1e-16, 1e-16, 10)
    found = estimate(np.array([10 / 30]), without)
    assert found.image_variance == 0 and found.score_interval()[0] < 0.15 and found.interval()[1] > 0.5


def test_seed_variance_excludes_variance_from_images():
    rng = np.random.default_rng(1)
    noise, shifts = rng.random((4, 200)) < 0.5, np.array([-0.2, -0.1, 0.1, 0.2])
    same = estimate(*_parts(noise.astype(float)))
    assert same.variance < 1.2 * same.image_variance, "chance alone"
    apart = estimate(*_parts(noise + shifts[:, None]))
    (seeds,) = apart.seed_variances
    assert seeds.excess == pytest.approx(shifts.var(ddof=1) / 4, rel=0.3) and seeds.seeds == 4
    assert apart.image_variance == pytest.approx(same.image_variance)
    assert apart.interval(1 - apart.p_value())[0] == pytest.approx(0, abs=1e-9)
    low, high = apart.interval()
    assert high - low == pytest.approx(2 * scipy_stats.t.ppf(0.975, 3) * shifts.std(ddof=1) / 2, rel=0.2)


def test_seeds_that_vary_widely_are_compared_by_welchs_test():
    """If the images explain nothing, the difference of two experiments is that of two samples of seeds."""
    rng = np.random.default_rng(2)
    a, b = np.array([0.5, 0.6, 0.55, 0.4]), np.array([0.7, 0.72, 0.71, 0.73])
    images = rng.normal(scale=1e-9, size=100)
    change = difference(*(_parts(scores[:, None] + images) for scores in (a, b)))
    expected = scipy_stats.ttest_ind(b, a, equal_var=False)
    assert change.value == pytest.approx(expected.statistic * np.sqrt(a.var(ddof=1) / 4 + b.var(ddof=1) / 4))
    assert change.df == pytest.approx(expected.df) and change.p_value() == pytest.approx(expected.pvalue)
    assert change.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_an_experiment_with_one_seed_adds_no_variance():
    rows = (np.random.default_rng(3).random((4, 50)) < 0.6).astype(float)
    one, several = _parts(rows[:1]), _parts(rows[1:])
    change = difference(one, several)
    assert change.seed_variances == estimate(*several).seed_variances


def test_with_few_or_unequal_numbers_of_seeds_the_spread_of_the_seeds_counts_more():
    parts = SeedVariance(1e-4, 0.0, 3), SeedVariance(1e-5, 0.0, 12)
    change = Estimate(0.05, 0, 3e-4, 101, parts)
    assert change.variance == pytest.approx(4.1e-4)
    assert change.df == pytest.approx(4.1e-4**2 / (3e-4**2 / 100 + 12 / 2 * (1e-4**2 / 2 + 1e-5**2 / 11)))
    assert Estimate(0.05, 0, 0.0, 101, parts).df == 2, "at least the smaller number of degrees of freedom"
    six = SeedVariance(1e-4, 0.0, 6), SeedVariance(1e-4, 0.0, 6)
    assert Estimate(0.05, 0, 2e-4, 101, six).df == pytest.approx(4**2 / (2**2 / 100 + 6 / 5 * (1 / 5 + 1 / 5)))
    assert Estimate(0.05, 0, 0.0, 101, six).df == pytest.approx(10), "Welch's test, if the images are fixed"


def test_without_any_variance_p_and_interval_agree():
    for value in (0.3, -0.02, 1.0, 0.0):
        found = Estimate(value, 0, 0.0, 12)
        p = found.p_value()
        low, high = found.interval(1 - p) if 0 < p < 1 else (-abs(value), abs(value))
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9) or p in (0, 1)
        assert (p < 0.05) == (abs(value) > found.margin())
    assert Estimate(0.3, 0, 0.0, 12).p_value() > 0.04 and Estimate(0.0, 0, 0.0, 12).p_value() == 1


def test_folds_add_to_the_variance_over_images():
    repeated = Estimate(0.1, 0, 3e-4, 50, (SeedVariance(3e-5, 2e-5, 3),))
    folded = over_partitions(repeated)
    assert folded.image_variance == pytest.approx(5e-4) and folded.variance == pytest.approx(5.3e-4)


def _parts(values):
    """Scores and leave-one-out scores of values (S, N) whose mean is the score."""
    n = values.shape[1]
    return values.mean(1), (values.sum(1, keepdims=True) - values) / (n - 1)


def test_wilson_is_scipys():
    for right, n in ((0, 10), (7, 10), (99, 100), (130, 130)):
        expected = scipy_stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert wilson(right / n, scipy_stats.norm.ppf(0.975) ** 2 / n) == pytest.approx((expected.low, expected.high))


def test_the_variance_of_a_score_has_a_prior_of_half_a_right_and_half_a_wrong_product():
    """Ten products with ten rows each: nine are right, the last one has eight errors."""
    shares = np.array([1.0] * 9 + [0.2])
    found = score_estimate(np.array([0.92]), ((shares.sum() - shares) / 9)[None])
    squares = (shares - 0.92) ** 2
    prior = (0.92**2 + 0.08**2) / 2
    ratio = (squares.sum() + prior) / (10 * 0.92 * 0.08 + prior)
    assert found.image_variance == pytest.approx(ratio * 0.92 * 0.08 / 9)
    kurtosis = (squares**2).mean() / squares.mean() ** 2
    assert found.image_df == found.df == pytest.approx(20 / (kurtosis - 1) * (1 + prior / squares.sum()) ** 2)
    q = scipy_stats.t.ppf(0.975, found.df) ** 2
    assert found.score_interval() == pytest.approx(wilson(0.92, q * ratio / 9))


def test_products_that_are_entirely_right_or_wrong_count_as_one_row_each():
    right = np.arange(30) < 15
    found = score_estimate(np.array([0.5]), ((15 - right) / 29)[None])
    assert found.image_variance == pytest.approx(0.25 / 29) and found.df > 29, "the prior has no uncertainty"


@pytest.mark.parametrize("errors", [1e-4, 0.01])
def test_a_first_error_does_not_make_an_interval_narrower(errors):
    """Without errors, each of the 30 products counts as one row; a few in one product say no more than that."""
    perfect, one = np.ones(30), np.array([1 - errors] + [1.0] * 29)
    low = [score_estimate(v.mean()[None], ((v.sum() - v) / 29)[None]).score_interval()[0] for v in (perfect, one)]
    assert low[0] == pytest.approx(wilson(1, 1.96**2 / 30)[0], abs=1e-4) and low[1] < low[0]


def test_an_interval_holds_whether_the_bias_is_as_large_as_the_jackknife_finds_or_zero():
    found = Estimate(0.8, bias=0.06, image_variance=0.0004, clusters=101)
    q = scipy_stats.t.ppf(0.975, 100) ** 2 * 0.0004
    low, high = wilson(0.74, q / (0.74 * 0.26))[0], wilson(0.8, q / (0.8 * 0.2))[1]
    assert found.score_interval() == pytest.approx((low, high)) and low < 0.7 and high > 0.83
    assert replace(found, bias=-0.06).score_interval()[0] == pytest.approx(wilson(0.8, q / (0.8 * 0.2))[0])


def test_macro_f1_has_no_interval_if_a_class_shows_fewer_than_two_products():
    labels, clusters = np.repeat(["a", "b"], 10), np.arange(20) // 2
    predictions = np.where(np.arange(20) % 5 == 0, "b", labels)
    alone, absent = clusters.copy(), predictions.copy()
    alone[10:], absent[0] = 5, "c"
    for groups, predicted, known in (
        (clusters, predictions, True),
        (alone, predictions, False),
        (clusters, absent, False),
    ):
        estimates = score_estimates(*leave_one_out(labels, predicted[None], groups))
        assert all(np.isfinite(estimates[name].score_interval()).all() for name in METRICS if name != "macro_f1")
        macro = estimates["macro_f1"]
        text = format_score(macro.value, macro.score_interval())
        assert (macro.as_dict()["interval"] is not None) == known == ("[" in text) and text.startswith(
            f"{macro.value:.3f}"
        )


def test_mcnemar_is_the_exact_binomial_test():
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = rng.random((2, 40)) < rng.random((2, 1))
        only_a, only_b = (a & ~b).sum(), (b & ~a).sum()
        expected = scipy_stats.binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1
        assert mcnemar(a, b) == pytest.approx(expected, abs=1e-12)
    five = np.arange(100) < 5
    assert mcnemar(five, np.zeros(100, bool)) > 0.05 > mcnemar(np.arange(100) < 6, np.zeros(100, bool))


def test_every_metric_has_an_estimate():
    rng = np.random.default_rng(0)
    scores, without = rng.random((3, 5)), rng.random((3, 20, 5))
    estimates = score_estimates(scores, without)
    assert list(estimates) == list(METRICS)
    assert estimates["f1"] == score_estimate(scores[:, 3], without[:, :, 3])
    assert estimates["f1"].as_dict() == {
        "value": estimates["f1"].value,
        "interval": list(estimates["f1"].score_interval()),
    }


def test_a_difference_is_an_estimate_of_the_differences():
    """Of single seeds, on the same clusters."""
    a, b = (_parts(values) for values in (np.random.default_rng(0).random((2, 1, 30)) < 0.6).astype(float))
    change = difference(a, b)
    assert change == estimate(b[0] - a[0], b[1] - a[1])
    assert difference(a, a).value == 0 == difference(a, a).image_variance


def test_scores_and_differences_as_text():
    assert format_score(0.6721, (0.4994, 0.8077)) == "0.672 [0.499, 0.808]"
    assert format_score(1.0, (0.95, 1.0), digits=2) == "1.00 [0.95, 1.00]"
    assert format_difference(0.42333, (0.302, 0.5437)) == "+42.3 points [30.2, 54.4]"
    assert format_difference(-0.05, (-0.1, 0.0)) == "-5.0 points [-10.0, 0.0]"


# Simulations. The quick ones are short, so that their limits are wide; the slow ones state what the project claims. ---

ONE_SEED, HIGH_SCORES = SCORES["one seed"], SCORES["one seed, high scores"]
SIX_SEEDS = World((0.65, 0.73), photos=6, seeds=(6, 6), spread=(0.025, 0.025))
HARD = SCORES["six seeds, up to eight photos"]  # and .6 correlation within a product
HARDEST = World((0.7, 0.7), seeds=(3, 10), spread=(0.05, 0.01), **SIMILAR)
FAMILY = World((0.7,) * 4, photos=8, seeds=(3, 6) * 2, spread=(0.05, 0.01) * 2, **NASTY)


@pytest.mark.parametrize("world", [ONE_SEED, SIX_SEEDS], ids=["one seed", "six seeds"])
def test_intervals_cover_the_truth_in_a_short_simulation(world):
    covered = score_coverage(world, 200)
    often = covered["splits"] > 0.5  # the scores that have an interval in most splits
    for name in ("score", "difference"):
        assert (covered[name][often] >= 0.9).all() and (covered[name][often] <= 0.99).all(), covered


def test_a_simulated_split_has_the_largest_product_that_it_should():
    _, clusters, _ = SCORES["one seed, a third of the rows in one product"].draw(np.random.default_rng(0))
    assert np.bincount(clusters).max() == round(len(clusters) / 3) and np.bincount(clusters)[1:].max() <= 3


def test_intervals_near_1_cover_the_truth_in_a_short_simulation():
    """About 33 products, of which a few have all errors; the jackknife variance alone covers .84 to .90 (n = 2,000)."""
    covered = score_coverage(SCORES["six seeds, up to eight photos, accuracy .95"], 200)
    assert (covered["score"][:4] >= 0.93).all(), covered


def test_scores_of_many_classes_have_intervals_that_hold():
    """81 classes with three products of four photos each: the jackknife finds too large a bias of precision."""
    rng, covered = np.random.default_rng(0), []
    labels, clusters = np.repeat(np.arange(81), 12), np.repeat(np.arange(243), 4)
    for _ in range(60):
        right = rng.random(972) < rng.beta(1.8, 0.6, 243)[clusters]  # on average .75
        others = labels // 3 * 3 + (labels + rng.integers(1, 3, 972)) % 3  # of similar classes
        parts = leave_one_out(labels, np.where(right, labels, others)[None], clusters)
        intervals = [found.score_interval() for found in score_estimates(*parts).values()]
        covered.append([low <= 0.75 <= high for low, high in intervals])  # all scores are .75 on infinitely many rows
    assert (np.mean(covered, axis=0) >= 0.9).all(), covered


def pooled(a, b):
    """`difference` with one variance over seeds for both experiments, as before the variances were separated."""
    change = difference(a, b)
    seeds = [part.seeds for part in change.seed_variances]
    shared = sum(p.excess * p.seeds * (p.seeds - 1) for p in change.seed_variances) / (sum(seeds) - 2)
    shared *= sum(1 / s for s in seeds)
    return replace(change, seed_variances=(SeedVariance(shared, 0.0, sum(seeds) - 1),))


def test_seeds_with_unequal_spreads_give_few_false_alarms_which_a_pooled_variance_does_not():
    """Three seeds that vary by 5 points against ten that vary by 1; standard error 1.3 points."""
    covered, false, _ = difference_coverage(HARDEST, 300)
    assert false <= 0.05 + 2 * 0.0126 and covered >= 0.92
    assert difference_coverage(HARDEST, 300, compare=pooled)[1] > 0.09


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [ONE_SEED, HIGH_SCORES, SIX_SEEDS, HARD],
    ids=["one seed", "one seed, high scores", "six seeds, up to six photos a product", "hard"],
)
def test_intervals_cover_the_truth_as_often_as_they_claim(world):
    covered = score_coverage(world, 1000)  # each share is then known to 0.7 points (one sd)
    for name in ("accuracy", "recall", "f1"):
        k = list(METRICS).index(name)
        assert 0.93 <= covered["score"][k] <= 0.97 and 0.93 <= covered["difference"][k] <= 0.97, (name, covered)
    often = covered["splits"] > 0.5
    assert (covered["score"][often] >= 0.93).all(), covered


@pytest.mark.slow
def test_the_recall_of_a_class_accounts_for_its_products():
    assert 0.93 <= recall_coverage(World((0.7, 0.7), photos=8, **NASTY), 150) <= 0.99, "few products: wide intervals"


@pytest.mark.parametrize(
    ("world", "pairs"),
    [
        (HARDEST, [(0, 1)]),
        (World((0.7, 0.7), photos=8, seeds=(1, 6), spread=(0.0, 0.05), **NASTY), [(0, 1)]),
        (World((0.7, 0.7)), [(0, 1)]),
        (FAMILY, [(0, 1), (0, 2), (1, 3), (2, 3)]),
    ],
    ids=["3 and 10 seeds", "one seed and six", "single runs", "four questions"],
)
@pytest.mark.slow
def test_false_alarms_are_as_rare_as_claimed(world, pairs):
    covered, false, _ = difference_coverage(world, 1000, seed=1, pairs=pairs)
    assert false <= 0.05 + 2 * 0.0069 and covered >= 0.95 - 2 * 0.0069


@pytest.mark.parametrize(
    ("seeds", "spread", "trials"),
    [
        (1, 0, 300),
        (2, 0.05, 300),
        *(pytest.param(*case, 900, marks=pytest.mark.slow) for case in ((1, 0), (2, 0.05), (3, 0.025), (6, 0.025))),
    ],
)
def test_two_seeds_of_one_model_are_called_different_in_at_most_5_percent(seeds, spread, trials):
    """Runs of the same experiment differ by chance and, with several seeds, in their true accuracy, with a standard
    deviation of 2.5 points (5 for two seeds). Three questions at a time, with correction."""
    same = dict(model_product=0, model_photo=0, seed_product=0)
    world = World((0.7,) * 6, seeds=(seeds,) * 6, spread=(spread,) * 6, **same)
    for pairs in [(0, 1)], [(0, 1), (2, 3), (4, 5)]:
        assert difference_coverage(world, trials, seed=seeds, pairs=pairs)[1] <= 0.05


@pytest.mark.slow
def test_a_difference_of_8_points_is_found_as_often_as_theory_says():
    """The exact power of McNemar's test without clusters, from the shares of rows that only one model gets right."""
    world = World((0.70, 0.78), spread=(0, 0), product=0, photo=0.5, model_product=0, model_photo=0.05, seed_product=0)
    rng = np.random.default_rng(0)
    draws = [world.draw(rng) for _ in range(3000)]
    a, b = (np.concatenate([predictions[k][0] == labels for labels, _, predictions in draws]) for k in (0, 1))
    power = mcnemar_power((a & ~b).mean(), (b & ~a).mean(), n=155)
    alone = [mcnemar(a[0] == labels, b[0] == labels) for labels, _, (a, b) in draws]
    assert np.mean(np.array(alone) < 0.05) == pytest.approx(power, abs=0.04), "McNemar alone"
    found = difference_coverage(world, 1000, seed=1)[2]
    assert found == pytest.approx(power, abs=0.04), "together with the test over products"


def mcnemar_power(only_a, only_b, n):
    """The probability of p < 0.05 on n rows, given the shares that only one of the models predicts correctly."""
    power = 0.0
    for m in range(n + 1):
        splits = np.arange(m + 1)
        p = np.minimum(1, 2 * scipy_stats.binom.cdf(np.minimum(splits, m - splits), m, 0.5))
        decided = scipy_stats.binom.pmf(splits, m, only_b / (only_a + only_b))[p < 0.05].sum()
        power += scipy_stats.binom.pmf(m, n, only_a + only_b) * decided
    return power


@pytest.mark.slow
def test_with_six_seeds_8_points_are_found_as_often_as_theory_says():
    world = World((0.70, 0.78), seeds=(6, 6), spread=(0.025, 0.025))
    rng, changes = np.random.default_rng(0), []
    for _ in range(600):
        labels, _, (a, b) = world.draw(rng)
        changes.append((b == labels).mean() - (a == labels).mean())
    assert np.mean(changes) == pytest.approx(0.08, abs=0.005) and PRIORS.sum() == pytest.approx(1)
    power = scipy_stats.norm.sf(1.96 - 0.08 / np.std(changes))
    assert difference_coverage(world, 600, seed=1)[2] == pytest.approx(power, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("learner", LEARNERS)
def test_cross_validated_differences_of_trained_learners_cover_zero(learner):
    changes = fold_differences(LEARNERS[learner], 200, folds=5, partitions=3)
    assert np.mean([abs(change.value) <= change.margin() for change in changes]) >= 0.95 - 2 * 0.0154


def test_rounding_does_not_change_what_a_number_says():
    """A side of zero or of 0.05, and perfect scores, are as visible as in the number itself."""
    assert format_difference(0.0, (-0.00042, 0.00042)) == "+0.0 points [-0.04, 0.04]"
    assert format_difference(-0.0001, (-0.1, 0.0003)) == "-0.01 points [-10.0, 0.03]"
    assert format_difference(-1e-17, (-0.05, 0.05)) == "+0.0 points [-5.0, 5.0]", "a rounding error is zero"
    assert format_score(0.9996, (0.9984, 1.0)) == "0.9996 [0.998, 1.000]"
    assert format_score(1.0, (0.0002, 1 - 1e-16), digits=2) == "1.00 [0.0002, 1.00]"
    assert [format_p(p) for p in (0.04998, 0.05, 0.050004, 0.00004, 1.0)] == [
        "0.04998",
        "0.0500",
        "0.050004",
        "< 0.0001",
        "1.0000",
    ]
    assert [format_p(p, 3) for p in (0.0498, 0.0004, 0.02712)] == ["0.0498", "0.0004", "0.027"]
