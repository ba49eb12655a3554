"""Studies on a cluster: parameters, what a job does when it is stopped, status, and a study on a real Slurm."""

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

import study
from common.compare import cluster, grid
from common.compare.process import SlurmJob
from common.config import InputError
from common.files import locked_folder
from tests import helpers
from tests.helpers import ROOT, launch, log_length, read_json, results, wait_for

GRID = "--data sample --models custom_cnn --variants full --seeds 4"
NAMES = [f"train_custom_cnn-full-s{seed}" for seed in range(4)]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A function that puts commands, each a shell script, in the place of Slurm's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def commands(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return commands


@pytest.fixture
def submitted(tmp_path):
    """A study of four runs, of which three were submitted: its command line, jobs and folder."""
    line = f"{GRID} --out {tmp_path / 'study'}"
    jobs = study.jobs_of(*study.read_options(line.split()))
    record(tmp_path / "study", {name: f"12_{i}" for i, name in enumerate(NAMES[:3])})
    return line, jobs, tmp_path / "study"


def record(root, jobs):
    (root / "slurm").mkdir(parents=True, exist_ok=True)
    (root / "slurm" / "jobs.json").write_text(json.dumps(jobs))


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("partition", "--slurm partition: write it as KEY=VALUE, such as partition=gpu"),
        ("partition=", "--slurm partition=: write it as KEY=VALUE"),
        ("comment=a\nrm -rf", "write it as KEY=VALUE"),
        ("gpus=1", "gpus is not accepted. Use one of account, .*gpus_per_node, .*partition"),
        ("setup=reboot", "setup is not accepted"),
        ("array_parallelism=2", "array_parallelism is not accepted"),
        ("timeout_min=4h", "--slurm timeout_min=4h: timeout_min must be a number"),
        ("cpus_per_task=-1", "cpus_per_task must be a number"),
        ("mem_gb=nan", "mem_gb must be a number"),
        ("timeout_min=3", "timeout_min=3 leaves no time to train: a run is asked to stop 120 to 180 seconds before"),
    ],
)
def test_a_wrong_parameter_is_explained(tmp_path, word, message):
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match=message):
        cluster.make_executor(tmp_path / "study" / "slurm", [word])


def test_parameters_are_passed_on(tmp_path, commands):
    pytest.importorskip("submitit")
    commands(sbatch="", srun="")
    words = "partition=gpu timeout_min=240 gpus_per_node=1 cpus_per_task=8 mem_gb=1.5 account=007 exclusive=true"
    executor = cluster.make_executor(tmp_path / "My study" / "slurm", words.split())
    text = executor._executor._make_submission_file_text("COMMAND", "")
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, flags=re.MULTILINE))
    expected = {"partition": "gpu", "time": "240", "gpus-per-node": "1", "cpus-per-task": "8", "mem": "1536MB"}
    expected |= {
        "job-name": "'My study'",
        "account": "007",
        "exclusive": "",
        "requeue": "",
        "signal": "USR2@120",
        "chdir": str(ROOT),
    }
    assert expected.items() <= flags.items()
    assert "--cpus-per-task 8" in text.splitlines()[-1] and "COMMAND" in text.splitlines()[-1]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(InputError, match=r"needs the package submitit: run pip install -e '\.\[cluster\]'"):
            cluster.make_executor(tmp_path, [])
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="sbatch and srun are not installed here"):
        cluster.make_executor(tmp_path, [])


@pytest.mark.parametrize("line", ["--slurm partition=gpu", "--cluster pbs"])
def test_a_wrong_command_line_is_explained(line, capsys):
    helpers.assert_usage_error(study.main, line, line.split()[0], capsys)


def test_a_job_has_one_machine(tmp_path, submitted):
    line, _, root = submitted
    (tmp_path / "two.yaml").write_text("num_machines: 2\n")
    with pytest.raises(InputError, match="two.yaml starts each run on several machines"):
        study.main([*line.split(), "--cluster", "slurm", "--config-file", str(tmp_path / "two.yaml")])


