"""Runs that are really killed, at every kind of moment, and go on as if nothing had been.

A run's moments are counted: each step, each image decoded, each file written (with half of it on the disk), synced or
renamed, each log line (with half of it on the disk). Then the same run is started again and killed with SIGKILL at one
of them, and resumed. Processes are forked from a server that has imported torch, which saves seconds each.
"""

import builtins
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = {
    "train_resnet": "--weights none --image-size 32",
    "train_vit": "--weights none --image-size 32 --model vit_tiny_patch16_224",
    "train_custom_cnn": "--image-size 32 --blocks 8k3p2,16k3p2 --hidden 32 --fit pad",
    "train_custom_vit": "--image-size 32 --dim 32 --depth 2 --num-heads 4 --patch-size 8 --dropout 0.1",
}
COMMON = "--data sample --limit 32 --epochs 2 --batch-size 8 --accumulate 2 --checkpoint-every 3 --crop --augment"
KILLS = 5  # of each script

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([*SMALL, "tests.test_faults"])


def worker(script, argv, kill_at, count_file):
    """Runs a script's main in this process, which ends itself at moment `kill_at` without any warning."""
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    import common.pixels
    import common.runs
    import common.train

    moments = 0

    def moment():
        nonlocal moments
        moments += 1
        if moments == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            moment()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def halves(write):
        """`write(self, content)` in two halves with a moment between them."""

        def wrapped(self, content, *args, **kwargs):
            content = bytes(content) if not isinstance(content, str) else content
            write(self, content[: len(content) // 2], *args, **kwargs)
            moment()
            return write(self, content, *args, **kwargs)

        return wrapped

    for owner, name in [(os, "replace"), (os, "fsync"), (common.train, "train_step"), (common.pixels, "crop_image")]:
        before(owner, name)
    Path.write_bytes, Path.write_text = halves(Path.write_bytes), halves(Path.write_text)

    def torn_log_line(self, **values):
        line = json.dumps(values) + "\n"
        for part in (line[: len(line) // 2], line[len(line) // 2 :]):
            moment()
            with builtins.open(self.path, "a") as file:
                file.write(part)

    common.runs.Log.write = torn_log_line
    __import__(script).main(argv)
    if count_file:
        with builtins.open(count_file, "w") as file:
            file.write(str(moments))


def run(script, folder, more="", *, kill_at=None, count_file=None):
    """The exit code of a run of `script` into folder / "run" with its own cache."""
    argv = f"{COMMON} {SMALL[script]} --cache {folder / 'cache'} --out {folder / 'run'} {more}".split()
    process = processes.Process(target=worker, args=(script, argv, kill_at, count_file))
    process.start()
    process.join(120)
    return process.exitcode


def results(folder):
    """All that must be the same, bit for bit, but for the times in the log."""
    out = folder / "run"
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]
    return (
        (out / "model.safetensors").read_bytes(),
        (out / "predictions.csv").read_bytes(),
        (out / "metrics.json").read_bytes(),
        log,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function that gives a script's never-stopped run and the number of its moments."""
    done = {}

    def whole(script):
        if script not in done:
            folder = tmp_path_factory.mktemp(script)
            assert run(script, folder, count_file=folder / "count") == 0
            done[script] = results(folder), int((folder / "count").read_text())
        return done[script]

    return whole


@pytest.mark.parametrize("k", range(KILLS))
@pytest.mark.parametrize("script", SMALL)
def test_killed_and_resumed(whole, script, k, tmp_path):
    reference, moments = whole(script)
    # One kill in each fifth of the run: in the decoding, among the steps, checkpoints and results.
    kill_at = random.Random(f"{script} {k}").randint(1 + k * moments // KILLS, (k + 1) * moments // KILLS)
    assert run(script, tmp_path, kill_at=kill_at) == -signal.SIGKILL
    assert not (tmp_path / "run" / "metrics.json").exists(), "a killed run does not look finished"
    assert run(script, tmp_path, "--resume") == 0
    for ours, theirs in zip(results(tmp_path), reference, strict=True):
        assert ours == theirs, f"killed at moment {kill_at} of {moments}"
    left = [path for path in tmp_path.rglob(".*") if path.suffix == ".tmp"]
    assert not left, "what the killed process left half-written is gone"
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        assert len({row["image_id"] for row in csv.DictReader(file)}) == 32
