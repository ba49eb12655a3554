"""Requests to stop, full disks, missing memory: each ends with a message, and the run can be resumed."""

import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from accelerate import Accelerator
from torch import nn

import common.train
import train_custom_vit
from common.config import Interrupted
from common.data.dataset import load_splits
from common.files import LOCK, write_json
from common.launch import StopRequest
from tests.helpers import (
    ROOT,
    config_of,
    error_message,
    exit_code,
    fork,
    fork_script,
    launch,
    log_length,
    main,
    read_json,
    results,
    signal_at,
    wait_for,
)

resource = pytest.importorskip("resource", reason="limits of a process need Unix")
SCRIPT = "train_custom_vit"
MORE = "--crop --augment strong --batch-size 12"


# Requests to stop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_a_stopped_run_is_resumed_exactly(train, monkeypatch, tmp_path, number):
    uninterrupted = train(SCRIPT, "uninterrupted", MORE)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="step 2 of 8.*--resume"):
        patch.setattr(common.train, "train_step", signal_at(2, number))
        train(SCRIPT, "parts", MORE)
    train(SCRIPT, "parts", f"{MORE} --resume")
    assert results(tmp_path / "parts") == results(uninterrupted)


def test_a_signal_is_recorded_and_the_next_one_is_the_systems():
    def handlers():
        return [signal.getsignal(number) for number in StopRequest.SIGNALS]

    before = handlers()
    with StopRequest(Accelerator(cpu=True)) as stop:
        assert signal.SIG_DFL not in handlers() and not stop.agreed(together=True)
        signal.raise_signal(signal.SIGTERM)
        assert handlers() == [signal.SIG_DFL] * 2, "which ends the process at once"
        assert stop.received and stop.agreed(together=False)
    assert handlers() == before, "the handlers are restored when training has ended"


