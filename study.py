"""Trains a grid of experiments (models x variants x seeds), as many runs at the same time as the machine has cores.

python study.py --data sample                     # four models, four variants, six seeds
python study.py --data sample --recipe lab        # the ten experiments of the lab study
python study.py --data sample --folds 5           # cross-validation over the products of train and val
python study.py --data sample --until-decided     # more seeds only for questions that are still open
python study.py --data sample --plan              # the time it will take, and the differences that it can find
python study.py --data sample --jobs 2            # two runs at the same time
python study.py --data sample --cluster slurm     # each run as a job of a Slurm cluster
python study.py --data sample --status            # which runs are running, queued, stopped or failed
python study.py --data sample --list              # the commands of the unfinished runs, for a scheduler of your own
python study.py --data sample --models timm mine  # train_timm.py, and a script of your own, train_mine.py
python compare.py runs/study                      # analyse the results

With --folds, each seed has its own partition of the products into folds, the same for all models and variants.

With --until-decided, there are looks at the results after 3, 6, 12, ... seeds, the last one after --max-seeds. An
experiment gets more seeds while one of its questions is open: neither decided, nor given up because more seeds are
unlikely to decide it. compare.py corrects its claims for the looks. docs/statistics.md says what this costs and saves.

Options of the training scripts, such as --epochs 5 or --weights none, are passed to the scripts that have them. To
continue an interrupted study, run the same command again: finished runs are kept, and unfinished ones are resumed.
"""

import argparse
import importlib
import re
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from common.config import KNOWN_DATA, VARIANTS, InputError, Interrupted, TrainConfig, printable, run
from common.files import locked_folder

if TYPE_CHECKING:
    from common.compare.grid import Job

MODELS = ("resnet", "vit", "custom_cnn", "custom_vit")
DEFAULT_VARIANTS = ("full", "crop", "crop-augment", "crop-strong")
LAB_VARIANTS = ("full", "crop", "crop-augment")
NOT_IN_LAB = (("custom_cnn", "crop"), ("custom_vit", "crop"))  # the table of the lab study has ten rows
RESERVED = ("--crop", "--augment", "--seed", "--split-by", "--out", "--resume", "--dry-run", "--summary")


