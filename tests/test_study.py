"""A study as its user runs it: real launches, killed in the middle, gone on with, compared."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from PIL import Image

import train_custom_cnn
import train_resnet
from common.config import InputError
from common.grid import Job, plan, seconds_left
from tests.conftest import wait_for

ROOT = Path(__file__).parent.parent
# The lab's table on little: two of its four models, two seeds, each run about ten seconds, most of it start-up.
GRID = "--recipe lab --models custom_cnn custom_vit --seeds 2 --data sample --limit 64 --image-size 64"


@pytest.fixture
def start(cache, tmp_path):
    """A function that starts study.py in `tmp_path / "study"` as a process of its own."""

    def start(line=GRID):
        command = [sys.executable, "study.py", *line.split(), "--cache", cache, "--out", str(tmp_path / "study")]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def steps(folder):
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_study_is_killed_stopped_gone_on_with_and_compared(start, tmp_path):
    root = tmp_path / "study"
    first, second = root / "train_custom_cnn-full-s0", root / "train_custom_cnn-crop-augment-s0"

    killed = start()
    wait_for(lambda: steps(second))
    children = psutil.Process(killed.pid).children(recursive=True)
    for process in children:
        process.suspend()
    killed.kill()
    killed.communicate()
    beside = start()
    errors = beside.communicate(timeout=60)[1]
    assert beside.returncode == 1 and "is still at work on" in errors, "the run has outlived its study"
    for process in children:
        process.kill()
    assert (first / "metrics.json").exists() and not (second / "metrics.json").exists()
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}

    stopped = start()
    wait_for(lambda: steps(root / "train_custom_vit-full-s0"))
    stopped.send_signal(signal.SIGTERM)
    output, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 75 and "go on with the same command" in errors and "Traceback" not in errors
    assert (root / "train_custom_vit-full-s0" / "checkpoint").exists(), "the run was asked to save what it had"

    done = start()
    output, errors = done.communicate(timeout=600)
    assert done.returncode == 0, errors
    assert "8 of 8 runs are finished" in output and "8/8 runs" in errors and "min left" in errors
    assert before == {path: path.stat().st_mtime_ns for path in first.iterdir()}, "a finished run is not touched"
    assert re.search("from step [1-9]", (root / "output" / "train_custom_vit-full-s0.txt").read_text()), "resumed"
    runs = [json.loads(path.read_text()) for path in root.glob("*/run.json")]
    assert len(runs) == 8 and {run["config"]["seed"] for run in runs} == {0, 1}
    assert {run["config"]["recipe"] for run in runs} == {"lab"} and {run["config"]["epochs"] for run in runs} == {3}

    again = start(GRID + " --lr 0.5")
    errors = again.communicate(timeout=60)[1]
    assert again.returncode == 1 and "holds a run with --lr 0.001: name another folder with --out" in errors

    command = [sys.executable, "compare.py", str(root), "--out", str(tmp_path / "comparison")]
    compared = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stderr
    result = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert [e["name"] for e in result["experiments"]] == [
        "custom_cnn full", "custom_cnn crop-augment", "custom_vit full", "custom_vit crop-augment"
    ]  # fmt: skip
    assert [q["question"] for q in result["questions"]] == [
        "custom_cnn: crop-augment against full", "custom_vit: crop-augment against full",
        "custom_vit against custom_cnn, crop-augment",
    ]  # fmt: skip
    for name in ("experiments", "differences", "confusion", "reliability"):
        with Image.open(tmp_path / "comparison" / f"{name}.png") as picture:
            assert min(picture.size) > 200


def test_a_run_that_fails_does_not_stop_the_others(start, tmp_path):
    """No batch of 40 fits the 32 rows of any run; the study says so, run by run, and fails."""
    done = start("--models custom_cnn --variants full crop --seeds 1 --data sample --limit 32 --batch-size 40")
    output, errors = done.communicate(timeout=300)
    assert done.returncode == 1 and "0 of 2 runs are finished" in output and "Traceback" not in errors
    assert output.count("error: 32 train rows are fewer than one batch of 40") == 2
    assert "2 runs failed" in errors and len(list((tmp_path / "study" / "output").iterdir())) == 2


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--models custom_cnn --patchsize 8", 1, "--patchsize: none of these scripts has this option"),
        (
            "--models custom_cnn --patch-size 8",
            1,
            "--patch-size: none of these scripts has this option: train_custom_cnn",
        ),
        ("--models custom_cnn --crop", 2, "--crop is for the study to set"),
        ("--models custom_cnn --seeds 0", 2, "--seeds must be at least 1"),
        ("--models custom_cnn --epochs 0", 1, "--epochs is 0"),
        ("--models cnn", 2, "invalid choice"),
        ("--models custom_cnn --variants crop --recipe lab", 1, "no experiment is left"),
        ("--models custom_cnn --no-crop", 1, "--no-crop: none of these scripts has this option"),
        ("--models custom_cnn --config-file nope.yaml", 2, "nope.yaml: no such file"),
        ("sample", 2, "unrecognized argument: sample"),
        ("--models custom_cnn --data /nowhere/at/all", 1, "no such folder"),
    ],
)
def test_mistakes_are_found_before_the_first_run(start, tmp_path, line, code, words):
    process = start(line)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == code and words in errors and "Traceback" not in errors
    assert not (tmp_path / "study").exists()


def jobs(line="", seeds=2, folds=0):
    experiments = [("train_resnet", train_resnet.Config, "full"), ("train_custom_cnn", train_custom_cnn.Config, "crop")]
    return plan(
        experiments, [words.split() for words in line.split(",") if words], seeds=seeds, folds=folds, root=Path("r")
    )


def test_the_plan_goes_seed_by_seed_and_gives_each_script_its_options():
    planned = jobs("--weights none,--epochs 2,--hidden=9")
    assert [job.folder.name for job in planned] == [
        "train_resnet-full-s0", "train_custom_cnn-crop-s0", "train_resnet-full-s1", "train_custom_cnn-crop-s1"
    ]  # fmt: skip
    assert planned[0].config.weights == "none" and planned[1].config.hidden == 9 and planned[1].config.crop
    assert all(job.config.epochs == 2 and job.config.resume for job in planned)
    folds = jobs(seeds=1, folds=3)
    assert [job.config.split_by for job in folds[::2]] == ["product_id:1/3", "product_id:2/3", "product_id:3/3"]
    assert len({job.folder for job in folds}) == 6
    with pytest.raises(InputError, match="--patch-size: none of these scripts"):
        jobs("--patch-size 8")


def test_the_time_left_comes_from_the_runs_most_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "common.grid.read_run", lambda path: SimpleNamespace(run=json.loads((path / "run.json").read_text()))
    )

    def job(script, variant, seconds=None):
        config = train_custom_cnn.Config(out=str(tmp_path / f"{script}{variant}{seconds}"))
        if seconds:
            Path(config.out).mkdir()
            Path(config.out, "run.json").write_text(json.dumps({"seconds": seconds}))
        return Job(script, variant, (), config)

    waiting = [job("a", "full"), job("a", "crop"), job("b", "full")]
    assert seconds_left(waiting, []) == "time left unknown"
    done = [job("a", "full", 600), job("a", "crop", 1200)]
    assert seconds_left(waiting, done) == f"about {10 + 20 + 15} min left"
    assert os.path.exists(done[0].folder)
