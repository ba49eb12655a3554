"""Distillation: a model learns from a finished run's outputs as well (Hinton et al., 2015)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common.config import InputError, TrainConfig, flag_of
from common.data import ClassificationDataset
from common.finished import read_run
from common.runs import data_fingerprint

TEMPERATURE, SHARE = 2.0, 0.5  # softness of the teacher's outputs; its share of the loss


def load_teacher(
    config: TrainConfig, train: ClassificationDataset, val: ClassificationDataset, device: torch.device
) -> nn.Module | None:
    """The model of the run that `--teacher` names, frozen, in evaluation mode; None where it names none.

    Raises:
        InputError: there is no finished run, or it was shown other crops, or other data or another split: it may have
            learned what is validated here.
    """
    if not config.teacher:
        return None
    run = read_run(Path(config.teacher))
    shown = ("crop", "margin", "fit", "image_size")
    differ = [flag_of(name) for name in shown if getattr(run.config, name) != getattr(config, name)]
    differ += ["data or split"] * (run.run["data_fingerprint"] != data_fingerprint(train, val))
    if differ:
        raise InputError(f"--teacher {config.teacher} was trained with other {', '.join(differ)}: use the same.")
    return run.model().requires_grad_(False).to(device)


def distilled(loss: torch.Tensor, logits: torch.Tensor, images: torch.Tensor, teacher: nn.Module) -> torch.Tensor:
    """`loss` and, in its share, the Kullback-Leibler divergence of the teacher's softened outputs from `logits` (B, C).

    The teacher sees the same augmented and mixed `images` (B, 3, S, S) (Beyer et al., 2022).
    """
    with torch.no_grad():
        wanted = F.log_softmax(teacher(images) / TEMPERATURE, dim=1)
    own = F.log_softmax(logits.float() / TEMPERATURE, dim=1)
    divergence = F.kl_div(own, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - SHARE) * loss + SHARE * divergence
