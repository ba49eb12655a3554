"""Trains the runs of a study side by side on one machine, each in its own processes."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from common.compare.grid import Job
from common.compare.process import RunProcess
from common.config import InputError
from common.launch import parameter_bytes, physical_cores
from common.run_folder import script_file

GIGABYTE = 2**30
PLAIN = {  # configuration with which `accelerate launch` starts the same run as `python`
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "NO",
    "num_processes": 1,
    "mixed_precision": "no",
    "num_machines": 1,
    "machine_rank": 0,
    "use_cpu": False,
    "gpu_ids": "all",
    "dynamo_backend": "no",
}


def command(job: Job, config_file: str) -> list[str]:
    """The words of the command that trains a job, with `accelerate launch` if its configuration makes a difference."""
    options = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", config_file]
    launcher = options if needs_launcher(config_file) else []
    return [sys.executable, *launcher, str(script_file(job.config)), *job.argv]


def needs_launcher(config_file: str) -> bool:
    """Whether `accelerate launch` with this configuration starts a different run from `python`.

    If not, the launcher is left out: it costs each run seconds and 300 MB, as it imports PyTorch too. It is kept if the
    environment has settings of Accelerate, because it overrides them.
    """
    own = any(PLAIN.get(name, "") != value for name, value in read_launcher(config_file).items())
    return own or any(name.startswith("ACCELERATE_") for name in os.environ)


class Launch(RunProcess):
    """A job that has been started on this machine."""

    def __init__(self, job: Job, config_file: str, environment: dict[str, str]):
        self.job = job
        super().__init__(command(job, config_file), job.folder, environment)


class Failures:
    """The reasons why runs of a study have failed, by script."""

    ENOUGH = 3  # runs of a script that fail for the same reason, if none succeeds

    def __init__(self) -> None:
        self.reasons: dict[str, list[str]] = {}
        self.succeeded: set[str] = set()

    def add(self, launch: Launch, error: str) -> str:
        """Notes a failure and returns a line about it, which repeats no reason."""
        folder = launch.job.folder
        reasons = self.reasons.setdefault(launch.job.script, [])
        reason = error.replace(str(folder), "RUN")
        known = reason in reasons
        reasons.append(reason)
        return f"{folder} failed" + (" for the same reason" if known else f", see {launch.output}: {error}")

    def same(self, script: str) -> bool:
        """Whether all runs of a script fail for one reason."""
        reasons = self.reasons.get(script, [])
        return script not in self.succeeded and len(reasons) >= self.ENOUGH and len(set(reasons)) == 1


def shares(number: str, jobs: Sequence[Job], config_file: str) -> list[dict[str, str]]:
    """The environment variables of each of the runs that are trained at the same time.

    On a GPU, each run has one, and several runs share one if there are more runs than GPUs. On the CPU, each has its
    share of the physical cores: many runs of one thread train faster than one of many threads.

    Args:
        number: of runs at the same time, or "auto": as many as there are GPUs or, without GPUs, cores; fewer if
            OMP_NUM_THREADS reserves several cores for a run or the memory is too small.
        jobs: the runs of the study.
        config_file: configuration of `accelerate launch`.

    Raises:
        InputError: each run uses several GPUs or machines, and `number` is more than 1.
    """
    launcher = read_launcher(config_file)
    if int(launcher.get("num_processes", 1)) > 1 or int(launcher.get("num_machines", 1)) > 1:
        if number not in ("auto", "1"):
            raise InputError(f"--jobs {number}: {config_file} starts several processes for each run: use --jobs 1.")
        return [{}]
    gpus = [] if launcher.get("use_cpu") else visible_gpus()
    cores = physical_cores()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    count = len(jobs) if number == "auto" else int(number)
    if number == "auto" and gpus:
        count = min(count, len(gpus))
    elif number == "auto":
        needed = max(map(memory_of, {job.script: job for job in jobs}.values()))
        free = psutil.virtual_memory().available // needed
        count = max(1, min(count, cores // int(threads) if threads.isdecimal() else cores, free))
    if count == 1:
        return [{}]
    own = {} if threads else {"OMP_NUM_THREADS": str(max(1, cores // count))}
    return [own | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(count)]


def read_launcher(config_file: str) -> dict[str, Any]:
    """The values in a configuration of `accelerate launch`; InputError if it cannot be read."""
    try:
        values = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config-file {config_file} cannot be read: {str(error).splitlines()[0]}") from error
    names = ("num_processes", "num_machines")
    if not isinstance(values, dict) or not all(isinstance(values.get(name, 1), int) for name in names):
        raise InputError(
            f"--config-file {config_file} is no configuration of Accelerate: num_processes and num_machines must be "
            "whole numbers, as in accelerate_config.yaml."
        )
    return values


def visible_gpus() -> list[str]:
    """The names of the CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    named = re.split(r"\s*,\s*", os.environ.get("CUDA_VISIBLE_DEVICES", "").strip())
    count = torch.cuda.device_count()  # does not occupy the devices
    return named[:count] if named[0] else list(map(str, range(count)))


def memory_of(job: Job) -> int:
    """An estimate of the bytes that a run needs: 2 GB for Python and data, and ten times the size of its weights."""
    return 2 * GIGABYTE + 10 * parameter_bytes(job.config, sys.modules[type(job.config).__module__].build_model)
