"""Runs a grid of experiments, models x variants x seeds, one after another; keeps finished runs, resumes broken ones.

python study.py --data sample                     # four models, four variants, six seeds
python study.py --data sample --recipe lab        # the ten experiments of the study that this project repeats
python study.py --data sample --folds 5           # cross-validation: each product of train and val is validated once
python compare.py runs/study                      # what came of it

Any option of the training scripts may follow, such as --epochs 5 or --weights none: it goes to those that have it.
"""

import argparse
import importlib
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.config import VARIANTS, InputError, Interrupted, run

MODELS = ("resnet", "vit", "custom_cnn", "custom_vit")
IN_LAB = {"full", "crop", "crop-augment"}
NOT_IN_LAB = {("custom_cnn", "crop"), ("custom_vit", "crop")}  # its table has ten rows
OWN = ("--crop", "--augment", "--seed", "--split-by", "--out", "--resume", "--dry-run", "--summary")


def read_options(argv=None) -> tuple[argparse.Namespace, list[list[str]]]:
    """The study's own options, and each of the others with its values."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    four = ["full", "crop", "crop-augment", "crop-strong"]
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=four, help=f"default: {' '.join(four)}")
    parser.add_argument("--seeds", type=int, default=6, help="seeds 0, 1, ... of each experiment (default: 6)")
    parser.add_argument("--folds", type=int, default=0, help="cross-validate over so many folds of the products")
    parser.add_argument("--recipe", choices=("default", "lab"), default="default", help="see the scripts' --help")
    parser.add_argument("--out", default="", help="folder of the runs (default: runs/study or runs/study-lab)")
    parser.add_argument("--config-file", default=str(Path(__file__).with_name("accelerate_config.yaml")))
    options, rest = parser.parse_known_args(argv)
    starts = [i for i, word in enumerate(rest) if word.startswith("--")]
    more = [rest[a:b] for a, b in zip(starts, [*starts[1:], len(rest)], strict=True)]
    if rest and 0 not in starts:
        parser.error(f"unrecognized argument: {rest[0]}")
    for flag in (words[0].split("=")[0] for words in more):
        if flag in OWN:
            parser.error(f"{flag} is for the study to set: see --models, --variants, --seeds, --folds and --out")
    if not Path(options.config_file).is_file():
        parser.error(f"--config-file {options.config_file}: no such file")
    if options.seeds < 1 or options.folds == 1 or options.folds < 0:
        parser.error("--seeds must be at least 1, and --folds at least 2")
    return options, [*more, ["--recipe", options.recipe]]


if __name__ == "__main__":
    run(read_options)  # --help and mistyped options are answered here, before the imports below take their seconds

import psutil
from tqdm import tqdm

from common.grid import Job, check_idle, decode, is_finished, plan, seconds_left


def execute(job: Job, config_file: str) -> bool:
    """One run by `accelerate launch`, its output in OUT/output/; whether it went well."""
    script = Path(__file__).with_name(f"{job.script}.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", config_file]
    output = job.folder.parent / "output" / f"{job.folder.name}.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w") as file:
        child = subprocess.Popen(
            [*launch, str(script), *job.argv], stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while child.poll() is None:
            time.sleep(0.1)
    except KeyboardInterrupt:
        for process in psutil.Process(child.pid).children(recursive=True) or [child]:
            process.send_signal(signal.SIGTERM)  # a script finishes its step and saves a checkpoint
        child.wait()
        raise Interrupted(f"stopped in {job.folder}; go on with the same command") from None
    if child.returncode:
        errors = [line for line in output.read_text().splitlines() if line.startswith("error: ")]
        tqdm.write(f"{job.folder} failed, see {output}: {errors[-1] if errors else f'code {child.returncode}'}")
    return child.returncode == 0


def main(argv=None):
    options, more = read_options(argv)
    lab = options.recipe == "lab"
    experiments = [
        (f"train_{model}", importlib.import_module(f"train_{model}").Config, variant)
        for model in dict.fromkeys(options.models)
        for variant in dict.fromkeys(options.variants)
        if not lab or (variant in IN_LAB and (model, variant) not in NOT_IN_LAB)
    ]
    root = Path(options.out or ("runs/study-lab" if lab else "runs/study"))
    jobs = plan(experiments, more, seeds=options.seeds, folds=options.folds, root=root)
    check_idle(jobs)
    fingerprints = decode(jobs)
    done = [job for job in jobs if is_finished(job, fingerprints[job.data_key])]
    waiting, failed = [job for job in jobs if job not in done], []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # is a Ctrl-C too
    with tqdm(
        total=len(jobs), initial=len(done), unit="run", bar_format="{desc} {bar} {n}/{total} runs, {elapsed}"
    ) as bar:
        for i, job in enumerate(waiting):
            bar.set_description_str(f"{job.folder.name}, {seconds_left(waiting[i:], done)}")
            (done if execute(job, options.config_file) else failed).append(job)
            bar.update()
    print(f"{len(done)} of {len(jobs)} runs are finished. Compare them: python compare.py {shlex.quote(str(root))}")
    if failed:
        raise InputError(f"{len(failed)} runs failed, see {root}/output. The same command tries them again.")


if __name__ == "__main__":
    run(main)