def test_pickles_that_others_could_replace_are_refused(tmp_path):
    folder = tmp_path / "study" / "slurm"
    cluster.make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    cluster.make_private(folder)
    folder.chmod(0o770)
    with pytest.raises(InputError, match="others can write to .*slurm, and so run code in your jobs"):
        cluster.make_private(folder)


def test_a_path_that_slurm_would_change_is_refused(tmp_path, commands):
    """It could also end a line of the script that is submitted, and begin another."""
    pytest.importorskip("submitit")
    commands(sbatch="", srun="")
    for name in ("100%", "a\nreboot"):
        with pytest.raises(InputError, match="has % or control characters in its path"):
            cluster.make_executor(tmp_path / name / "slurm", [])


# Jobs that were submitted --------------------------------------------------------------------------------------------

QUEUE = """
echo '12_0|RUNNING|None'
echo '12_1|PENDING|Resources'
echo '13_2|RUNNING|None'
"""


def test_a_study_is_not_trained_on_this_machine_while_it_is_on_a_cluster(submitted, commands, monkeypatch):
    line, jobs, root = submitted
    monkeypatch.setattr(grid, "decode_data", lambda jobs: pytest.fail("it begins"))
    commands(squeue=QUEUE)
    with pytest.raises(InputError, match="Slurm has 2 runs of this study queued or running: .* scancel 12"):
        study.main(line.split())
    assert {path.name for path in root.iterdir()} == {"slurm"}
    active = cluster.active_runs(jobs)
    assert [(folder.name, job.id, job.state) for folder, job in active.items()] == [
        (NAMES[0], "12_0", "running"),
        (NAMES[1], "12_1", "queued"),
    ]
    commands(squeue="")
    assert cluster.check_not_submitted(jobs) is None, "they have ended"


def test_other_lines_of_squeue_are_skipped(submitted, commands):
    _, jobs, _ = submitted
    commands(squeue=f"echo Welcome; printf 'caf\\351\\n'\n{QUEUE}")
    assert [job.id for job in cluster.active_runs(jobs).values()] == ["12_0", "12_1"]


def test_a_finished_study_asks_no_cluster(submitted, monkeypatch):
    _, jobs, root = submitted
    for name in NAMES:
        (root / name).mkdir()
        (root / name / "metrics.json").write_text("{}")
    monkeypatch.setenv("PATH", "")
    assert cluster.active_runs(jobs) == {}


