"""The runs of a study: which they are, what they share, which of them are finished."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean

import psutil
from accelerate import PartialState

from common.config import VARIANTS, InputError, TrainConfig, flag_of, parse
from common.data import load_splits
from common.finished import read_run
from common.runs import HARMLESS, data_fingerprint


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
    def data_key(self) -> tuple:
        """What decides which rows and pixels the run reads."""
        config = self.config
        return config.crop, config.margin, config.fit, config.image_size, config.split_by


def plan(
    experiments: Sequence[tuple[str, type[TrainConfig], str]],
    more: Sequence[list[str]],
    *,
    seeds: int,
    folds: int,
    root: Path,
) -> list[Job]:
    """The runs of all experiments, seed by seed: a study that is stopped has compared everything, on fewer seeds.

    Args:
        experiments: script, its Config, and variant of each.
        more: further options, each a flag with its values; an option goes to the scripts that have it.
        seeds: seeds 0, 1, ... of each experiment.
        folds: 0, or the number of folds of the products, each of which is the val split of one run.
        root: the folder of the run folders.

    Raises:
        InputError: no script has one of the options, or a value is out of range.
    """
    if not experiments:
        raise InputError("no experiment is left: the lab's recipe has these models in other variants.")
    flags = {script: set(_flags(config_class)) for script, config_class, _ in experiments}
    for flag in (words[0].split("=")[0] for words in more):
        if not any(flag in own for own in flags.values()):
            raise InputError(f"{flag}: none of these scripts has this option: {', '.join(flags)}.")
    jobs = []
    for seed in range(seeds):
        for fold in range(1, folds + 1) if folds else [0]:
            for script, config_class, variant in experiments:
                argv = list(VARIANTS[variant])
                for words in more:
                    if words[0].split("=")[0] in flags[script]:
                        argv += words
                argv += ["--split-by", f"product_id:{fold}/{folds}"] if fold else []
                name = f"{script}-{variant}{f'-f{fold}' if fold else ''}-s{seed}"
                argv += ["--seed", str(seed), "--out", str(root / name), "--resume"]
                jobs.append(Job(script, variant, tuple(argv), parse(config_class, argv)))
    return jobs


def _flags(config_class: type[TrainConfig]) -> Iterable[str]:
    for f in fields(config_class):
        yield flag_of(f.name)
        if f.default is True:
            yield flag_of("no_" + f.name)


def check_idle(jobs: Sequence[Job]) -> None:
    """Raises InputError if a job's folder is being written, by a study elsewhere or one whose run outlived it."""
    folders = {job.folder.resolve(): job.script for job in jobs}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            out = Path(process.cwd(), words[words.index("--out") + 1]).resolve() if "--out" in words[:-1] else None
            if out in folders and any(word.endswith(f"{folders[out]}.py") for word in words):
                raise InputError(
                    f"process {process.pid} is still at work on {out}: wait for it, or end it with kill {process.pid}."
                )


def decode(jobs: Iterable[Job]) -> dict[tuple, str]:
    """Decodes the pixels that the runs read, in one pass over the images; the data's fingerprint for each data key."""
    PartialState(cpu=True)  # a GPU is for the runs
    configs = {job.data_key: job.config for job in jobs}
    first, *others = configs.values()
    load_splits(first, others)
    return {key: data_fingerprint(*load_splits(config)) for key, config in configs.items()}


def seconds_left(waiting: Sequence[Job], done: Sequence[Job]) -> str:
    """An estimate from the finished jobs of the same experiment, else of the same script, else of all."""
    seconds = {job: read_run(job.folder).run["seconds"] for job in done}
    total = 0.0
    for job in waiting:
        same = [s for other, s in seconds.items() if (other.script, other.variant) == (job.script, job.variant)]
        same = same or [s for other, s in seconds.items() if other.script == job.script] or list(seconds.values())
        if not same:
            return "time left unknown"
        total += mean(same)
    return f"about {math.ceil(total / 60)} min left"


def is_finished(job: Job, fingerprint: str) -> bool:
    """Whether the run's folder holds its results; InputError if those are of other options or other data."""
    if not (job.folder / "metrics.json").exists():
        return False
    there = read_run(job.folder).run
    wanted = {name: value for name, value in asdict(job.config).items() if name not in HARMLESS}
    differ = [
        f"{flag_of(name)} {there['config'].get(name)}" for name, v in wanted.items() if there["config"].get(name) != v
    ]
    differ += ["other data"] * (there["data_fingerprint"] != fingerprint)
    if differ:
        raise InputError(f"{job.folder} holds a run with {', '.join(differ)}: name another folder with --out.")
    return True
