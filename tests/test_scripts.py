"""Every script as its user runs it: real photos, real processes, a few steps."""

import csv
import importlib
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from PIL import Image

import common.train
import train_custom_cnn
import train_custom_vit
import train_resnet
from common.config import InputError, parse
from common.data import ClassificationDataset, load_splits
from common.launch import use_all_cores
from common.metrics import scores
from common.report import write_plots
from common.runs import run_folder
from common.sources import clean_category

ROOT = Path(__file__).parent.parent
SMALL = {
    "train_resnet": "--weights none --image-size 32",
    "train_vit": "--weights none --image-size 32 --model vit_tiny_patch16_224",
    "train_custom_cnn": "--image-size 32 --blocks 8k3p2,16k3p2 --hidden 32",
    "train_custom_vit": "--image-size 32 --dim 32 --depth 2 --num-heads 4 --patch-size 8 --stem patch",
}
VARIANTS = {"full": "", "crop": "--crop", "crop-augment": "--crop --augment", "crop-strong": "--crop --augment strong"}
FILES = {
    "run.json", "log.jsonl", "metrics.json", "predictions.csv", "model.safetensors", "labels.json",
    "curves.png", "confusion.png", "mistakes.png", "data_report.json", "README.md",
}  # fmt: skip


@pytest.fixture
def options(cache, tmp_path):
    """A function that gives the command line of a small run of a script into tmp_path / name."""

    def options(script, name="out", more=""):
        line = f"--data sample --limit 48 --epochs 2 --batch-size 16 --cache {cache} --out {tmp_path / name}"
        return f"{line} {SMALL[script]} {more}".split()

    return options


@pytest.fixture
def train(options):
    """A function that runs a script's own main in this process and returns the run folder."""

    def train(script, name="out", more=""):
        return importlib.import_module(script).main(options(script, name, more))

    return train


def launch(command, **env):
    """A real process in the project's folder; PATH finds the launchers beside this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    everything = {**os.environ, "PATH": path, **env}
    return subprocess.run(command, cwd=ROOT, env=everything, capture_output=True, text=True, timeout=300, check=False)


def predictions(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def losses(folder):
    """The log without its times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("script", SMALL)
def test_a_run_and_its_folder(train, script, variant, options):
    folder = train(script, more=VARIANTS[variant])
    assert {path.name for path in folder.iterdir()} == FILES
    metrics, run = (json.loads((folder / name).read_text()) for name in ("metrics.json", "run.json"))
    rows, labels = predictions(folder), json.loads((folder / "labels.json").read_text())
    assert metrics["n"] == len(rows) == 48 == len({row["image_id"] for row in rows})
    assert metrics["accuracy"] == sum(row["label"] == row["prediction"] for row in rows) / 48 == metrics["recall"]
    assert metrics["loss"] == pytest.approx(np.mean([float(row["loss"]) for row in rows]))
    assert {"precision", "f1", "macro_f1", "top5"} <= metrics.keys()
    assert run["rows"] == {"train": 48, "val": 48, "dropped": 17} and run["classes"] == labels
    assert run["script"] == script and run["config"]["crop"] == ("crop" in variant)
    assert {"data_fingerprint", "versions", "commit", "device", "processes", "mixed_precision"} <= run.keys()
    assert run["parameters"] > 1000 and run["seconds"] > 0 and run["images_per_second"] > 0
    epochs = [line for line in losses(folder) if "val_loss" in line]
    assert [line["epoch"] for line in epochs] == [1, 2] and epochs[-1]["val_accuracy"] == metrics["accuracy"]

    # The saved weights are those that were scored.
    config = parse(importlib.import_module(script).Config, options(script, more=VARIANTS[variant]))
    model = importlib.import_module(script).build_model(config, len(labels))
    model.load_state_dict(weights(folder))
    val = load_splits(config)[1]
    with torch.no_grad():
        logits = model.eval()(torch.stack([val[i][0] for i in range(len(val))])).numpy()
    assert scores(val.labels.numpy(), logits)["loss"] == pytest.approx(metrics["loss"], abs=1e-5)


def test_training_learns(train):
    folder = train("train_custom_cnn", more="--crop --epochs 20 --limit 200 --lr 3e-3")
    lines = [line for line in losses(folder) if "train_loss" in line]
    assert lines[-1]["train_loss"] < 0.6 * lines[0]["train_loss"]
    assert json.loads((folder / "metrics.json").read_text())["accuracy"] > 0.25, "the majority class has 0.17"