def test_a_signal_that_torchrun_passes_on_is_no_second_request(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(Accelerator(cpu=True)) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.received and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


def test_signal_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), StopRequest(Accelerator(cpu=True)):
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGINT) == before


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache):
    """The results of a long run: 160 steps of a few milliseconds."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    return results(main(SCRIPT, long_run(folder, cache)))


def long_run(folder, cache):
    line = f"--data sample --limit 48 --image-size 32 --dim 32 --depth 2 --num-heads 4 {MORE} --epochs 40"
    return f"{line} --cache {cache} --out {folder}".split()


@pytest.mark.slow
@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_a_process_that_is_asked_to_stop_saves_a_checkpoint(uninterrupted, tmp_path, cache, number):
    argv, output = long_run(tmp_path / "run", cache), tmp_path / "output.txt"
    [process] = fork_script(SCRIPT, argv, output=output)
    wait_for(lambda: log_length(tmp_path / "run") >= 3)
    os.kill(process.pid, number)
    assert exit_code([process]) == 75
    assert "Traceback" not in output.read_text() and "--resume" in output.read_text().splitlines()[-1]
    assert exit_code(fork_script(SCRIPT, [*argv, "--resume"], output=output)) == 0
    assert output.read_text().count("from step 0,") == 1, "the second time it starts from the checkpoint"
    assert results(tmp_path / "run") == uninterrupted


def endless_step(argv, entered):
    """Runs the script with steps that take an hour."""

    def hour(*args):
        entered.write_text("")
        end = time.monotonic() + 3600
        while time.monotonic() < end:
            time.sleep(1)

    common.train.train_step = hour
    main(SCRIPT, argv)


@pytest.mark.slow
@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_a_second_signal_ends_the_process_at_once(uninterrupted, monkeypatch, tmp_path, cache, number):
    """The first would take effect at the end of the step, which never ends here. The last checkpoint is kept."""
    argv = long_run(tmp_path / "run", cache)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(common.train, "train_step", signal_at(50, signal.SIGTERM))
        main(SCRIPT, argv)
    checkpoint = (tmp_path / "run" / "checkpoint" / "last.pt").read_bytes()
    [process] = fork(endless_step, [*argv, "--resume"], tmp_path / "in the step")
    wait_for((tmp_path / "in the step").exists)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.is_alive(), "the step is not interrupted"
    os.kill(process.pid, number)
    assert exit_code([process], seconds=10) == -number
    assert (tmp_path / "run" / "checkpoint" / "last.pt").read_bytes() == checkpoint
    assert results(main(SCRIPT, [*argv, "--resume"])) == uninterrupted


# Resources that run out ----------------------------------------------------------------------------------------------


@contextmanager
def limit(which, value):
    """Limits the disk space or memory of this process."""
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def test_a_full_disk(options, train, tmp_path):
    """Files are limited to 64 KB, enough for the log but not for a checkpoint; later the disk has space again."""
    argv = options(SCRIPT, more=MORE)
    load_splits(config_of(SCRIPT, argv))
    with limit(resource.RLIMIT_FSIZE, 65_536):
        assert error_message(SCRIPT, argv).startswith("error: File too large")
    assert results(train(SCRIPT, more=f"{MORE} --resume")) == results(train(SCRIPT, "uninterrupted", MORE))


def test_a_full_disk_under_the_cache(options, tmp_path):
    argv = options(SCRIPT, more=f"--cache {tmp_path / 'cache'}")
    with limit(resource.RLIMIT_FSIZE, 65_536):
        assert re.search(r"cache .*cannot be written \(File too large\)", error_message(SCRIPT, argv))
    assert not list((tmp_path / "cache").iterdir()), "nothing half-written is left"


def test_out_of_memory(options):
    """The output of the first layer has 12 GB."""
    argv = options("train_custom_cnn", more="--blocks 60000k1p32 --hidden 0 --batch-size 48")
    with limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + 3 * 2**30):
        message = error_message("train_custom_cnn", argv)
    assert re.search("out of memory.*--batch-size 48.*raise --accumulate", message), message


def test_batch_norm_with_one_value_per_channel(options):
    """Each piece is a single image, which the last layers reduce to one pixel."""
    argv = options("train_custom_cnn", more="--image-size 16 --blocks 8s4-bn,8s4-bn --batch-size 8 --accumulate 8")
    message = error_message("train_custom_cnn", argv)
    assert re.search("batch norm.*--batch-size", message), message


EXPORT_ON_A_FULL_DISK = """
import resource, sys
import export
from common.config import run
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, resource.RLIM_INFINITY))
run(lambda: export.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["pt2", "onnx"])
def test_an_export_on_a_full_disk(finished_run, tmp_path, to):
    """In a process of its own, which torch.export.save would abort."""
    path = tmp_path / f"model.{to}"
    argv = [str(finished_run("train_custom_cnn")), "--to", to, "--output", str(path)]
    done = launch([sys.executable, "-c", EXPORT_ON_A_FULL_DISK, *argv])
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: File too large"), done.stderr
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


# Folders that are in use ---------------------------------------------------------------------------------------------

LOCK_A_FOLDER = """
import sys, time
from pathlib import Path
from common.config import run
from common.files import lock_folder
def main():
    lock_folder(Path(sys.argv[1]))
    if sys.argv[2:]:
        Path(sys.argv[1], sys.argv[2]).write_text("")
    print("locked", flush=True)
    sys.stdin.readline()
run(main)
"""


def start_locking(folder, *file):
    """A process that locks `folder`, writes `file` into it, and ends when something is written to it."""
    command = [sys.executable, "-c", LOCK_A_FOLDER, str(folder), *file]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def test_a_folder_is_locked_by_one_process(tmp_path):
    folder = tmp_path / "a" / "b"
    first = start_locking(folder)
    assert first.stdout.readline() == "locked\n"
    second = start_locking(folder)
    errors = second.communicate()[1]
    assert second.returncode == 1 and re.fullmatch(f"error: {folder} is in use by process {first.pid} on .*\n", errors)
    first.kill()
    first.communicate()
    third = start_locking(folder)
    assert third.stdout.readline() == "locked\n", "the system has released the lock of the killed process"
    third.communicate("\n")
    assert third.returncode == 0 and list(folder.iterdir()) == [], "the folder was there before"


