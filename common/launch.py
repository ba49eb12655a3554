"""Prepares a process for training (device, threads, seed, run folder) and handles requests to stop it."""

import ctypes
import os
import platform
import signal
from types import FrameType

import psutil
import torch
from accelerate import Accelerator

from common.config import InputError, TrainConfig
from common.run_folder import claim_folder, folder_of


def start(config: TrainConfig) -> Accelerator:
    """Checks the launch, sets the number of threads and the random seed, and creates the run folder.

    The checks come before the data is read, so that an invalid launch fails within seconds.

    Raises:
        InputError: a GPU is requested but not available, the launcher sets an option that belongs to the script, the
            batch size is not a multiple of the number of pieces, or the run folder is in use.
    """
    use_all_cores()
    gpu_requested = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip() not in ("", "-1", "NoDevFiles")
    gpu_requested |= os.environ.get("ACCELERATE_TORCH_DEVICE", "").startswith("cuda")
    accelerator = Accelerator()
    processes_started = int(os.environ.get("WORLD_SIZE", 1))
    if not torch.cuda.is_available() and accelerator.device.type != "mps":
        cpu_requested = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        if (gpu_requested and not cpu_requested) or accelerator.num_processes < processes_started:
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
    processes = accelerator.num_processes
    pieces = processes * config.accumulate
    if config.batch_size % pieces:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be split into {pieces} equal pieces "
            f"({processes} processes x --accumulate {config.accumulate}): choose a multiple of {pieces}."
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    if not config.dry_run and accelerator.is_main_process:
        claim_folder(folder_of(config), config.resume)
    torch.manual_seed(config.seed)
    return accelerator


def use_all_cores() -> None:
    """Sets the number of threads of a launched process to its share of the physical cores available to it.

    `accelerate launch` and `torchrun` both set OMP_NUM_THREADS to 1, which halves the speed of a CPU run on two cores.
    This value cannot be distinguished from a 1 set by the user and is ignored; any other value is respected.
    """
    launched = any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"))
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(psutil.cpu_count(logical=False) or available, available)
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


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

    The training loop can finish its step and save a checkpoint. A second signal ends the process immediately.
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
