"""Code shared by the benchmarks: alternating measurements, ratios with their ranges, tables."""

import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from statistics import median

import psutil
import torch
from torch.utils.benchmark import Timer

from common.files import markdown_table


def throughput(work: Callable[[], object], images: int, seconds: float) -> Callable[[], float]:
    """A turn for `alternate`: repeats `work` for at least `seconds` and returns images/s; one call handles `images`.

    Each turn starts with an untimed call. Time is averaged over the calls, as worker processes deliver in bursts.
    """
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return lambda: images / timer.blocked_autorange(min_run_time=seconds).mean


def alternate(turns: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs the turn of every candidate once per round, so that other load on the machine affects all of them."""
    results = [{name: turn() for name, turn in turns.items()} for _ in range(rounds)]
    return {name: [result[name] for result in results] for name in turns}


def row(case: str, rates: dict[str, list[float]], *pairs: tuple[str, str]) -> dict[str, str]:
    """A row of a table: each candidate's median rate and, for each pair, the median and range of the rounds' ratios."""
    cells = {"case": case} | {f"{name}, images/s": f"{median(values):,.1f}" for name, values in rates.items()}
    for name, other in pairs:
        ratios = [a / b for a, b in zip(rates[name], rates[other], strict=True)]
        cells[f"{name} / {other}"] = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return cells


def print_rows(title: str, rows: list[dict[str, str]]) -> None:
    """Prints `rows`, which have the same keys, as a Markdown table."""
    print(
        "\n".join(["", title, "", *markdown_table(list(rows[0]), [list(cells.values()) for cells in rows])]), flush=True
    )


def machine(device: str = "cpu") -> str:
    """The hardware, the version of torch, and the load of the machine before the benchmark."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    cores, threads, load = psutil.cpu_count(logical=False), torch.get_num_threads(), os.getloadavg()[0]
    return f"{name}, {cores} cores, {threads} threads, torch {torch.__version__}, load average {load:.1f}"


@contextmanager
def other_process() -> Iterator[Callable]:
    """Yields call(function, *args), which runs functions in one other process, with separate memory and threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()
