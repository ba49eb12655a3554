"""Studies: the plan, a short study in this process, and real launches that are killed, stopped and resumed."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import compare
import study
import train_custom_cnn
import train_resnet
from common.compare import grid, workers
from common.compare.experiments import group_runs
from common.compare.grid import Job, plan_jobs, time_left
from common.config import InputError
from common.files import LOCK
from common.finished_run import find_runs
from tests import helpers
from tests.helpers import ROOT, assert_usage_error, read_json, read_log, results, wait_for

# Part of the lab's table on little data.
GRID = "--recipe lab --models custom_cnn custom_vit --data sample"


@pytest.fixture
def own_handler():
    """Restores the handler of SIGTERM, which a study replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def start_study(cache, tmp_path, monkeypatch, own_handler):
    """A function that executes a study and its runs in this process and returns the names of the runs."""

    def start_study(line):
        started = []

        class LaunchHere(workers.Launch):
            def __init__(self, job, config_file, environment):
                self.job, self.environment, self.output = job, environment, Path("output")
                self.reason = None
                started.append(job.folder.name)
                try:
                    helpers.main(job.script, job.argv)
                except InputError as error:
                    self.reason = f"error: {error}"

            def is_running(self):
                return False

            def error(self):
                return self.reason

        monkeypatch.setattr(workers, "Launch", LaunchHere)
        more = "" if "--jobs" in line else " --jobs 1"
        study.main([*f"{line}{more}".split(), "--cache", cache, "--out", str(tmp_path / "study")])
        return started

    start_study.cache, start_study.out = cache, tmp_path / "study"
    return start_study


# The plan ------------------------------------------------------------------------------------------------------------


def jobs(line="", seeds=2, folds=0):
    experiments = [("train_resnet", train_resnet.Config, "full"), ("train_custom_cnn", train_custom_cnn.Config, "crop")]
    more = [words.split() for words in line.split(",") if words]
    return plan_jobs(experiments, more, seeds=seeds, folds=folds, root=Path("r"))


def test_the_plan_goes_seed_by_seed():
    assert [job.folder.name for job in jobs()] == [
        "train_resnet-full-s0",
        "train_custom_cnn-crop-s0",
        "train_resnet-full-s1",
        "train_custom_cnn-crop-s1",
    ]


def test_each_script_gets_the_options_that_it_has():
    planned = jobs("--weights none,--epochs 2,--hidden=9")
    assert planned[0].config.weights == "none" and planned[1].config.hidden == 9 and planned[1].config.crop
    assert all(job.config.epochs == 2 and job.config.resume for job in planned)


def test_each_fold_is_a_run():
    planned = jobs(seeds=2, folds=2)
    partitions = ["product_id:1/2", "product_id:2/2", "product_id:1/2:1", "product_id:2/2:1"]  # one for each seed
    assert [job.config.split_by for job in planned[::2]] == partitions
    assert [job.config.split_by for job in planned[1::2]] == partitions, "the same for every experiment"
    assert len({job.folder for job in planned}) == 8


def test_an_option_that_no_script_has_is_an_error():
    with pytest.raises(InputError, match="--patch-size: .*train_resnet, train_custom_cnn"):
        jobs("--patch-size 8")


def test_the_time_left_comes_from_the_runs_most_alike():
    def job(script, variant):
        return Job(script, variant, (), train_custom_cnn.Config(out=f"{script}-{variant}"))

    waiting = [job("a", "full"), job("a", "crop"), job("b", "full")]
    assert time_left(waiting, {}) == "time left unknown"
    assert time_left(waiting, {job("a", "full"): 600, job("a", "crop"): 1200}) == f"about {10 + 20 + 15} min left"


def test_a_study_needs_no_further_options():
    options, more = study.read_options([])
    assert options.seeds == 6 and more == [["--recipe", "default"]]


