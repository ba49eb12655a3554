"""A run of a study in processes of its own: on this machine, or in a job of a cluster.

Each job imports this module, so it imports nothing slow.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.files import CHECKPOINT, check_output

# How lines in the output of a run begin
STARTED, FAILED, STOPPED = "started as job ", "error: ", "stopped after "


def output_file(folder: Path) -> Path:
    """The file with the output of the run in `folder`."""
    return folder.parent / "output" / f"{folder.name}.txt"


class RunProcess:
    """A run that has been started with a command.

    Its output is appended to `output_file`: a run that has outlived an earlier study may still be writing to it.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str], heading: str = ""):
        """`heading` is written before the output."""
        self.environment, self.output = environment, output_file(folder)
        self.has_launcher = "accelerate.commands.launch" in command
        check_output(self.output, lambda path: True)  # is appended to
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with open(self.output, "ab") as file:
            self.start = file.tell()
            file.write(heading.encode())
            file.flush()  # before the run writes
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | environment,
            )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def error(self) -> str | None:
        """Why the run has failed; None if it has not."""
        if not self.process.returncode:
            return None
        lines = self.output.read_bytes()[self.start :].decode("utf-8", "replace").splitlines()
        errors = [line for line in lines if line.startswith(FAILED)]
        return errors[-1] if errors else f"exit code {self.process.returncode}"

    def note(self, line: str) -> None:
        """Appends a line to the output."""
        with open(self.output, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def stop(self) -> None:
        """Asks the script to finish its step, save a checkpoint and exit, which `wait` waits for."""
        with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            children = psutil.Process(self.process.pid).children(recursive=True) if self.has_launcher else []
            for process in children or [self.process]:
                process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        self.process.wait()


@dataclass(frozen=True)
class SlurmJob:
    """A job of Slurm that trains one run. submitit pickles it, and calls it on a node.

    Slurm sends SIGUSR2 (or SIGUSR1, if submitit is configured so) some time before the time limit, and SIGTERM when it
    requeues, preempts or cancels the job. Both stop the run, which saves a checkpoint. Unless the job was cancelled,
    it is requeued, and the run continues.
    """

    command: tuple[str, ...]
    directory: str  # where the study was started, to which paths are relative
    folder: str  # of the run

    def __call__(self) -> None:
        """Trains the run. Ends the process with exit code 75 if the run was stopped, and with 1 if it failed."""
        os.chdir(self.directory)
        job = job_id()
        received: list[int] = []
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: received.append(number))
        before = self._checkpoint()
        # Only with the same number of threads are results the same, bit for bit.
        threads = {"OMP_NUM_THREADS": os.environ["SLURM_CPUS_PER_TASK"]}
        heading = f"{STARTED}{job} on {platform.node()}\n"
        run = RunProcess(self.command, Path(self.folder), threads, heading)
        stopped = False
        while run.is_running():
            if received and not stopped:  # a second signal would end the script before it has saved its state
                run.stop()
                stopped = True
            time.sleep(0.1)
        error = run.error()
        if not error:
            return
        if not stopped or error.startswith(FAILED):
            if not error.startswith(FAILED):
                run.note(f"{FAILED}the run crashed or was killed, perhaps for lack of memory ({error})")
            sys.exit(1)
        # With a time limit that is too short for a step, the job would be requeued for ever.
        if signal.SIGTERM in received or self._checkpoint() != before:
            if problem := requeue(job):
                run.note(f"{FAILED}Slurm did not requeue the job: {problem}")
        else:
            run.note(f"{FAILED}the job reached its time limit before completing a step: raise timeout_min")
        sys.exit(75)

    def _checkpoint(self) -> tuple[int, int] | None:
        """What changes when a checkpoint is saved; None if there is none."""
        with suppress(OSError):
            status = Path(self.folder, CHECKPOINT).stat()
            return status.st_ino, status.st_mtime_ns
        return None


def job_id() -> str:
    """The id of the job that this process belongs to, such as 12 or, in an array of jobs, 12_3.

    In an array, SLURM_JOB_ID is a different number for each job; for one of them, it is the number of the array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue(job: str) -> str | None:
    """Requeues this job, unless Slurm no longer lists it as running: then it was requeued or cancelled from outside.

    Returns:
        The reason if Slurm refuses; otherwise None.
    """
    ask = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    if subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() != "RUNNING":
        return None
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else None
