"""What a step uses, as functions of the step: its learning rate, its rows, its random numbers."""

import math

import numpy as np
import torch

from common.config import TrainConfig

ORDER, AUGMENT, MODEL, BACKGROUND = range(4)  # the streams of random numbers of a run


def generator(seed: int, stream: int, *place: int) -> np.random.Generator:
    """A fresh generator for one place of one stream, such as (step,) of AUGMENT or (epoch,) of ORDER."""
    return np.random.default_rng([seed, stream, *place])


def seed_device(seed: int, device: torch.device) -> None:
    """torch.manual_seed for one device: that for all kinds of devices takes 0.5 ms, a fortieth of a small step."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def get_lr(step: int, total_steps: int, warmup_steps: int, config: TrainConfig) -> float:
    """Linear warm-up to `config.lr`, then a cosine to zero; constant in the lab's recipe."""
    if config.recipe == "lab":
        return config.lr
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


class RowOrder:
    """The rows of each step: `order[step]` is (batch_size,) int64, sorted.

    The epochs' permutations of the n rows stand one after another in a row, and step s takes the s-th `batch_size` of
    them: every batch is full, and every row is used once per epoch. Without `shuffle` the rows keep the file's order.
    """

    def __init__(self, n: int, batch_size: int, seed: int, shuffle: bool):
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.permutations: dict[int, np.ndarray] = {}

    def __getitem__(self, step: int) -> np.ndarray:
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = places // self.n
        needed = set(epochs.tolist())
        self.permutations = {
            e: self.permutations[e] if e in self.permutations else self._permutation(e) for e in needed
        }
        rows = [self.permutations[epoch][place % self.n] for epoch, place in zip(epochs.tolist(), places, strict=True)]
        return np.sort(np.array(rows))

    def _permutation(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.n)
        return generator(self.seed, ORDER, epoch).permutation(self.n)