def test_further_options_keep_their_values():
    _, more = study.read_options("--data sample --freeze --lr=0.5 --seeds 2".split())
    assert more == [["--data", "sample"], ["--freeze"], ["--lr=0.5"], ["--recipe", "default"]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--models custom_cnn --patchsize 8", "--patchsize: none"),
        ("--models custom_cnn --patch-size 8", "--patch-size: none .*train_custom_cnn"),
        ("--models custom_cnn --epochs 0", "--epochs is 0"),
        ("--models custom_cnn --no-crop", "--no-crop: none"),
        ("--models custom_cnn --variants crop --recipe lab", "--recipe lab"),
        ("--models custom_cnn --data /nowhere/at/all", "/nowhere/at/all: no such file or folder"),
    ],
)
def test_mistakes_are_found_before_the_first_run(start_study, tmp_path, monkeypatch, line, words):
    monkeypatch.setattr(grid, "PartialState", lambda cpu: None)  # it would prevent later tests from using a GPU
    with pytest.raises(InputError, match=words):
        start_study(line)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--models custom_cnn --crop", "--crop"),
        ("--models custom_cnn --seeds 0", "--seeds"),
        ("--models custom_cnn --folds 1", "--folds"),
        ("--models cnn", "--models cnn: there is no train_cnn.py, but scripts for custom_cnn, custom_vit, resnet"),
        ("--models ../study", "--models ../study: there is no train_../study.py"),
        ("--models custom_cnn --config-file nope.yaml", "nope.yaml"),
        ("sample", "unrecognized argument: sample"),
    ],
)
def test_a_wrong_command_line_is_explained(line, words, capsys):
    assert_usage_error(study.main, line, words, capsys)


def test_a_script_of_ones_own(tmp_path, monkeypatch, capsys):
    """Any train_*.py beside study.py that has a Config."""
    shutil.copy(ROOT / "train_custom_cnn.py", tmp_path / "train_mine.py")
    (tmp_path / "train_empty.py").write_text("Config = int\n")
    monkeypatch.setattr(study, "__file__", str(tmp_path / "study.py"))
    monkeypatch.syspath_prepend(tmp_path)
    line = f"--variants crop --hidden 9 --seeds 1 --config-file {ROOT / 'accelerate_config.yaml'} --models"
    (job,) = study.jobs_of(*study.read_options([*line.split(), "mine"]))
    assert (job.script, job.folder.name, job.config.hidden) == ("train_mine", "train_mine-crop-s0", 9)
    with pytest.raises(InputError, match="train_empty.py has no class Config"):
        study.jobs_of(*study.read_options([*line.split(), "mine", "empty"]))
    with pytest.raises(SystemExit):
        study.read_options([*line.split(), "resnet"])
    assert "there is no train_resnet.py, but scripts for empty, mine" in capsys.readouterr().err


# A short study -------------------------------------------------------------------------------------------------------

SHORT = f"{GRID} --limit 32 --image-size 32 --epochs 1"
NAMES = ["train_custom_cnn-full", "train_custom_cnn-crop-augment", "train_custom_vit-full"]
NAMES += ["train_custom_vit-crop-augment"]  # the lab's variants of these models


def test_a_study_trains_each_experiment_and_is_compared(start_study, tmp_path, capsys):
    assert start_study(f"{SHORT} --seeds 1") == [f"{name}-s0" for name in NAMES]
    printed = capsys.readouterr()
    assert "4 of 4 runs" in printed.out and "4/4 runs" in printed.err
    configs = [read_json(path.parent, "run.json")["config"] for path in (tmp_path / "study").glob("*/run.json")]
    assert len(configs) == 4 and {config["recipe"] for config in configs} == {"lab"}

    result = compare.main([str(tmp_path / "study"), "--out", str(tmp_path / "comparison")])
    assert [e["name"] for e in result["experiments"]] == [
        "custom_cnn full", "custom_cnn crop-augment", "custom_vit full", "custom_vit crop-augment"
    ]  # fmt: skip
    assert [q["question"] for q in result["questions"]] == [
        "custom_cnn: crop-augment vs. full", "custom_vit: crop-augment vs. full",
        "custom_vit vs. custom_cnn, crop-augment",
    ]  # fmt: skip
    assert len(list((tmp_path / "comparison").glob("*.png"))) == 6


