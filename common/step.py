"""One optimizer step, and the groups of parameters that it moves."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from common.batches import draw, make_batch
from common.config import TrainConfig
from common.data import ClassificationDataset
from common.schedule import MODEL, generator, seed_device
from common.teacher import distilled


def parameter_groups(model: nn.Module, weight_decay: float, lr_scale: Callable[[str], float] = lambda name: 1) -> list:
    """Optimizer groups of the parameters that are trained, by learning rate and decay.

    Weight decay goes to weight matrices and kernels, not to biases, norms, class tokens and positions. A parameter's
    learning rate is `lr_scale(name)` times the step's.
    """
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if name.endswith("weight") and parameter.ndim >= 2 else 0.0
            groups.setdefault((lr_scale(name), decay), []).append(parameter)
    return [{"params": p, "lr_scale": scale, "weight_decay": decay} for (scale, decay), p in groups.items()]


def train_step(
    config: TrainConfig,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: ClassificationDataset,
    rows: np.ndarray,
    step: int,
    teacher: nn.Module | None = None,
) -> torch.Tensor:
    """One optimizer step on the global batch `rows`; returns this process's mean loss, left on the device."""
    draws = draw(config, step)
    pieces = np.arange(config.batch_size).reshape(accelerator.num_processes, config.accumulate, -1)
    own, total = pieces[accelerator.process_index], torch.zeros((), device=accelerator.device)
    for i, piece in enumerate(own):
        dropout = generator(config.seed, MODEL, step, accelerator.process_index, i)
        seed_device(int(dropout.integers(2**63)), accelerator.device)
        images, targets = make_batch(config, train, rows, piece, draws, accelerator.device)
        with nullcontext() if i == len(own) - 1 else accelerator.no_sync(model):
            logits = model(images)
            loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
            if teacher is not None:
                loss = distilled(loss, logits, images, teacher)
            loss = loss / len(own)
            accelerator.backward(loss)
        total += loss.detach()
    if config.clip_norm:
        accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total
