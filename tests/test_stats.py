"""The statistics, against libraries, by hand, and on made data whose truth is known."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score, precision_recall_fscore_support

from benchmarks.coverage import PRIORS, World, coverage, leave_one_out, p_values
from common.metrics import COUNTED, calibration_error, counts_per_cluster, scores, scores_of_counts
from common.stats import Estimate, estimate, holm, mcnemar, rows_needed, seeds_p_value, wilson


def random_run(rng, n, classes, seeds=1):
    """Labels (N,), predictions (S, N), clusters (N,) of which each has rows of two classes."""
    labels = rng.integers(classes, size=n)
    predictions = np.where(rng.random((seeds, n)) < 0.6, labels, rng.integers(classes, size=(seeds, n)))
    clusters = np.unique(100 * (labels // 2) + rng.integers(9, size=n), return_inverse=True)[1]
    return labels, predictions, clusters


@pytest.mark.parametrize("n, classes", [(5, 4), (40, 3), (150, 12), (150, 60)])
def test_scores_of_counts_are_scikit_learns(n, classes):
    """With classes that do not occur, or are never predicted, too."""
    rng = np.random.default_rng(n + classes)
    for _ in range(50):
        labels, predictions, clusters = random_run(rng, n, classes)
        found = scores_of_counts(*(c.sum(1) for c in counts_per_cluster(labels, predictions, clusters, classes)))[0]
        weighted = precision_recall_fscore_support(labels, predictions[0], average="weighted", zero_division=0)[:3]
        macro = f1_score(labels, predictions[0], average="macro", zero_division=0)
        np.testing.assert_allclose(found, [(labels == predictions[0]).mean(), *weighted, macro], rtol=0, atol=1e-12)
        logits = np.eye(classes)[predictions[0]]
        np.testing.assert_allclose(found, [scores(labels, logits)[name] for name in COUNTED], rtol=0, atol=1e-12)


def test_leaving_a_cluster_out_is_leaving_its_rows_out():
    labels, predictions, clusters = random_run(np.random.default_rng(0), 60, 5, seeds=2)
    labels = labels + 3  # not all of the twelve classes
    predictions = predictions + 3
    _, without = leave_one_out(labels, clusters, predictions)
    for g in range(clusters.max() + 1):
        kept = clusters != g
        for s in range(2):
            macro = f1_score(labels[kept], predictions[s, kept], average="macro", zero_division=0)
            np.testing.assert_allclose(without[s, g, 4], macro, atol=1e-12)


def test_the_jackknife_of_a_mean_is_the_usual_standard_error():
    right = np.random.default_rng(0).random(50) < 0.7
    without = (right.sum() - right) / 49
    found = estimate(np.array([right.mean()]), without[None])
    assert found.image_variance == pytest.approx(right.var(ddof=1) / 50) and found.bias == pytest.approx(0)
    assert found.interval() == pytest.approx(scipy_stats.t.interval(0.95, 49, right.mean(), scipy_stats.sem(right)))
    assert found.p_value() == pytest.approx(scipy_stats.ttest_1samp(right, 0).pvalue, abs=1e-14)


def test_rounding_is_no_certainty():
    """Ten products of three rows, one of them right in each: leaving one out changes nothing."""
    without = np.full((1, 10), 9 / 27) + np.linspace(-1e-16, 1e-16, 10)
    found = estimate(np.array([10 / 30]), without)
    assert found.image_variance == 0 and found.share_interval()[0] < 0.15 and found.interval()[1] > 0.5


def test_seeds_count_by_what_the_images_do_not_explain():
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
    assert rows_needed(Estimate(0.05, 0, 0.03**2, 0.02**2, 101, 5), 150) is None, "the seeds alone leave too much open"


def test_calibration_error_by_hand():
    probabilities, right = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 1.0]), np.array([1, 1, 1, 0, 1, 1.0])
    # the last bin has five of six rows: mean probability 0.96, four right; the other 0.55, right
    assert calibration_error(probabilities, right) == pytest.approx(5 / 6 * 0.16 + 1 / 6 * 0.45)


TRIALS = 1000  # the share of intervals that hold the truth is then known to 0.7 points (one sd)


@pytest.mark.parametrize(
    "world",
    [World((0.65, 0.73)), World((0.88, 0.94)), World((0.65, 0.73), sizes="1 to 6", seeds=6, seed=0.005)],
    ids=["one seed", "one seed, high scores", "six seeds, up to six photos a product"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(world):
    held = coverage(world, TRIALS)
    for name in ("accuracy", "recall", "f1"):
        k = COUNTED.index(name)
        assert 0.93 <= held["score"][k] <= 0.97 and 0.93 <= held["difference"][k] <= 0.97, (name, held)
    # Precision and macro F1 lean on the rarest classes, of five rows.
    assert (held["score"] >= 0.92).all() and (held["score"] <= 0.97).all(), held


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0), (2, 0.02), (3, 0.005), (6, 0.005)])
def test_two_seeds_of_one_model_are_called_different_in_at_most_5_percent(seeds, spread):
    """One experiment against itself: its runs differ by chance and, where there are several, by their own quality, with
    a standard deviation of 2.5 points of accuracy (of two seeds: 5). Three questions at a time, corrected."""
    world = World((0.7, 0.7), seeds=seeds, seed=spread, model_product=0, model_photo=0)
    p = p_values(world, 900, seed=seeds).max(1)
    called = np.array([min(holm(family)) < 0.05 for family in p.reshape(-1, 3).tolist()])
    assert (p < 0.05).mean() <= 0.05 and called.mean() <= 0.05


def test_a_difference_of_8_points_is_found_as_often_as_theory_says():
    """McNemar's exact power, from the shares of rows that one model alone gets right, on rows without clusters."""
    world = World((0.70, 0.78), product=0, photo=0.5, model_product=0, model_photo=0.05)
    rng = np.random.default_rng(0)
    draws = [world.draw(rng) for _ in range(3000)]
    a, b = (np.concatenate([predictions[k][0] == labels for labels, _, predictions in draws]) for k in (0, 1))
    only_a, only_b, n = (a & ~b).mean(), (b & ~a).mean(), 155
    power = 0.0
    for m in range(n + 1):
        splits = np.arange(m + 1)
        p = np.minimum(1, 2 * scipy_stats.binom.cdf(np.minimum(splits, m - splits), m, 0.5))
        found = scipy_stats.binom.pmf(splits, m, only_b / (only_a + only_b))[p < 0.05].sum()
        power += scipy_stats.binom.pmf(m, n, only_a + only_b) * found
    p = p_values(world, 1000, seed=1)
    assert (p[:, 0] < 0.05).mean() == pytest.approx(power, abs=0.04), "McNemar alone: 1.6 points of sampling error"
    assert (p.max(1) < 0.05).mean() == pytest.approx(power, abs=0.04), "with the test over products beside it"


def test_with_six_seeds_8_points_are_found_as_often_as_theory_says():
    world = World((0.70, 0.78), seeds=6, seed=0.005)
    rng, changes = np.random.default_rng(0), []
    for _ in range(600):
        labels, _, (a, b) = world.draw(rng)
        changes.append((b == labels).mean() - (a == labels).mean())
    assert np.mean(changes) == pytest.approx(0.08, abs=0.005) and PRIORS.sum() == pytest.approx(1)
    power = scipy_stats.norm.sf(1.96 - 0.08 / np.std(changes))
    assert (p_values(world, 600, seed=1).max(1) < 0.05).mean() == pytest.approx(power, abs=0.05)