def test_a_process_removes_the_folders_that_it_made_for_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    start_locking(tmp_path / "a" / "b" / "c").communicate("\n")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    start_locking(tmp_path / "a" / "b" / "c", "file").communicate("\n")
    assert list((tmp_path / "a" / "b" / "c").iterdir()) == [tmp_path / "a" / "b" / "c" / "file"]


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(tmp_path, cache):
    argv = long_run(tmp_path / "run", cache)
    [process] = fork(endless_step, argv, tmp_path / "in the step")
    wait_for((tmp_path / "in the step").exists)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for more in ([], ["--resume"]):
        words = f"error: {tmp_path / 'run'} is in use by process {process.pid} on "
        assert error_message(SCRIPT, argv + more).startswith(words)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    process.kill()
    process.join()
    assert main(SCRIPT, argv) and not (tmp_path / "run" / LOCK).exists()


def test_a_run_whose_folder_was_deleted_does_not_write_to_the_next_one(options, monkeypatch, tmp_path):
    folder, train_step = tmp_path / "out", common.train.train_step

    def delete_folder(*args):
        *_, steps_done, _ = args
        if steps_done == 4:
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / LOCK).write_text("1\nanother\nrun\n")
        return train_step(*args)

    monkeypatch.setattr(common.train, "train_step", delete_folder)
    assert f"{folder} was deleted while it was in use" in error_message(SCRIPT, options(SCRIPT))
    assert [path.read_text() for path in folder.iterdir()] == ["1\nanother\nrun\n"]


@pytest.mark.parametrize("more", ["", "--resume"])
def test_a_run_whose_folder_was_deleted_does_not_start(train, options, monkeypatch, tmp_path, more):
    """It was still loading its data when another run began in the folder."""
    other, folder, load_teacher = tmp_path / "other", tmp_path / "out", common.train.load_teacher
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(common.train, "train_step", signal_at(2, signal.SIGTERM))
        train(SCRIPT, "other", "--lr 0.5")

    def replace_folder(*args):
        shutil.rmtree(folder)
        shutil.copytree(other, folder)
        return load_teacher(*args)

    monkeypatch.setattr(common.train, "load_teacher", replace_folder)
    assert f"{folder} was deleted while it was in use" in error_message(SCRIPT, options(SCRIPT, more=more))
    files = [path.relative_to(other) for path in other.rglob("*") if path.is_file()]
    assert len(files) > 4 and all((folder / file).read_bytes() == (other / file).read_bytes() for file in files)


def test_a_run_that_fails_leaves_no_empty_folder(options, tmp_path):
    assert "--batch-size 64" in error_message(SCRIPT, options(SCRIPT, "a/b", "--batch-size 64"))
    assert list(tmp_path.iterdir()) == []


def test_half_written_files_of_dead_processes_are_removed(tmp_path):
    """And no others."""
    host = platform.node().replace(".", "-")
    endings = [f"{host}.999999999.0123abcd", f"{host}.x", f"{host}.x.0123abcd", f"{host}.{10**30}.0123abcd"]
    endings += [f"{host}.{os.getpid()}.0123abcd", "elsewhere.999999999.0123abcd"]
    files = [tmp_path / f".run.json.{ending}.tmp" for ending in endings]
    for file in files:
        file.write_text("")
    write_json(tmp_path / "run.json", {})
    assert {*tmp_path.iterdir()} == {tmp_path / "run.json", *files[1:]}


# Files that are missing or broken ------------------------------------------------------------------------------------


def test_a_run_folder_that_cannot_be_made(options, tmp_path):
    (tmp_path / "file").write_text("")
    message = error_message(SCRIPT, options(SCRIPT, "file/run"))
    assert str(tmp_path / "file" / "run") in message and "--out" in message


