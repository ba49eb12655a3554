"""Evaluation: the logits of a split, each row computed once. Also sets the training mode of a model."""

import math

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from common.augment import augment
from common.data.dataset import ClassificationDataset, to_device

EVAL_BATCH = 64  # images


def set_train_mode(model: nn.Module) -> None:
    """Sets training mode, except for entirely frozen modules, whose batch norm statistics must not change."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@torch.no_grad()
def evaluate(model: nn.Module, split: ClassificationDataset, accelerator: Accelerator, fit: str) -> np.ndarray:
    """Logits (N, C) float32 of the N rows of `split`, whatever the number of processes.

    Leaves the model in evaluation mode.
    """
    model = accelerator.unwrap_model(model).eval()  # without DDP, as processes may have unequal numbers of batches
    if accelerator.num_processes > 1:
        broadcast(list(model.buffers()))  # batch norm statistics differ between processes; rank 0's are saved
    logits = torch.zeros(len(split), len(split.classes), device=accelerator.device)
    own = np.arange(len(split))[accelerator.process_index :: accelerator.num_processes]
    for rows in np.array_split(own, math.ceil(len(own) / EVAL_BATCH)) if len(own) else ():
        images, crop_sizes, _ = split.batch(rows, accelerator.device)
        outputs = model(augment(images, crop_sizes, None, fit=fit, normalization=split.normalization)).float()
        logits[to_device(torch.from_numpy(rows), logits.device)] = outputs
    return accelerator.reduce(logits, "sum").cpu().numpy()
