"""One run on several machines. Each machine is a process here, with a cache and a run folder of its own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import psutil
import pytest
import torch

import common.launch
import common.train
from common.config import InputError, run
from tests import helpers
from tests.helpers import (
    ROOT,
    SAMPLE,
    assert_same_run,
    exit_code,
    fork,
    launch,
    log_length,
    main,
    read_json,
    results,
    signal_at,
    wait_for,
)

SCRIPT = "train_custom_vit"  # has no batch norm, which computes its statistics for each process
MORE = "--crop --augment strong --dropout 0.1 --batch-size 4 --checkpoint-every 7"  # 24 steps
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def of_machines(tmp_path):
    """A function that returns the command lines of a run on two machines, which share no folder."""

    def of_machines(name="out", more=MORE, second=""):
        folders = [tmp_path / f"machine-{rank}" for rank in range(2)]
        lines = [helpers.options(SCRIPT, folder / name, folder / "cache", more) for folder in folders]
        return [lines[0], [*lines[1], *second.split()]]

    return of_machines


def on_its_machine(argvs, interrupted_step=0, number=signal.SIGTERM):
    """Runs the script as the only process of a machine; the second machine receives a signal in a step."""
    rank = int(os.environ["RANK"])
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    if rank and interrupted_step:
        common.train.train_step = signal_at(interrupted_step, number)
    run(lambda: main(SCRIPT, argvs[rank]))


def errors_of(argvs, output):
    """The error messages of two machines whose run fails on both."""
    assert exit_code(fork(on_its_machine, argvs, output=output, world=2)) == 1
    text = output.read_text()
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_machines_without_shared_files_train_as_one(of_machines, options, train, tmp_path):
    assert exit_code(fork(on_its_machine, of_machines(more="--crop --augment strong"), world=2)) == 0
    assert read_json(tmp_path / "machine-0" / "out", "run.json")["processes"] == 2
    assert not (tmp_path / "machine-1" / "out").exists(), "only the main process writes results"
    caches = [sorted(p.name for p in (tmp_path / f"machine-{i}" / "cache").glob("*/pixels.npy")) for i in (0, 1)]
    assert caches[0] == caches[1] and len(caches[0]) == 2, "each machine decodes for itself"
    assert_same_run(train(SCRIPT, "one", "--crop --augment strong --accumulate 2"), tmp_path / "machine-0" / "out")


@pytest.mark.slow
def test_a_run_is_stopped_on_one_machine_and_resumed_on_both(of_machines, tmp_path):
    """The second machine does not see the checkpoint, and has the data elsewhere. The results are equal bit for bit."""
    output, data = tmp_path / "output.txt", tmp_path / "data"
    shutil.copytree(SAMPLE, data)
    assert exit_code(fork(on_its_machine, of_machines("uninterrupted"), world=2)) == 0
    parts = of_machines("parts", second=f"--data {data}")
    assert exit_code(fork(on_its_machine, parts, 3, output=output, world=2)) == 75
    assert "stopped after step 10 of 24" in output.read_text()
    resumed = [[*argv, "--resume"] for argv in parts]
    assert exit_code(fork(on_its_machine, resumed, output=output, world=2)) == 0
    assert "from step 10," in output.read_text()
    first, second = (tmp_path / "machine-0" / name for name in ("uninterrupted", "parts"))
    assert results(first) == results(second)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("--lr 0.5 --seed 1", "differ in lr, seed: start them with the same"),
        ("--limit 40", "differ in data_fingerprint, limit:"),
        ("--resume", "differ in resume:"),
    ],
)
def test_machines_with_other_options_or_data_are_refused(of_machines, tmp_path, second, words):
    errors = errors_of(of_machines(second=second), tmp_path / "output.txt")
    assert len(errors) == 2 and all(words in error for error in errors)
    assert not (tmp_path / "machine-0" / "out").exists()


@pytest.mark.slow
def test_a_machine_without_the_data(of_machines, tmp_path):
    """The other one would wait for it."""
    own, other = sorted(errors_of(of_machines(second="--data missing"), tmp_path / "output.txt"), reverse=True)
    assert own.startswith("error: missing: no such file or folder")
    assert other.startswith("error: another process of this run has failed: missing: no such file")


@pytest.mark.slow
def test_a_run_folder_or_checkpoint_that_the_main_process_refuses(of_machines, tmp_path):
    argvs, folder = of_machines(), tmp_path / "machine-0" / "out"
    folder.mkdir(parents=True)
    (folder / "letter.txt").write_text("")
    own, other = sorted(errors_of(argvs, tmp_path / "1.txt"))
    assert own.startswith(f"error: {folder} holds files that are not of a run")
    assert other.startswith(f"error: another process of this run has failed: {folder} holds")

    (folder / "letter.txt").unlink()
    assert exit_code(fork(on_its_machine, argvs, 3, world=2)) == 75
    (folder / "checkpoint" / "last.pt").write_text("")
    errors = errors_of([[*argv, "--resume"] for argv in argvs], tmp_path / "2.txt")
    assert len(errors) == 2 and all("last.pt is damaged" in error for error in errors)


@pytest.mark.slow
def test_a_machine_that_fails_in_training(of_machines, tmp_path):
    output = tmp_path / "output.txt"
    processes = fork(on_its_machine, of_machines(), 12, signal.SIGKILL, output=output, world=2)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL]
    assert "Traceback" not in output.read_text()
    last = output.read_text().splitlines()[-1]
    assert re.match(r"error: another process of this run has ended or cannot be reached \([^[]+ \[127.0.0.1\]", last), (
        last
    )
    assert (tmp_path / "machine-0" / "out" / "checkpoint" / "last.pt").exists()


# Launchers -----------------------------------------------------------------------------------------------------------


def start_machine(rank, port, argv, output):
    """Starts the launcher of a machine, as in docs/clusters.md, on the CPU."""
    command = f"-m accelerate.commands.launch -q --multi_gpu --num_machines 2 --machine_rank {rank} --num_processes 2"
    command += f" --main_process_ip 127.0.0.1 --main_process_port {port} --mixed_precision no --dynamo_backend no"
    with open(output, "a") as file:
        return subprocess.Popen(
            [sys.executable, *command.split(), f"{SCRIPT}.py", *argv],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ACCELERATE_USE_CPU": "1"},
        )


@pytest.mark.slow
def test_two_launchers_are_stopped_by_a_signal_to_one_and_continue(of_machines, tmp_path):
    outputs = [tmp_path / f"{rank}.txt" for rank in range(2)]
    folder = tmp_path / "machine-0" / "out"
    argvs = [[*argv, "--resume"] for argv in of_machines(more=f"{MORE} --epochs 60")]

    def start_both():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [start_machine(rank, port, argvs[rank], outputs[rank]) for rank in range(2)]

    launchers = start_both()
    wait_for(lambda: log_length(folder) > 3)
    for process in [*psutil.Process(launchers[1].pid).children(), launchers[1]]:  # as Slurm does
        process.send_signal(signal.SIGTERM)
    assert all(launcher.wait(120) for launcher in launchers)
    assert all("continue with the same command and --resume" in output.read_text() for output in outputs)
    assert (folder / "checkpoint" / "last.pt").exists() and not (tmp_path / "machine-1" / "out").exists()

    assert [launcher.wait(300) for launcher in start_both()] == [0, 0]
    assert read_json(folder, "metrics.json")["n"] == 48 and len(read_json(folder, "run.json")["resumed"]) == 1
    assert "finished: " in outputs[0].read_text() and "finished: " not in outputs[1].read_text()


@NO_GPU
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options_of_launcher", "words"),
    [
        ("--cpu --num_machines 2 --main_process_ip 127.0.0.1 --main_process_port 29511", "has started one"),
        ("--cpu --num_machines 1", "has started one"),
        ("--use_fsdp --num_machines 1 --fsdp_version 2", "the launcher uses FSDP"),
    ],
)
def test_launches_that_would_not_train_one_run_are_refused(options_of_launcher, words, options, tmp_path):
    command = f"-m accelerate.commands.launch -q --num_processes 2 {options_of_launcher} --mixed_precision no"
    done = launch([sys.executable, *command.split(), f"{SCRIPT}.py", *options(SCRIPT)])
    assert done.returncode == 1 and f"{words}" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", common.launch.SHARDING)
def test_models_divided_among_processes_are_refused(name, monkeypatch):
    common.launch.check_sharding()
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=f"the launcher uses {common.launch.SHARDING[name]}, which divides"):
        common.launch.check_sharding()
