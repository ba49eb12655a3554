"""Comparisons of synthetic runs with known answers, and of real runs."""

import json
import re
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm as normal
from sklearn.linear_model import LogisticRegression

import compare
import predict
from common.compare import baselines as baselines_module
from common.compare import figures as compare_figures
from common.compare.baselines import describe_pixels, find_baselines
from common.compare.experiments import Experiment, comparable, group_runs
from common.compare.figures import forest
from common.compare.markdown import introduction, with_interval
from common.compare.questions import (
    MODELS,
    SAME,
    STEPS,
    STEPS_WITHOUT_CROP,
    ScoredExperiment,
    ask,
    family_notes,
    questions,
)
from common.compare.shortcuts import VIEWS, load_val, masked_views
from common.compare.summary import (
    accuracy_of_answered,
    answered_at,
    confused_pairs,
    experiment_summary,
    label_candidates,
    per_class,
    seed_and_leakage_notes,
    share_at,
)
from common.config import IMAGENET, InputError
from common.data.crop import PAD_COLOR
from common.data.pixels import normalize
from common.data.splits import connected_groups
from common.figures import confusion_counts, confusion_side, draw_confusion, save_figure
from common.finished_run import find_runs, read_run
from common.metrics import METRICS, calibration_error
from common.stats import format_score, wilson
from tests import helpers
from tests.helpers import SAMPLE, edit_json, read_json

CLASSES = ["bed", "chair", "desk", "sofa"]
LABELS = [CLASSES[i % 4] for i in range(120)]
PRODUCTS = [f"p{i // 2}" for i in range(120)]  # two photos of each


def wrong_in(wrong):
    """Predictions for `LABELS` in which the given rows are wrong: they have the next class."""
    return [CLASSES[(i + 1) % 4] if i in set(wrong) else label for i, label in enumerate(LABELS)]


@pytest.fixture
def write_run(tmp_path):
    """A function that writes a run folder with the given predictions, in the format of a training script."""

    def write(script, options, predictions, labels=LABELS, products=PRODUCTS, **values):
        folder = tmp_path / "runs" / f"{script}-{'-'.join(options.split()) or 'full'}".replace("/", "_")
        helpers.write_run(folder, script, options, predictions, labels, products, classes=CLASSES, **values)
        return folder

    return write


def experiments_of(*folders):
    return group_runs(find_runs([str(folder) for folder in folders])[0])


def scored(*folders):
    return [ScoredExperiment(experiment) for experiment in experiments_of(*folders)]


def asked(*folders):
    return questions(scored(*folders))


# Questions and answers -----------------------------------------------------------------------------------------------


@pytest.fixture
def crop_helps(write_run):
    """For 24 of 60 products, both photos are predicted correctly only with the crop."""
    full = write_run("train_custom_cnn", "", wrong_in(range(60)))
    crop = write_run("train_custom_cnn", "--crop", wrong_in(range(12)))
    return full, crop


@pytest.fixture
def write_seeds(write_run):
    """A function that writes runs of several seeds, whose numbers of wrong rows are given."""

    def write_seeds(options, *wrong, script="train_custom_cnn"):
        return [write_run(script, f"{options} --seed {s}", wrong_in(range(number))) for s, number in enumerate(wrong)]

    return write_seeds


THREE = {"full": (60, 61, 62), "crop": (12, 13, 12)}


@pytest.mark.parametrize(
    ("full", "crop", "start", "end"),
    [
        (THREE["full"], THREE["crop"], "crop helps custom_cnn: +40.6 points [", "]"),
        (THREE["crop"], THREE["full"], "crop harms custom_cnn: -40.6 points [-", "]"),
        ((60,), (12,), "crop, custom_cnn: these weights score higher, +40.0", "with one seed, other seeds may differ"),
        (
            (12,),
            THREE["full"],
            "crop, custom_cnn: these weights score lower, -40.8",
            "with 1 and 3 seeds, other seeds may differ",
        ),
        (
            (60, 61),
            THREE["crop"],
            "crop, custom_cnn: these weights score higher",
            "with 2 and 3 seeds, other seeds may differ",
        ),
    ],
    ids=["helps", "harms", "single runs", "one seed and three", "two seeds and three"],
)
def test_the_verb_fits_the_number_of_seeds(write_seeds, full, crop, start, end):
    (question,) = asked(*write_seeds("", *full), *write_seeds("--crop", *crop))
    assert question.decided and question.title == "custom_cnn: crop vs. full"
    assert question.sentence.startswith(start) and question.sentence.endswith(end)


def test_the_interval_of_a_difference_is_that_of_the_mean_over_products(crop_helps):
    (question,) = asked(*crop_helps)
    d = np.zeros(60)
    d[6:30] = 1
    half = 2.001 * np.sqrt(d.var(ddof=1) / 60)
    assert question.change.value == pytest.approx(48 / 120)
    assert question.change.interval() == pytest.approx((0.4 - half, 0.4 + half), abs=1e-4)


def test_single_runs_are_compared_by_mcnemars_test(crop_helps):
    (question,) = asked(*crop_helps)
    assert question.mcnemar_p == pytest.approx(2 * 0.5**48) and question.p < 1e-6


def test_an_answer_as_a_dict_is_json(crop_helps):
    (question,) = asked(*crop_helps)
    answer = question.as_dict()
    assert json.loads(json.dumps(answer)) == answer
    assert (answer["a"], answer["b"]) == ("custom_cnn full", "custom_cnn crop") and answer["decided"] is True
    assert answer["sentence"] == question.sentence and answer["interval"] == list(question.interval)
    assert answer["interval_alone"] == list(question.interval_alone)


def test_the_better_model_is_named(write_seeds):
    runs = [*write_seeds("--crop", *THREE["crop"]), *write_seeds("--crop", *THREE["full"], script="train_custom_vit")]
    (question,) = asked(*runs)
    assert question.sentence.startswith("custom_vit loses to custom_cnn (crop): -40.6 points [-")
    (question,) = asked(*reversed(runs))
    assert question.sentence.startswith("custom_cnn beats custom_vit (crop): +40.6 points [")


@pytest.mark.parametrize(("cnn", "vit"), [(60, 110), (110, 60), (60, 62)], ids=["loses", "beats", "undecided"])
def test_a_difference_has_one_sign_everywhere(write_run, tmp_path, monkeypatch, cnn, vit):
    """It is that of the first model in the title: in the sentence, the table, the JSON file and the figure."""
    for script, wrong in (("train_custom_cnn", cnn), ("train_custom_vit", vit)):
        write_run(script, "--crop", wrong_in(range(wrong)))
    drawn = []
    monkeypatch.setattr(compare_figures, "forest", lambda answers: drawn.append(forest(answers)) or drawn[0])
    answer = compare.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])["questions"][0]
    (point,) = [line.get_xdata()[0] for line in drawn[0].axes[0].lines if line.get_marker() == "o"]
    shown = f"{100 * (cnn - vit) / 120:+.1f} points"
    page = (tmp_path / "out" / "comparison.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| custom_vit vs.")]
    assert answer["question"] == "custom_vit vs. custom_cnn, crop" and answer["b"] == "custom_vit crop"
    assert answer["difference"] == pytest.approx((cnn - vit) / 120) == pytest.approx(point / 100)
    assert shown in answer["sentence"] and shown in row and answer["sentence"].startswith("custom_vit ")


def test_mcnemars_test_can_forbid_a_decision(write_run):
    full = write_run("train_custom_cnn", "", wrong_in(range(0, 10, 2)))
    crop = write_run("train_custom_cnn", "--crop", LABELS)
    (question,) = asked(full, crop)
    assert question.change.p_value() < 0.05 < question.p == pytest.approx(1 / 16), "five rows are too few"
    assert question.change.interval()[0] > 0 == question.interval[0] == question.interval_alone[0]
    assert not question.decided and question.interval[1] == question.change.interval()[1]
    assert 100 * question.change.margin() < 4 and "differences of up to 4.2 points would go" in question.sentence


