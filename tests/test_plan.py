"""`study.py --plan`: the smallest difference of a design is found as often as it says, and the report is complete."""

from dataclasses import replace

import numpy as np
import pytest

import study
from benchmarks.coverage import PLANNED, planned_power
from common.compare.plan import Spread, measured_spread, smallest_differences
from common.config import InputError
from common.stats import difference
from tests import helpers

RUNS = "--data sample --limit 32 --batch-size 16 --epochs 1 --models custom_cnn --image-size 32 --blocks 8k3p2"


def test_the_spread_is_measured_as_it_was_simulated():
    """Scores of seeds on products with known effects, which replace right and wrong predictions."""
    true, rng = Spread(products=0.3, interaction=0.4, seeds=0.05), np.random.default_rng(0)

    def side(seeds, products):
        scores = products + rng.normal(scale=true.seeds, size=(seeds, 1))
        scores = scores + rng.normal(scale=true.interaction, size=(seeds, 100))
        return scores.mean(1), (scores.sum(1, keepdims=True) - scores) / 99

    def change():
        effects = rng.normal(scale=true.products / 2**0.5, size=(2, 100))
        return difference(side(3, effects[0]), side(6, effects[1]))

    measured = measured_spread([change() for _ in range(300)])
    assert measured.products == pytest.approx(true.products, rel=0.05)
    assert measured.interaction == pytest.approx(true.interaction, rel=0.02)
    assert measured.seeds == pytest.approx(true.seeds, rel=0.1)


def test_more_seeds_images_and_fewer_questions_find_smaller_differences():
    spread = Spread(products=0.2, interaction=0.2, seeds=0.02)
    one, twelve = smallest_differences(spread, seeds=3, clusters=80, families=[1, 12])
    assert 0.08 < one < twelve < 0.3
    for more in ({"seeds": 6, "clusters": 80}, {"seeds": 3, "clusters": 160}):
        fewer = smallest_differences(spread, **more, families=[1, 12])
        assert fewer[0] < one and fewer[1] < twelve
    assert smallest_differences(replace(spread, seeds=0.04), seeds=3, clusters=80, families=[1])[0] > one


def test_without_variance_over_seeds_the_smallest_difference_is_that_of_a_t_test():
    """80 % power needs 1.96 + 0.84 standard errors, and a little more with 99 degrees of freedom."""
    (size,) = smallest_differences(Spread(0.3, 1e-9, 1e-9), seeds=6, clusters=100, families=[1])
    assert size == pytest.approx(2.83 * 0.03, rel=0.01)
    (size,) = smallest_differences(Spread(1e-9, 0.3, 1e-9), seeds=6, clusters=100, families=[1])
    assert 2.83 < size / (2 * 0.3**2 / 600) ** 0.5 < 3.5, "a seed's effect on a product counts for both experiments"


def test_the_smallest_difference_is_found_as_often_as_planned():
    """Standard error 2 points."""
    assert 0.75 <= planned_power(PLANNED["ordinary, spreads 2.5 points, 3 seeds"], 400, family=12)[1] <= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("world", PLANNED)
def test_the_smallest_difference_is_found_in_80_percent(world):
    """Standard error 1.3 points."""
    assert 0.77 - 0.026 <= planned_power(PLANNED[world], 1000, family=1)[1] <= 0.83 + 0.026


# The report ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(cache, tmp_path, capsys):
    """A function that returns the lines that `study.py --plan` prints."""

    def plan(line):
        capsys.readouterr()  # drops the output of earlier runs
        study.main([*line.split(), "--cache", cache, "--out", str(tmp_path / "study"), "--plan"])
        return capsys.readouterr().out.splitlines()

    return plan


def test_a_study_is_planned_before_anything_is_trained(plan, tmp_path):
    lines = plan(f"{RUNS} --variants full crop crop-strong --seeds 5")
    assert lines[0] == "15 runs of 3 experiments: 0 finished, time left unknown" and "--seeds 1" in lines[1]
    assert any("assumed, as on the sample" in line for line in lines)
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert table[0][:3] == ["seeds", "runs", "questions"]
    images, products = (int(number) for number in table[0][3].split() if number.isdigit())
    assert images == 32 and 10 <= products <= 32 and table[0][5] == f"128 rows of {4 * products} products"
    assert [row[:3] for row in table[2:]] == [
        [str(seeds), str(3 * seeds), questions] for seeds in (3, 5, 6, 10) for questions in ("1", "2")
    ]
    numbers = np.array([row[3:] for row in table[2:]], float)
    assert (np.diff(numbers) < 0).all() and (numbers > 1).all() and (numbers < 100).all()
    assert not (tmp_path / "study").exists()


def test_a_plan_uses_the_runs_that_are_finished(plan, cache, tmp_path, empty_figures):
    line = f"{RUNS} --variants full crop"
    argv = [*line.split(), "--seeds", "3", "--cache", cache, "--out", str(tmp_path / "study")]
    options, more = study.read_options(argv)
    jobs = study.jobs_of(options, more)
    for seed, source in enumerate(["assumed", "measured in finished runs, n = 1"]):
        for job in jobs[2 * seed : 2 * seed + 2]:
            helpers.main(job.script, job.argv)
        lines = plan(f"{line} --seeds 3")
        assert lines[0].startswith(f"6 runs of 2 experiments: {2 * seed + 2} finished, about ")
        assert any(source in text for text in lines) and "--seeds 1" not in lines[1]
    with pytest.raises(InputError, match="--lr"):
        plan(f"{line} --seeds 3 --lr 0.5")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--variants full", "compare.py has no question"),
        ("--variants full crop --folds 2", "is not known before it is run"),
        ("--variants full crop --limit 8", "no conclusion is drawn from fewer than 10"),
    ],
)
def test_a_plan_says_what_it_cannot_say(plan, line, words):
    lines = plan(f"{RUNS} {line} --seeds 3")
    assert words in lines[-1] and not any(line.startswith("|") for line in lines)
