"""Knowledge distillation: the model also learns from the outputs of a finished run (Hinton et al., 2015)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common.config import InputError, Normalization, TrainConfig, flag_of
from common.data.dataset import ClassificationDataset
from common.data.pixels import scale_and_shift
from common.run_folder import data_fingerprint

TEMPERATURE = 2.0  # divides the logits of teacher and student
TEACHER_WEIGHT = 0.5  # weight of the teacher term in the loss; the label term has the remaining weight


class Renormalized(nn.Module):
    """`model`, normalised with `own`, for images (B, 3, S, S) that are normalised with `given`."""

    def __init__(self, model: nn.Module, own: Normalization, given: Normalization):
        super().__init__()
        (own_scale, own_shift), (scale, shift) = (scale_and_shift(n, torch.device("cpu")) for n in (own, given))
        self.model = model
        self.scale = nn.Buffer(own_scale / scale)
        self.shift = nn.Buffer(own_shift - shift * own_scale / scale)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images * self.scale + self.shift)


def load_teacher(
    config: TrainConfig, train: ClassificationDataset, val: ClassificationDataset, device: torch.device
) -> nn.Module | None:
    """The model in the run folder `config.teacher`, frozen, in evaluation mode; None without `--teacher`.

    Its input is normalised as the student's: if its own normalisation is another, the images are converted.

    Raises:
        InputError: the folder has no finished run, or a run on different crops, data or splits, whose train rows may
            be val rows here.
    """
    if not config.teacher:
        return None
    # Imported here because pandas is slow to import, and few runs have a teacher.
    from common.finished_run import read_run

    run = read_run(Path(config.teacher))
    differ = [
        flag_of(name)
        for name in ("crop", "margin", "fit", "image_size")
        if getattr(run.config, name) != getattr(config, name)
    ]
    differ += ["data or split"] * (run.info.data_fingerprint != data_fingerprint(train, val))
    if differ:
        raise InputError(
            f"--teacher {config.teacher} was trained with different {', '.join(differ)}: use the same settings."
        )
    model = run.model()
    if run.config.normalization != config.normalization:
        model = Renormalized(model, run.config.normalization, config.normalization).eval()
    return model.requires_grad_(False).to(device)


def distilled(loss: torch.Tensor, logits: torch.Tensor, images: torch.Tensor, teacher: nn.Module) -> torch.Tensor:
    """The weighted sum of `loss` and the Kullback-Leibler divergence between softened teacher and student outputs.

    The teacher receives the augmented and mixed `images` (B, 3, S, S) from which the student computed `logits` (B, C)
    (Beyer et al., 2022).
    """
    with torch.no_grad():
        targets = F.log_softmax(teacher(images) / TEMPERATURE, dim=1)
    log_probabilities = F.log_softmax(logits.float() / TEMPERATURE, dim=1)
    divergence = F.kl_div(log_probabilities, targets, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - TEACHER_WEIGHT) * loss + TEACHER_WEIGHT * divergence