def test_a_small_difference_is_a_finding(write_seeds):
    crops = write_seeds("--crop", 30, 31, 30)
    (question,) = asked(*crops, *write_seeds("--crop --augment", 31, 30, 31))
    largest = 100 * max(map(abs, question.interval))
    assert largest < 5 and question.sentence.startswith("augmentation, custom_cnn: the same within ")
    stated = float(re.search(r"within ([\d.]+) points", question.sentence)[1])
    assert largest <= stated < largest + 0.1, "rounded up, so that it is true"
    augmented = [run for run in crops[0].parent.iterdir() if "augment---seed-0" in run.name]
    (question,) = asked(crops[0], *augmented)
    assert question.sentence.startswith("augmentation, custom_cnn: these weights are the same within ")


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("value", "largest", "words"),
    [
        (0.0, SAME, "the same within 5.0 points, +0.0 points [-5.0, 5.0]"),
        (0.02, SAME, "the same within 5.0 points, +2.0 points [-1.0, 5.0]"),
        (-0.02, SAME, "the same within 5.0 points, -2.0 points [-5.0, 1.0]"),
        (0.0, SAME + 1e-4, "differences of up to 5.1 points would go unseen"),
        (0.02, SAME + 1e-4, "differences of up to 3.1 points would go unseen"),
        (-0.02, SAME + 1e-4, "differences of up to 3.1 points would go unseen"),
        (0.0, 0.02, "the same within 2.0 points, "),
        (0.0, 0.02001, "the same within 2.1 points, "),
    ],
)
def test_an_interval_within_five_points_is_a_finding(write_seeds, seeds, value, largest, words):
    """The number of points is rounded up, so that it is true."""
    (question,) = asked(*write_seeds("", *[30] * seeds), *write_seeds("--crop", *[30] * seeds))
    unit = replace(question.change, value=value, image_variance=1.0, seed_variances=())
    variance = ((largest - abs(value)) * (1 - 1e-12) / unit.margin()) ** 2
    sentence = replace(question, change=replace(unit, image_variance=variance)).sentence
    assert words in sentence and ("these weights are the same" in sentence) == (seeds == 1 and "same" in words)


def test_too_little_data_is_said_with_the_size_that_would_go_unseen(write_seeds):
    (question,) = asked(*write_seeds("", 50, 40, 60), *write_seeds("--crop", 45, 55, 35))
    unseen = float(re.search(r"differences of up to ([\d.]+) points would go unseen$", question.sentence)[1])
    assert "crop, custom_cnn: not distinguishable on 120 images with 3 seeds, " in question.sentence
    assert 100 * question.change.margin() <= unseen < 100 * question.change.margin() + 0.1


@pytest.mark.parametrize("products", [9, 10])
def test_fewer_than_ten_products_allow_no_conclusion(write_run, products):
    names = [f"p{i % products}" for i in range(120)]
    runs = [
        write_run("train_custom_cnn", f"{options} --seed {seed}", predictions, products=names)
        for seed in range(3)
        for options, predictions in (("", wrong_in(range(120))), ("--crop", LABELS))
    ]
    (question,) = asked(*runs)
    low, high = question.interval
    assert question.decided == (products == 10) == (low > 0)
    words = "no conclusion from only 9 products or photos (at least 10 are needed); +100.0 points [0.0, 100.0]"
    assert (words in question.sentence) == (products == 9)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_two_rows_and_equal_seeds_allow_no_conclusion(write_run, seeds):
    """Neither the rows nor the seeds vary."""
    runs = [
        write_run(
            "train_custom_cnn", f"{options} --seed {seed}", [prediction] * 2, labels=["bed"] * 2, products=[""] * 2
        )
        for seed in range(seeds)
        for options, prediction in (("", "sofa"), ("--crop", "bed"))
    ]
    (question,) = asked(*runs)
    assert question.change.value == 1 and question.change.p_value() == 0
    assert not question.decided and question.interval[0] == 0
    assert question.sentence.startswith("crop, custom_cnn: no conclusion from only 2 products or photos ")


def test_intervals_and_decisions_never_contradict():
    """For random numbers of seeds, products and questions, and differences of every size."""
    rng, decisions = np.random.default_rng(0), []
    for _ in range(400):
        clusters, n = rng.integers(8, 40), 80
        ids = np.sort(np.r_[np.arange(clusters), rng.integers(clusters, size=n - clusters)])
        rows = pd.DataFrame({"image_id": map(str, range(n)), "product_id": ids.astype(str), "scene_id": ""})
        rows["label"] = "bed"
        sides = []
        for share in rng.choice([0.5, 0.7, 0.9, 1.0], 2):
            seeds = rng.choice([1, 2, 3, 6])
            names = np.where(rng.random((seeds, n)) < share, "bed", "sofa")
            sides.append(
                ScoredExperiment(Experiment("cnn", "crop", [*range(seeds)], rows, np.full((seeds, n), ""), names))
            )
        share = float(rng.choice([0.25, 0.5, 1]))  # of the error, at a look
        question = replace(ask("model", *sides), family=int(rng.choice([1, 4, 12])), share=share)
        low, high = question.interval
        assert low <= question.change.value <= high and question.decided == (low > 0 or high < 0)
        assert question.interval_alone[0] >= low and question.interval_alone[1] <= high
        assert (question.corrected_p < 0.05) == question.decided or question.reason_against
        decisions.append(question.decided)
    assert 50 < sum(decisions) < 350


def test_equal_predictions_have_an_interval_of_positive_width(write_run):
    full, crop = (write_run("train_custom_cnn", options, wrong_in(range(30))) for options in ("", "--crop"))
    (question,) = asked(full, crop)
    low, high = question.interval
    assert question.p == 1 and low == -high and 0.02 < high < 0.1


