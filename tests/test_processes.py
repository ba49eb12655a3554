"""Launchers, several processes, threads and memory."""

import os
import platform
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from accelerate import Accelerator

import common.launch
import common.train
import train_resnet
from common.config import Interrupted, run
from common.data.dataset import load_splits
from common.data.sources import clean_category
from common.launch import OtherLoad, available_cores, use_all_cores
from common.metrics import scores
from common.run_folder import RunFolder
from tests.helpers import (
    ROOT,
    SCRIPTS,
    SMALL,
    assert_same_run,
    config_of,
    epoch_lines,
    exit_code,
    fork,
    fork_script,
    launch,
    logits_of,
    main,
    read_json,
    read_predictions,
    read_weights,
    results,
    signal_at,
    wait_for,
)

TORCHRUN = ["torchrun", "--standalone", "--nproc_per_node", "2"]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


# Launchers, started as by a user -----------------------------------------------------------------------------------


def test_a_script_without_a_launcher(options, tmp_path):
    done = launch([sys.executable, "train_custom_vit.py", *options("train_custom_vit")])
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "train_custom_vit: loading PyTorch ..."
    assert f"finished: {tmp_path / 'out'}: accuracy " in done.stdout
    assert read_json(tmp_path / "out", "run.json")["processes"] == 1


def test_accelerate_launch_with_the_projects_configuration(options, tmp_path):
    line = options("train_custom_cnn", more="--crop --augment")
    command = ["accelerate", "launch", "--config_file", "accelerate_config.yaml", "--mixed_precision", "bf16"]
    done = launch([*command, "train_custom_cnn.py", *line])
    assert done.returncode == 0, done.stderr
    run = read_json(tmp_path / "out", "run.json")
    assert run["mixed_precision"] == "bf16" and run["processes"] == 1


