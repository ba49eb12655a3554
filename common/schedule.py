"""Learning rate, rows and random generators of each step, as functions of the step number."""

import math
from functools import lru_cache

import numpy as np
import torch

from common.config import InputError, TrainConfig

LOG_EVERY = 10  # steps between log lines; reading the loss synchronises with the device
ROWS, AUGMENT, MODEL, BACKGROUND = range(4)  # streams of random numbers; other numbers would change every draw


class Plan:
    """The steps of a run on `num_rows` train rows.

    The permutations of all epochs form one sequence, and step s takes its s-th `batch_size` rows. So every batch is
    full, and each row is used once per epoch. `lr` and `rows` take the number of a step, from 0; the other methods take
    the number of steps done.

    Raises:
        InputError: the batch is larger than the train split.
    """

    def __init__(self, config: TrainConfig, num_rows: int):
        if config.batch_size > num_rows:
            raise InputError(
                f"--batch-size {config.batch_size} is larger than the {num_rows} train rows: lower --batch-size."
            )
        self.config, self.num_rows = config, num_rows
        self.total_steps = math.ceil(config.epochs * num_rows / config.batch_size)
        self.warmup_steps = round(config.warmup * self.total_steps)
        self.last_step = min(self.total_steps, 2) if config.dry_run else self.total_steps

    def lr(self, step: int) -> float:
        """Linear warm-up to `config.lr`, then cosine decay to zero; constant in the lab recipe."""
        peak, warmup = self.config.lr, self.warmup_steps
        if self.config.recipe == "lab":
            return peak
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.total_steps - warmup)))

    def rows(self, step: int) -> np.ndarray:
        """The rows of the batch, (batch_size,) int64, sorted; in the lab recipe, batches are in file order."""
        places = np.arange(step * self.config.batch_size, (step + 1) * self.config.batch_size)
        if self.config.recipe == "lab":
            return np.sort(places % self.num_rows)
        epochs = np.unique(places // self.num_rows).tolist()
        order = np.concatenate([permutation(self.num_rows, self.config.seed, epoch) for epoch in epochs])
        return np.sort(order[places - epochs[0] * self.num_rows])

    def epochs(self, step: int) -> float:
        """Passes over the train split after `step` steps."""
        return step * self.config.batch_size / self.num_rows

    def full_epochs(self, step: int) -> int:
        """Complete passes over the train split after `step` steps."""
        return step * self.config.batch_size // self.num_rows

    def ends_epoch(self, step: int) -> bool:
        return step == self.last_step or self.full_epochs(step) > self.full_epochs(step - 1)

    def epoch_start(self, step: int) -> int:
        """The number of steps before the epoch to which the last of `step` steps belongs."""
        return -(-self.full_epochs(step - 1) * self.num_rows // self.config.batch_size)

    def logs(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or self.ends_epoch(step)

    def last_log(self, step: int) -> int:
        """The number of steps done at the log line before the one at `step`; 0 if there is none."""
        return next((earlier for earlier in range(step - 1, 0, -1) if self.logs(earlier)), 0)

    def saves(self, step: int) -> bool:
        every = self.config.checkpoint_every
        return self.ends_epoch(step) or (every > 0 and step % every == 0)


@lru_cache(maxsize=2)  # a batch has rows of at most two epochs
def permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows (num_rows,) int64 in an epoch."""
    return generator(seed, ROWS, epoch).permutation(num_rows)


def generator(seed: int, stream: int, *place: int) -> np.random.Generator:
    """A new generator for one position in a stream, such as (step,) in AUGMENT or (epoch,) in ROWS."""
    return np.random.default_rng([seed, stream, *place])


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of each parameter group to `lr` times the group's `lr_scale`, if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def seed_device(seed: int, device: torch.device) -> None:
    """Seeds torch's generators of the CPU and of `device`.

    torch.manual_seed seeds every kind of device, which takes 0.5 ms, 1/40 of the time of a small step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