def test_the_rows_of_a_photo_are_one_cluster(write_run):
    photos = [i // 3 for i in range(120)]
    (one,) = scored(write_run("train_custom_cnn", "", LABELS, products=[""] * 120, photos=photos))
    assert one.clusters.tolist() == photos


def test_photos_that_share_a_product_are_one_cluster(write_run):
    """Each photo shows two products, and each product is in two photos: ten chains of six photos."""
    photos = [i // 2 for i in range(120)]
    products = [f"{i // 12}-{(i % 12 + 1) // 2}" for i in range(120)]
    runs = [
        write_run("train_custom_cnn", options, LABELS, products=products, photos=photos) for options in ("", "--crop")
    ]
    (question,) = asked(*runs)
    assert question.a.clusters.tolist() == [i // 12 for i in range(120)] and question.change.clusters == 10


def test_rows_are_connected_by_product_or_photo():
    assert connected_groups(["a", "b", "b", "", "", "c"], ["1", "1", "2", "3", "3", "4"]).tolist() == [0, 0, 0, 1, 1, 2]
    assert len(set(connected_groups(["", "", None], ["", None, ""]))) == 3, "rows without ids are not connected"


# Experiments ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_seeds(write_run):
    """The folder of three variants of the CNN with three seeds each, and of one ViT."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        for options, wrong in (("", 50), ("--crop", 40), ("--crop --augment", 38)):
            rows = rng.choice(120, wrong, replace=False)
            write_run("train_custom_cnn", f"--seed {seed} {options}", wrong_in(rows))
    return write_run("train_custom_vit", "--crop", wrong_in(range(60))).parent


def test_runs_that_differ_in_the_seed_are_one_experiment(three_seeds):
    assert [(e.name, e.seeds) for e in experiments_of(three_seeds)] == [
        ("custom_cnn full", [0, 1, 2]),
        ("custom_cnn crop", [0, 1, 2]),
        ("custom_cnn crop-augment", [0, 1, 2]),
        ("custom_vit crop", [0]),
    ]


def test_each_variant_is_compared_and_then_the_models(three_seeds):
    found = asked(three_seeds)
    assert [question.kind for question in found] == ["crop", "augmentation", "model"]
    assert found[0].change.value == pytest.approx(10 / 120)


def test_intervals_and_p_values_are_corrected_for_all_questions(three_seeds):
    answers = asked(three_seeds)
    for answer in answers:
        assert answer.family == 3 and answer.corrected_p == pytest.approx(min(1, 3 * answer.p))
        assert answer.interval[1] == pytest.approx(answer.change.interval(1 - 0.05 / 3)[1])
        assert answer.interval_alone[1] == pytest.approx(answer.change.interval()[1])


def test_fewer_questions_can_be_asked(three_seeds, tmp_path):
    answers = compare.main([str(three_seeds), "--out", str(tmp_path / "out"), "--ask", "crop"])
    assert [answer["question"] for answer in answers["questions"]] == ["custom_cnn: crop vs. full"]
    assert answers["family"] == {"asked": ["crop"], "questions": 1, "error": 0.05, "looks": []}
    everything = compare.main([str(three_seeds), "--out", str(tmp_path / "out")])
    narrow, wide = (result["questions"][0]["interval"] for result in (answers, everything))
    assert narrow[0] > wide[0] and narrow[1] < wide[1]
    assert any("3 questions were asked" in note for note in everything["notes"])
    assert "all 3 hold the true differences" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize("question", compare.QUESTIONS)
def test_each_question_can_be_asked_alone(write_run, tmp_path, question):
    for options in ("", "--crop", "--crop --augment", "--crop --augment strong"):
        write_run("train_custom_cnn", options, LABELS)
    vit = write_run("train_custom_vit", "", LABELS)
    title = {
        "crop": "custom_cnn: crop vs. full",
        "augment": "custom_cnn: crop-augment vs. crop",
        "strong": "custom_cnn: crop-strong vs. crop",
        "models": "custom_vit vs. custom_cnn, full",
    }[question]
    answers = questions(scored(vit.parent), [question])
    assert [answer.title for answer in answers] == [title] and answers[0].family == 1
    assert {answer.title for answer in asked(vit.parent)} >= {title}


def test_an_ask_without_a_question_is_a_note(three_seeds, tmp_path, capsys):
    none = compare.main([str(three_seeds), "--out", str(tmp_path), "--ask", "strong"])
    note = "no difference was tested: no two of these experiments answer --ask strong"
    assert none["questions"] == [] and none["notes"].count(note) == 1 and note in capsys.readouterr().out
    assert note in (tmp_path / "comparison.md").read_text() and not (tmp_path / "differences.png").exists()
    alone = compare.main([str(three_seeds / "train_custom_vit---crop"), "--out", str(tmp_path)])
    assert not any("no difference" in text for text in alone["notes"]), "a single experiment has no questions anyway"


def test_the_page_says_which_intervals_are_simultaneous(three_seeds, tmp_path):
    found = compare.main([str(three_seeds), "--out", str(tmp_path)])
    page = (tmp_path / "comparison.md").read_text()
    assert "The intervals beside the differences are simultaneous" in page and "98.33 % each" in page
    assert "3 questions were asked; their intervals hold simultaneously" in page
    assert found["family"] == {"asked": list(compare.QUESTIONS), "questions": 3, "error": 0.05, "looks": []}
    (row,) = [line for line in page.splitlines() if line.startswith("| custom_cnn: crop vs. full")]
    question = found["questions"][0]
    for name, cell in (("interval", 2), ("interval_alone", 3)):
        low, high = (f"{100 * bound:.1f}" for bound in question[name])
        assert f"[{low}, {high}]" in row.split("|")[cell]
    assert f"{question['corrected_p']:.4f}" in row.split("|")[4] and f"{question['p']:.4f}" in row.split("|")[5]
    compare.main([str(three_seeds), "--out", str(tmp_path), "--ask", "crop"])
    page = (tmp_path / "comparison.md").read_text()
    assert "There is only one question, so no correction is needed." in page and "simultaneous" not in page


def test_every_question_has_a_name_to_ask_for():
    assert {name for _, _, name, _ in STEPS + STEPS_WITHOUT_CROP} | {MODELS} == set(compare.QUESTIONS)


def test_unequal_numbers_of_seeds_are_a_note(write_seeds):
    answers = asked(*write_seeds("", 50, 40, 60), *write_seeds("--crop", 45, 55))
    assert family_notes(answers) == ["the experiments have 2 to 3 seeds: tests have most power with equal numbers"]


def test_comparisons_of_variants_without_a_crop_run(write_run):
    lines = {"--crop --augment": 30, "--crop --augment strong": 9, "--crop": 60}
    runs = [write_run("train_custom_cnn", line, wrong_in(range(n))) for line, n in lines.items()]
    (question,) = asked(*runs[:2])
    assert question.title == "custom_cnn: crop-strong vs. crop-augment" and question.decided
    titles = [question.title for question in asked(*runs)]
    assert titles == ["custom_cnn: crop-augment vs. crop", "custom_cnn: crop-strong vs. crop"]


def test_no_two_questions_about_a_model_have_the_same_name():
    kinds = [kind for *_, kind in STEPS + STEPS_WITHOUT_CROP]
    assert len(set(kinds)) == len(kinds), "their sentences would differ only in the numbers"


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (("--lr 0.1", "--lr 0.01"), ("custom_cnn (lr 0.1)", "custom_cnn (lr 0.01)")),
        (("", "--teacher RUN"), ("custom_cnn (no teacher)", "custom_cnn (teacher RUN)")),
        (("--recipe default", "--recipe lab"), ("custom_cnn (recipe default)", "custom_cnn (recipe lab)")),
        (
            ("", "--split-by product_id:1/3"),
            ("custom_cnn (no split_by)", "custom_cnn (split_by 3 folds of product_id)"),
        ),
    ],
    ids=["a number", "a text", "a recipe that sets other options", "a split"],
)
def test_runs_that_differ_in_an_option_are_named_by_it(write_run, lines, names):
    runs = [write_run("train_custom_cnn", f"--crop {line}", LABELS) for line in lines]
    vit = write_run("train_custom_vit", "--crop", LABELS)
    assert [experiment.model for experiment in experiments_of(*runs, vit)] == [*names, "custom_vit"]


@pytest.fixture
def write_folds(write_run):
    """A function that writes the runs of three folds by product of a partition, in which `wrong` rows are wrong."""

    def write_folds(
        partition=0,
        wrong=(),
        *,
        seed=0,
        script="train_custom_cnn",
        labels=LABELS,
        products=PRODUCTS,
        photos=range(120),
    ):
        predictions = [CLASSES[CLASSES.index(label) - (i in wrong)] for i, label in enumerate(labels)]
        folders = []
        for fold in range(3):
            own = [i for i in range(120) if (i // 2 // (1 + partition)) % 3 == fold]
            columns = ([values[i] for i in own] for values in (predictions, labels, products, photos))
            names = zip(("predictions", "labels", "products", "photos"), columns, strict=True)
            suffix = f":{partition}" if partition else ""
            line = f"--seed {seed} --split-by product_id:{fold + 1}/3{suffix}"
            folders.append(write_run(script, line, **dict(names)))
        return folders

    return write_folds


@pytest.fixture
def folds(write_folds):
    """Three folds of 40 rows; row 3 is wrong."""
    return write_folds(wrong=[3])


def test_folds_need_three_partitions(write_folds):
    """Of the partitions of two experiments, those that both have are compared."""
    runs = [write_folds(p, range(60), seed=p) for p in range(3)]
    runs.append(write_folds(0, range(20), script="train_custom_vit"))
    (question,) = asked(*(folder for folders in runs for folder in folders))
    assert question.repetitions == 1 and not question.decided
    assert "no conclusion from only 1 partition into 3 folds (at least 3 partitions are needed)" in question.sentence


def test_folds_of_three_partitions_allow_a_conclusion(write_folds):
    runs = [write_folds(p, range(60), seed=p) for p in range(3)]
    runs += [write_folds(p, range(20 + p), seed=p, script="train_custom_vit") for p in range(4)]
    (question,) = asked(*(folder for folders in runs for folder in folders))
    assert question.repetitions == 3 and question.change.value == pytest.approx((60 - 21) / 120)
    assert question.sentence.startswith("custom_vit beats custom_cnn (full): +32.5 points [")
    gained = np.array([0] * 10 + [0.5] + [1] * 19 + [0] * 30)  # of each product, mean over the partitions
    images = replace(question.change, seed_variances=()).variance
    assert images == pytest.approx((1 + 2 / 3) * gained.var(ddof=1) / 60)


def test_folds_without_a_common_partition_are_an_error(write_folds):
    runs = [*write_folds(0, [1]), *write_folds(1, [1], script="train_custom_vit")]
    with pytest.raises(InputError, match="custom_cnn full and custom_vit full have no partition into folds in common"):
        asked(*runs)


def test_both_numbers_of_folds_are_named():
    """The same rows may be val rows of three and of five folds."""
    ids = pd.DataFrame({"image_id": map(str, range(120)), "product_id": PRODUCTS, "scene_id": "", "label": LABELS})
    sides = []
    for folds in (3, 5):
        splits = [[f"product_id:{i // 2 % folds + 1}/{folds}:{p}" for i in range(120)] for p in range(3)]
        predictions = np.array([wrong_in(range(30 * p, 30 * p + 30)) for p in range(3)])
        sides.append(
            ScoredExperiment(Experiment(f"cnn {folds}", "crop", [0, 1, 2], ids, np.array(splits), predictions))
        )
    assert "on 120 images with 3 partitions into 3 and 5 folds, " in ask("model", *sides).sentence
    assert "on 120 images with 3 partitions into 3 folds, " in ask("model", sides[0], sides[0]).sentence


def test_three_seeds_of_one_partition_are_not_three_partitions(write_folds):
    scripts = {"train_custom_cnn": 60, "train_custom_vit": 0}
    runs = [write_folds(0, range(n), seed=s, script=script) for script, n in scripts.items() for s in range(3)]
    (question,) = asked(*(folder for folders in runs for folder in folders))
    assert question.repetitions == 1 and question.interval == (0, question.change.interval()[1])
    assert "no conclusion from only 1 partition into 3 folds" in question.sentence


def test_seeds_with_one_partition_are_one_repetition(write_folds):
    folders = [*write_folds(0, range(60)), *write_folds(0, range(50), seed=1)]
    (experiment,) = scored(*folders)
    assert experiment.leave_one_out[0][:, 0].tolist() == pytest.approx([1 - 55 / 120])


def test_folds_are_put_together(folds):
    (one,) = scored(*folds)
    assert len(one.experiment.ids) == 120 and np.flatnonzero(~one.correct[0]).tolist() == [3]


def test_seeds_may_have_their_own_partitions(folds, write_folds):
    """The other experiment has one seed and one partition, but the same rows."""
    vit = write_folds(0, [3, 9], script="train_custom_vit")
    runs = [*folds, *write_folds(1, [70], seed=1), *vit]
    assert comparable(find_runs(list(map(str, runs)))[0])[1] == [], "no fold is missing"
    cnn, other = scored(*runs)
    assert cnn.experiment.seeds == [0, 1] and [np.flatnonzero(~row).tolist() for row in cnn.correct] == [[3], [70]]
    assert cnn.experiment.splits.tolist() == [
        [f"product_id:{i // 2 % 3 + 1}/3" for i in range(120)],
        [f"product_id:{i // 4 % 3 + 1}/3:1" for i in range(120)],
    ]
    assert other.experiment.splits.tolist() == cnn.experiment.splits[:1].tolist()
    assert asked(*runs)[0].change.value == pytest.approx(-1 / 120)


def test_a_seed_may_have_the_partition_of_another(folds, write_folds):
    """As in a study of an earlier version."""
    (one,) = experiments_of(*folds, *write_folds(0, [70], seed=1))
    assert one.seeds == [0, 1] and one.splits[0].tolist() == one.splits[1].tolist()


@pytest.mark.parametrize(
    "columns",
    [dict(labels=[CLASSES[i // 2 % 4] for i in range(120)]), dict(products=[""] * 120)],
    ids=["two boxes of each of two products", "four classes without product ids"],
)
def test_rows_of_one_photo_are_in_the_same_order_in_all_partitions(write_folds, columns):
    """Each photo has four boxes, two of which may be in another fold than the others."""
    rows = columns | dict(photos=[i // 4 for i in range(120)])
    (one,) = scored(*write_folds(0, [5, 10], seed=0, **rows), *write_folds(1, [6, 11], seed=1, **rows))
    assert [np.flatnonzero(~row).tolist() for row in one.correct] == [[5, 10], [6, 11]]


def test_the_given_split_has_no_folds(write_run):
    (one,) = experiments_of(write_run("train_custom_cnn", "", LABELS))
    assert one.splits.tolist() == [[""] * 120]


def test_a_missing_fold_is_an_error(folds, write_folds):
    with pytest.raises(InputError, match="custom_cnn full, seed 0: .*folds"):
        experiments_of(*folds[:2])
    second = write_folds(1, seed=1)
    with pytest.raises(InputError, match="custom_cnn full, seed 1: .*folds"):
        experiments_of(*folds, *second[:2])
    with pytest.raises(InputError, match="custom_cnn full, seed 0: .*folds"):
        experiments_of(folds[1], second[1])


def test_a_seed_whose_folds_are_incomplete_is_left_out(folds, write_folds):
    second = write_folds(1, seed=1)
    runs, notes = comparable(find_runs(list(map(str, [*folds, *second[:2]])))[0])
    assert [run.folder for run in runs] == folds
    assert notes == [f"left out: {run} belongs to a seed whose other folds are missing" for run in second[:2]]
    runs, notes = comparable(find_runs(list(map(str, [*folds[:2], *second[:1]])))[0])
    assert len(runs) == 3 and notes == [], "no seed is complete, which is an error"


def test_two_partitions_of_one_seed_are_an_error(folds, write_folds):
    with pytest.raises(InputError, match="custom_cnn full, seed 0: .*partitions 0, 1"):
        experiments_of(*folds, *write_folds(1))


@pytest.mark.parametrize("partition", [0, 1])
def test_a_single_fold_is_a_note(write_folds, tmp_path, partition):
    first = write_folds(partition, wrong=[2])
    second = write_folds(partition, seed=1)
    notes = compare.main([str(first[1]), str(second[1]), "--out", str(tmp_path)])["notes"]
    name = f"product_id:2/3{':1' * partition}"
    assert f"only fold 2 of 3 (--split-by {name}) was run: the scores are those of about one in 3 rows" in notes
    complete = compare.main([*map(str, first), "--out", str(tmp_path)])["notes"]
    assert not any("only fold" in note for note in complete)


# Scores of an experiment ---------------------------------------------------------------------------------------------

SEEN = [f"p{i}" for i in range(50)]  # products that train has too; the ten others have 20 rows


def test_the_recall_of_a_class_has_an_interval_over_its_products(write_run):
    labels = ["bed"] * 4 + ["sofa"] * 56 + ["desk"] * 60
    products = ["p"] * 4 + [f"q{i // 8}" for i in range(56)] + [f"r{i}" for i in range(60)]
    predictions = ["bed"] * 4 + ["sofa"] * 28 + ["chair"] * 28 + ["desk"] * 30 + ["chair"] * 30
    (one,) = scored(write_run("train_custom_cnn", "", predictions, labels=labels, products=products))
    classes = per_class(one)
    assert classes["bed"]["recall"] == 1 and classes["bed"]["interval"] is None, "a single product"
    wide, narrow = (np.ptp(classes[name]["interval"]) for name in ("sofa", "desk"))
    assert wide > 2 * narrow, "seven products of eight equal rows, and sixty of one"


def test_a_class_with_a_single_product_has_no_brackets(write_run, tmp_path):
    labels, products = ["bed"] * 4 + ["sofa"] * 116, ["p"] * 4 + [f"q{i // 2}" for i in range(116)]
    run = write_run("train_custom_cnn", "", labels, labels=labels, products=products)
    compare.main([str(run), "--out", str(tmp_path)])
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    recall = {name: line.split("|")[4].strip() for name in ("bed", "sofa") for line in lines if f"| {name} " in line}
    assert recall["bed"] == "1.00" and re.fullmatch(r"1.00 \[0\.\d\d, 1\.00\]", recall["sofa"])


def test_accuracy_on_unseen_products(write_run):
    (one,) = scored(write_run("train_custom_cnn", "", wrong_in(range(115, 120)), shared=SEEN))
    assert one.unseen.n == 20 and one.unseen.estimates["accuracy"].value == pytest.approx(0.75)
    assert experiment_summary(one)["unseen_products"] == {
        "n": 20,
        "accuracy": one.unseen.estimates["accuracy"].as_dict(),
    }


def test_rows_without_a_product_are_not_new_products(write_run):
    (one,) = scored(write_run("train_custom_cnn", "", LABELS, products=[""] * 4 + PRODUCTS[4:], shared=SEEN))
    assert one.unseen.n == 20


def test_a_confident_mistake_of_all_runs_may_be_a_wrong_label(write_run):
    """All runs predict that row 7, a sofa, is a bed; for row 8, only one run does."""
    runs = [write_run("train_custom_cnn", f"--seed {seed}", wrong_in([7, 8][: 2 - seed])) for seed in (0, 1)]
    (row,) = label_candidates(scored(*runs))
    assert row == {"row": 7, "image_id": "0007", "label": "sofa", "predicted": "bed", "weight": pytest.approx(0.9)}


def test_the_least_probable_labels_come_first(write_run):
    """The labels of rows 3, 7 and 9 have mean probabilities of .05, .02 and .03; the votes against them are equal."""
    runs = [write_run("train_custom_cnn", f"--seed {seed}", wrong_in([3, 7, 9])) for seed in (0, 1)]
    for run, probabilities in zip(runs, ((0.01, 0.03, 0.03), (0.09, 0.01, 0.03)), strict=True):
        rows = pd.read_csv(run / "predictions.csv", dtype={"image_id": str})
        rows.loc[[3, 7, 9], "loss"] = -np.log(probabilities)
        rows.to_csv(run / "predictions.csv", index=False)
        edit_json(run, "metrics.json", loss=rows["loss"].mean())
    assert [row["row"] for row in label_candidates(scored(*runs))] == [7, 9, 3]
    assert [row["row"] for row in label_candidates(scored(*runs), limit=2)] == [7, 9]


def test_scores_of_a_class(write_run):
    (one,) = scored(write_run("train_custom_cnn", "", wrong_in([7])))
    sofa = per_class(one)["sofa"]
    assert (sofa["rows"], sofa["recall"]) == (30, pytest.approx(29 / 30)) and sofa["precision"] == 1
    assert sofa["interval"][0] < 29 / 30 < sofa["interval"][1]


def test_the_most_frequent_mistakes_are_means_over_the_seeds(write_run):
    runs = [write_run("train_custom_cnn", f"--seed {seed}", wrong_in([7, 8][: 2 - seed])) for seed in (0, 1)]
    assert confused_pairs(scored(*runs)[0]) == [
        {"true": "sofa", "predicted": "bed", "rows": 1.0},
        {"true": "bed", "predicted": "chair", "rows": 0.5},
    ]


def test_numbers_of_an_experiment_are_json(three_seeds):
    one = scored(three_seeds)[0]
    found = experiment_summary(one)
    assert json.loads(json.dumps(found)) == found
    assert (found["name"], found["n"], found["products"], found["seeds"]) == ("custom_cnn full", 120, 60, [0, 1, 2])
    assert found["accuracy_of_seeds"] == [70 / 120] * 3 and found["sd_over_seeds"] == pytest.approx(0)
    errors = [calibration_error(np.full(120, 0.9), right.astype(float)) for right in one.correct]
    assert found["calibration_error"] == pytest.approx(np.mean(errors)) and found["log_loss"] == 0.5
    assert found["parameters"] == 1000 and len(found["runs"]) == 3


def test_rows_without_a_product_are_not_counted_as_products(write_run, tmp_path):
    run = write_run("train_custom_cnn", "", LABELS, products=[""] * 4 + PRODUCTS[4:])
    assert compare.main([str(run), "--out", str(tmp_path)])["experiments"][0]["products"] == 58
    assert "120 val images of 58 products (4 without a product id, each of" in (tmp_path / "comparison.md").read_text()


def test_experiments_of_equal_accuracy_are_named(write_run, tmp_path):
    for options, wrong in (("", 20), ("--crop", 10), ("--crop --augment", 10)):
        write_run("train_custom_cnn", options, wrong_in(range(wrong)))
    compare.main([str(tmp_path / "runs"), "--out", str(tmp_path)])
    words = "custom_cnn crop, which has the highest accuracy, as have custom_cnn crop-augment:"
    assert words in (tmp_path / "comparison.md").read_text()


def test_single_seeds_and_shared_products_are_notes(write_run):
    single = scored(write_run("train_custom_cnn", "", LABELS, shared=SEEN))
    one, leak = seed_and_leakage_notes(single)
    assert "one seed" in one and "100 of 120 val rows" in leak
    several = scored(*(write_run("train_custom_vit", f"--seed {seed}", LABELS) for seed in (0, 1)))
    assert seed_and_leakage_notes(several) == []


# Runs that cannot be compared ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(labels=LABELS[:100], products=PRODUCTS[:100], predictions=LABELS[:100]), "different rows .120 and 100"),
        (dict(labels=["bed"] * 120), "different rows"),
        (dict(products=["p"] * 120), "different rows"),
    ],
)
def test_runs_of_different_rows_are_refused(write_run, change, words):
    one = write_run("train_custom_cnn", "", LABELS)
    other = write_run("train_custom_cnn", "--crop", **(dict(predictions=LABELS) | change))
    with pytest.raises(InputError, match=words):
        asked(one, other)


def test_a_val_split_of_one_product_is_refused(write_run):
    with pytest.raises(InputError, match="custom_cnn full .*single product"):
        asked(write_run("train_custom_cnn", "", LABELS, products=["p"] * 120))


def test_runs_of_different_data_are_refused(write_run):
    """The same val rows, but train has changed between the two seeds."""
    runs = [write_run("train_custom_cnn", f"--seed {seed}", LABELS) for seed in (0, 1)]
    edit_json(runs[1], "run.json", data_fingerprint="y")
    with pytest.raises(InputError, match="different data"):
        experiments_of(*runs)


def test_the_same_run_twice_is_refused(write_run, tmp_path):
    run = write_run("train_custom_cnn", "", LABELS)
    copy = shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(InputError, match=f"{run} and {copy} have the same options and the same seed"):
        experiments_of(run, copy)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("run.json", lambda text: "[]", ""),
        ("run.json", lambda text: "{", ""),
        ("run.json", lambda text: text.replace('"seconds"', '"minutes"'), "seconds missing"),
        ("data_report.json", lambda text: "{}", "majority, products missing"),
        ("data_report.json", lambda text: "null", ""),
        ("predictions.csv", lambda text: "".join(text.splitlines(keepends=True)[:50]), "49 predictions .* 120 val"),
        ("predictions.csv", lambda text: text.replace("0.9", "7.5"), "probability or loss"),
        ("predictions.csv", lambda text: text.replace("0.9", "nan"), "probability or loss"),
        ("predictions.csv", lambda text: text.replace("0.9", "much"), "much"),
        ("predictions.csv", lambda text: text.replace("prediction", "guess"), "columns .*prediction"),
    ],
)
def test_a_damaged_run_folder_is_named(write_run, file, change, words):
    run = write_run("train_custom_cnn", "", LABELS)
    (run / file).write_text(change((run / file).read_text()))
    with pytest.raises(InputError, match=f"{run} is not a complete run folder: .*{words}"):
        find_runs([str(run)])


def test_a_run_folder_without_its_predictions_is_not_complete(write_run):
    run = write_run("train_custom_cnn", "", LABELS)
    (run / "predictions.csv").unlink()
    with pytest.raises(InputError, match=f"{run} is not a complete run folder: .*predictions.csv"):
        read_run(run)


def test_an_unfinished_run_is_refused_alone_and_left_out_among_others(write_run):
    run, other = (write_run("train_custom_cnn", options, LABELS) for options in ("", "--crop"))
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match=f"{run} holds an unfinished run"):
        find_runs([str(run)])
    found, notes = find_runs([str(run.parent)])
    assert [run.folder for run in found] == [other] and notes == [f"left out: {run} is not finished"]


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere holds no run"):
        find_runs([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=f"{tmp_path} holds no finished run"):
        find_runs([str(tmp_path)])


# How the runs were made ----------------------------------------------------------------------------------------------


def test_settings_that_differ_are_columns(write_run, tmp_path):
    for seed in (0, 1):
        run = write_run("train_custom_cnn", f"--crop --limit 120 --epochs 10 --seed {seed}", LABELS)
        edit_json(run, "run.json", commit=f"{seed + 1}" * 40 + "-dirty", command=f"train_custom_cnn.py --seed {seed}")
    vit = write_run("train_custom_vit", "--crop --limit 120 --epochs 5", LABELS)
    edit_json(vit, "run.json", commit="1" * 40, versions={"torch": "2.9.0"})
    comparison = compare.main([str(vit.parent), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "comparison.md").read_text().rpartition("## Runs")[2]
    assert re.search(r"\| limit +\| 120 ", page) and re.search(r"\| fingerprint +\| x ", page)
    assert not re.search(r"\| (epochs|commit|torch) +\| .* \|$", page.partition("The commands")[0], re.MULTILINE)
    header, _, cnn, vit = (re.split(r" *\| *", line)[1:-1] for line in page.strip().splitlines()[-4:])
    assert header == ["experiment", "seeds", "epochs", "commit", "torch", "command"]
    dirty = "111111111111-dirty, 222222222222-dirty"
    assert cnn == ["custom_cnn crop", "0, 1", "10", dirty, "none", "python train_custom_cnn.py --seed 0"]
    assert vit == ["custom_vit crop", "0", "5", "1" * 12, "2.9.0", "not recorded"]
    run = comparison["experiments"][0]["runs"][1]
    assert run["config"]["seed"] == 1 and run["commit"] == "2" * 40 + "-dirty" and run["folder"].endswith("seed-1")


def test_folds_are_summarised(folds, tmp_path):
    for fold, train_rows in zip(folds, (70, 90, 80), strict=True):
        edit_json(fold, "run.json", rows={"train": train_rows, "val": 40})
    compare.main([*map(str, folds), "--out", str(tmp_path)])
    page = (tmp_path / "comparison.md").read_text()
    assert re.search(r"\| train rows +\| 70 to 90 ", page) and re.search(r"\| val rows +\| 40 ", page)
    assert re.search(r"\| split by +\| product_id, 3 folds ", page)


def test_partitions_are_counted(folds, write_folds, tmp_path):
    runs = [*folds, *write_folds(1, seed=1)]
    for i, run in enumerate(runs):
        edit_json(run, "run.json", data_fingerprint=f"{i}")
    compare.main([*map(str, runs), "--out", str(tmp_path)])
    page = (tmp_path / "comparison.md").read_text()
    assert re.search(r"\| split by +\| product_id, 3 folds, 2 partitions ", page)
    assert re.search(r"\| fingerprint +\| 6 different, see comparison.json ", page)


# Baselines -----------------------------------------------------------------------------------------------------------


def test_histograms_of_an_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 37, 37), dtype=np.uint8)
    descriptors = describe_pixels(images)
    assert descriptors.shape == (3, 16 * (24 + 8 + 9)) and descriptors.dtype == np.float32
    np.testing.assert_allclose(descriptors.sum(1), 3, rtol=1e-4)


def test_histograms_of_a_uniform_image():
    red = np.zeros((1, 3, 32, 32), np.uint8)
    red[:, 0] = 255
    descriptor = describe_pixels(red)[0]
    assert np.count_nonzero(descriptor) == 32 and descriptor.max() == pytest.approx(1 / 16)


def test_baselines_that_cannot_be_computed_are_notes(write_run, tmp_path):
    """The majority class needs no images; those for the nearest neighbour are missing."""
    gone = tmp_path / "gone"
    runs = [write_run("train_custom_cnn", f"--data {gone} {options}", LABELS) for options in ("", "--crop")]
    baselines, notes = find_baselines(experiments_of(*runs))
    assert [(b.name, b.estimates["accuracy"].value) for b in baselines] == [("majority class", pytest.approx(1 / 4))]
    assert ["full" in note for note in notes] == [True, False] and ["crop" in note for note in notes] == [False, True]
    assert all(str(gone) in note for note in notes)


def test_the_majority_class_is_that_of_each_train_split(folds, write_folds):
    """The other three runs, which validate the splits of one partition again, add nothing."""
    runs = [*folds, *write_folds(1, seed=1), *write_folds(0, script="train_custom_vit")]
    for i, run in enumerate(runs[:6]):
        edit_json(run, "data_report.json", majority=CLASSES[i % 4])
    (majority,), _ = find_baselines(experiments_of(*runs))
    assert majority.experiment.seeds == [0, 1]
    assert majority.predictions.tolist() == [
        [CLASSES[i // 2 % 3] for i in range(120)],
        [CLASSES[(3 + i // 4 % 3) % 4] for i in range(120)],
    ]


def test_baselines_match_the_variants_of_the_runs(finished_run):
    baselines, notes = find_baselines(experiments_of(finished_run("train_custom_cnn")))
    assert [b.name for b in baselines] == ["majority class", "nearest neighbour crop"] and notes == []


@pytest.fixture
def resnet(hub_folder):
    """A ResNet-18 whose weights are in the cache as those of ImageNet, without its last layer."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), hub_folder / "resnet18-f37072fd.pth")
    model.fc = torch.nn.Identity()
    return model.eval()


def test_frozen_features_are_baselines_if_the_weights_are_in_the_cache(finished_run, resnet, cache):
    run = finished_run("train_custom_cnn")
    baselines, notes = find_baselines(experiments_of(run), cache=cache)
    names = ["majority class", "nearest neighbour crop", "nearest neighbour (resnet18) crop"]
    assert [b.name for b in baselines] == [*names, "linear probe (resnet18) crop"] and notes == []
    train, val = read_run(run).splits(cache=cache)
    with torch.no_grad():
        features = [
            resnet(normalize(torch.from_numpy(split.pixels[split.index]), IMAGENET)).double().numpy()
            for split in (train, val)
        ]
    unit_train, unit_val = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in features)
    nearest = train.labels.numpy()[(unit_val @ unit_train.T).argmax(1)]

    def agreement(baseline, predicted):
        """The share of val rows for which a baseline predicts the same, apart from rounding."""
        expected = dict(zip(val.ids()["image_id"], np.array(val.classes)[predicted], strict=True))
        ids = baseline.experiment.ids["image_id"]
        return (baseline.predictions[0] == [expected[image_id] for image_id in ids]).mean()

    assert agreement(baselines[2], nearest) > 0.98
    deviation = features[0].std(0)
    scaled = [(f - features[0].mean(0)) / np.where(deviation > 0, deviation, 1) for f in features]
    probe = LogisticRegression(C=0.01, max_iter=1000).fit(scaled[0], train.labels)
    assert agreement(baselines[3], probe.predict(scaled[1])) > 0.98
    assert baselines[3].estimates["accuracy"].value > 0.3, "better than chance even with random weights"


def test_damaged_weights_are_a_note(finished_run, hub_folder, cache, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    (hub_folder / "resnet18-f37072fd.pth").write_bytes(b"half a file")
    baselines, notes = find_baselines(experiments_of(finished_run("train_custom_cnn")), cache=cache)
    assert [b.name for b in baselines] == ["majority class", "nearest neighbour crop"]
    (note,) = notes
    assert "ImageNet features" in note and "resnet18-f37072fd.pth is not a .safetensors or .pth" in note


def test_features_are_computed_once_for_all_folds_and_from_the_largest_images(resnet, load, monkeypatch):
    images = []
    resnet.register_forward_hook(lambda model, inputs, outputs: images.append(len(outputs)))
    features = baselines_module.Features(resnet)
    for fold in ("1/2", "2/2"):
        for split in load(split_by=f"product_id:{fold}", limit=40):
            assert features.of(split).shape == (len(split), 512)
    assert sum(images) == 80
    chosen = []

    def record(classifiers, view, experiment, **_):
        chosen.append((list(classifiers), experiment))
        return []

    def experiment(image_size):
        run = SimpleNamespace(info=SimpleNamespace(config={"image_size": image_size}))
        return SimpleNamespace(variant="crop", runs=[run])

    monkeypatch.setattr(baselines_module, "image_baselines", record)
    monkeypatch.setattr(baselines_module, "majority", lambda experiment: None)
    monkeypatch.setattr(baselines_module, "ScoredExperiment", lambda experiment: experiment)
    small, large = experiment(64), experiment(224)
    find_baselines([small, large])
    assert chosen[0] == (["nearest neighbour"], small) and chosen[1][1] is large, "as without the weights"


# Real runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(finished_run):
    """Two models on crops, one of them with two seeds and also on whole images; 130 val rows."""
    lines = {"full": "", "crop": "--crop", "seed 1": "--crop --seed 1"}
    runs = {name: finished_run("train_custom_cnn", line) for name, line in lines.items()}
    return runs | {"vit": finished_run("train_custom_vit")}


@pytest.fixture(scope="module")
def comparison(runs, tmp_path_factory):
    """The output folder of a comparison; printed.txt has its terminal output."""
    out = tmp_path_factory.mktemp("comparison")
    with open(out / "printed.txt", "w") as printed, redirect_stdout(printed):
        compare.main([*map(str, runs.values()), "--out", str(out)])
    return out


@pytest.fixture
def found(comparison):
    return read_json(comparison, "comparison.json")


def test_experiments_of_real_runs(found):
    assert [e["name"] for e in found["experiments"]] == ["custom_cnn full", "custom_cnn crop", "custom_vit crop"]
    assert found["experiments"][0]["unseen_products"]["n"] == 15, "as the data card says"


def test_scores_of_a_single_run_are_its_metrics_with_intervals(runs, found):
    metrics, experiment = read_json(runs["full"], "metrics.json"), found["experiments"][0]
    for name in METRICS:
        assert experiment[name]["value"] == pytest.approx(metrics[name], abs=1e-12)
        low, high = experiment[name]["interval"]
        assert 0 <= low < high <= 1
    assert experiment["log_loss"] == pytest.approx(metrics["loss"])


def test_baselines_of_the_sample(found):
    baselines = {b["name"]: b["accuracy"]["value"] for b in found["baselines"]}
    assert baselines["majority class"] == pytest.approx(22 / 130)
    assert baselines["nearest neighbour crop"] > 0.25 > baselines["nearest neighbour full"]


def test_questions_of_real_runs(found):
    titles = [question["question"] for question in found["questions"]]
    assert titles == ["custom_cnn: crop vs. full", "custom_vit vs. custom_cnn, crop"]


def test_the_page_has_all_sentences_figures_and_new_products(comparison, found):
    page = (comparison / "comparison.md").read_text()
    assert all(question["sentence"] in page for question in found["questions"])
    assert all(note in page for note in found["notes"]) and "115 of 130 val rows" in page
    assert all(f"({path.name})" in page for path in comparison.glob("*.png"))
    assert "15 rows of products not in train" in page.replace("&nbsp; ", "")


def test_the_page_and_the_file_say_how_the_runs_were_made(comparison, found, runs):
    page = (comparison / "comparison.md").read_text()
    info = read_json(runs["crop"], "run.json")
    settings = dict(re.findall(r"^\| ([\w ]+?) +\| (.*?) +\|$", page.rpartition("## Runs")[2], flags=re.MULTILINE))
    expected = {"data": "sample", "fingerprint": info["data_fingerprint"][:16], "train rows": "491", "val rows": "130"}
    expected |= {"limit": "0", "split by": "none", "recipe": "default", "epochs": "1", "image size": "32"}
    expected |= {"torch": info["versions"]["torch"]}
    assert expected.items() <= settings.items() and settings["commit"].startswith((info["commit"] or "none")[:12])
    assert f"python {info['command']}" in page
    entry = found["experiments"][1]["runs"][0]
    assert {name: entry[name] for name in ("config", "command", "versions", "commit", "rows")} == {
        name: info[name] for name in ("config", "command", "versions", "commit", "rows")
    }


def test_a_comparison_has_no_speeds(comparison):
    """The runs may have shared the machine with others."""
    for name in ("comparison.md", "comparison.json"):
        text = (comparison / name).read_text()
        assert not re.search("images/s|per_second|seconds|training", text)


@pytest.mark.parametrize("name", ["experiments", "differences", "confusion", "reliability", "risk_coverage"])
def test_figures_of_a_comparison(comparison, name):
    with Image.open(comparison / f"{name}.png") as picture:
        assert min(picture.size) > 200 and len(picture.convert("L").getcolors(256)) > 10


def test_a_single_run_has_no_questions(runs, tmp_path):
    """The figure of an earlier comparison is removed."""
    out = tmp_path / "out"
    assert compare.main([str(runs["vit"]), str(runs["crop"]), "--out", str(out)])["questions"]
    assert (out / "differences.png").exists()
    assert compare.main([str(runs["vit"]), "--out", str(out)])["questions"] == []
    assert not (out / "differences.png").exists()
    assert "differences.png" not in (out / "comparison.md").read_text()


@pytest.mark.parametrize("shortcuts", [[], ["--shortcuts"]])
def test_files_that_compare_did_not_write_are_kept(runs, tmp_path, shortcuts):
    figure = f"shortcuts-{'-'.join(runs['vit'].resolve().parts[-2:])}.png" if shortcuts else "differences.png"
    main_file = "shortcuts.json" if shortcuts else "comparison.json"
    survey = '{"questions": "my survey", "experiments": [], "run": "", "accuracy": {}, "product_against_background": 1}'
    for i, (name, content) in enumerate(
        ((figure, "mine"), (main_file, "[]"), (main_file, '{"mine": 1}'), (main_file, survey), (main_file, "[1]"))
    ):
        out = tmp_path / str(i) / name
        out.mkdir(parents=True)
        (out / name).write_text(content)
        with pytest.raises(InputError, match=f"{name} of other origin.*--out"):
            compare.main([*shortcuts, str(runs["vit"]), "--out", str(out)])
        assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == content
    for out in (runs["vit"], tmp_path / "0" / figure / figure):
        with pytest.raises(InputError, match="folder of a run|cannot be created"):
            compare.main([*shortcuts, str(runs["vit"]), "--out", str(out)])


def test_the_terminal_shows_the_answers(comparison, found):
    printed = (comparison / "printed.txt").read_text()
    assert all(question["sentence"] in printed for question in found["questions"])
    assert all(note in printed for note in found["notes"]) and "custom_vit crop" in printed


def test_data_that_has_changed_has_no_nearest_neighbour(runs, tmp_path):
    copy = Path(shutil.copytree(runs["vit"], tmp_path / "copy"))
    edit_json(copy, "run.json", data_fingerprint="another")
    result = compare.main([str(copy), "--out", str(tmp_path / "out")])
    assert [baseline["name"] for baseline in result["baselines"]] == ["majority class"]
    assert any(f"{copy}" in note for note in result["notes"])


# Shortcuts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def views(runs):
    """The val images in each view."""
    val, masks = load_val(read_run(runs["crop"]))
    views = masked_views(val, masks)
    np.testing.assert_array_equal(views["as trained"], val.pixels[val.index])
    return [views[name] for name in VIEWS]


GRAY = np.array(PAD_COLOR)[:, None, None]


def test_product_and_background_are_parts_of_the_image_on_gray(views):
    trained, product, background, _ = views
    painted = (product == GRAY).all(1)  # (N, S, S)
    assert 0.3 < painted.mean() < 0.85, "the product fills about half of its box, and the box of the square"
    assert ((product == trained).all(1) | painted).all()
    assert ((background == trained).all(1) | (background == GRAY).all(1)).all()


def test_product_and_background_do_not_overlap(views):
    _, product, background, _ = views
    assert not ((product != GRAY).any(1) & (background != GRAY).any(1)).any()
    neither = (product == GRAY).all(1) & (background == GRAY).all(1)
    assert neither.mean() > 0.01, "a pixel at the product's edge shows both, and neither view has it"


def test_the_outline_has_two_colours(views):
    assert set(np.unique(views[3])) == {0, *PAD_COLOR}


def test_shortcuts_are_scored_in_every_view(runs, tmp_path):
    run = runs["seed 1"]
    (result,) = compare.main(["--shortcuts", str(run), "--out", str(tmp_path)])
    metrics = read_json(run, "metrics.json")
    assert set(result["accuracy"]) == set(VIEWS)
    assert result["accuracy"]["as trained"]["value"] == pytest.approx(metrics["accuracy"]), "the saved weights"
    product, background = (result["accuracy"][f"{part} alone"]["value"] for part in ("product", "background"))
    question = result["product_against_background"]
    assert question["question"].startswith("product alone vs. background alone")
    assert question["difference"] == pytest.approx(product - background)
    assert f"{100 * (product - background):+.1f} points" in question["sentence"]
    assert read_json(tmp_path, "shortcuts.json") == [result]
    assert (tmp_path / f"shortcuts-{run.parent.name}-{run.name}.png").exists()


def test_figures_of_shortcuts_have_different_names(runs, tmp_path):
    """Even where file names ignore case."""
    folders = [tmp_path / name for name in ("a/b-c", "a-b/c", "A/b-C", "a/b-c-2")]
    copies = [str(shutil.copytree(runs["crop"], folder)) for folder in folders]
    assert len(compare.main(["--shortcuts", *copies, "--out", str(tmp_path / "out")])) == 4
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert len({name.lower() for name in names}) == 4, names


# Models and figures --------------------------------------------------------------------------------------------------


def test_a_model_is_rebuilt_from_its_folder(runs):
    run = read_run(runs["vit"])
    model = run.model()
    assert not model.training and sum(p.numel() for p in model.parameters()) == run.info.parameters
    assert torch.is_grad_enabled()


def test_weights_of_other_classes_are_refused(runs):
    run = read_run(runs["vit"])
    with pytest.raises(InputError, match=f"{run.folder}: .* another model"):
        replace(run, info=replace(run.info, classes=["a", "b"])).model()


def test_a_confusion_matrix_of_a_thousand_classes_is_a_small_picture(tmp_path):
    """Names that would overlap are left out: their layout took most of a minute."""
    classes = [f"category_{i:04}" for i in range(1000)]
    side = confusion_side(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    draw_confusion(axis, np.eye(1000), classes)
    save_figure(tmp_path / "confusion.png", figure)
    assert len(axis.get_xticks()) < 20 and len(axis.get_yticks()) < 20
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 2000 and len(picture.convert("L").getcolors(256)) > 10


@pytest.mark.parametrize("number", [12, 150])
def test_a_confusion_matrix_shows_the_names_of_up_to_150_classes(number):
    axis = Figure().subplots()
    classes = [f"c{i}" for i in range(number)]
    draw_confusion(axis, np.eye(number), classes)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == classes


@pytest.mark.filterwarnings("error")
def test_one_class_with_a_name_that_the_font_lacks_gives_no_warnings(write_run, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "CLASSES", ["\u65e5\u672c"])
    folder = write_run("train_custom_cnn", "", CLASSES * 120, CLASSES * 120)
    edit_json(folder, "data_report.json", majority=CLASSES[0])
    assert compare.main([str(folder), "--out", str(tmp_path / "out")])["experiments"]


def test_counts_of_a_confusion_matrix():
    counts = confusion_counts(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 1, 1]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 2, 1]]


@pytest.fixture
def no_pyplot(monkeypatch):
    """Makes importing matplotlib.pyplot fail, and unloads the modules of the project."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("common", "train_", "compare", "predict")):
            assert not any(getattr(value, "__name__", "") == "matplotlib.pyplot" for value in vars(module).values())
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)


def test_a_training_run_does_not_use_pyplot(no_pyplot, train):
    assert (train("train_custom_cnn", more="--crop --epochs 1") / "curves.png").exists()


def test_a_comparison_does_not_use_pyplot(no_pyplot, runs, tmp_path):
    compare.main([str(runs["full"]), str(runs["crop"]), "--out", str(tmp_path)])
    compare.main(["--shortcuts", str(runs["crop"]), "--out", str(tmp_path)])
    assert len(list(tmp_path.glob("*.png"))) == 7


def test_a_gallery_does_not_use_pyplot(no_pyplot, runs, tmp_path):
    predict.main([str(runs["crop"]), str(SAMPLE), "--gallery", str(tmp_path / "found.png")])
    assert (tmp_path / "found.png").exists()


# Answering only the most certain photos ------------------------------------------------------------------------------


def certain(probabilities, wrong, labels=LABELS, products=PRODUCTS):
    """An experiment of S seeds, of which seed s predicts the rows wrong[s] incorrectly; probabilities are (S, N)."""
    ids = pd.DataFrame({"image_id": [f"{i:04}" for i in range(len(labels))], "product_id": products, "label": labels})
    predictions = np.array([wrong_in(rows) for rows in wrong], dtype=object)
    splits = np.full(predictions.shape, "")
    seeds = list(range(len(wrong)))
    return ScoredExperiment(
        Experiment("cnn", "crop", seeds, ids, splits, predictions, probabilities=np.array(probabilities))
    )


RISING = np.linspace(0.25, 1, 120)  # probabilities: the last rows are the most certain


def test_the_most_certain_rows_are_answered_first():
    one = certain([RISING], [range(30)])
    curve = accuracy_of_answered(one)
    assert (curve[:90] == 1).all() and curve[119] == 0.75 and curve[99] == pytest.approx(0.9)
    found = {share: answered_at(one, share).value for share in (0.5, 0.8, 1.0)}
    assert found == {0.5: 1, 0.8: pytest.approx(90 / 96), 1.0: 0.75}
    assert answered_at(one, 1.0) == one.estimates["accuracy"], "with its uncertainty"


def test_each_seed_is_certain_of_rows_of_its_own():
    two = certain([RISING, RISING[::-1]], [range(30), range(90, 120)])
    assert accuracy_of_answered(two)[89] == 1 and answered_at(two, 1.0).value == 0.75
    assert answered_at(two, 1.0).variance == pytest.approx(two.estimates["accuracy"].variance)


def test_with_folds_the_curve_ends_at_the_accuracy_and_its_interval(write_folds):
    (one,) = scored(*write_folds(0, range(20)), *write_folds(1, range(30), seed=1))
    end, accuracy = answered_at(one, 1.0), one.estimates["accuracy"]
    assert end.value == accuracy.value and end.variance == pytest.approx(accuracy.variance)


def test_the_share_answered_at_an_error():
    one = certain([RISING], [range(30)])  # 90 right, then wrong
    assert share_at(one, 0.1) == pytest.approx(100 / 120)
    assert share_at(one, 0.05) == pytest.approx(94 / 120)
    assert share_at(certain([RISING], [[*range(30), 119]]), 0.1) == pytest.approx(98 / 120), "one of the most certain"


def test_too_few_products_have_no_share_at_a_small_error():
    """An error of 1 % needs 99 products, and there are 60; one of 2 % needs 49, which the first 98 rows show."""
    one = certain([RISING], [range(30)])
    assert share_at(one, 0.01) is None
    assert share_at(one, 0.02) is None, "the first 91 rows are accurate enough, but show too few products"
    assert share_at(certain([RISING], [range(120)]), 0.02) == 0, "nothing is right"
    assert share_at(certain([RISING], [range(22)]), 0.02) == pytest.approx(100 / 120)
    ten = certain([RISING], [range(30)], products=[f"p{i % 10}" for i in range(120)])
    assert share_at(ten, 0.05) is None and share_at(ten, 0.1) == pytest.approx(100 / 120)


def test_a_report_says_why_macro_f1_has_no_interval():
    several, single = certain([RISING], [range(30)]), certain([RISING], [range(30)], products=LABELS)
    assert "Macro F1" not in introduction(several)
    assert introduction(single).endswith(" Macro F1 has none if a class shows fewer than two products.")
    assert "[" in with_interval(several.estimates["macro_f1"]) and "[" not in with_interval(
        single.estimates["macro_f1"]
    )


def test_an_accuracy_needs_ten_products():
    one = certain([RISING], [range(30)])
    assert answered_at(one, 0.1) is None and answered_at(one, 0.2).value == 1, "12 rows show 6 products, 24 rows 12"
    assert answered_at(one, 0.2).score_interval()[0] == pytest.approx(wilson(1, normal.ppf(0.975) ** 2 / 12)[0])
    two = certain([RISING, RISING[::-1]], [range(30), range(90, 120)])
    assert answered_at(two, 0.2).clusters == 12, "each seed answers photos of 12 products, both together of 24"


def test_the_curve_of_an_experiment_is_in_the_comparison(found, comparison):
    page = (comparison / "comparison.md").read_text()
    for experiment in found["experiments"]:
        curve = experiment["risk_coverage"]
        assert curve["accuracy_of_answered"]["1"] == experiment["accuracy"]
        assert curve["answered_at_error"]["0.01"] is None, "the sample has 86 products in val"
        assert format_score(**experiment["accuracy"]) in page
    assert "too few products" in page


# The command line ----------------------------------------------------------------------------------------------------


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(["--help"])
    assert stop.value.code == 0 and "runs/study" in capsys.readouterr().out


def test_a_run_must_be_named(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main([])
    assert stop.value.code == 2 and "runs" in capsys.readouterr().err


def test_a_missing_folder_is_an_error():
    assert "/nowhere holds no run" in helpers.error_message("compare", ["/nowhere"])
