"""The statistics, compared with libraries and manual results, and on simulated data with known true scores."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from benchmarks.coverage import PRIORS, World, coverage, p_values
from common.metrics import METRICS
from common.stats import (
    Estimate,
    difference,
    estimate,
    format_difference,
    format_p,
    format_score,
    holm,
    mcnemar,
    rows_needed,
    score_estimates,
    seeds_p_value,
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
    assert same.seed_variance < 0.2 * same.image_variance, "chance alone"
    apart = estimate(*_parts(noise + shifts[:, None]))
    assert apart.seed_variance == pytest.approx(shifts.var(ddof=1) / 4, rel=0.3)
    assert apart.image_variance == pytest.approx(same.image_variance) and apart.seed_df == 3
    assert apart.interval(1 - apart.p_value())[0] == pytest.approx(0, abs=1e-9)
    low, high = apart.interval()
    assert high - low == pytest.approx(2 * scipy_stats.t.ppf(0.975, 3) * shifts.std(ddof=1) / 2, rel=0.2)


def _parts(values):
    """Scores and leave-one-out scores of values (S, N) whose mean is the score."""
    n = values.shape[1]
    return values.mean(1), (values.sum(1, keepdims=True) - values) / (n - 1)


def test_wilson_is_scipys():
    for right, n in ((0, 10), (7, 10), (99, 100), (130, 130)):
        expected = scipy_stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert wilson(right / n, scipy_stats.norm.ppf(0.975) ** 2 / n) == pytest.approx((expected.low, expected.high))


def test_mcnemar_is_the_exact_binomial_test():
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = rng.random((2, 40)) < rng.random((2, 1))
        only_a, only_b = (a & ~b).sum(), (b & ~a).sum()
        expected = scipy_stats.binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1
        assert mcnemar(a, b) == pytest.approx(expected, abs=1e-12)
    five = np.arange(100) < 5
    assert mcnemar(five, np.zeros(100, bool)) > 0.05 > mcnemar(np.arange(100) < 6, np.zeros(100, bool))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own steps
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []


def test_seeds_alone():
    a, b = np.array([0.5, 0.6, 0.55]), np.array([0.6, 0.72, 0.63])
    assert seeds_p_value(a[:2], b) == pytest.approx(scipy_stats.ttest_ind(a[:2], b).pvalue)
    assert seeds_p_value(a[:1], b) is None and seeds_p_value(a, a) == 1


def test_rows_needed_are_found_with_the_power_asked_for():
    found = Estimate(value=0.05, bias=0, image_variance=0.03**2, seed_variance=0.0, clusters=101, seed_df=0)
    n = rows_needed(found, 150, power=0.8)
    z = 0.05 / (0.03 * np.sqrt(150 / n))
    assert scipy_stats.norm.sf(1.96 - z) == pytest.approx(0.8, abs=0.01)
    assert rows_needed(Estimate(0.05, 0, 0.03**2, 0.02**2, 101, 5), 150) is None, "too large a variance over seeds"


def test_every_metric_has_an_estimate():
    rng = np.random.default_rng(0)
    scores, without = rng.random((3, 5)), rng.random((3, 20, 5))
    estimates = score_estimates(scores, without)
    assert list(estimates) == list(METRICS)
    assert estimates["f1"] == estimate(scores[:, 3], without[:, :, 3])
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

SLOW = pytest.mark.slow
ONE_SEED = World((0.65, 0.73))
HIGH_SCORES = World((0.88, 0.94))
SIX_SEEDS = World((0.65, 0.73), sizes="1 to 6", seeds=6, seed=0.005)


@pytest.mark.parametrize("world", [ONE_SEED, SIX_SEEDS], ids=["one seed", "six seeds"])
def test_intervals_cover_the_truth_in_a_short_simulation(world):
    for shares in coverage(world, 200).values():
        assert (shares >= 0.9).all() and (shares <= 0.99).all(), shares


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [ONE_SEED, HIGH_SCORES, SIX_SEEDS],
    ids=["one seed", "one seed, high scores", "six seeds, up to six photos a product"],
)
def test_intervals_cover_the_truth_as_often_as_they_claim(world):
    covered = coverage(world, 1000)  # each share is then known to 0.7 points (one sd)
    for name in ("accuracy", "recall", "f1"):
        k = list(METRICS).index(name)
        assert 0.93 <= covered["score"][k] <= 0.97 and 0.93 <= covered["difference"][k] <= 0.97, (name, covered)
    # Precision and macro F1 depend on the rarest classes, of five rows.
    assert (covered["score"] >= 0.92).all() and (covered["score"] <= 0.97).all(), covered


@pytest.mark.parametrize(
    ("seeds", "spread", "trials"),
    [
        (1, 0, 300),
        (2, 0.02, 300),
        *(pytest.param(*case, 900, marks=SLOW) for case in ((1, 0), (2, 0.02), (3, 0.005), (6, 0.005))),
    ],
)
def test_two_seeds_of_one_model_are_called_different_in_at_most_5_percent(seeds, spread, trials):
    """Runs of the same experiment differ by chance and, with several seeds, in their true accuracy, with a standard
    deviation of 2.5 points (5 for two seeds). Three questions at a time, with correction."""
    world = World((0.7, 0.7), seeds=seeds, seed=spread, model_product=0, model_photo=0)
    p = p_values(world, trials, seed=seeds).max(1)
    called = np.array([min(holm(family)) < 0.05 for family in p.reshape(-1, 3).tolist()])
    assert (p < 0.05).mean() <= 0.05 and called.mean() <= 0.05


@pytest.mark.slow
def test_a_difference_of_8_points_is_found_as_often_as_theory_says():
    """The exact power of McNemar's test without clusters, from the shares of rows that only one model gets right."""
    world = World((0.70, 0.78), product=0, photo=0.5, model_product=0, model_photo=0.05)
    rng = np.random.default_rng(0)
    draws = [world.draw(rng) for _ in range(3000)]
    a, b = (np.concatenate([predictions[k][0] == labels for labels, _, predictions in draws]) for k in (0, 1))
    power = mcnemar_power((a & ~b).mean(), (b & ~a).mean(), n=155)
    p = p_values(world, 1000, seed=1)
    assert (p[:, 0] < 0.05).mean() == pytest.approx(power, abs=0.04), "McNemar alone: 1.6 points of sampling error"
    assert (p.max(1) < 0.05).mean() == pytest.approx(power, abs=0.04), "together with the test over products"


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
    world = World((0.70, 0.78), seeds=6, seed=0.005)
    rng, changes = np.random.default_rng(0), []
    for _ in range(600):
        labels, _, (a, b) = world.draw(rng)
        changes.append((b == labels).mean() - (a == labels).mean())
    assert np.mean(changes) == pytest.approx(0.08, abs=0.005) and PRIORS.sum() == pytest.approx(1)
    power = scipy_stats.norm.sf(1.96 - 0.08 / np.std(changes))
    assert (p_values(world, 600, seed=1).max(1) < 0.05).mean() == pytest.approx(power, abs=0.05)


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
