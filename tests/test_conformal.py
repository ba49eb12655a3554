"""common/conformal.py: sets of categories that hold the right one, also for new products."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from common.config import InputError
from common.conformal import Calibration, calibrate, clusters_needed, upper_bound
from common.finished_run import read_run

CNN = "train_custom_cnn"

# Simulated products --------------------------------------------------------------------------------------------------


def draw_scores(rng, products, *, correlation, largest, easier):
    """Scores (N,) of photos of `products` products, and the product of each photo (N,).

    Products have 1 to `largest` photos, whose scores have a correlation; with `easier`, only products with lower scores
    have more than one.
    """
    effects = rng.normal(size=products)
    sizes = np.ceil(largest ** rng.random(products)).astype(int)
    if easier:
        sizes[effects > 0] = 1
    clusters = np.repeat(np.arange(products), sizes)
    noise = rng.normal(size=len(clusters))
    return math.sqrt(correlation) * effects[clusters] + math.sqrt(1 - correlation) * noise, clusters


def coverage(bound, risk, products, trials=400, **world):
    """How often a random photo of a random new product is within the bound, and the standard error of this share."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(trials):
        limit = bound(*draw_scores(rng, products, **world), risk)
        scores, clusters = draw_scores(rng, 300, **world)
        shares.append((np.bincount(clusters, scores <= limit) / np.bincount(clusters)).mean())
    return np.mean(shares), np.std(shares) / math.sqrt(trials)


def upper_bound_of_rows(scores, clusters, risk):
    """As if every photo showed another product."""
    return upper_bound(scores, np.arange(len(scores)), risk)


WORLDS = {
    "one photo each": dict(correlation=0.9, largest=1, easier=False),
    "up to 40 photos": dict(correlation=0.5, largest=40, easier=False),
    "up to 40 similar photos": dict(correlation=0.9, largest=40, easier=False),
    "many photos of easy products": dict(correlation=0.9, largest=40, easier=True),
    "many equal photos of easy products": dict(correlation=1.0, largest=100, easier=True),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize(("products", "risk"), [(20, 0.05), (20, 0.2), (60, 0.05), (200, 0.05), (200, 0.1)])
def test_new_products_are_covered(world, products, risk):
    share, error = coverage(upper_bound, risk, products, **world)
    assert share >= 1 - risk - 4 * error, "the guarantee"
    assert share <= 1 - risk + 2 / (products + 1) + 4 * error, "nor are the sets larger than necessary"


@pytest.mark.parametrize("products", [20, 60, 200])
def test_a_quantile_of_rows_would_not_cover_new_products(products):
    share, error = coverage(upper_bound_of_rows, 0.05, products, **WORLDS["many photos of easy products"])
    assert share < 0.8 and error < 0.01


# The bound -----------------------------------------------------------------------------------------------------------


def test_without_clusters_it_is_the_usual_order_statistic():
    scores = np.random.default_rng(0).permutation(99.0 * np.ones(99)) * np.arange(1, 100) / 99
    for risk in (0.01, 0.05, 0.1, 0.5):
        assert upper_bound(scores, np.arange(99), risk) == pytest.approx(math.ceil((1 - risk) * 100 - 1e-9))


def test_each_product_counts_once():
    """Weights of 1/4: the product with 100 photos counts as much as the one with a single photo."""
    scores, clusters = np.array([1.0] * 100 + [2, 3]), np.array([0] * 100 + [1, 2])
    bounds = [upper_bound(scores, clusters, risk) for risk in (0.75, 0.74, 0.5, 0.49, 0.25, 0.24)]
    assert bounds == [1, 2, 2, 3, 3, math.inf]


@pytest.mark.parametrize(("risk", "needed"), [(0.05, 19), (0.1, 9), (0.2, 4), (0.3, 3), (0.5, 1), (0.001, 999)])
def test_the_number_of_products_needed(risk, needed):
    assert clusters_needed(risk) == needed
    scores = np.arange(float(needed))
    assert upper_bound(scores, np.arange(needed), risk) == needed - 1
    assert upper_bound(scores[1:], np.arange(needed - 1), risk) == math.inf


PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.5, 0.2, 0.3], [0.6, 0.3, 0.1], [np.nan] * 3])


def test_a_set_has_the_categories_that_are_probable_enough():
    sets = Calibration(0.1, 0.2, 0.6, 30, 10, "product").sets(PROBABILITIES)
    assert sets.tolist() == [[True, False, False], [True] * 3, [True, True, False], [False] * 3]


