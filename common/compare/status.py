"""The state of the runs of a study: one line for each that is not finished."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from common.compare.cluster import ActiveJob, active_runs, recorded_jobs
from common.compare.grid import Job, durations, finished_run, time_left
from common.compare.process import FAILED, STARTED, STOPPED, output_file
from common.config import count, printable
from common.files import is_locked

STATES = ("finished", "running", "queued", "stopped", "failed", "not started")
TAIL = 2**20  # bytes at the end of a file that are read


def study_status(jobs: Sequence[Job]) -> str:
    """A line for each run that is not finished, and a line with the number in each state and the time left, as text."""
    active, recorded = active_runs(jobs), recorded_jobs(jobs[0].folder.parent)
    states = {job: run_state(job, active.get(job.folder), recorded) for job in jobs}
    left = [job for job in jobs if states[job][0] != "finished"]
    width = max((len(job.folder.name) for job in left), default=0)
    lines = [f"{job.folder.name:{width}}  {states[job][0]:11}  {states[job][1]}".rstrip() for job in left]
    numbers = Counter(state for state, _ in states.values())
    total = f"{count(len(jobs), 'run')}: " + ", ".join(
        f"{numbers[state]} {state}" for state in STATES if numbers[state]
    )
    if left:
        together = max(1, numbers["running"])
        times = durations([job for job in jobs if states[job][0] == "finished"])
        total += f"; {time_left(left, times, together)}" + f", {together} at a time" * bool(times)
    return "\n".join(map(printable, [*lines, total]))


def run_state(job: Job, active: ActiveJob | None, recorded: Mapping[str, str]) -> tuple[str, str]:
    """The state of a run, one of `STATES`, and details, such as "epoch 2.5 of 8, job 12_3".

    Args:
        active: its job in Slurm's queue.
        recorded: see `recorded_jobs`.
    """
    folder, epoch = job.folder, epoch_of(job)
    if finished_run(job):
        return "finished", ""
    if active:
        about = active.reason if active.state == "queued" else epoch
        return active.state, ", ".join(filter(None, [about, f"job {active.id}"]))
    if is_locked(folder):
        return "running", epoch
    last = last_mark(output_file(folder))
    if last.startswith(FAILED):
        return "failed", last.removeprefix(FAILED)
    if last.startswith(STARTED):
        return "failed", f"job {recorded.get(folder.name, '')} ended without a message, so it was probably killed"
    return ("stopped", epoch) if epoch else ("not started", "")


def last_mark(output: Path) -> str:
    """The last line in the output of a run that begins with `STARTED`, `FAILED` or `STOPPED`; "" if there is none."""
    with suppress(OSError), open(output, "rb") as file:
        file.seek(max(0, output.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
        return next((line for line in reversed(lines) if line.startswith((STARTED, FAILED, STOPPED))), "")
    return ""


def epoch_of(job: Job) -> str:
    """The progress of a run, such as "epoch 2.5 of 8"; "" if it has logged nothing."""
    with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        last = (job.folder / "log.jsonl").read_bytes()[-TAIL:].rpartition(b"\n")[0].splitlines()[-1]
        return f"epoch {json.loads(last)['epoch']:.1f} of {job.config.epochs}"
    return ""
