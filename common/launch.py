"""Prepares a process for training (device, threads, seed, run folder) and handles requests to stop it."""

import ctypes
import math
import os
import platform
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from common.config import InputError, TrainConfig
from common.processes import failing_together
from common.run_folder import claim_folder, folder_of
from common.trackers import tracker_names

LAUNCHER = re.compile(r"(^|[/\\])(accelerate(-launch)?|torchrun)(\.exe)?$|^(accelerate\.commands|torch\.distributed)\.")
SHARDING = {  # by NAME in ACCELERATE_USE_NAME, which the launcher sets
    "FSDP": "FSDP",
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "a parallelism configuration",
}
TRUE = ("1", "true", "yes")
FLOAT_BYTES = 4
C = TypeVar("C", bound=TrainConfig)


def start(config: C, build_model: Callable[[C, int], nn.Module]) -> Accelerator:
    """Checks the launch and the model, sets the number of threads and the random seed, and creates the run folder.

    The checks come before the data is read, so that an invalid launch fails within seconds.

    Raises:
        InputError: the model cannot be built or does not fit into memory, a tracker is not available, the launch is
            invalid (`check_sharding`, `check_processes`), or the run folder is in use.
    """
    check_model(config, build_model)
    check_sharding()
    use_all_cores()
    trackers = [] if config.dry_run else tracker_names(config.log_with)
    accelerator = Accelerator(log_with=trackers or None, project_dir=folder_of(config))
    with failing_together():
        check_processes(config, accelerator)
        if not config.dry_run and accelerator.is_main_process:
            claim_folder(config)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    torch.manual_seed(config.seed)
    return accelerator


def check_sharding() -> None:
    """Raises an InputError if the launcher is set to divide the model among the processes."""
    for name, option in SHARDING.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in TRUE:
            raise InputError(
                f"the launcher uses {option}, which divides a model among processes, but in these scripts each process "
                "holds the whole model: leave out that setting."
            )


def check_processes(config: TrainConfig, accelerator: Accelerator) -> None:
    """Checks the processes that the launcher has started.

    Raises:
        InputError: they do not train together, a requested GPU is not available, the launcher sets an option that
            belongs to the script, or the batch size is not a multiple of the number of pieces.
    """
    processes = accelerator.num_processes
    processes_started = int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1 and "WORLD_SIZE" not in os.environ and was_set_by_launcher("MASTER_ADDR"):
        raise InputError(
            "accelerate launch was asked for several processes, but has started one: use --multi_gpu for GPUs, and "
            "ACCELERATE_USE_CPU=1 torchrun for CPUs."
        )
    gpu_requested = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip() not in ("", "-1", "NoDevFiles")
    gpu_requested |= os.environ.get("ACCELERATE_TORCH_DEVICE", "").startswith("cuda")
    if not torch.cuda.is_available() and accelerator.device.type != "mps":
        cpu_requested = os.environ.get("ACCELERATE_USE_CPU", "").lower() in TRUE
        if (gpu_requested and not cpu_requested) or processes < processes_started:
            raise InputError(
                "a CUDA GPU was requested, but PyTorch finds none. Leave out --multi_gpu and --gpu_ids and unset "
                "CUDA_VISIBLE_DEVICES, or start CPU processes with ACCELERATE_USE_CPU=1 torchrun."
            )
        if accelerator.mixed_precision == "fp16":
            raise InputError("mixed precision fp16 needs a GPU: use 'bf16' or 'no' on a CPU.")
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError(
            f"the launcher sets gradient accumulation to {accelerator.gradient_accumulation_steps}: use the script's "
            "--accumulate instead."
        )
    pieces = processes * config.accumulate
    if config.batch_size % pieces:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be split into {pieces} equal pieces "
            f"({processes} processes x --accumulate {config.accumulate}): choose a multiple of {pieces}."
        )


def check_model(config: C, build_model: Callable[[C, int], nn.Module]) -> None:
    """Builds the model without weights and memory.

    Raises:
        InputError: its options are incompatible, or it is larger than the memory of this machine.
    """
    memory = psutil.virtual_memory().total
    try:
        needed: float = 4 * parameter_bytes(config, build_model)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        needed = math.inf  # more elements than an int64 counts
    if needed > memory:
        raise InputError(
            f"training this model takes {needed / 1e9:,.0f} GB for weights, gradients and optimizer, and this machine "
            f"has {memory / 1e9:,.0f} GB: choose a smaller model."
        )


def parameter_bytes(config: C, build_model: Callable[[C, int], nn.Module]) -> int:
    """The size in float32 of the parameters of a model for two classes, which is built without weights and memory."""
    options: dict[str, Any] = {"weights": "none"} if hasattr(config, "weights") else {}
    with torch.device("meta"):
        model = build_model(replace(config, **options), 2)
    return FLOAT_BYTES * sum(parameter.numel() for parameter in model.parameters())


