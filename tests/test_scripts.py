"""The training scripts on real photos, a few steps each: their results, their run folder, their options."""

import importlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

import common.train
import train_custom_cnn
import train_custom_vit
from common.config import IMAGENET, InputError, TrainConfig, parse
from common.data.dataset import ClassificationDataset, load_splits
from common.figures import confusion, curves, mistakes, save_figure
from common.metrics import scores
from common.run_folder import folder_of
from tests import helpers
from tests.helpers import (
    SCRIPTS,
    SMALL,
    Crash,
    config_of,
    crash_at,
    epoch_lines,
    error_message,
    logits_of,
    read_json,
    read_log,
    read_predictions,
    read_weights,
    results,
)

VARIANTS = {"full": "", "crop": "--crop", "crop-augment": "--crop --augment", "crop-strong": "--crop --augment strong"}
QUICK = dict(zip(SCRIPTS, [*VARIANTS, "crop-strong"], strict=True))  # the other combinations are slow tests
FILES = {
    "run.json", "log.jsonl", "metrics.json", "predictions.csv", "model.safetensors", "labels.json",
    "curves.png", "confusion.png", "mistakes.png", "data_report.json", "README.md", "reference.safetensors",
    "probabilities.safetensors", "config.json",
}  # fmt: skip


def slow_but(quick, *names):
    """Test parameters; all except `quick` are marked as slow."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


# The run folder ------------------------------------------------------------------------------------------------------


@dataclass
class Finished:
    script: str
    variant: str
    config: TrainConfig
    folder: Path


def combinations():
    for script in SCRIPTS:
        for variant in VARIANTS:
            marks = [] if QUICK[script] == variant else pytest.mark.slow
            yield pytest.param((script, variant), id=f"{script}-{variant}", marks=marks)


@pytest.fixture(scope="module", params=combinations())
def finished(request, tmp_path_factory, cache):
    """A finished run of each script and variant."""
    script, variant = request.param
    argv = helpers.options(script, tmp_path_factory.mktemp(script) / "run", cache, VARIANTS[variant])
    return Finished(script, variant, config_of(script, argv), helpers.main(script, argv))


def test_a_run_writes_its_files(finished):
    assert {path.name for path in finished.folder.iterdir()} == {*FILES, f"{finished.script}.py"}


def test_run_json_describes_the_run(finished):
    run = read_json(finished.folder, "run.json")
    assert (run["script"], run["variant"]) == (finished.script, finished.variant)
    assert run["config"]["crop"] == ("crop" in finished.variant) and run["config"]["limit"] == 48
    assert run["rows"] == {"train": 48, "val": 48, "dropped": 17}
    assert run["classes"] == read_json(finished.folder, "labels.json") and len(run["classes"]) == 12
    assert {"data_fingerprint", "versions", "commit", "device", "processes", "mixed_precision"} <= run.keys()
    assert run["parameters"] > 1000 and run["seconds"] > run["train_seconds"] > 0 and run["images_per_second"] > 0


def test_the_metrics_are_those_of_the_predictions(finished):
    metrics, rows = read_json(finished.folder, "metrics.json"), read_predictions(finished.folder)
    assert metrics["n"] == len(rows) == 48 == len({row["image_id"] for row in rows})
    assert metrics["accuracy"] == sum(row["label"] == row["prediction"] for row in rows) / 48 == metrics["recall"]
    assert metrics["loss"] == pytest.approx(np.mean([float(row["loss"]) for row in rows]))
    assert {"precision", "f1", "macro_f1", "top5"} <= metrics.keys()


def test_the_log_has_the_scores_of_each_epoch(finished):
    epochs, metrics = epoch_lines(finished.folder), read_json(finished.folder, "metrics.json")
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert {f"val_{name}": metrics[name] for name in ("loss", "accuracy", "macro_f1")}.items() <= epochs[-1].items()
    best = max(epochs, key=lambda line: line["val_accuracy"])
    assert metrics["best_epoch"] == {"epoch": best["epoch"], "accuracy": best["val_accuracy"]}


def test_the_log_has_the_loss_of_every_step(finished):
    lines = [line for line in read_log(finished.folder) if "loss" in line]
    assert [(line["step"], line["epoch"]) for line in lines] == [(3, 1), (6, 2)]
    for line, epoch in zip(lines, epoch_lines(finished.folder), strict=True):
        assert line["loss"] == pytest.approx(epoch["train_loss"]), "here an epoch has one log line"
    assert all(line["lr"] > 0 for line in lines)


def test_the_saved_weights_are_those_that_were_scored(finished):
    model = importlib.import_module(finished.script).build_model(finished.config, 12)
    model.load_state_dict(read_weights(finished.folder))
    val = load_splits(finished.config)[1]
    result = scores(val.labels.numpy(), logits_of(model, val).numpy())
    assert result["loss"] == pytest.approx(read_json(finished.folder, "metrics.json")["loss"], abs=1e-5)


def split_of(classes):
    """A split of two rows per class, whose images are black."""
    size = 2 * len(classes)
    return ClassificationDataset(
        np.zeros((size, 3, 8, 8), np.uint8), np.arange(size), torch.ones(size, 2), np.zeros((size, 2), np.uint64),
        torch.arange(size) // 2, classes, None, np.arange(size),
        source_rows=size, dropped=0, problems=[], fingerprint="", normalization=IMAGENET,
    )  # fmt: skip


@pytest.mark.parametrize("classes", slow_but([3], 3, 130))
def test_any_number_and_name_of_classes_can_be_drawn(classes, tmp_path):
    """Dollar signs are not special in figures, and many classes do not lead to a huge figure."""
    val = split_of([f"$5_to $10_{i}" for i in range(classes)])
    logits = np.random.default_rng(0).normal(size=(2 * classes, classes))
    log = [
        {"step": 1, "epoch": 1, "loss": 1.0},
        {"epoch": 1, "val_loss": 1, "val_accuracy": 0, "val_f1": 0, "val_macro_f1": 0},
    ]
    for figure in (curves(log), confusion(val, logits), mistakes(val, logits)):
        save_figure(tmp_path / "figure.png", figure)
        assert max(Image.open(tmp_path / "figure.png").size) <= 3600


def test_the_figure_of_mistakes():
    """Each image has its prediction and its label above it, and no part of another image."""
    val = split_of(["a", "b", "a_category_with_a_long_name"])
    probabilities = [
        [0.6, 0.3, 0.1],
        [0.1, 0.8, 0.1],
        [0.9, 0.05, 0.05],
        [0.1, 0.8, 0.1],
        [0.1, 0.7, 0.2],
        [0.1, 0.1, 0.8],
    ]
    figure = mistakes(val, np.log(probabilities))
    [axis] = figure.axes
    texts = ["a 90%\nlabel: b", "b 80%\nlabel: a", "b 70%\nlabel: a_category_with_a\u2026"]
    assert [text.get_text() for text in axis.texts] == texts
    assert figure.get_suptitle() == "3 of 6 val rows wrong, most confident first"
    boxes = [image.get_window_extent() for image in axis.images]
    captions = [text.get_window_extent() for text in axis.texts]
    assert all(
        box.y1 < caption.y0 and box.x0 - 10 < caption.x0 < caption.x1 < box.x1 + 10
        for box, caption in zip(boxes, captions, strict=True)
    )
    assert all(figure.bbox.containsx(box.x1) and figure.bbox.containsy(box.y0) for box in boxes)
    every = mistakes(split_of(["a", "b"] * 20), np.ones((80, 40)))
    boxes = [item.get_window_extent() for item in [*every.axes[0].images, *every.axes[0].texts]]
    assert len(boxes) == 48 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_default_run_folders():
    assert str(folder_of(parse(train_custom_cnn.Config, ["--crop"]))) == "runs/train_custom_cnn-crop-s0"
    line = "--augment --crop --seed 3 --recipe lab".split()
    assert str(folder_of(parse(train_custom_vit.Config, line))) == "runs/train_custom_vit-lab-crop-augment-s3"


def test_a_finished_run_is_not_overwritten(train):
    folder = train("train_custom_cnn")
    before = results(folder)
    for more in ("", "--resume"):
        with pytest.raises(InputError, match="finished run.*--out"):
            train("train_custom_cnn", more=more)
    assert results(folder) == before


@pytest.mark.parametrize("missing", ["model.safetensors", "predictions.csv"])
def test_a_run_without_its_metrics_is_not_overwritten(train, missing):
    folder = train("train_custom_cnn")
    (folder / "metrics.json").unlink()
    (folder / missing).unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for more in ("--lr 0.5", "--resume", "--resume"):
        with pytest.raises(InputError, match="metrics.json is missing.*--out"):
            train("train_custom_cnn", more=more)
        (folder / "checkpoint").mkdir(exist_ok=True)  # without a checkpoint
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_dry_run_and_summary(train, capsys, tmp_path):
    folder = train("train_custom_cnn", more="--dry-run --summary")
    assert not (tmp_path / "out").exists() and (folder / "metrics.json").exists()
    assert max(line["step"] for line in read_log(folder)) == 2
    assert "Total params" in capsys.readouterr().out


# Training ------------------------------------------------------------------------------------------------------------


def test_training_learns(train):
    folder = train("train_custom_cnn", more="--crop --epochs 20 --limit 200 --lr 3e-3")
    first, *_, last = epoch_lines(folder)
    assert last["train_loss"] < 0.6 * first["train_loss"]
    assert last["val_accuracy"] > 0.25, "the majority class has 0.17"


@pytest.mark.parametrize(("script", "head"), [("train_resnet", "fc"), ("train_vit", "heads"), ("train_timm", "head")])
def test_a_frozen_backbone_does_not_change(train, script, head):
    config = config_of(script, SMALL[script].split())
    torch.manual_seed(config.seed)
    start = importlib.import_module(script).build_model(config, 12).state_dict()
    end = read_weights(train(script, more="--freeze backbone --lr 0.1 --epochs 1"))
    assert {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])} == {head}


def test_smoothed_labels_and_new_backgrounds_are_in_the_loss(train):
    """Each changes the loss of the first step, and nothing else."""

    def first_loss(name, more):
        folder = train("train_custom_cnn", name, f"--crop --epochs 1 --batch-size 48 --lr 0 {more}")
        assert epoch_lines(folder)[0]["val_loss"] == pytest.approx(np.log(12), abs=0.2), "the weights are the first"
        return read_log(folder)[0]["loss"]

    plain = first_loss("plain", "--label-smoothing 0")
    smooth, swap = first_loss("smooth", "--label-smoothing 0.5"), first_loss("swap", "--background swap")
    assert len({round(loss, 5) for loss in (plain, smooth, swap)}) == 3
    assert smooth == pytest.approx(plain, abs=0.1) and smooth != pytest.approx(plain, abs=1e-5)


def test_the_labs_recipe_trains(train):
    folder = train("train_custom_vit", more="--recipe lab --image-size 32 --limit 32")
    assert {line["lr"] for line in read_log(folder) if "lr" in line} == {1e-3}


def test_same_seed_same_run_other_seed_other_run(train):
    more = "--crop --augment --dropout 0.1 --seed"
    first, again, other = (results(train("train_custom_vit", f"{i}", f"{more} {s}")) for i, s in enumerate((0, 0, 1)))
    assert first == again
    assert first["log.jsonl"] != other["log.jsonl"] and first["model.safetensors"] != other["model.safetensors"]


@pytest.mark.parametrize("more", ["--crop --augment", "--crop --augment strong --background swap"])
def test_accumulation_changes_nothing(train, more):
    one = train("train_custom_vit", "one", more)
    four = train("train_custom_vit", "four", f"{more} --accumulate 4")
    for name, value in read_weights(one).items():
        torch.testing.assert_close(value, read_weights(four)[name], atol=1e-4, rtol=1e-3)


# Resuming ------------------------------------------------------------------------------------------------------------


def crash(*_):
    raise Crash


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_equals_an_uninterrupted_run(train, script, tmp_path):
    more = "--crop --augment strong --accumulate 2 --checkpoint-every 2"
    more += " --dropout 0.1 --background swap" * (script == "train_custom_vit")
    uninterrupted, parts = train(script, "uninterrupted", more), tmp_path / "parts"
    with crash_at(6):
        train(script, "parts", more)
    assert read_log(parts) == read_log(uninterrupted), "all is logged, and steps 5 and 6 will be repeated"
    with pytest.raises(InputError, match="unfinished run.*--resume"):
        train(script, "parts", more)
    with pytest.raises(InputError, match="lr was 0.0003, now 0.5|lr was 0.001, now 0.5"):
        train(script, "parts", more + " --resume --lr 0.5")
    train(script, "parts", more + " --resume")
    assert results(parts) == results(uninterrupted)
    assert not (parts / "checkpoint").exists()


def test_a_run_resumed_after_its_last_step(train, monkeypatch, tmp_path):
    """The run failed while it wrote its results."""
    uninterrupted = train("train_custom_vit", "uninterrupted")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(common.train.RunFolder, "finish", crash)
        train("train_custom_vit", "parts")
    train("train_custom_vit", "parts", "--resume")
    assert results(tmp_path / "parts") == results(uninterrupted)


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--batch-size 64", "--batch-size 64 .*48 train rows"),
        ("--accumulate 3", "--batch-size 16 .*3 equal pieces"),
        ("--lr 1e9 --clip-norm 0 --warmup 0", "loss is (nan|inf) at step .*lower --lr"),
        ("--blocks 8p64", "--blocks.*--image-size 32"),
        ("--data /nowhere/at/all", "/nowhere/at/all.*no such"),
        ("--margin -1", "--margin is -1.0"),
    ],
)
def test_a_mistake_is_a_message_and_an_exit_code(options, more, words):
    message = error_message("train_custom_cnn", options("train_custom_cnn", more=more))
    assert re.search(f"^error: .*{words}", message), message


def test_the_launchers_accumulation_is_refused(options, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert "--accumulate" in error_message("train_custom_cnn", options("train_custom_cnn"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_available(options, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES" in error_message("train_custom_cnn", options("train_custom_cnn"))


def test_a_hub_that_does_not_answer(options, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    message = error_message("train_custom_cnn", options("train_custom_cnn", more="--data nobody/nothing"))
    assert re.search("Hub.*nobody/nothing.*--data sample", message), message
