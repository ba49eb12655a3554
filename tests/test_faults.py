"""Runs that are killed at every kind of moment and resumed must give the same results as uninterrupted runs.

The moments of a run are counted: each step, decoded image, file that is written (with half of it on the disk), synced
or renamed, and log line (with half of it on the disk). Then the same run is started again, killed with SIGKILL at one
of these moments, and resumed.
"""

import json
import os
import random
import signal
from pathlib import Path

import pytest

import common.data.pixels
import common.train
from common.run_folder import RunFolder
from tests.helpers import SCRIPTS, SMALL, exit_code, fork, main, read_predictions, results

COMMON = "--data sample --limit 32 --epochs 2 --batch-size 8 --accumulate 2 --checkpoint-every 3 --crop --augment"
MORE = {"train_custom_vit": "--dropout 0.1 --stem conv"}
KILLS = 5  # of each script

pytestmark = pytest.mark.slow


def instrumented(script, argv, kill_at, count_file):
    """Runs a script in this process, which is killed at moment `kill_at` or else writes the number of moments."""
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

    def torn_log_line(self, **values):
        line = json.dumps(values) + "\n"
        for part in (line[: len(line) // 2], line[len(line) // 2 :]):
            moment()
            with open(self.path / "log.jsonl", "a") as file:
                file.write(part)

    before(os, "replace")
    before(os, "fsync")
    before(common.train, "train_step")
    before(common.data.pixels, "crop_image")
    Path.write_bytes, Path.write_text = halves(Path.write_bytes), halves(Path.write_text)
    assert callable(RunFolder._append)
    RunFolder._append = torn_log_line
    main(script, argv)
    if count_file:
        with open(count_file, "w") as file:
            file.write(str(moments))


def run(script, folder, more="", *, kill_at=None, count_file=None):
    """The exit code of a run of `script` in folder / "run" with a separate cache."""
    line = f"{COMMON} {SMALL[script]} {MORE.get(script, '')} --cache {folder / 'cache'} --out {folder / 'run'} {more}"
    return exit_code(fork(instrumented, script, line.split(), kill_at, count_file))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A function that returns the results of an uninterrupted run of a script and its number of moments."""
    done = {}

    def uninterrupted(script):
        if script not in done:
            folder = tmp_path_factory.mktemp(script)
            assert run(script, folder, count_file=folder / "count") == 0
            done[script] = results(folder / "run"), int((folder / "count").read_text())
        return done[script]

    return uninterrupted


@pytest.mark.parametrize("k", range(KILLS))
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_and_resumed(uninterrupted, script, k, tmp_path):
    expected, moments = uninterrupted(script)
    # One kill in each fifth of the run: in the decoding, among the steps, checkpoints and results.
    kill_at = random.Random(f"{script} {k}").randint(1 + k * moments // KILLS, (k + 1) * moments // KILLS)
    assert run(script, tmp_path, kill_at=kill_at) == -signal.SIGKILL
    assert not (tmp_path / "run" / "metrics.json").exists(), "a killed run does not look finished"
    assert run(script, tmp_path, "--resume") == 0
    assert results(tmp_path / "run") == expected, f"killed at moment {kill_at} of {moments}"
    left = [path for path in tmp_path.rglob(".*") if path.suffix == ".tmp"]
    assert not left, "what the killed process left half-written is gone"
    assert len({row["image_id"] for row in read_predictions(tmp_path / "run")}) == 32
