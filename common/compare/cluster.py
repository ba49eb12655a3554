"""Trains the runs of a study as jobs of a Slurm cluster, with the package submitit.

The folder slurm/ in the study's folder holds submitit's files, and jobs.json with the last job of each run that was
submitted. squeue lists those of these jobs that are queued or running.
"""

import contextlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.compare.grid import Job, decode_data, finished_run
from common.compare.process import SlurmJob
from common.compare.workers import command, read_launcher
from common.config import InputError, count, fits, printable
from common.files import open_regular, write_json
from common.provenance import PROJECT

FOLDER = "slurm"
RECORD = "jobs.json"
DEFAULTS: dict[str, Any] = {"timeout_min": 60, "cpus_per_task": 1, "signal_delay_s": 120}
EARLY = 60  # seconds by which Slurm may send a signal too early
OURS = {  # parameters that --slurm does not accept: the study sets them, they take several values, or are synonyms
    "array_parallelism", "additional_parameters", "setup", "teardown", "srun_args", "use_srun", "stderr_to_stdout",
    "nodes", "tasks_per_node", "ntasks_per_node", "time", "mem", "job_name", "num_gpus",
}  # fmt: skip


@dataclass(frozen=True)
class ActiveJob:
    """A job in Slurm's queue."""

    id: str  # such as 12 or, in an array of jobs, 12_3
    state: str  # queued or running
    reason: str  # why it is queued, as squeue prints it; may be ""


def submit(jobs: Sequence[Job], root: Path, config_file: str, words: Sequence[str], number: str) -> str:
    """Submits the runs that are not finished, queued or running, as an array of jobs; returns a sentence about them.

    The data is decoded first, so that the jobs find it in the cache if they share the file system.

    Args:
        root: the study's folder, which is locked.
        config_file: configuration of `accelerate launch`.
        words: parameters of submitit's Slurm executor, such as "partition=gpu".
        number: of jobs at the same time, or "auto": as many as Slurm allows.

    Raises:
        InputError: a parameter is wrong, submitit or Slurm is not installed, or Slurm refuses the jobs.
    """
    if int(read_launcher(config_file).get("num_machines", 1)) > 1:
        raise InputError(f"--cluster: {config_file} starts each run on several machines, but a job runs on one.")
    folder = root.resolve() / FOLDER
    executor = make_executor(folder, words)
    active = active_runs(jobs)
    fingerprints = decode_data(jobs)
    left = [job for job in jobs if not finished_run(job, fingerprints[job.data_key])]
    new = [job for job in left if job.folder not in active]
    already = f"{count(len(left) - len(new), 'run')} already queued or running" if len(new) < len(left) else ""
    if not new:
        return f"nothing to submit: {already or 'all runs are finished'}"
    executor.update_parameters(slurm_array_parallelism=len(new) if number == "auto" else int(number))
    make_private(folder)
    calls = [SlurmJob(tuple(command(job, config_file)), os.getcwd(), str(job.folder)) for job in new]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints the reason too
            submitted = executor.submit_array(calls)
    except RuntimeError as error:
        raise InputError(f"Slurm refuses the jobs: {' '.join(str(error).split())}") from error
    ids = {job.folder.name: handle.job_id for job, handle in zip(new, submitted, strict=True)}
    write_json(folder / RECORD, recorded_jobs(root) | ids)
    array = submitted[0].job_id.split("_")[0]
    text = f"{count(len(new), 'run')} submitted as job {array}" + f", {already}" * bool(already)
    return f"{text}. --status shows the state of the runs; the same command again retries those that failed."


def make_executor(folder: Path, words: Sequence[str]) -> Any:
    """submitit's executor, with its files in `folder` in the study's folder, and the parameters `words`."""
    try:
        import submitit  # not imported above because it is optional
    except ImportError as error:
        raise InputError(
            "--cluster needs the package submitit: run pip install -e '.[cluster]' in the project folder."
        ) from error
    generic = submitit.AutoExecutor._typed_parameters()
    valid = {*generic, *submitit.SlurmExecutor._valid_parameters()} - OURS
    parameters = DEFAULTS | dict(_parameter(word, valid, generic) for word in words)
    free = 60 * parameters["timeout_min"] - parameters["signal_delay_s"] - EARLY
    if free <= 0:
        raise InputError(
            f"--slurm timeout_min={parameters['timeout_min']} leaves no time to train: a run is asked to stop "
            f"{parameters['signal_delay_s']} to {parameters['signal_delay_s'] + EARLY} seconds before the limit "
            "(signal_delay_s). Raise timeout_min."
        )
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError("--cluster slurm: sbatch and srun are not installed here. Use a login node of the cluster.")
    if "%" in str(folder) or str(folder) != printable(str(folder)):
        raise InputError(f"--cluster: {folder.parent} has % or control characters in its path. Choose another --out.")
    parameters |= {
        "name": parameters.get("name", folder.parent.name),
        "srun_args": ["--cpus-per-task", str(parameters["cpus_per_task"])],  # srun does not take it from sbatch
        "additional_parameters": {"requeue": True, "chdir": str(PROJECT)},  # where a job finds the package `common`
    }
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    executor.update_parameters(
        **{name if name in generic else f"slurm_{name}": value for name, value in parameters.items()}
    )
    return executor


