"""Comparisons of made runs, whose answers are known, and of real ones."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compare
import train_custom_cnn
import train_custom_vit
from common.baselines import describe_pixels
from common.comparison import Scored, questions
from common.config import InputError, parse
from common.findings import label_candidates, per_class
from common.finished import find_runs, gather, read_run
from common.shortcuts import VIEWS, masked_views

ROOT = Path(__file__).parent.parent
CLASSES = ["bed", "chair", "desk", "sofa"]
SCRIPTS = {"train_custom_cnn": train_custom_cnn, "train_custom_vit": train_custom_vit}
LABELS = [CLASSES[i % 4] for i in range(120)]
PRODUCTS = [f"p{i // 2}" for i in range(120)]  # two photos of each


def right_but(wrong):
    """Predictions for `LABELS` with these rows wrong, each the next class."""
    return [CLASSES[(i + 1) % 4] if i in set(wrong) else label for i, label in enumerate(LABELS)]


@pytest.fixture
def write_run(tmp_path):
    """A function that writes a run folder with given predictions, as a training script does."""

    def write(script, options, predictions, labels=LABELS, products=PRODUCTS, shared=(), probability=0.9):
        config = parse(SCRIPTS[script].Config, options.split())
        folder = tmp_path / "runs" / f"{script}-{'-'.join(options.split()) or 'full'}".replace("/", "_")
        folder.mkdir(parents=True)
        run = {"script": script, "config": asdict(config), "classes": CLASSES, "data_fingerprint": "x"}
        run |= {"parameters": 1000, "seconds": 12.0, "images_per_second": 100.0, "rows": {"val": len(labels)}}
        both = {"train": 90, "val": 60, "both": len(shared), "val_rows": 0, "shared": sorted(shared)}
        report = {"majority": "chair", "products": both}
        contents = {"run": run, "data_report": report, "metrics": {}, "labels": CLASSES}
        for name, content in contents.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        with open(folder / "predictions.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image_id", "product_id", "scene_id", "label", "prediction", "probability", "loss"])
            rows = zip(labels, products, predictions, strict=True)
            writer.writerows(
                [f"{i:04}", p, "", label, guess, probability, 0.5] for i, (label, p, guess) in enumerate(rows)
            )
        return folder

    return write


def asked(*folders):
    return questions([Scored(experiment) for experiment in gather(find_runs([str(folder) for folder in folders]))])


def test_a_clear_difference_is_a_plain_sentence(write_run):
    full = write_run("train_custom_cnn", "", right_but(range(60)))
    crop = write_run("train_custom_cnn", "--crop", right_but(range(12)))
    (question,) = asked(full, crop)
    assert question.change.value == pytest.approx(48 / 120)
    assert question.sentence.startswith("crop helps custom_cnn: +40.0 points [")
    low, high = question.change.interval()
    d = np.zeros(60)
    d[6:30] = 1  # of 60 products, both photos of 24 turn right
    half = 2.001 * np.sqrt(d.var(ddof=1) / 60)
    assert (low, high) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-4)
    assert question.mcnemar_p == pytest.approx(2 * 0.5**48) and question.p < 1e-6 and question.seeds_p is None


def test_harm_and_the_better_model_are_named(write_run):
    crop = write_run("train_custom_cnn", "--crop", right_but(range(12)))
    augment = write_run("train_custom_cnn", "--crop --augment", right_but(range(60)))
    vit = write_run("train_custom_vit", "--crop --augment", right_but(range(110)))
    first, second = asked(crop, augment, vit)
    assert first.sentence.startswith("augmentation harms custom_cnn: -40.0 points [-")
    assert second.sentence.startswith("custom_cnn beats custom_vit (crop-augment): +41.7 points [")
    assert second.sentence.endswith("of single runs: other seeds may differ")


def test_five_rows_cannot_be_told_apart_and_the_sentence_says_what_would_be_needed(write_run):
    full = write_run("train_custom_cnn", "", right_but(range(0, 10, 2)))
    crop = write_run("train_custom_cnn", "--crop", LABELS)
    (question,) = asked(full, crop)
    assert question.change.p_value() < 0.05 < question.p == pytest.approx(1 / 16), "McNemar has the last word"
    assert question.sentence.startswith("crop, custom_cnn: not distinguishable on 120 images, +4.2 points [")
    assert question.sentence.endswith("about 180 images would be needed for a difference of this size")


def test_the_same_answers_are_equal_and_not_certain(write_run):
    full, crop = (write_run("train_custom_cnn", more, right_but(range(30))) for more in ("", "--crop"))
    (question,) = asked(full, crop)
    low, high = question.change.interval()
    assert question.p == 1 and low == -high and 0.02 < high < 0.1
    assert question.sentence.endswith("the two are equal")


def test_seeds_are_one_experiment_and_holm_counts_all_questions(write_run):
    rng = np.random.default_rng(0)
    for seed in range(3):
        for more, wrong in (("", 50), ("--crop", 40), ("--crop --augment", 38)):
            rows = rng.choice(120, wrong, replace=False)
            write_run("train_custom_cnn", f"--seed {seed} {more}", right_but(rows))
    folder = Path(write_run("train_custom_vit", "--crop", right_but(range(60)))).parent
    experiments = gather(find_runs([str(folder)]))
    assert [(e.name, e.seeds) for e in experiments] == [
        ("custom_cnn full", [0, 1, 2]), ("custom_cnn crop", [0, 1, 2]), ("custom_cnn crop-augment", [0, 1, 2]),
        ("custom_vit crop", [0]),
    ]  # fmt: skip
    found = asked(folder)
    assert [q.kind for q in found] == ["crop", "augmentation", "model"]
    assert found[0].change.value == pytest.approx(10 / 120) and found[0].mcnemar_p is None
    assert found[0].p == max(found[0].seeds_p, found[0].change.p_value())
    smallest = min(found, key=lambda q: q.p)
    assert smallest.holm_p == pytest.approx(min(1, 3 * smallest.p))


def test_variants_are_asked_about_without_the_crop_alone(write_run):
    lines = ("--crop --augment", "--crop --augment strong", "--crop")
    runs = [
        write_run("train_custom_cnn", line, right_but(range(n))) for n, line in zip((30, 9, 60), lines, strict=True)
    ]
    (question,) = asked(*runs[:2])
    assert question.title == "custom_cnn: crop-strong against crop-augment" and question.decided
    titles = [question.title for question in asked(*runs)]
    assert titles == ["custom_cnn: crop-augment against crop", "custom_cnn: crop-strong against crop"]


def test_other_options_are_other_experiments(write_run):
    runs = [write_run("train_custom_cnn", f"--crop --lr {lr}", LABELS) for lr in (0.1, 0.01)]
    runs.append(write_run("train_custom_vit", "--crop", LABELS))
    names = [experiment.model for experiment in gather(find_runs(map(str, runs)))]
    assert names == ["custom_cnn (lr 0.1)", "custom_cnn (lr 0.01)", "custom_vit"]
    runs = [write_run("train_custom_cnn", f"--crop{more}", LABELS) for more in ("", " --teacher RUN")]
    names = [experiment.model for experiment in gather(find_runs(map(str, runs)))]
    assert names == ["custom_cnn (no teacher)", "custom_cnn (teacher RUN)"]


def test_the_labs_recipe_is_named_by_its_name_alone(write_run):
    runs = [write_run("train_custom_cnn", f"--recipe {recipe}", LABELS) for recipe in ("default", "lab")]
    names = [experiment.model for experiment in gather(find_runs(map(str, runs)))]
    assert names == ["custom_cnn (recipe default)", "custom_cnn (recipe lab)"]


def test_folds_are_put_together(write_run):
    """Three folds of 40 rows are one experiment of 120; without one of them it is refused."""
    folders = []
    for fold in (1, 2, 3):
        own = slice(40 * (fold - 1), 40 * fold)
        folder = write_run(
            "train_custom_cnn", f"--split-by product_id:{fold}/3", right_but([3])[own], LABELS[own], PRODUCTS[own]
        )
        text = (folder / "predictions.csv").read_text().splitlines()
        lines = [f"{int(line[:4]) + 40 * (fold - 1):04}{line[4:]}" for line in text[1:]]
        (folder / "predictions.csv").write_text("\n".join([text[0], *lines]))
        folders.append(str(folder))
    (experiment,) = gather(find_runs(folders))
    assert len(experiment.ids) == 120 and Scored(experiment).right.sum() == 119
    with pytest.raises(InputError, match="some folds are missing"):
        gather(find_runs(folders[:2]))


def test_the_accuracy_on_new_products_has_its_own_line(write_run, tmp_path):
    """Products p0 to p49 are in train; the ten others have 20 rows, of which these predictions get 5 wrong."""
    run = write_run("train_custom_cnn", "", right_but(range(115, 120)), shared=[f"p{i}" for i in range(50)])
    unseen = Scored(gather(find_runs([str(run)]))[0]).unseen
    assert unseen.n == 20 and unseen.estimates["accuracy"].value == pytest.approx(0.75)
    unknown = [""] * 4 + PRODUCTS[4:]  # who knows whether train shows them
    run = write_run("train_custom_cnn", "--crop", LABELS, products=unknown, shared=[f"p{i}" for i in range(50)])
    assert Scored(gather(find_runs([str(run)]))[0]).unseen.n == 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(labels=LABELS[:100], products=PRODUCTS[:100], predictions=LABELS[:100]), "different rows .120 and 100"),
        (dict(labels=["bed"] * 120), "different rows"),
        (dict(products=["p"] * 120), "different rows"),
    ],
)
def test_runs_that_cannot_be_compared(write_run, change, words):
    one = write_run("train_custom_cnn", "", LABELS)
    other = write_run("train_custom_cnn", "--crop", **(dict(predictions=LABELS) | change))
    with pytest.raises(InputError, match=words):
        asked(one, other)


def test_one_product_alone_says_nothing_of_others(write_run):
    with pytest.raises(InputError, match="validated on one product only"):
        asked(write_run("train_custom_cnn", "", LABELS, products=["p"] * 120))


def test_runs_of_different_data_are_refused(write_run):
    """The same val rows, but train has changed between the two seeds."""
    runs = [write_run("train_custom_cnn", f"--seed {seed}", LABELS) for seed in (0, 1)]
    described = json.loads((runs[1] / "run.json").read_text()) | {"data_fingerprint": "y"}
    (runs[1] / "run.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="read different data"):
        gather(find_runs(map(str, runs)))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("run.json", lambda text: "[]", "no whole run folder"),
        ("run.json", lambda text: "{", "no whole run folder"),
        ("run.json", lambda text: text.replace('"seconds"', '"minutes"'), "seconds missing"),
        ("data_report.json", lambda text: "{}", "majority, products missing"),
        ("data_report.json", lambda text: "null", "no whole run folder"),
        (
            "predictions.csv",
            lambda text: "".join(text.splitlines(keepends=True)[:50]),
            "49 predictions of 120 val rows",
        ),
        ("predictions.csv", lambda text: text.replace("0.9", "7.5"), "a probability or a loss that is none"),
        ("predictions.csv", lambda text: text.replace("0.9", "nan"), "a probability or a loss that is none"),
        ("predictions.csv", lambda text: text.replace("0.9", "much"), "no whole run folder"),
        ("predictions.csv", lambda text: text.replace("prediction", "guess"), "no whole run folder"),
    ],
)
def test_a_damaged_run_folder_is_named(write_run, file, change, words):
    run = write_run("train_custom_cnn", "", LABELS)
    (run / file).write_text(change((run / file).read_text()))
    with pytest.raises(InputError, match=words) as error:
        find_runs([str(run)])
    assert str(run) in str(error.value)


def test_the_same_run_twice_no_run_and_half_a_run(write_run, tmp_path):
    one = write_run("train_custom_cnn", "", LABELS)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in one.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="are the same run"):
        gather(find_runs([str(one), str(copy)]))
    (copy / "metrics.json").unlink()
    with pytest.raises(InputError, match="holds an unfinished run"):
        find_runs([str(copy)])
    with pytest.raises(InputError, match="holds no run"):
        find_runs([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no finished run"):
        find_runs([str(tmp_path / "empty")])
    (one / "predictions.csv").unlink()
    with pytest.raises(InputError, match="no whole run folder"):
        read_run(one)


def test_classes_and_wrong_labels(write_run):
    """All runs call row 7, a sofa, a bed with confidence; row 8 only one of them."""
    runs = [write_run("train_custom_cnn", f"--seed {seed}", right_but([7, 8][: 2 - seed])) for seed in (0, 1)]
    (experiment,) = gather(find_runs(map(str, runs)))
    scored = Scored(experiment)
    (row,) = label_candidates([scored])
    assert row == {"image_id": "0007", "label": "sofa", "predicted": "bed", "weight": pytest.approx(0.9)}
    sofa = per_class(scored)["sofa"]
    assert (sofa["rows"], sofa["recall"]) == (30, pytest.approx(29 / 30)) and sofa["precision"] == 1
    assert sofa["interval"][0] < 29 / 30 < sofa["interval"][1]


def test_the_picture_descriptor():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 37, 37), dtype=np.uint8)
    images[2] = images[0] // 2
    found = describe_pixels(images)
    assert found.shape == (3, 16 * (24 + 8 + 9)) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 3, rtol=1e-4)
    red = np.zeros((1, 3, 32, 32), np.uint8)
    red[:, 0] = 255
    histogram = describe_pixels(red)[0]
    assert np.count_nonzero(histogram) == 32 and histogram.max() == pytest.approx(1 / 16), (
        "one colour, one value, no edge"
    )


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory, cache):
    """Two models on full image and crop, two seeds of one of them, 130 val rows."""
    folder, runs = tmp_path_factory.mktemp("real"), {}
    small = {
        "train_custom_cnn": "--blocks 8k3p2,16k3p2 --hidden 32",
        "train_custom_vit": "--dim 32 --depth 2 --num-heads 4",
    }
    for script, variant, seed in (
        ("train_custom_cnn", "", 0), ("train_custom_cnn", "--crop", 0), ("train_custom_cnn", "--crop", 1),
        ("train_custom_vit", "--crop", 0),
    ):  # fmt: skip
        out = folder / f"{script}{variant}-{seed}"
        line = f"--data sample --image-size 32 --epochs 2 --cache {cache} --out {out} --seed {seed} {variant}"
        runs[script, variant, seed] = SCRIPTS[script].main([*line.split(), *small[script].split()])
    return folder, runs


def test_a_comparison_of_real_runs_from_the_command_line(real_runs, tmp_path):
    folder, _ = real_runs
    done = subprocess.run(
        [sys.executable, "compare.py", str(folder), "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [e["name"] for e in result["experiments"]] == ["custom_cnn full", "custom_cnn crop", "custom_vit crop"]
    assert result["experiments"][0]["unseen_products"]["n"] == 15, "as the data card says"
    metrics = json.loads((real_runs[1]["train_custom_cnn", "", 0] / "metrics.json").read_text())
    for name in ("accuracy", "precision", "recall", "f1", "macro_f1"):
        assert result["experiments"][0][name]["value"] == pytest.approx(metrics[name], abs=1e-12)
        low, high = result["experiments"][0][name]["interval"]
        assert 0 <= low < high <= 1
    assert result["experiments"][0]["log_loss"] == pytest.approx(metrics["loss"])
    baselines = {b["name"]: b["accuracy"]["value"] for b in result["baselines"]}
    assert baselines["majority class"] == pytest.approx(22 / 130)
    assert baselines["nearest neighbour crop"] > 0.25 > baselines["nearest neighbour full"]
    assert [q["question"] for q in result["questions"]] == [
        "custom_cnn: crop against full", "custom_vit against custom_cnn, crop"
    ]  # fmt: skip
    page = (tmp_path / "out" / "comparison.md").read_text()
    for question in result["questions"]:
        assert question["sentence"] in page and question["sentence"] in done.stdout
    assert "115 of 130 val rows show a product that train shows too" in page
    for name in ("experiments", "differences", "confusion", "reliability"):
        assert f"({name}.png)" in page
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert min(picture.size) > 200 and len(picture.convert("L").getcolors(256)) > 10
    assert "| the 15 rows of products not in train" in page.replace("&nbsp; ", "")


def test_one_run_alone_can_be_looked_at(real_runs, tmp_path):
    runs = find_runs([str(real_runs[1]["train_custom_vit", "--crop", 0])])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "differences.png").write_text("of an earlier comparison")
    result = compare.compare(gather(runs), tmp_path / "out")
    assert result["questions"] == [] and not (tmp_path / "out" / "differences.png").exists()
    assert "differences.png" not in (tmp_path / "out" / "comparison.md").read_text()


def test_baselines_are_left_out_with_a_word_where_the_data_has_changed(real_runs, tmp_path, write_run):
    run = real_runs[1]["train_custom_vit", "--crop", 0]
    described = json.loads((run / "run.json").read_text()) | {"data_fingerprint": "another"}
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in run.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / "run.json").write_text(json.dumps(described))
    result = compare.compare(gather(find_runs([str(moved)])), tmp_path / "out")
    assert len(result["baselines"]) == 1 and any("is not what" in note for note in result["notes"])


def test_shortcuts(real_runs, tmp_path):
    run = real_runs[1]["train_custom_cnn", "--crop", 1]
    val, views = masked_views(read_run(run))
    trained, product, background, outline = (views[name] for name in VIEWS)
    np.testing.assert_array_equal(trained, val.pixels[val.index])
    gray = np.array([124, 116, 104])[:, None, None]
    painted = (product == gray).all(1)  # (N, S, S)
    assert 0.3 < painted.mean() < 0.85, "the product fills about half of its box, and the box of the square"
    assert ((product == trained).all(1) | painted).all()
    assert ((background == trained).all(1) | (background == gray).all(1)).all()
    shown_twice = (product != gray).any(1) & (background != gray).any(1)
    assert not shown_twice.any(), "what shows the product does not show in the background"
    assert (painted & (background == gray).all(1)).mean() > 0.01, (
        "at its edge a pixel shows both, and neither view has it"
    )
    assert set(np.unique(outline)) == {0, 104, 116, 124}
    line = ["--shortcuts", str(run), "--out", str(tmp_path / "out")]
    (result,) = compare.main(line)
    metrics = json.loads((run / "metrics.json").read_text())
    assert result["accuracy"]["as trained"]["value"] == pytest.approx(metrics["accuracy"]), "the saved weights"
    assert set(result["accuracy"]) == set(VIEWS)
    assert json.loads((tmp_path / "out" / "shortcuts.json").read_text()) == [result]
    assert (tmp_path / "out" / f"shortcuts-{run.parent.name}-{run.name}.png").exists()


def test_a_model_is_rebuilt_from_its_folder_without_a_network(real_runs):
    run = read_run(real_runs[1]["train_custom_vit", "--crop", 0])
    assert not run.model().training and sum(p.numel() for p in run.model().parameters()) == run.run["parameters"]
    other = type(run)(run.folder, run.run | {"classes": ["a", "b"]}, run.report, run.rows)
    with pytest.raises(InputError, match="do not fit its run.json"):
        other.model()
    assert torch.is_grad_enabled() and os.path.exists(run.folder)


@pytest.mark.parametrize(
    ("line", "code", "words"), [("--help", 0, "runs/study"), ("/nowhere", 1, "holds no run"), ("", 2, "runs")]
)
def test_the_command_line(line, code, words):
    done = subprocess.run(
        [sys.executable, "compare.py", *line.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code and words in done.stdout + done.stderr and "Traceback" not in done.stderr