def test_only_a_folder_of_its_own_is_used_for_a_run(options, tmp_path):
    """Whatever else is there stays as it is."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    (tmp_path / "own" / "notes").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "odd" / "checkpoint").mkdir(parents=True)
    (tmp_path / "odd" / "checkpoint" / "last.pt").write_text("")
    os.mknod(tmp_path / "odd" / "run.json", stat.S_IFSOCK | 0o600)  # like a FIFO, but reading it does not block
    before = sorted(tmp_path.rglob("*"))
    for name, words in (
        ("own", "holds files that are not of a run, such as README.md: .*--out"),
        ("link", "is a symbolic link.*--out"),
        ("dangling", "is a symbolic link.*--out"),
        ("file", "is not a folder.*--out"),
        ("fifo", "is not a folder.*--out"),
        ("odd", "holds files that are not of a run, such as run.json: .*--out"),
    ):
        for more in ("", "--resume"):
            message = error_message(SCRIPT, options(SCRIPT, name, more))
            assert re.search(f"error: {tmp_path / name} {words}", message), message
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "own" / "README.md").read_text() == "mine"


def test_a_folder_that_is_taken_says_by_which_run(train, options, monkeypatch, tmp_path):
    train(SCRIPT, "finished", "--crop --lr 0.5")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(common.train, "train_step", signal_at(2, signal.SIGTERM))
        train(SCRIPT, "unfinished", "--seed 7")
    for name, more, words in (
        ("finished", "", "a finished run with --crop, --lr 0.5, which is never overwritten"),
        ("finished", "--crop --lr 0.5 --augment --resume", "a finished run with no --augment|with --augment none, "),
        ("finished", "--crop --lr 0.5", "a finished run with the same options, "),
        ("unfinished", "", "an unfinished run with --seed 7: continue that one with --resume"),
    ):
        message = error_message(SCRIPT, options(SCRIPT, name, more))
        assert re.search(f"{name} holds {words}.*--out", message), message
    message = error_message("train_custom_cnn", options("train_custom_cnn", "finished"))
    assert "a finished run with train_custom_vit.py, --crop" in message


def test_a_deleted_part_of_the_cache_is_made_again(tmp_path):
    config = config_of(SCRIPT, f"--data sample --limit 20 --cache {tmp_path} --image-size 16".split())
    before = load_splits(config)[1].pixels[:].copy()
    for file in list(tmp_path.glob("*/pixels.npy")):
        file.unlink()
    assert (load_splits(config)[1].pixels == before).all()
    shutil.rmtree(tmp_path)
    assert (load_splits(config)[1].pixels == before).all()


@pytest.mark.parametrize("content", [b"hello", b""])
def test_a_broken_checkpoint(options, tmp_path, content):
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint" / "last.pt").write_bytes(content)
    message = error_message(SCRIPT, options(SCRIPT, more="--resume"))
    assert re.search(f"checkpoint .*last.pt is damaged.*{tmp_path / 'out'}", message), message


def test_code_that_was_changed_between_stop_and_resume(train, options, monkeypatch):
    """The weights of the checkpoint do not fit the model of today."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(common.train, "train_step", signal_at(2, signal.SIGTERM))
        train(SCRIPT)
    build_model = train_custom_vit.build_model
    monkeypatch.setattr(train_custom_vit, "build_model", lambda *a, **k: nn.Sequential(build_model(*a, **k)))
    message = error_message(SCRIPT, options(SCRIPT, more="--resume"))
    assert re.search("checkpoint.*the code has changed.*--out", message), message


def test_a_run_whose_log_was_deleted_is_finished(train, monkeypatch, tmp_path):
    """Stopped after its last step; the best epoch is then unknown but for the last."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(common.train, "train_step", signal_at(6, signal.SIGTERM))
        train(SCRIPT)
    (tmp_path / "out" / "log.jsonl").unlink()
    train(SCRIPT, more="--resume")
    metrics = read_json(tmp_path / "out", "metrics.json")
    assert metrics["best_epoch"] == {"epoch": 2, "accuracy": metrics["accuracy"]}