@pytest.mark.parametrize("script", ["train_resnet", "train_vit"])
def test_a_frozen_backbone_does_not_move(train, script):
    before = importlib.import_module(script)
    config = parse(before.Config, SMALL[script].split())
    torch.manual_seed(config.seed)
    start = before.build_model(config, 12).state_dict()
    end = weights(train(script, more="--freeze backbone --lr 0.1"))
    moved = {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert moved == {"fc" if script == "train_resnet" else "head"}


def test_smoothed_labels_and_new_backgrounds_are_in_the_loss(train):
    """Each makes the loss of the first step another one, and nothing else."""
    first = {}
    for name, more in (("plain", ""), ("smooth", "--label-smoothing 0.5"), ("swap", "--background swap")):
        more = more or "--label-smoothing 0"
        folder = train("train_custom_cnn", name, f"--crop --epochs 1 --batch-size 48 --lr 0 {more}")
        first[name] = next(line["loss"] for line in losses(folder) if "loss" in line)
        logged = [line["val_loss"] for line in losses(folder) if "val_loss" in line]
        assert logged[0] == pytest.approx(np.log(12), abs=0.2), "the weights are those of the start"
    assert len({round(loss, 5) for loss in first.values()}) == 3
    plain, smooth = first["plain"], first["smooth"]
    assert smooth == pytest.approx(plain, abs=0.1) and smooth != pytest.approx(plain, abs=1e-5)


def test_the_labs_recipe_trains(train):
    folder = train("train_custom_vit", more="--recipe lab --image-size 32 --limit 32")
    assert {line["lr"] for line in losses(folder) if "lr" in line} == {1e-3}


def test_same_seed_same_run_other_seed_other_run(train):
    first, again, other = (
        train("train_custom_vit", name, f"--crop --augment --dropout 0.1 --seed {seed}")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert (first / "predictions.csv").read_bytes() == (again / "predictions.csv").read_bytes()
    assert losses(first) == losses(again) != losses(other)


class Stop(Exception):
    pass


@pytest.mark.parametrize("script", SMALL)
def test_resume_is_the_run_that_was_never_stopped(train, options, script, monkeypatch, tmp_path):
    more = "--crop --augment strong --accumulate 2 --checkpoint-every 2"
    more += " --dropout 0.1 --background swap" * (script == "train_custom_vit")
    whole = train(script, "whole", more)
    save_checkpoint = common.train.save_checkpoint

    def stop_at_6(folder, identity, progress, *rest):  # after the log lines of step 6, before its checkpoint
        if progress["step"] == 6:
            raise Stop
        save_checkpoint(folder, identity, progress, *rest)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(common.train, "save_checkpoint", stop_at_6)
        train(script, "parts", more)
    assert losses(tmp_path / "parts") == losses(whole), "all is logged, and steps 5 and 6 will be again"
    with pytest.raises(InputError, match="unfinished run: go on with --resume"):
        train(script, "parts", more)
    with pytest.raises(InputError, match="lr was 0.001, now 0.5|lr was 0.0003, now 0.5|lr was 0.0005, now 0.5"):
        train(script, "parts", more + " --resume --lr 0.5")
    parts = train(script, "parts", more + " --resume")
    assert losses(whole) == losses(parts)
    assert (whole / "predictions.csv").read_bytes() == (parts / "predictions.csv").read_bytes()
    assert all(torch.equal(value, weights(parts)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize("more", ["--crop --augment", "--crop --augment strong --background swap"])
def test_accumulation_changes_nothing(train, more):
    one = train("train_custom_vit", "one", more)
    four = train("train_custom_vit", "four", f"{more} --accumulate 4")
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(four)[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("script", SMALL)
def test_two_processes(train, options, script, tmp_path):
    """Without batch norm the same numbers as one process; with it, the score is that of the saved weights."""
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    more = "--crop --augment strong" + " --background swap" * (script == "train_custom_cnn")
    done = launch([*torchrun, f"{script}.py", *options(script, "two", more)], ACCELERATE_USE_CPU="1")
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two"
    assert done.stdout.count("epoch 2/2") == 1, "only the main process prints"
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    rows = predictions(two)
    assert len(rows) == 48 == len({row["image_id"] for row in rows})
    if script == "train_resnet":
        config = parse(train_resnet.Config, options(script, "two", more))
        model = train_resnet.build_model(config, 12)
        model.load_state_dict(weights(two))
        val = load_splits(config)[1]
        with torch.no_grad():
            logits = model.eval()(torch.stack([val[i][0] for i in range(len(val))])).numpy()
        logged = [line for line in losses(two) if "val_loss" in line][-1]["val_loss"]
        assert scores(val.labels.numpy(), logits)["loss"] == pytest.approx(logged, abs=1e-5)
    else:
        one = train(script, "one", more)
        for a, b in zip(predictions(one), rows, strict=True):
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-4)


def test_accelerate_launch_with_the_projects_configuration(options, tmp_path):
    line = options("train_custom_cnn", more="--crop --augment")
    command = ["accelerate", "launch", "--config_file", "accelerate_config.yaml", "--mixed_precision", "bf16"]
    done = launch([*command, "train_custom_cnn.py", *line])
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["mixed_precision"] == "bf16" and run["processes"] == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    code = """
import resource, torch
from common.launch import keep_freed_memory
keep_freed_memory()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**25)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, *later = map(int, done.stdout.split())
    # The second may find its place a few bytes short, where a small object lies in it by then; so the best one counts.
    assert min(later) < first / 10, f"page faults for 128 MB, six times: {first} {later}"


def test_threads_under_a_launcher(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        use_all_cores()
        assert torch.get_num_threads() == 1, "no launcher: torch's own choice stays"
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        use_all_cores()
        assert torch.get_num_threads() == 1, "the person's choice stays"
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        use_all_cores()
        allowed = len(os.sched_getaffinity(0))
        assert torch.get_num_threads() == min(psutil.cpu_count(logical=False) or allowed, allowed)
    finally:
        torch.set_num_threads(before)


def test_dry_run_and_summary(train, options, capsys, tmp_path):
    folder = train("train_custom_cnn", more="--dry-run --summary")
    assert not (tmp_path / "out").exists() and (folder / "metrics.json").exists()
    assert max(line["step"] for line in losses(folder)) == 2
    assert "Total params" in capsys.readouterr().out


def test_default_run_folders():
    assert str(run_folder(parse(train_custom_cnn.Config, ["--crop"]))) == "runs/train_custom_cnn-crop-s0"
    line = "--augment --crop --seed 3 --recipe lab".split()
    assert str(run_folder(parse(train_custom_vit.Config, line))) == "runs/train_custom_vit-lab-crop-augment-s3"


@pytest.mark.parametrize("classes", [3, 130])
def test_any_number_and_name_of_classes_can_be_drawn(classes, tmp_path):
    """Dollar signs mean nothing to the pictures, and many classes do not make a huge one."""
    size = 2 * classes
    val = ClassificationDataset(
        np.zeros((size, 3, 8, 8), np.uint8), np.arange(size), torch.ones(size, 2), np.zeros((size, 2), np.uint64),
        torch.arange(size) // 2, [f"$5_to $10_{i}" for i in range(classes)], None, np.arange(size),
        source_rows=size, dropped=0, problems=[], fingerprint="",
    )  # fmt: skip
    logits = np.random.default_rng(0).normal(size=(size, classes))
    log = [
        {"step": 1, "epoch": 1, "loss": 1.0},
        {"epoch": 1, "val_loss": 1, "val_accuracy": 0, "val_f1": 0, "val_macro_f1": 0},
    ]
    write_plots(tmp_path, val, logits, log)
    assert max(Image.open(tmp_path / "confusion.png").size) <= 3600


def test_more_processes_than_val_rows(rows, parquet, cache, tmp_path):
    kind = clean_category(rows["val"][0]["category"])
    train = [row for row in rows["train"] if clean_category(row["category"]) == kind]
    data = parquet({"train": train, "val": rows["val"][:1]})
    line = (
        f"--data {data} --cache {cache} --out {tmp_path / 'out'} --batch-size 4 --epochs 1 {SMALL['train_custom_vit']}"
    )
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "2", "train_custom_vit.py"]
    done = launch([*torchrun, *line.split()], ACCELERATE_USE_CPU="1")
    assert done.returncode == 0, done.stderr
    assert len(predictions(tmp_path / "out")) == 1


def test_a_finished_run_is_kept(train):
    folder = train("train_custom_cnn")
    before = (folder / "metrics.json").read_bytes()
    for more in ("", "--resume"):
        with pytest.raises(InputError, match="finished run, which is kept"):
            train("train_custom_cnn", more=more)
    assert (folder / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--batch-size 64", "48 train rows are fewer than one batch of 64"),
        ("--accumulate 3", "--batch-size 16 cannot be cut into 3 equal pieces"),
        ("--lr 1e9 --clip-norm 0 --warmup 0", "loss is (nan|inf) at step .*Lower --lr"),
        ("--blocks 8p64", "nothing of 32 pixels"),
        ("--data /nowhere/at/all", "no such folder"),
    ],
)
def test_mistakes_that_the_run_finds(train, more, words):
    with pytest.raises(InputError, match=words):
        train("train_custom_cnn", more=more)


MISTAKES = {
    "accumulation": ("", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "use --accumulate"),
    "hub": ("--data nobody/nothing", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Hub cannot be reached.*--data sample"),
    "cuda": ("", {"CUDA_VISIBLE_DEVICES": "0"}, "CUDA GPU is asked for"),
    "option": ("--margin -1", {}, "--margin is -1.0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_a_code(options, name):
    more, env, words = MISTAKES[name]
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = launch([sys.executable, "train_custom_cnn.py", *options("train_custom_cnn", more=more)], **env)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(words, done.stderr), done.stderr


def test_processes_that_do_not_see_each_other_are_refused(options):
    """torchrun without ACCELERATE_USE_CPU on a machine without a GPU: both would train alone into one folder."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    line = ["torchrun", "--standalone", "--nproc_per_node", "2", "train_custom_cnn.py", *options("train_custom_cnn")]
    done = launch(line)
    assert done.returncode != 0 and "ACCELERATE_USE_CPU=1" in done.stderr