@pytest.mark.slow
def test_torchrun(options, train, tmp_path):
    more = "--crop --augment strong"
    done = launch([*TORCHRUN, "train_custom_vit.py", *options("train_custom_vit", "two", more)], ACCELERATE_USE_CPU="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1, "only the main process prints"
    assert read_json(tmp_path / "two", "run.json")["processes"] == 2
    assert_same_run(train("train_custom_vit", "one", more), tmp_path / "two")


@NO_GPU
@pytest.mark.slow
def test_processes_that_do_not_communicate_are_refused(options, tmp_path):
    """torchrun without ACCELERATE_USE_CPU and without a GPU: each process would train alone, in the same folder."""
    done = launch([*TORCHRUN, "train_custom_cnn.py", *options("train_custom_cnn")])
    if done.returncode == 0:  # with accelerate before 1.13 they train together
        assert read_json(tmp_path / "out", "run.json")["processes"] == 2
    else:
        assert "ACCELERATE_USE_CPU=1" in done.stderr


@pytest.mark.slow
def test_a_mistake_in_a_real_process(options):
    done = launch([sys.executable, "train_custom_cnn.py", *options("train_custom_cnn", more="--margin -1")])
    assert (
        done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: --margin is -1.0") and not done.stdout
    )


# Several processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "train_resnet"])
def test_two_processes_train_as_one(train, options, script, tmp_path):
    """Without batch norm, which computes its statistics for each process."""
    more = "--crop --augment strong" + " --background swap" * (script == "train_custom_cnn")
    assert exit_code(fork_script(script, options(script, "two", more), world=2)) == 0
    assert read_json(tmp_path / "two", "run.json")["processes"] == 2
    assert_same_run(train(script, "one", more), tmp_path / "two")


@pytest.mark.slow
def test_two_processes_with_batch_norm_score_the_saved_weights(options, tmp_path):
    argv = options("train_resnet", "two", "--crop --augment strong")
    assert exit_code(fork_script("train_resnet", argv, world=2)) == 0
    config = config_of("train_resnet", argv)
    model = train_resnet.build_model(config, 12)
    model.load_state_dict(read_weights(tmp_path / "two"))
    val = load_splits(config)[1]
    result = scores(val.labels.numpy(), logits_of(model, val).numpy())
    assert result["loss"] == pytest.approx(epoch_lines(tmp_path / "two")[-1]["val_loss"], abs=1e-5)


@pytest.mark.slow
def test_each_val_row_once_on_any_number_of_processes(tmp_path, rows, parquet):
    copies = [dict(row, image_id=f"{row['image_id']}-{copy}") for copy in range(7) for row in rows["val"]]
    kinds = {clean_category(row["category"]) for row in rows["val"]}
    train = [row for row in rows["train"] if clean_category(row["category"]) in kinds]
    data = parquet({"train": train, "val": copies[:151]})

    def predictions(world):
        out = tmp_path / str(world)
        line = f"--data {data} {SMALL['train_custom_vit']} --crop --augment strong --batch-size 12 --epochs 1"
        argv = f"{line} --cache {tmp_path / 'cache'} --out {out}".split()
        assert exit_code(fork_script("train_custom_vit", argv, world=world)) == 0
        rows = read_predictions(out)
        assert len(rows) == 151 == len({row["image_id"] for row in rows})
        metrics = read_json(out, "metrics.json")
        same = {name: metrics[name] for name in ("n", "accuracy", "precision", "recall", "f1", "macro_f1")}
        return same, [(row["image_id"], row["prediction"]) for row in rows]

    one = predictions(1)
    assert all(predictions(world) == one for world in (2, 3, 4))


@pytest.mark.slow
def test_more_processes_than_val_rows(rows, parquet, cache, tmp_path):
    kind = clean_category(rows["val"][0]["category"])
    train = [row for row in rows["train"] if clean_category(row["category"]) == kind]
    data = parquet({"train": train, "val": rows["val"][:1]})
    line = f"--data {data} --cache {cache} --out {tmp_path / 'out'} --batch-size 4 --epochs 1"
    argv = f"{line} {SMALL['train_custom_vit']}".split()
    assert exit_code(fork_script("train_custom_vit", argv, world=2)) == 0
    assert len(read_predictions(tmp_path / "out")) == 1


def interrupted(script, argv, rank, step, number):
    """Runs a script in which one process, or each if `rank` is None, receives a signal in step `step`."""
    if rank in (None, int(os.environ["RANK"])):
        common.train.train_step = signal_at(step, number)
    run(lambda: main(script, argv))


@pytest.mark.slow
def test_two_processes_are_stopped_killed_and_resumed(options, tmp_path):
    """Weights, results and all numbers in the log equal those of the uninterrupted run, bit for bit."""
    script, output = "train_custom_vit", tmp_path / "output.txt"
    more = "--crop --augment strong --dropout 0.1 --batch-size 4 --accumulate 2 --checkpoint-every 7"  # 24 steps
    argv, parts = options(script, "parts", more), tmp_path / "parts"
    assert exit_code(fork_script(script, options(script, "uninterrupted", more), world=2)) == 0

    stopped = fork(interrupted, script, argv, 1, 3, signal.SIGTERM, output=output, world=2)
    assert exit_code(stopped) == 75, "the other process learns of it at the next log line"
    assert "stopped after step 10 of 24" in output.read_text()

    resume = [*argv, "--resume"]
    killed = fork(interrupted, script, resume, None, 17, signal.SIGKILL, output=output, world=2)
    assert exit_code(killed) == -signal.SIGKILL
    assert not (parts / "metrics.json").exists() and "from step 10," in output.read_text()

    assert exit_code(fork_script(script, resume, output=output, world=2)) == 0
    assert "from step 14," in output.read_text(), "between two log lines"
    assert results(parts) == results(tmp_path / "uninterrupted")


def stopped_with_a_slow_disk(script, argv, checkpoint):
    """Runs a script that is stopped in step 2 and takes a second to write; checks that no process ends before that."""

    def write_checkpoint(folder, state, write=RunFolder.write_checkpoint):
        time.sleep(folder.is_main)
        write(folder, state)

    RunFolder.write_checkpoint = write_checkpoint
    common.train.train_step = signal_at(2, signal.SIGTERM)
    with pytest.raises(Interrupted):
        main(script, argv)
    assert checkpoint.exists()


@pytest.mark.slow
def test_no_process_ends_before_the_checkpoint_is_written(options, tmp_path):
    """A launcher that sees one process end terminates the others, in the middle of their writing."""
    script, checkpoint = "train_custom_vit", tmp_path / "out" / "checkpoint" / "last.pt"
    argv = options(script, more="--checkpoint-every 100 --epochs 20")
    assert exit_code(fork(stopped_with_a_slow_disk, script, argv, checkpoint, world=2)) == 0


# Threads and memory --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    """The second block is smaller, as a small object may have taken part of the space of the first by then."""
    code = """
import resource, torch
from common.launch import keep_freed_memory
keep_freed_memory()
for size in (2**25, 2**24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = launch([sys.executable, "-c", code])
    first, second = map(int, done.stdout.split())
    assert second < first / 10, f"page faults for 128 MB and then for 64 MB: {first} and {second}"


PRINT_THREADS = (
    "import torch; from common.launch import use_all_cores; use_all_cores(); "
    "sys.stdout.write(f'{torch.get_num_threads()}\\n')"  # in one piece, as two processes write
)
LAUNCHERS = {
    "accelerate": ["accelerate", "launch", "-q", "--config_file", "accelerate_config.yaml"],
    "accelerate -m": [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "-q",
        "--config_file",
        "accelerate_config.yaml",
    ],
    "torchrun": TORCHRUN,
}


@NO_GPU
@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("given", [None, "environment", "option"])
def test_threads_under_a_launcher(launcher, given, tmp_path, monkeypatch):
    """All cores, unless a person has set a number, which then looks like the launcher's own."""
    if given == "option" and launcher == "torchrun":
        pytest.skip("it has no such option")
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}); {PRINT_THREADS}")
    monkeypatch.delenv("OMP_NUM_THREADS")
    env = {"OMP_NUM_THREADS": "1"} if given == "environment" else {}
    option = ["--num_cpu_threads_per_process", "1"] if given == "option" else []
    done = launch([*LAUNCHERS[launcher], *option, str(script)], ACCELERATE_USE_CPU="1", **env)
    processes = 2 if launcher == "torchrun" else 1
    cores = min(psutil.cpu_count(logical=False) or 1, len(available_cores()))
    assert done.stdout.split() == [str(1 if given else max(1, cores // processes))] * processes, done.stderr


@NO_GPU
@pytest.mark.slow
def test_python_and_accelerate_launch_use_the_same_threads(options, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    for name, start in (("plain", [sys.executable]), ("launched", LAUNCHERS["accelerate"])):
        assert launch([*start, "train_custom_cnn.py", *options("train_custom_cnn", name)]).returncode == 0
    plain, launched = (read_json(tmp_path / name, "run.json")["device"] for name in ("plain", "launched"))
    assert plain == launched and results(tmp_path / "plain") == results(tmp_path / "launched")


def test_threads_without_a_launcher_are_torchs_own(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        use_all_cores()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("others", "cores", "threads", "advice"),
    [(1.0, 2, 2, 1), (2.0, 2, 2, 1), (4.2, 16, 16, 11), (0.2, 2, 2, None), (1.0, 4, 2, None), (0.0, 2, 4, None)],
)
def test_other_load_is_noticed_once(others, cores, threads, advice, monkeypatch):
    load = OtherLoad(Accelerator(cpu=True))
    load.threads, load.watches, load.since, load.before = threads, True, 100.0, 50.0
    monkeypatch.setattr(common.launch, "available_cores", lambda: list(range(cores)))
    monkeypatch.setattr(OtherLoad, "_seconds_of_others", lambda self: 50 + 10 * others)
    monkeypatch.setattr(common.launch.time, "monotonic", lambda: 102.0)
    assert load.note() is None, "not yet"
    monkeypatch.setattr(common.launch.time, "monotonic", lambda: 110.0)
    note = load.note()
    assert (note is None) == (advice is None)
    if advice:
        assert f"{others} of {cores} cores" in note and f"OMP_NUM_THREADS={advice}." in note
        assert load.note() is None


def test_the_time_of_other_processes_is_measured():
    load = OtherLoad(Accelerator(cpu=True))
    before = load._seconds_of_others()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        wait_for(lambda: psutil.Process(busy.pid).cpu_times().user > 0.5)
        busy.kill()
    assert load._seconds_of_others() - before > 0.4


def test_the_time_of_this_process_is_not_that_of_others(monkeypatch):
    load, system, end = OtherLoad(Accelerator(cpu=True)), psutil.cpu_times(percpu=True), time.process_time() + 0.3
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: system)
    before = load._seconds_of_others()
    while time.process_time() < end:
        pass
    assert load._seconds_of_others() - before == pytest.approx(-0.3, abs=0.1)