def test_a_photo_is_unlike_the_others_if_no_category_is_probable():
    unlike = Calibration(0.1, 0.2, 0.6, 30, 10, "product").unlike(PROBABILITIES)
    assert unlike.tolist() == [False, True, False, False]


# Runs ----------------------------------------------------------------------------------------------------------------


def fake_run(products, *, shared=(), images=None, ids=True, split_by=""):
    """A run whose val rows have these products; the probabilities of their labels rise from 0 to 1 in equal steps."""
    n = len(products)
    images = images or [f"photo{i}" for i in range(n)]
    rows = pd.DataFrame({"image_id": images, "product_id": products, "label": ["a", "b"] * (n // 2) + ["a"] * (n % 2)})
    right = np.linspace(0, 1, n)
    probabilities = np.where((rows["label"] == "a").to_numpy()[:, None], [[1, 0]], [[0, 1]]) * (2 * right - 1)[:, None]
    probabilities += 1 - right[:, None]
    report = {"products": {"shared": list(shared)} if ids else None}
    return SimpleNamespace(
        name="RUN",
        rows=rows,
        report=report,
        info=SimpleNamespace(classes=["a", "b"], config={"split_by": split_by}),
        probabilities=probabilities,
    )


def test_calibration_uses_the_probability_of_the_label_by_product():
    run = fake_run(["p0", "p1", "p2", "p2", "p2"])
    found = calibrate(run, 0.5)  # the two lowest probabilities have weights of 1/4 each
    assert found == Calibration(0.5, 0.25, 0.75, 5, 3, "product")
    assert calibrate(fake_run(["p0", "p0", "p0", "p1", "p2"]), 0.5).least == 0.75


def test_products_that_are_in_train_are_not_used():
    run = fake_run(["known", "known", "p1", "p2", "p3"], shared=["known"])
    assert calibrate(run, 0.25) == Calibration(0.25, 0.5, 0.5, 3, 3, "product")


def test_products_in_one_photo_are_one_cluster():
    run = fake_run(["p0", "p1", "p2", "p3"], images=["x", "y", "z", "z"])
    assert calibrate(run, 0.25).clusters == 3


def test_photos_are_clusters_without_product_ids():
    run = fake_run([""] * 6, images=["x", "x", "y", "y", "z", "z"], ids=False)
    found = calibrate(run, 0.25)
    assert (found.clusters, found.unit) == (3, "photo") and "a random object in a new photo" in found.promise


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            fake_run([f"p{i}" for i in range(18)]),
            "needs at least 19 products .* has 18: .*--split-by product_id, or .*0.0527 ",
        ),
        (
            fake_run([f"p{i}" for i in range(18)], split_by="product_id:1/9"),
            "has 18: train with fewer folds, or choose",
        ),
        (fake_run(["p0"] * 40, shared=["p0"]), "has 0: train with --split-by product_id\\."),
        (fake_run([""] * 12, ids=False), "19 photos .* has 12: train with --split-by image_id, or .*0.077 "),
    ],
)
def test_too_few_products_are_refused(run, words):
    with pytest.raises(InputError, match=words):
        calibrate(run, 0.05)


def test_the_smallest_risk_that_is_named_is_accepted():
    for products in (1, 2, 6, 12, 18):
        with pytest.raises(InputError) as refused:
            calibrate(fake_run([f"p{i}" for i in range(products)]), 0.01)
        risk = float(str(refused.value).split("choose --risk ")[1].split()[0])
        assert calibrate(fake_run([f"p{i}" for i in range(products)]), risk).clusters == products


def test_a_run_is_calibrated_on_its_new_products(finished_run):
    run = read_run(finished_run(CNN, "--crop --split-by product_id"))
    found = calibrate(run, 0.1)
    assert found.clusters == run.rows["product_id"].nunique() and found.rows == len(run.rows)
    labels = np.searchsorted(run.info.classes, run.rows["label"])
    inside = found.sets(run.probabilities)[np.arange(len(labels)), labels]
    unlike = found.unlike(run.probabilities)
    covered, refused = (pd.Series(rows).groupby(run.rows["product_id"]).mean().mean() for rows in (inside, unlike))
    assert covered >= 0.9 and refused <= 0.1
    assert unlike[~found.sets(run.probabilities).any(1)].all(), "a photo with an empty set is unlike the others"


def test_a_run_of_an_older_version_is_refused(finished_run):
    run = read_run(finished_run(CNN, "--crop --split-by product_id"))
    info = replace(run.info, files={k: v for k, v in run.info.files.items() if "probabilities" not in k})
    with pytest.raises(InputError, match="older version .* train the run again"):
        calibrate(replace(run, info=info), 0.1)