def test_jobs_are_not_taken_for_ended_if_slurm_cannot_be_asked(submitted, commands, monkeypatch):
    line, jobs, _ = submitted
    commands(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(InputError, match=r"squeue fails \(Unable to contact slurm controller\)\. Try again"):
        cluster.active_runs(jobs)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"squeue fails \(No such file"):
        study.main(line.split())


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": "1; reboot"}', "[" * 10**5])
def test_a_damaged_record_is_refused(submitted, content):
    _, jobs, root = submitted
    (root / "slurm" / "jobs.json").write_text(content)
    with pytest.raises(InputError, match="jobs.json is damaged"):
        cluster.active_runs(jobs)


def test_runs_are_submitted_once(tmp_path, cache, commands, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.setattr(grid, "PartialState", lambda cpu: None)  # it would prevent later tests from using a GPU
    root = tmp_path / "study"
    line = f"{GRID} --limit 32 --image-size 32 --cache {cache} --out {root} --cluster slurm"

    def submit(more="", array=12):
        commands(srun="", sbatch=f"echo 'Submitted batch job {array}'")
        study.main([*line.split(), *more.split()])
        return capsys.readouterr().out

    assert submit("--jobs 2").startswith("4 runs submitted as job 12. --status shows")
    assert "#SBATCH --array=0-3%2\n" in (root / "slurm" / "12_submission.sh").read_text()
    assert read_json(root / "slurm", "jobs.json") == {name: f"12_{i}" for i, name in enumerate(NAMES)}
    assert pickle.loads((root / "slurm" / "12_1_submitted.pkl").read_bytes()).function.folder == str(root / NAMES[1])

    commands(squeue=QUEUE)  # jobs 2 and 3 have failed
    assert submit("--slurm partition=a", 13).startswith("2 runs submitted as job 13, 2 runs already queued or running.")
    assert "#SBATCH --array=0-1%2\n" in (root / "slurm" / "13_submission.sh").read_text()
    jobs = [*read_json(root / "slurm", "jobs.json").values()]
    assert jobs == ["12_0", "12_1", "13_0", "13_1"]
    commands(squeue="\n".join(f"echo '{job}|PENDING|Priority'" for job in jobs))
    assert submit().startswith("nothing to submit: 4 runs already queued or running\n0 of 4 runs finished")

    commands(squeue="", sbatch="echo 'sbatch: error: invalid partition specified: b' >&2; exit 1")
    with pytest.raises(InputError, match="^Slurm refuses the jobs: sbatch: error: invalid partition specified: b$"):
        study.main([*line.split(), "--slurm", "partition=b"])
    assert [*read_json(root / "slurm", "jobs.json").values()] == jobs


# Status --------------------------------------------------------------------------------------------------------------


def shown(line, capsys):
    """What --status prints: details of each run that is not finished, by state, and the last line."""
    capsys.readouterr()
    study.main([*line.split(), "--status"])
    *lines, last = capsys.readouterr().out.splitlines()
    return [re.split(r" {2,}", text, maxsplit=2) for text in lines], last


def test_the_status_of_runs_on_a_cluster(submitted, commands, capsys):
    line, _, root = submitted
    commands(squeue=QUEUE)
    (root / NAMES[0]).mkdir()
    (root / NAMES[0] / "log.jsonl").write_text('{"step": 3, "epoch": 2.25}\n{"step": 4, "epo')
    rows, last = shown(line, capsys)
    assert rows == [
        [NAMES[0], "running", "epoch 2.2 of 80, job 12_0"],
        [NAMES[1], "queued", "Resources, job 12_1"],
        [NAMES[2], "not started"],
        [NAMES[3], "not started"],
    ]
    assert last == "4 runs: 1 running, 1 queued, 2 not started; time left unknown"


def test_the_status_tells_failed_runs_from_stopped_ones(submitted, commands, capsys):
    line, _, root = submitted
    commands(squeue="")
    ends = ["error: old\nstarted as job 12_0 on a\nerror: the loss is nan \x1b[2J\n", "started as job 12_1 on a\n"]
    ends += ["started as job 12_2 on a\nerror: old\nstopped after step 9 of 20; continue with ...\n"]
    (root / "output").mkdir()
    for name, text in zip(NAMES, ends, strict=False):
        (root / "output" / f"{name}.txt").write_text(text)
        (root / name).mkdir()
        (root / name / "log.jsonl").write_text('{"step": 3, "epoch": 2.0}\n')
    rows, last = shown(line, capsys)
    assert rows == [
        [NAMES[0], "failed", "the loss is nan \\x1b[2J"],
        [NAMES[1], "failed", "job 12_1 ended without a message, so it was probably killed"],
        [NAMES[2], "stopped", "epoch 2.0 of 80"],
        [NAMES[3], "not started"],
    ]
    assert last.startswith("4 runs: 1 stopped, 2 failed, 1 not started")


def test_the_status_of_a_study_on_this_machine(tmp_path, cache, empty_figures, capsys):
    more = f"--limit 32 --image-size 32 --epochs 1 --batch-size 16 --cache {cache}"
    line = f"--data sample --models custom_cnn --variants full --seeds 3 {more} --out {tmp_path / 'study'}"
    jobs = study.jobs_of(*study.read_options(line.split()))
    helpers.main(jobs[0].script, jobs[0].argv)
    with locked_folder(jobs[1].folder):
        rows, last = shown(line, capsys)
    assert rows == [[NAMES[1], "running"], [NAMES[2], "not started"]]
    assert last == "3 runs: 1 finished, 1 running, 1 not started; about 1 min left, 1 at a time"
    (jobs[1].folder).mkdir()
    (jobs[1].folder / ".run.lock").write_text(f"{os.getpid()}\nanother-machine\nx\n")
    assert shown(line, capsys)[0][0] == [NAMES[1], "not started"]


# What a job does -----------------------------------------------------------------------------------------------------

RUN = """
import os, pathlib, signal, sys, time
folder, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a training script does
    time.sleep(1)
    if behaviour == "save":
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "checkpoint" / "last.pt").write_text("")
    sys.exit("error: the loss is nan" if behaviour == "diverge" else "stopped after step 3 of 9")
if behaviour != "start":
    signal.signal(signal.SIGTERM, save)
print("threads", os.environ["OMP_NUM_THREADS"], flush=True)
if behaviour == "fail":
    sys.exit("error: no such option")
if behaviour == "finish":
    sys.exit()
time.sleep(60)
"""


@pytest.fixture
def job(tmp_path, commands):
    """A function that starts a job of Slurm in a process of its own, while squeue gives it the state `state`."""
    (tmp_path / "run.py").write_text(RUN)

    def job(behaviour, state="RUNNING"):
        commands(squeue=f"echo {state}", scontrol=f'echo "$@" >> {tmp_path}/scontrol')
        words = (sys.executable, "run.py", "study/run", behaviour)
        call = f"from common.compare.process import SlurmJob; {SlurmJob(words, str(tmp_path), 'study/run')!r}()"
        env = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "5"}
        process = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, env={**os.environ, **env})
        wait_for(lambda: "threads 5" in output() or process.poll() is not None)
        assert output().startswith("started as job 12_3 on "), "even if the run writes or fails at once"
        return process

    def output():
        path = tmp_path / "study" / "output" / "run.txt"
        return path.read_text() if path.exists() else ""

    def requeued():
        path = tmp_path / "scontrol"
        return path.read_text() if path.exists() else None

    job.output, job.requeued = output, requeued
    return job


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_run_that_is_stopped_and_has_saved_its_state_is_requeued(job, number):
    process = job("save")
    process.send_signal(number)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)  # is not passed on: a second one would end the script before it has saved
    assert process.wait(30) == 75
    assert job.requeued() == "requeue 12_3\n" and "stopped after step 3" in job.output()