def _parameter(word: str, valid: set[str], types: dict[str, type]) -> tuple[str, Any]:
    """The name and the value of a word KEY=VALUE of the command line."""
    name, _, text = word.partition("=")
    if not text or text != printable(text):
        raise InputError(f"--slurm {word}: write it as KEY=VALUE, such as partition=gpu.")
    if name not in valid:
        raise InputError(f"--slurm {word}: {name} is not accepted. Use one of {', '.join(sorted(valid))}.")
    kind = types.get(name, int if name == "signal_delay_s" else str)
    if kind is str:
        return name, True if text == "true" else text
    try:
        value = kind(text)
        if 0 <= value <= 10**6:
            return name, value
    except ValueError:
        pass
    raise InputError(f"--slurm {word}: {name} must be a number, 0 or more.")


def make_private(folder: Path) -> None:
    """Creates the folder for submitit's files: only its owner may write there, because jobs execute its pickles."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InputError(f"others can write to {folder}, and so run code in your jobs: delete it, or chmod 700 it.")


# Jobs ----------------------------------------------------------------------------------------------------------------


def recorded_jobs(root: Path) -> dict[str, str]:
    """The id of the last job of each run of the study in `root` that was submitted, by the name of the run's folder.

    Raises:
        InputError: the file is damaged.
    """
    path = root / FOLDER / RECORD
    if not path.exists():
        return {}
    try:
        with open_regular(path) as file:
            jobs = json.loads(file.read())
    except (InputError, ValueError, RecursionError):
        jobs = None
    if not fits(jobs, dict[str, str]) or not all(re.fullmatch(r"\d+(_\d+)?", job, re.ASCII) for job in jobs.values()):
        raise InputError(f"{path} is damaged: delete it once none of the study's jobs is queued or running.")
    return jobs


def active_runs(jobs: Sequence[Job]) -> dict[Path, ActiveJob]:
    """The jobs in Slurm's queue that train runs which are not finished, by the run's folder.

    Raises:
        InputError: squeue is missing or fails.
    """
    recorded = recorded_jobs(jobs[0].folder.parent)
    submitted = {
        job.folder: recorded[job.folder.name] for job in jobs if job.folder.name in recorded and not job.has_results
    }
    queued = queue() if submitted else {}
    return {folder: queued[job] for folder, job in submitted.items() if job in queued}


def queue() -> dict[str, ActiveJob]:
    """The jobs of this user in Slurm's queue, by id."""
    ask = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, errors="replace", check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        stderr = (getattr(error, "stderr", None) or "").strip()
        reason = stderr or getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"runs of this study were submitted to Slurm, but squeue fails ({reason}). Try again; if none of them is "
            f"still queued or running, delete {FOLDER}/{RECORD} in the study's folder."
        ) from error
    jobs = {}
    for line in answer.stdout.splitlines():
        if line.count("|") < 2:  # such as a site's message of the day
            continue
        job, state, reason = line.split("|", 2)
        waits = state in ("PENDING", "CONFIGURING") or state.startswith(("REQUEUE", "RESV"))
        jobs[job] = ActiveJob(job, "queued" if waits else "running", "" if reason == "None" or not waits else reason)
    return jobs


def check_not_submitted(jobs: Sequence[Job]) -> None:
    """Raises InputError if runs of a study that is to be trained on this machine are queued or running on a cluster."""
    if active := active_runs(jobs).values():
        ids = sorted({job.id.split("_")[0] for job in active})
        raise InputError(
            f"Slurm has {count(len(active), 'run')} of this study queued or running: add --cluster slurm, or cancel "
            f"them with scancel {' '.join(ids)}."
        )