def read_options(argv=None) -> tuple[argparse.Namespace, list[list[str]]]:
    """Parses the options of the study, and those for the training scripts, each a flag with its values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="NAME",
        help=f"scripts to run, where NAME stands for train_NAME.py (default: {' '.join(MODELS)})",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=DEFAULT_VARIANTS,
        help=f"preprocessing and augmentation (default: {' '.join(DEFAULT_VARIANTS)})",
    )
    parser.add_argument("--seeds", type=int, help="number of seeds per experiment: 0, 1, ... (default: 6)")
    parser.add_argument(
        "--until-decided",
        action="store_true",
        help="after 3, 6, 12, ... seeds, train more seeds only of experiments that have open questions",
    )
    parser.add_argument(
        "--max-seeds", type=int, help="largest number of seeds per experiment with --until-decided (default: 12)"
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        help="number of cross-validation folds over the products, with a new partition for each seed; 0 means none",
    )
    parser.add_argument(
        "--recipe", choices=("default", "lab"), default="default", help="see --help of the training scripts"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the runs, their time and what they can find; train nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the commands of unfinished runs; train nothing")
    parser.add_argument(
        "--jobs",
        default="auto",
        help="number of runs at the same time (default: auto: one on each GPU or, without a GPU, on each core; with "
        "--cluster, no limit)",
    )
    parser.add_argument("--cluster", choices=("slurm",), help="submit each run as a job, and do not wait for it")
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="parameters of submitit for the jobs, such as partition=gpu gpus_per_node=1 timeout_min=240",
    )
    parser.add_argument("--status", action="store_true", help="print the state of each unfinished run; train nothing")
    parser.add_argument("--out", default="", help="folder for the runs (default: runs/study or runs/study-lab)")
    parser.add_argument(
        "--config-file",
        default=str(Path(__file__).with_name("accelerate_config.yaml")),
        help="configuration of accelerate launch (default: accelerate_config.yaml)",
    )
    options, rest = parser.parse_known_args(argv)
    starts = [i for i, word in enumerate(rest) if word.startswith("--")]
    script_options = [rest[a:b] for a, b in zip(starts, [*starts, len(rest)][1:], strict=True)]
    if rest and 0 not in starts:
        parser.error(f"unrecognized argument: {rest[0]}")
    for flag in (words[0].split("=")[0] for words in script_options):
        if flag in RESERVED:
            parser.error(f"{flag} is set by the study: use --models, --variants, --seeds, --folds and --out instead")
    scripts = sorted(path.stem.removeprefix("train_") for path in Path(__file__).parent.glob("train_*.py"))
    for name in options.models:
        if name not in scripts or not re.fullmatch(r"\w+", name, re.ASCII):
            parser.error(f"--models {name}: there is no train_{name}.py, but scripts for {', '.join(scripts)}")
    if not Path(options.config_file).is_file():
        parser.error(f"--config-file {options.config_file}: no such file")
    if options.jobs != "auto" and not re.fullmatch(r"[1-9]\d{0,3}", options.jobs, re.ASCII):
        parser.error(f"--jobs is {options.jobs}: it must be auto or at least 1")
    if options.slurm and not options.cluster:
        parser.error("--slurm needs --cluster slurm")
    if options.folds == 1 or options.folds < 0:
        parser.error(f"--folds is {options.folds}: it must be 0 or at least 2")
    if options.until_decided and options.folds:
        parser.error("--until-decided cannot be used with --folds: its error rates were simulated without folds only")
    if options.until_decided and options.seeds is not None:
        parser.error("--until-decided chooses the number of seeds: limit it with --max-seeds instead of --seeds")
    if options.max_seeds is not None and not options.until_decided:
        parser.error("--max-seeds needs --until-decided: add it, or use --seeds instead")
    if options.until_decided:
        options.seeds = 12 if options.max_seeds is None else options.max_seeds
        if not 4 <= options.seeds <= 1000:
            parser.error(
                f"--max-seeds is {options.seeds}: it must be from 4 to 1000, as the first look is after 3 seeds"
            )
    elif options.seeds is None:
        options.seeds = 6
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}: it must be at least 1")
    return options, [*script_options, ["--recipe", options.recipe]]


def config_class(script: str) -> type[TrainConfig]:
    """The Config of a training script; InputError if it has none."""
    found = getattr(importlib.import_module(script), "Config", None)
    if not (isinstance(found, type) and issubclass(found, TrainConfig)):
        raise InputError(f"{script}.py has no class Config that extends TrainConfig: see train_resnet.py.")
    return found


def jobs_of(options: argparse.Namespace, script_options: list[list[str]]) -> "list[Job]":
    """The runs of the study that the options describe."""
    # Imported here because this takes seconds, and --help should be fast.
    from common.compare.grid import plan_jobs

    lab = options.recipe == "lab"
    configs = {model: config_class(f"train_{model}") for model in options.models}
    experiments = [
        (f"train_{model}", configs[model], variant)
        for model in configs
        for variant in dict.fromkeys(options.variants)
        if not lab or (variant in LAB_VARIANTS and (model, variant) not in NOT_IN_LAB)
    ]
    root = Path(options.out or ("runs/study-lab" if lab else "runs/study"))
    return plan_jobs(experiments, script_options, seeds=options.seeds, folds=options.folds, root=root)


def main(argv=None):
    options, script_options = read_options(argv)
    jobs = jobs_of(options, script_options)
    from common.compare.grid import finished_run
    from common.compare.looks import Looks, current_look, study_looks
    from common.compare.workers import command, shares

    looks = Looks(options.seeds) if options.until_decided else None
    if options.plan:
        from common.compare.plan import plan_report

        return print(plan_report(jobs, looks, workers=len(shares(options.jobs, jobs, options.config_file))))
    if options.list:
        for job in current_look(jobs, looks):
            if not finished_run(job):
                print(shlex.join(command(job, options.config_file)))
        return
    if options.status:
        from common.compare.status import study_status

        return print(study_status(current_look(jobs, looks, record=False)))
    root = jobs[0].folder.parent
    with locked_folder(root):
        if options.cluster:
            return submit_all(current_look(jobs, looks, print), root, options)
        for look in study_looks(jobs, looks):
            train_all(look, root, options, shares(options.jobs, jobs, options.config_file))


def submit_all(jobs: "list[Job]", root: Path, options: argparse.Namespace) -> None:
    """Submits the jobs in the locked folder `root` that are neither finished nor in the cluster's queue."""
    from common.compare.cluster import submit

    print(printable(submit(jobs, root, options.config_file, options.slurm, options.jobs)))
    finished = print_finished(jobs, root)
    if options.until_decided and finished < len(jobs):
        print("Once all are finished, the same command decides which experiments get more seeds, and submits them.")