def test_a_job_that_cannot_be_requeued_says_so(job, commands):
    process = job("save")
    commands(scontrol="echo 'Access denied' >&2; exit 1")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 75
    assert job.output().splitlines()[-1] == "error: Slurm did not requeue the job: Access denied"


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_a_job_that_slurm_ends_itself_is_not_requeued(job, state):
    process = job("save", state)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75 and job.requeued() is None


def test_a_time_limit_before_the_first_step_is_not_repeated_for_ever(job):
    process = job("start")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 75 and job.requeued() is None
    assert "error: the job reached its time limit before completing a step: raise timeout_min" in job.output()


def test_a_run_that_is_preempted_before_the_first_step_is_requeued(job):
    process = job("start")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75 and job.requeued() == "requeue 12_3\n"


def test_a_run_that_fails_is_not_requeued(job):
    assert job("fail").wait(30) == 1 and job.output().splitlines()[-1] == "error: no such option"
    assert job("finish").wait(30) == 0 and job.requeued() is None


def test_a_run_that_fails_while_it_is_stopped_is_not_requeued(job):
    process = job("diverge")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 1 and job.requeued() is None
    assert job.output().splitlines()[-1] == "error: the loss is nan"


def test_a_run_that_is_killed_leaves_a_reason(job):
    process = job("save")
    [child] = psutil.Process(process.pid).children()
    child.kill()
    assert process.wait(30) == 1 and job.requeued() is None
    assert job.output().splitlines()[-1] == (
        "error: the run crashed or was killed, perhaps for lack of memory (exit code -9)"
    )


def test_a_job_imports_nothing_slow():
    done = launch([sys.executable, "-X", "importtime", "-c", "import common.compare.process"])
    names = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "psutil" in names and not names & {"torch", "numpy", "accelerate", "pandas"}


# A study on Slurm ----------------------------------------------------------------------------------------------------


