"""Requests to stop, full disks, missing memory, and any number of processes, each with the real script."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from common.data import load_splits
from common.launch import StopRequest
from common.sources import clean_category
from tests.conftest import wait_for
from train_custom_vit import Config

ROOT = Path(__file__).parent.parent
SCRIPT = "train_custom_vit"
SMALL = "--image-size 32 --dim 32 --depth 2 --num-heads 4 --stem patch --crop --augment strong --batch-size 12"


def command(folder, cache, more=""):
    line = f"--data sample --limit 48 {SMALL} --cache {cache} --out {folder} {more}"
    return [sys.executable, f"{SCRIPT}.py", *line.split()]


def launch(command, **env):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, **env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def results(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]
    return (folder / "model.safetensors").read_bytes(), (folder / "predictions.csv").read_bytes(), log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_saves_a_checkpoint(tmp_path, cache, number):
    more = "--epochs 40"
    assert launch(command(tmp_path / "whole", cache, more)).returncode == 0
    started = subprocess.Popen(command(tmp_path / "parts", cache, more), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "parts" / "log.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 3)
    started.send_signal(number)
    errors = started.communicate(timeout=60)[1]
    assert started.returncode == 75 and "Traceback" not in errors
    assert "go on with the same command and --resume" in errors
    done = launch(command(tmp_path / "parts", cache, more + " --resume"))
    assert done.returncode == 0 and "from step 0" not in done.stdout
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once_and_keeps_the_last_checkpoint(tmp_path, cache):
    """The first is answered when the step ends; steps here take many seconds."""
    slow = "--dim 512 --depth 12 --patch-size 2 --batch-size 48 --epochs 100"
    started = subprocess.Popen(command(tmp_path / "run", cache, slow), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "run" / "run.json").exists)
    time.sleep(1)
    started.send_signal(signal.SIGINT)
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    errors = started.communicate(timeout=60)[1]
    assert started.returncode == 130 and errors.endswith("interrupted\n") and "Traceback" not in errors


def test_nobody_listens_any_more_when_the_training_has_ended():
    """A thread left alone frees its tensors while the interpreter ends, which aborts one stopped run in twenty."""
    with StopRequest(Accelerator(cpu=True)) as stop:
        assert stop.listener.is_alive()
    assert not stop.listener.is_alive()


def test_each_val_row_once_on_any_number_of_processes(tmp_path, rows, parquet):
    copies = [dict(row, image_id=f"{row['image_id']}-{copy}") for copy in range(7) for row in rows["val"]]
    kinds = {clean_category(row["category"]) for row in rows["val"]}
    train = [row for row in rows["train"] if clean_category(row["category"]) in kinds]
    data = parquet({"train": train, "val": copies[:151]})
    seen = []
    for count in (1, 2, 3, 4):
        out = tmp_path / str(count)
        line = f"--data {data} {SMALL} --cache {tmp_path / 'cache'} --out {out} --epochs 1".split()
        run = ["torchrun", "--standalone", "--nproc_per_node", str(count), f"{SCRIPT}.py", *line]
        done = launch(run, ACCELERATE_USE_CPU="1")
        assert done.returncode == 0, done.stderr
        with open(out / "predictions.csv", newline="") as file:
            predictions = list(csv.DictReader(file))
        assert len(predictions) == 151 == len({row["image_id"] for row in predictions})
        metrics = json.loads((out / "metrics.json").read_text())
        same = {name: metrics[name] for name in ("n", "accuracy", "precision", "recall", "f1", "macro_f1")}
        seen.append((same, [(row["image_id"], row["prediction"]) for row in predictions]))
    assert seen[0] == seen[1] == seen[2] == seen[3]


def limited(which, value, argv):
    """The script in a process with a resource limit: a disk or a memory that is full."""
    code = (
        f"import resource, runpy, sys; resource.setrlimit(resource.{which}, ({value}, {value}));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [sys.executable, "-c", code, *argv[1:]]


def test_a_full_disk(tmp_path, cache):
    """Files may grow to 64 KB: enough for the log, too little for a checkpoint; later the disk has room again."""
    load_splits(Config(data="sample", limit=48, cache=cache, image_size=32, crop=True))
    argv = command(tmp_path / "run", cache, "--epochs 1")
    done = launch(limited("RLIMIT_FSIZE", 65_536, argv))
    assert done.returncode == 1 and "Traceback" not in done.stderr and "error: File too large" in done.stderr
    assert launch([*argv, "--resume"]).returncode == 0


def test_a_full_disk_under_the_cache(tmp_path):
    argv = command(tmp_path / "run", tmp_path / "cache", "--epochs 1")
    done = launch(limited("RLIMIT_FSIZE", 65_536, argv))
    assert done.returncode == 1 and "Traceback" not in done.stderr and "error: File too large" in done.stderr
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["content"], "nothing half-written is left"


def test_out_of_memory(tmp_path, cache):
    """The first layer's output has 12 GB."""
    line = f"--data sample --limit 48 --image-size 32 --blocks 60000k1p32 --batch-size 48 --out {tmp_path / 'run'}"
    argv = [sys.executable, "train_custom_cnn.py", *line.split(), "--cache", cache]
    done = launch(limited("RLIMIT_AS", 9 * 2**30, argv))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "out of memory with --batch-size 48 in 1 pieces: --accumulate 2" in done.stderr


def test_batch_norm_with_nothing_to_take_the_mean_of(tmp_path, cache):
    """Pieces of one image, of which the last layers leave one pixel."""
    line = f"--data sample --limit 48 --image-size 16 --batch-size 8 --accumulate 8 --cache {cache} --out {tmp_path}"
    done = launch([sys.executable, "train_custom_cnn.py", *line.split()])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "batch norm is left with one value to take the mean of: raise --batch-size" in done.stderr


def test_a_run_folder_that_cannot_be_made(tmp_path, cache):
    (tmp_path / "file").write_text("")
    done = launch(command(tmp_path / "file" / "run", cache))
    assert done.returncode == 1 and "Traceback" not in done.stderr and "cannot be made" in done.stderr


def test_a_deleted_part_of_the_cache_is_made_again(tmp_path):
    config = Config(data="sample", limit=20, cache=str(tmp_path), image_size=16)
    before = load_splits(config)[1].pixels[:].copy()
    for file in list(tmp_path.glob("*/pixels.npy")):
        file.unlink()
    assert (load_splits(config)[1].pixels == before).all()
    shutil.rmtree(tmp_path)
    assert (load_splits(config)[1].pixels == before).all()


def test_a_broken_checkpoint(tmp_path, cache):
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "last.pt").write_bytes(b"hello")
    done = launch(command(tmp_path / "run", cache, "--resume"))
    assert done.returncode == 1 and "Traceback" not in done.stderr and "last.pt cannot be read" in done.stderr