def train_all(jobs: "list[Job]", root: Path, options: argparse.Namespace, free: list[dict[str, str]]) -> None:
    """Trains the jobs in the locked folder `root` that are not finished, and prints how many are.

    As many runs are trained at the same time as there are environments in `free`, each with one of them.

    Raises:
        InputError: a run failed, or a finished one has been deleted.
        Interrupted: on Ctrl-C or SIGTERM, after the runs have saved checkpoints.
    """
    from common.compare.cluster import check_not_submitted
    from common.compare.grid import decode_data, durations, finished_run, time_left
    from common.compare.workers import Failures, Launch

    check_not_submitted(jobs)
    workers = len(free)
    fingerprints = decode_data(jobs)
    done = [job for job in jobs if finished_run(job, fingerprints[job.data_key])]
    waiting = [job for job in jobs if job not in done]
    seconds, failures = durations(done), Failures()
    running: list[Launch] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handle SIGTERM like Ctrl-C
    with tqdm(
        total=len(jobs), initial=len(done), unit="run", bar_format="{desc} {bar} {n}/{total} runs, {elapsed}"
    ) as bar:
        try:
            while waiting or running:
                while waiting and free:
                    running.append(Launch(waiting.pop(0), options.config_file, free.pop(0)))
                names = running[0].job.folder.name if len(running) == 1 else f"{len(running)} runs at the same time"
                left = time_left([launch.job for launch in running] + waiting, seconds, workers)
                bar.set_description_str(f"{names}, {left}")
                while all(launch.is_running() for launch in running):
                    time.sleep(0.1)
                for launch in [launch for launch in running if not launch.is_running()]:
                    running.remove(launch)
                    free.append(launch.environment)
                    if error := launch.error():
                        bar.write(printable(failures.add(launch, error)))
                    else:
                        seconds |= durations([launch.job])
                        failures.succeeded.add(launch.job.script)
                    bar.update()
                given_up = [job for job in waiting if failures.same(job.script)]
                for script in dict.fromkeys(job.script for job in given_up):
                    number = sum(job.script == script for job in given_up)
                    bar.write(f"{script}: every run fails for this reason, so {number} more are not tried")
                waiting = [job for job in waiting if job not in given_up]
        except BaseException as error:  # no run is left behind
            for launch in running:
                launch.stop()
            for launch in running:
                launch.wait()
            if not isinstance(error, KeyboardInterrupt):
                raise
            folders = ", ".join(str(launch.job.folder) for launch in running)
            raise Interrupted(f"stopped during {folders}: run the same command again to continue") from None
    finished = print_finished(jobs, root)
    if finished < len(jobs):
        raise InputError(
            f"{len(jobs) - finished} of {len(jobs)} runs failed or were deleted: see {root}/output, and run the same "
            "command again to retry."
        )


def print_finished(jobs: "list[Job]", root: Path) -> int:
    """Prints how many jobs are finished, and the command that compares them; returns the number."""
    finished = sum(job.has_results for job in jobs)
    own_data = [] if jobs[0].config.data in KNOWN_DATA else ["--data", jobs[0].config.data]
    compare = shlex.join(["python", "compare.py", str(root), *own_data])
    print(printable(f"{finished} of {len(jobs)} runs finished." + f" To compare them: {compare}" * (finished > 0)))
    return finished


if __name__ == "__main__":
    run(main)