def script_of(folder):
    """The process that trains the run in `folder`."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(folder) in words and any(Path(word).name.startswith("train_") for word in words[1:3]):
            if "accelerate.commands.launch" not in words:
                return process
    return None


def has_pending(process, number):
    """Whether a signal waits for a suspended process."""
    pending = re.search(r"^ShdPnd:\t(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)[1]
    return int(pending, 16) >> (number - 1) & 1


@pytest.fixture
def in_the_middle():
    """A function that waits until a run has trained for some epochs, and returns its process, suspended."""
    processes = []

    def in_the_middle(folder):
        wait_for(lambda: log_length(folder) >= 4)
        process = script_of(folder)
        processes.append(process)
        process.suspend()
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        assert not (folder / "metrics.json").exists()
        return process

    yield in_the_middle
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.slow
def test_a_study_on_slurm_is_equal_to_one_on_this_machine(slurm, in_the_middle, cache, tmp_path, monkeypatch):
    """Eight runs: one is requeued, one reaches its time limit, one is killed and submitted again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    line = f"--data sample --models custom_cnn custom_vit --variants full crop --seeds 2 --cache {cache}"
    line += " --limit 64 --image-size 32 --epochs 40"
    study_command = [sys.executable, "study.py", *line.split(), "--out", str(tmp_path / "study")]
    on_slurm = [*study_command, "--cluster", "slurm", "--slurm", "timeout_min=10", "signal_delay_s=10"]

    def ask(command):
        done = launch(command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def slurm_says(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def set_limit(folder, minutes):
        slurm_says("scontrol", "update", f"JobId={jobs[folder.name]}", f"TimeLimit={minutes}")

    printed = ask(on_slurm)
    array = re.match(r"8 runs submitted as job (\d+)\.", printed)[1]
    assert "0 of 8 runs finished" in printed
    jobs = read_json(tmp_path / "study" / "slurm", "jobs.json")
    folders = [tmp_path / "study" / name for name in jobs]
    assert len(folders) == 8 and list(jobs.values()) == [f"{array}_{i}" for i in range(8)]
    requeued, limited, killed, *_ = folders

    first, second = in_the_middle(requeued), in_the_middle(limited)  # two CPUs
    *rows, last = ask([*study_command, "--status"]).splitlines()
    assert re.fullmatch(rf"{requeued.name} +running +epoch [\d.]+ of 40, job {array}_0", rows[0])
    assert re.fullmatch(rf"{killed.name} +queued +Resources, job {array}_2", rows[2])
    assert last == "8 runs: 2 running, 6 queued; time left unknown"
    assert ask(on_slurm).startswith("nothing to submit: 8 runs already queued or running")
    here = launch(study_command)
    assert (
        here.returncode == 1
        and f"queued or running: add --cluster slurm, or cancel them with scancel {array}." in here.stderr
    )

    slurm_says("scontrol", "requeue", jobs[requeued.name])
    wait_for(lambda: has_pending(first, signal.SIGTERM))
    first.resume()

    in_the_middle(killed).kill()

    start = slurm_says("squeue", "--noheader", f"--jobs={jobs[limited.name]}", "--format=%S").strip()
    elapsed = time.time() - datetime.fromisoformat(start).timestamp()
    set_limit(limited, int(elapsed + 45) // 60 + 1)  # minutes; 45 to 105 seconds are left
    wait_for(lambda: has_pending(second, signal.SIGTERM))
    set_limit(limited, 10)
    second.resume()

    wait_for(lambda: not slurm_says("squeue", "--noheader"), 600)
    *rows, last = ask([*study_command, "--status"]).splitlines()
    assert len(rows) == 1 and re.match(rf"{killed.name} +failed +the run crashed or was killed", rows[0])
    assert last.startswith("8 runs: 7 finished, 1 failed; about ")

    for folder in (requeued, limited):
        text = (tmp_path / "study" / "output" / f"{folder.name}.txt").read_text()
        assert text.count("started as job ") == 2 and re.search("stopped after step [1-9]", text)
        assert re.search("from step [1-9]", text), "it continues from its checkpoint"

    assert ask(on_slurm).startswith("1 run submitted as job ")
    wait_for(lambda: not slurm_says("squeue", "--noheader"), 300)
    assert ask([*study_command, "--status"]) == "8 runs: 8 finished\n"
    assert "8 of 8 runs finished" in ask(on_slurm)

    local = [*study_command[:-1], str(tmp_path / "local"), "--jobs", "1"]
    assert subprocess.run(local, cwd=ROOT, capture_output=True, timeout=600, check=False).returncode == 0
    for folder in folders:
        assert results(folder) == results(tmp_path / "local" / folder.name), folder.name