def use_all_cores() -> None:
    """Sets the number of threads of a launched process to its share of the physical cores available to it.

    `accelerate launch` and `torchrun` both set OMP_NUM_THREADS to 1, which halves the speed of a CPU run on two cores.
    A number that was given to the launcher is respected.
    """
    launched = any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"))
    if launched and os.environ.get("OMP_NUM_THREADS") == "1" and not launcher_was_given_threads():
        torch.set_num_threads(max(1, physical_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def launcher() -> psutil.Process | None:
    """The `accelerate launch` or `torchrun` that started this process.

    Its `environ()` is the environment with which it was started, without what it has set since.
    """
    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            if any(LAUNCHER.search(word) for word in process.cmdline()):
                return process
    return None


def launcher_was_given_threads() -> bool:
    """Whether this process's launcher was started with OMP_NUM_THREADS or its own option for the number of threads."""
    process = launcher()
    with suppress(psutil.Error):
        if process:
            words = (word.replace("-", "_") for word in process.cmdline())
            return any(word.startswith("__num_cpu_threads") for word in words) or "OMP_NUM_THREADS" in process.environ()
    return False


def was_set_by_launcher(name: str) -> bool:
    """Whether an environment variable was set by this process's launcher rather than before it was started."""
    process = launcher() if name in os.environ else None
    with suppress(psutil.Error):
        return process is not None and name not in process.environ()
    return False


def physical_cores() -> int:
    """The number of physical cores available to this process."""
    return min(psutil.cpu_count(logical=False) or 1, len(available_cores()))


def available_cores() -> list[int]:
    """The numbers of the logical cores that this process may use."""
    process = psutil.Process()
    return process.cpu_affinity() if hasattr(process, "cpu_affinity") else list(range(psutil.cpu_count() or 1))


class OtherLoad:
    """Notices other processes on the cores of a run, which can make a run of several threads several times slower.

    The threads of a step wait for each other, and keep their cores busy meanwhile.
    """

    SECONDS = 5  # over which the load is measured
    TOLERANCE = 0.5  # cores

    def __init__(self, accelerator: Accelerator):
        self.threads = torch.get_num_threads()
        self.watches = accelerator.device.type == "cpu" and accelerator.num_processes == 1 and self.threads > 1
        self.since, self.before = time.monotonic(), self._seconds_of_others() if self.watches else 0.0

    @staticmethod
    def _seconds_of_others() -> float:
        """The seconds that the cores of this process have worked for others since the system was started."""
        times = psutil.cpu_times(percpu=True)
        own = psutil.Process().cpu_times()
        busy = sum(times[i].user + times[i].system + getattr(times[i], "nice", 0.0) for i in available_cores())
        return busy - own.user - own.system

    def note(self) -> str | None:
        """A sentence with the remedy, once, if fewer cores were free in the last seconds than this run has threads."""
        now = time.monotonic()
        if not self.watches or now < self.since + self.SECONDS:
            return None
        after, cores = self._seconds_of_others(), len(available_cores())
        used = (after - self.before) / (now - self.since)
        self.since, self.before = now, after
        if used < self.TOLERANCE or cores - used > self.threads - self.TOLERANCE:
            return None
        self.watches = False
        return (
            f"note   other processes use {used:.1f} of {cores} cores, and this run uses {self.threads} threads, which "
            f"can make it several times slower: stop them, or set OMP_NUM_THREADS={max(1, int(cores - used + 0.1))}."
        )


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for reuse, for the rest of this process.

    By default glibc returns the memory of large freed tensors to the operating system and maps it again, page by page,
    in the next step. That takes up to half the time of a step on a CPU (see docs/performance.md).
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold = -1  # from malloc.h
        m_mmap_max = -4
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


class StopRequest:
    """Context manager that records SIGTERM and Ctrl-C instead of ending the process.

    The training loop can finish its step and save a checkpoint. A second signal ends the process immediately, except
    that torchrun's processes ignore a second SIGTERM: a cluster sends one to all processes, including torchrun, which
    passes it on. torchrun kills processes that have not ended 30 seconds later.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.received = accelerator, False

    def __enter__(self) -> "StopRequest":
        self.previous_handlers = {number: signal.signal(number, self._record) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        for signal_number in self.SIGNALS:
            signal.signal(signal_number, signal.SIG_DFL)  # the next signal ends the process
        if "TORCHELASTIC_RUN_ID" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def agreed(self, *, together: bool) -> bool:
        """Whether to stop after this step; all processes get the same answer.

        Several processes have to communicate, which makes them wait for each other. They do so only if `together`,
        which must be the same in all of them; otherwise the answer is False.
        """
        if self.accelerator.num_processes == 1:
            return self.received
        if not together:
            return False
        votes = torch.tensor(float(self.received), device=self.accelerator.device)
        return self.accelerator.reduce(votes, "sum").item() > 0
