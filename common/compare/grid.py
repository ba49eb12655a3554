"""The runs of a study: their options, the data they share, and which of them are finished."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean

from accelerate import PartialState

from common.config import VARIANTS, InputError, TrainConfig, differences, flag_of, parse
from common.data.dataset import load_splits
from common.data.splits import Split
from common.finished_run import FinishedRun, read_run
from common.provenance import code_key
from common.run_folder import data_fingerprint, script_file


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    script: str  # such as train_resnet
    variant: str
    argv: tuple[str, ...]
    config: TrainConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def has_results(self) -> bool:
        """Whether its folder holds the results of a run, with whatever options that was made."""
        return (self.folder / "metrics.json").exists()

    @property
    def data_key(self) -> tuple:
        """The options that determine which rows and pixels the run reads, apart from those that all runs share."""
        return *self.config.pixel_options, self.config.split_by


def plan_jobs(
    experiments: Sequence[tuple[str, type[TrainConfig], str]],
    options: Sequence[list[str]],
    *,
    seeds: int,
    folds: int,
    root: Path,
) -> list[Job]:
    """The runs of all experiments, one seed after another.

    In this order, a study that is stopped early has run every experiment, but with fewer seeds.

    Args:
        experiments: script, its Config class, and variant of each experiment.
        options: options of the training scripts, each a flag followed by its values. An option is passed to the
            scripts that have it.
        seeds: number of seeds; each experiment is run with seeds 0, 1, ...
        folds: number of folds over the products, each of which is the val split of one run; 0 for the given split.
            Seed s uses partition s, another division of the products into folds for each seed.
        root: the folder that contains the run folders.

    Raises:
        InputError: there are no experiments, no script has one of the options, or a value is out of range.
    """
    if not experiments:
        raise InputError(
            "no experiments left: --recipe lab excludes these models and variants. Choose other --models or --variants."
        )
    flags = {script: set(_flags(config_class)) for script, config_class, _ in experiments}
    for flag in (words[0].split("=")[0] for words in options):
        if not any(flag in script_flags for script_flags in flags.values()):
            raise InputError(f"{flag}: none of the selected scripts has this option ({', '.join(flags)}).")
    jobs = []
    for seed in range(seeds):
        for fold in range(1, folds + 1) if folds else [0]:
            for script, config_class, variant in experiments:
                argv = list(VARIANTS[variant])
                for words in options:
                    if words[0].split("=")[0] in flags[script]:
                        argv += words
                argv += ["--split-by", str(Split("product_id", fold, folds, partition=seed))] if fold else []
                name = f"{script}-{variant}{f'-f{fold}' if fold else ''}-s{seed}"
                argv += ["--seed", str(seed), "--out", str(root / name), "--resume"]
                jobs.append(Job(script, variant, tuple(argv), parse(config_class, argv)))
    return jobs


def _flags(config_class: type[TrainConfig]) -> Iterable[str]:
    for f in fields(config_class):
        yield flag_of(f.name)
        if f.default is True:
            yield flag_of("no_" + f.name)


def decode_data(jobs: Iterable[Job]) -> dict[tuple, str]:
    """Decodes the pixels of all runs in one pass over the images; returns the data fingerprint for each data key."""
    PartialState(cpu=True)  # leave the GPU to the runs
    configs = {job.data_key: job.config for job in jobs}
    first, *others = configs.values()
    load_splits(first, others)
    return {key: data_fingerprint(*load_splits(config)) for key, config in configs.items()}


def durations(jobs: Iterable[Job]) -> dict[Job, float]:
    """The seconds of each job whose run is finished and has not been deleted since."""
    seconds = {}
    for job in jobs:
        with suppress(InputError):
            seconds[job] = read_run(job.folder).info.seconds or 0.0
    return seconds


def time_left(waiting: Sequence[Job], seconds: Mapping[Job, float], workers: int = 1) -> str:
    """The estimated time left, such as "about 45 min left", if `workers` jobs are run at the same time.

    `seconds` are the durations of the finished jobs, with as many at the same time.

    Each waiting job is assumed to take the mean time of the finished jobs of the same experiment or, if there are none,
    of the same script or, if there are none, of all finished jobs.
    """
    total = 0.0
    for job in waiting:
        times = [s for other, s in seconds.items() if (other.script, other.variant) == (job.script, job.variant)]
        times = times or [s for other, s in seconds.items() if other.script == job.script] or list(seconds.values())
        if not times:
            return "time left unknown"
        total += mean(times)
    hours, minutes = divmod(math.ceil(total / min(workers, max(1, len(waiting))) / 60), 60)
    return f"about {f'{hours} h ' * (hours > 0)}{minutes} min left"


def finished_run(job: Job, fingerprint: str | None = None) -> FinishedRun | None:
    """The run of `job` if it is finished; InputError if its folder holds one with other options or data.

    `fingerprint` is that of the data, which is not checked without it.
    """
    if not job.has_results:
        return None
    finished = read_run(job.folder)
    differ = differences(finished.info.config, job.config)
    differ += ["different data"] * (fingerprint not in (None, finished.info.data_fingerprint))
    script = script_file(job.config)
    differ += [f"another version of {script.name}"] * (finished.code_key != code_key(script.read_bytes()))
    if differ:
        raise InputError(
            f"{job.folder} already holds a run with {', '.join(differ)}: choose another folder with --out."
        )
    return finished
