"""Trackers: TensorBoard has the lines of log.jsonl and the options, also after a resume."""

import json
import re

import pytest

from tests.helpers import crash_at, error_message, read_json, results

SCRIPT = "train_custom_cnn"
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read_events(folder):
    """The scalars that TensorBoard shows for a run: {name: {step: value}}, each step of a name once."""
    events = accumulator.EventAccumulator(str(folder / "image-classification"))
    events.Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert all(len({e.step for e in found}) == len(found) for found in scalars.values()), "a step occurs twice"
    return {name: {event.step: event.value for event in found} for name, found in scalars.items()}


def logged(folder):
    """The same from log.jsonl."""
    scalars = {}
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        step = line.pop("step")
        for name, value in line.items():  # the epoch is in two lines of its last step
            scalars.setdefault(name, {})[step] = pytest.approx(value, rel=1e-6)
    return scalars


def test_tensorboard_has_the_log_and_the_options(train):
    run = train(SCRIPT, more="--log-with tensorboard --lr 0.002")
    assert read_events(run) == logged(run) and {"loss", "lr", "val_accuracy", "val_loss"} <= {*logged(run)}
    [options] = (run / "image-classification").glob("*/hparams.yml")
    text = options.read_text()
    assert "lr: 0.002\n" in text and "epochs: 2\n" in text and "variant: full\n" in text


def test_a_resumed_run_has_each_step_once_and_the_same_results(train, options, tmp_path):
    plain = train(SCRIPT, "plain", more="--checkpoint-every 2")
    with crash_at(6):  # after the epoch's log line, whose step is then done again
        train(SCRIPT, "resumed", more="--log-with tensorboard --checkpoint-every 2")
    run_id = read_json(tmp_path / "resumed", "run.json")["id"]
    run = train(SCRIPT, "resumed", more="--log-with tensorboard --checkpoint-every 2 --resume")
    assert read_events(run) == logged(run)
    assert read_json(run, "run.json")["id"] == run_id, "under which W&B and Trackio continue the run"
    assert results(run) == results(plain), "trackers change nothing, and resuming may begin to use one"


def test_without_the_option_nothing_is_tracked(train):
    assert not (train(SCRIPT) / "image-classification").exists()
    dry = train(SCRIPT, "dry", more="--dry-run --log-with tensorboard")
    assert not (dry / "image-classification").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("comet_ml", "error: --log-with comet_ml needs a package that is not installed: pip install comet_ml"),
        ("tensorboard,excel", "error: --log-with excel: choose from aim, .*, tensorboard, trackio, wandb."),
    ],
)
def test_a_tracker_that_is_not_there_is_one_sentence(options, tmp_path, name, message):
    shown = error_message(SCRIPT, options(SCRIPT, more=f"--log-with {name}"))
    assert re.fullmatch(message, shown)
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_fails_is_one_sentence(options, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no login\nmore")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.start", refuse)
    shown = error_message(SCRIPT, options(SCRIPT, more="--log-with tensorboard"))
    assert shown == "error: --log-with tensorboard cannot be started: no login"