def test_another_seed_is_added_and_other_options_are_refused(start_study, tmp_path):
    line = f"{SHORT} --models custom_cnn --variants full"
    assert start_study(f"{line} --seeds 1") == ["train_custom_cnn-full-s0"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").glob("*/*")}
    assert start_study(f"{line} --seeds 2") == ["train_custom_cnn-full-s1"]
    with pytest.raises(InputError, match="train_custom_cnn-full-s0 .*--lr 0.001.*--out"):
        start_study(f"{line} --seeds 2 --lr 0.5")
    assert before == {path: path.stat().st_mtime_ns for path in before}, "a finished run is not touched"


def test_each_seed_of_a_study_has_its_own_folds(start_study, empty_figures, tmp_path):
    line = f"{SHORT} --models custom_cnn --variants full --folds 2"
    assert start_study(f"{line} --seeds 1") == [f"train_custom_cnn-full-f{fold}-s0" for fold in (1, 2)]
    assert start_study(f"{line} --seeds 2") == [f"train_custom_cnn-full-f{fold}-s1" for fold in (1, 2)]
    runs, _ = find_runs([str(tmp_path / "study")])
    (experiment,) = group_runs(runs)
    assert experiment.seeds == [0, 1] and len(set(experiment.ids["image_id"])) == len(experiment.ids) == 64
    predicted = {
        (run.info.config["split_by"], row.image_id): (row.product_id, row.label, row.prediction)
        for run in runs
        for row in run.rows.itertuples()
    }
    for splits, predictions in zip(experiment.splits, experiment.predictions, strict=True):
        columns = experiment.ids[["product_id", "label"]].assign(prediction=predictions)
        keys = zip(splits.tolist(), experiment.ids["image_id"], strict=True)
        assert [predicted[key] for key in keys] == list(columns.itertuples(index=False, name=None))

    result = compare.main([str(tmp_path / "study"), "--out", str(tmp_path / "comparison")])
    assert [len(baseline["accuracy_of_seeds"]) for baseline in result["baselines"]] == [2, 2], "one for each partition"
    assert not any("only fold" in note for note in result["notes"])
    page = (tmp_path / "comparison" / "comparison.md").read_text()
    assert "product_id, 2 folds, 2 partitions" in page


def test_a_run_that_fails_does_not_stop_the_others(start_study, capsys):
    """A batch of 40 is larger than the 32 train rows."""
    with pytest.raises(InputError, match="2 runs failed"):
        start_study(f"{SHORT} --models custom_cnn --seeds 1 --batch-size 40")
    assert "0 of 2 runs" in capsys.readouterr().out


def test_a_reason_is_said_once_and_a_script_without_success_is_given_up(start_study, capsys):
    """The vision transformer's patches do not divide the image; the CNN is trained."""
    line = f"{SHORT} --models custom_vit custom_cnn --variants full --seeds 5 --image-size 32 --patch-size 5"
    with pytest.raises(InputError, match="5 of 10 runs failed"):
        start_study(line)
    output = capsys.readouterr()
    printed = output.out + output.err
    assert printed.count("error: ") == 1 and printed.count("failed for the same reason") == 2
    assert "train_custom_vit: every run fails for this reason, so 2 more are not tried" in printed
    assert "5 of 10 runs finished" in printed

    failures = workers.Failures()
    failures.reasons["a"] = ["x", "x", "x"]
    failures.reasons["b"] = ["x", "y", "x"]
    assert failures.same("a") and not failures.same("b") and not failures.same("c")
    failures.succeeded.add("a")
    assert not failures.same("a"), "it may work with other options, or at another time"


def test_commands_of_unfinished_runs_are_listed(start_study, tmp_path, capsys):
    line = f"{SHORT} --models custom_cnn --variants full --seeds"
    start_study(f"{line} 1")
    capsys.readouterr()
    assert start_study(f"{line} 3 --list") == []
    listed = [shlex.split(command) for command in capsys.readouterr().out.splitlines()]
    assert [words[words.index("--out") + 1] for words in listed] == [
        str(tmp_path / "study" / f"train_custom_cnn-full-s{seed}") for seed in (1, 2)
    ]
    done = subprocess.run([*listed[0], "--dry-run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "environment", "launched"),
    [
        ("", {}, False),
        ("gpu_ids: all\n", {}, False),
        ("mixed_precision: bf16\n", {}, True),
        ("num_processes: 2\n", {}, True),
        ("fsdp_config: {}\n", {}, True),
        ("", {"ACCELERATE_MIXED_PRECISION": "bf16"}, True),
    ],
)
def test_the_launcher_is_left_out_where_it_makes_no_difference(line, environment, launched, monkeypatch, tmp_path):
    """In a configuration, the last of two lines with the same name counts."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config_file = tmp_path / "config.yaml"
    config_file.write_text(Path(CONFIG_FILE).read_text() + "\n" + line)
    (job, *_) = jobs()
    script = str(ROOT / "train_resnet.py")
    launcher = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", str(config_file)]
    expected = [sys.executable, *launcher * launched, script, *job.argv]
    assert workers.command(job, str(config_file)) == expected


@pytest.mark.parametrize(
    "content", ["", "- a\n", "num_processes: two\n", "num_machines: null\n", "num_processes: [1]\n"]
)
def test_a_file_that_configures_no_processes_is_refused(content, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=r"config\.yaml is no configuration of Accelerate: num_processes"):
        study.main(f"--data sample --plan --config-file {tmp_path / 'config.yaml'}".split())


def test_a_run_is_stopped_and_not_its_children():
    """Such as the process of a tracker, which the run ends itself."""
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); print(flush=True); time.sleep(60)"
    launch = object.__new__(workers.Launch)
    launch.has_launcher, launch.process = False, subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    launch.process.stdout.readline()
    (child,) = psutil.Process(launch.process.pid).children()
    launch.stop()
    assert launch.process.wait(10) == -signal.SIGTERM and child.is_running()
    child.kill()


def test_an_error_leaves_no_run_behind(start_study, monkeypatch):
    stopped = []

    class Endless(workers.Launch):
        def __init__(self, job, config_file, environment):
            if job.config.seed == 1:
                raise InputError("the output cannot be written")
            self.job, self.environment = job, environment

        def is_running(self):
            return True

        def stop(self):
            stopped.append(self.job.config.seed)

        def wait(self):
            stopped.append("waited")

    monkeypatch.setattr(workers, "Launch", Endless)
    monkeypatch.setattr(workers, "shares", lambda *_: [{}, {}])
    line = f"{SHORT} --models custom_cnn --variants full --seeds 2 --cache {start_study.cache} --out {start_study.out}"
    with pytest.raises(InputError, match="cannot be written"):
        study.main(line.split())
    assert stopped == [0, "waited"]


# Side by side --------------------------------------------------------------------------------------------------------


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine with 8 cores, much memory and no GPU. Returns a function that gives it GPUs."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(workers, "physical_cores", lambda: 8)
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 0)
    return lambda number: monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: number)


CONFIG_FILE = str(ROOT / "accelerate_config.yaml")


def shares_of(number, n):
    return workers.shares(number, jobs(seeds=n), CONFIG_FILE)  # two runs a seed


def threads(number, times):
    return [{"OMP_NUM_THREADS": str(number)}] * times


def test_runs_share_the_cores(eight_cores, monkeypatch):
    assert shares_of("auto", 20) == threads(1, 8)
    assert shares_of("auto", 2) == threads(2, 4), "four runs use all cores"
    assert shares_of("3", 20) == threads(2, 3) and shares_of("20", 20) == threads(1, 20)
    assert shares_of("1", 20) == [{}], "the run decides"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert shares_of("auto", 20) == [{}, {}] and shares_of("5", 20) == [{}] * 5, "a number that was given is kept"


def test_runs_share_the_memory(eight_cores, monkeypatch):
    needed = workers.memory_of(jobs()[0])
    assert 2.4 * workers.GIGABYTE < needed < 2.5 * workers.GIGABYTE, "ResNet-18, 11 million parameters"
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(3.5 * needed)))
    assert shares_of("auto", 20) == threads(2, 3)
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: SimpleNamespace(available=needed // 2))
    assert shares_of("auto", 20) == [{}] and len(shares_of("2", 20)) == 2


def test_each_run_has_a_gpu(eight_cores, monkeypatch):
    eight_cores(2)
    gpu = [threads(4, 1)[0] | {"CUDA_VISIBLE_DEVICES": str(number)} for number in (0, 1)]
    assert shares_of("auto", 20) == gpu
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares_of("3", 20)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5")
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares_of("auto", 20)] == ["3", "GPU-5"]
    eight_cores(1)
    assert shares_of("auto", 20) == [{}]


def test_runs_of_several_processes_are_run_one_after_another(eight_cores, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text("num_processes: 2\n")
    assert workers.shares("auto", jobs(seeds=20), str(file)) == [{}]
    with pytest.raises(InputError, match="--jobs 2: .*two.yaml starts several processes"):
        workers.shares("2", jobs(seeds=20), str(file))
    eight_cores(2)
    file.write_text("use_cpu: true\n")
    assert workers.shares("auto", jobs(seeds=20), str(file)) == threads(1, 8)
    file.write_text("a: [")
    with pytest.raises(InputError, match="two.yaml cannot be read"):
        workers.shares("auto", jobs(), str(file))


def test_the_time_left_is_shared(eight_cores):
    seconds = dict.fromkeys(jobs(seeds=1), 600.0)
    waiting = jobs(seeds=3)[2:]
    assert time_left(waiting, seconds, workers=2) == "about 20 min left"
    assert time_left(waiting, seconds, workers=8) == "about 10 min left", "no more than there are runs"


def test_a_finished_run_that_is_deleted_meanwhile(start_study, monkeypatch, tmp_path, capsys):
    """The study goes on, and says which runs are missing. The same command trains them again."""
    line = f"{SHORT} --models custom_cnn --variants full --seeds"
    start_study(f"{line} 1")
    main = helpers.main

    def delete_and_train(script, argv):
        shutil.rmtree(tmp_path / "study" / "train_custom_cnn-full-s0", ignore_errors=True)
        if main(script, argv).name == "train_custom_cnn-full-s1":
            shutil.rmtree(tmp_path / "study" / "train_custom_cnn-full-s1")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="2 of 3 runs failed or were deleted"):
        patch.setattr(helpers, "main", delete_and_train)
        start_study(f"{line} 3")
    assert "1 of 3 runs finished" in capsys.readouterr().out
    assert start_study(f"{line} 3") == ["train_custom_cnn-full-s0", "train_custom_cnn-full-s1"]


# Real launches -------------------------------------------------------------------------------------------------------


@pytest.fixture
def launch_study(cache, tmp_path):
    """A function that starts study.py in a separate process."""

    def launch_study(line):
        command = [sys.executable, "study.py", *line.split(), "--cache", cache, "--out", str(tmp_path / "study")]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return launch_study


def has_logged(folder):
    return (folder / "log.jsonl").exists() and read_log(folder) != []


@pytest.mark.slow
def test_a_study_is_killed_stopped_and_continued(launch_study, tmp_path):
    line = f"{GRID} --seeds 1 --limit 64 --image-size 64 --jobs 1"
    first, second, third = (tmp_path / "study" / f"{name}-s0" for name in NAMES[:3])

    killed = launch_study(line)
    wait_for(lambda: has_logged(second))
    children = psutil.Process(killed.pid).children(recursive=True)
    for process in children:
        process.suspend()
    killed.kill()
    killed.communicate()
    assert (first / "metrics.json").exists() and not (second / "metrics.json").exists()
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}

    text = tmp_path / "study" / "output" / f"{second.name}.txt"
    shown = text.read_text()
    stopped = launch_study(line)
    lock = tmp_path / "study" / LOCK
    wait_for(lambda: lock.read_text().startswith(f"{stopped.pid}\n"))
    beside = launch_study(line)
    errors = beside.communicate(timeout=60)[1]
    assert beside.returncode == 1 and f"{tmp_path / 'study'} is in use by process {stopped.pid} " in errors
    wait_for(lambda: has_logged(third))
    stopped.send_signal(signal.SIGTERM)
    errors = stopped.communicate(timeout=60)[1]
    assert stopped.returncode == 75 and str(third) in errors and "Traceback" not in errors
    assert (third / "checkpoint").exists(), "the run was asked to save its state"
    assert f"error: {second} is in use by process {children[-1].pid} " in text.read_text(), "it has outlived its study"
    assert text.read_text().startswith(shown), "what it has written is kept"
    for process in children:
        process.kill()

    done = launch_study(line)
    output, errors = done.communicate(timeout=600)
    assert done.returncode == 0, errors
    assert "4 of 4 runs" in output and "4/4 runs" in errors and "min left" in errors
    assert before == {path: path.stat().st_mtime_ns for path in first.iterdir()}, "a finished run is not touched"
    assert re.search("from step [1-9]", (third.parent / "output" / f"{third.name}.txt").read_text()), "resumed"
    assert os.path.exists(second / "metrics.json")


@pytest.mark.slow
def test_runs_side_by_side_are_stopped_continued_and_equal_to_others(launch_study, tmp_path, monkeypatch):
    line = f"{GRID} --seeds 1 --limit 64 --image-size 32 --epochs 30"
    folders = [tmp_path / "study" / f"{name}-s0" for name in NAMES]
    stopped = launch_study(f"{line} --jobs 3")
    wait_for(lambda: all(map(has_logged, folders[:3])))
    stopped.send_signal(signal.SIGTERM)  # SIGINT is ignored where a shell has started the tests in the background
    errors = stopped.communicate(timeout=120)[1]
    running = [folder for folder in folders if f"{folder}" in errors.splitlines()[-1]]
    assert stopped.returncode == 75 and len(running) == 3 and "Traceback" not in errors
    assert all((folder / "checkpoint" / "last.pt").exists() for folder in running)
    output, errors = launch_study(f"{line} --jobs 3").communicate(timeout=600)
    assert "4 of 4 runs" in output and "3 runs at the same time" in errors
    side_by_side = [results(folder) for folder in folders]

    shutil.rmtree(tmp_path / "study")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch_study(f"{line} --jobs 1").communicate(timeout=600)
    assert side_by_side == [results(folder) for folder in folders]


@pytest.mark.slow
def test_the_output_of_a_run_that_fails_is_kept_and_its_error_shown(launch_study, tmp_path):
    failing = launch_study("--models custom_cnn --variants full --seeds 1 --data sample --limit 32 --batch-size 40")
    output, errors = failing.communicate(timeout=300)
    assert failing.returncode == 1 and "0 of 1 runs" in output and "Traceback" not in errors
    assert re.search("train_custom_cnn-full-s0 failed, .*error: .*--batch-size", output) and "1 runs failed" in errors
    assert "error: " in (tmp_path / "study" / "output" / "train_custom_cnn-full-s0.txt").read_text()
