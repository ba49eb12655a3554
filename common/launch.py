"""The start of a run: devices, threads, seed and run folder, checked before anything slow begins."""

import ctypes
import os
import platform
import signal
import threading

import psutil
import torch
from accelerate import Accelerator

from common.config import InputError, TrainConfig
from common.runs import check_folder, run_folder


def start(config: TrainConfig) -> Accelerator:
    """The accelerator of this run, with the threads set, the weights' seed sown and the run folder free to use.

    Raises:
        InputError: a GPU is asked for and absent, the batch cannot be cut for the processes, or the run folder may not
            be used.
    """
    use_all_cores()
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip() not in ("", "-1", "NoDevFiles")
    asked |= os.environ.get("ACCELERATE_TORCH_DEVICE", "").startswith("cuda")
    accelerator = Accelerator()
    started = int(os.environ.get("WORLD_SIZE", 1))
    if not torch.cuda.is_available() and accelerator.device.type != "mps":
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        if (asked and not on_cpu) or accelerator.num_processes < started:
            raise InputError(
                "a CUDA GPU is asked for, but torch finds none on this machine. Leave out --multi_gpu and --gpu_ids "
                "and unset CUDA_VISIBLE_DEVICES, or start CPU processes with ACCELERATE_USE_CPU=1 torchrun."
            )
        if accelerator.mixed_precision == "fp16":
            raise InputError("mixed precision fp16 needs a GPU: on the CPU use bf16 or no.")
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError("accumulation is an option of the script: use --accumulate instead of the launcher's.")
    processes = accelerator.num_processes
    pieces = processes * config.accumulate
    if config.batch_size % pieces:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be cut into {pieces} equal pieces "
            f"({processes} processes x --accumulate {config.accumulate}): choose a multiple of {pieces}."
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    if not config.dry_run and accelerator.is_main_process:
        check_folder(run_folder(config), config.resume)
    torch.manual_seed(config.seed)
    return accelerator


def use_all_cores() -> None:
    """Gives a launched process its share of the physical cores that it may use (`taskset` says which).

    Both launchers put 1 into OMP_NUM_THREADS, which halves the speed of a CPU run on two cores; nothing tells that 1
    from a person's own. Any other number is left alone.
    """
    launched = any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"))
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        cores = min(psutil.cpu_count(logical=False) or allowed, allowed)
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step, here and in all that this process does.

    By default large tensors go back to the system when they are freed, and the next step gets them anew, page by page:
    up to half the time of a step on a CPU (see LOG.md).
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


class StopRequest:
    """Notes a SIGTERM or Ctrl-C within its `with` block, so that the step can be finished and a checkpoint written.

    A second signal ends the process at once, with 128 and its number as the exit code. A thread listens, as Python's
    own handlers would wait for the end of a backward pass. Processes of one run agree on the step to stop at: they ask
    each other only where `together` is true, because that makes them wait.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.received, self.before = accelerator, False, {}

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        self.inlet, self.outlet = os.pipe()
        os.set_blocking(self.outlet, False)
        signal.set_wakeup_fd(self.outlet)  # gets each signal's number as a byte, the moment it comes
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        return self

    def __exit__(self, *exception) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self.outlet)  # ends the listening
        self.listener.join()  # a thread that frees tensors while the interpreter ends would abort the process
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _listen(self) -> None:
        while byte := os.read(self.inlet, 1):
            if byte[0] in self.before and self.received:
                os.write(2, b"\ninterrupted\n")
                os._exit(128 + byte[0])
            self.received |= byte[0] in self.before
        os.close(self.inlet)

    def agreed(self, together: bool) -> bool:
        """Whether to stop after this step."""
        if self.accelerator.num_processes == 1:
            return self.received
        if not together:
            return False
        votes = torch.tensor(float(self.received), device=self.accelerator.device)
        return self.accelerator.reduce(votes, "sum").item() > 0
