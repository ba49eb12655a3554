"""One optimizer step (random draws, batch, loss and update), and the parameter groups of the optimizer."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from common.augment import augment, draw_lab, draw_mix, draw_strong, mix, replace_background
from common.config import TrainConfig
from common.data.dataset import ClassificationDataset, to_device
from common.distillation import distilled
from common.schedule import AUGMENT, BACKGROUND, MODEL, generator, seed_device

REPLACED_SHARE = 0.5  # probability that `--background` replaces an image's background


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scale: Callable[[str], float] = lambda name: 1.0
) -> list[dict]:
    """Optimizer groups of the trainable parameters, one for each learning rate and weight decay.

    Weight decay applies to weight matrices and kernels, not to biases, norms, class tokens and positions.
    `lr_scale(name)` is the learning rate of a parameter as a fraction of the scheduled one.
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
    """One optimizer step on the global batch `rows` (B,) int64.

    Each process computes its share of the batch, in `--accumulate` pieces.

    Returns:
        The mean loss in this process, a scalar on the device; reading it would synchronise with the device.
    """
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


@dataclass(frozen=True)
class Draws:
    """Random draws for a global batch of B rows; None for augmentations that the run does not use.

    `partner` and `scene` are positions in the batch.
    """

    augment: torch.Tensor | None = None  # (B, D), for `common.augment.augment`
    partner: np.ndarray | None = None  # (B,) int64, the image to mix with
    mix: torch.Tensor | None = None  # (B, 5), for `common.augment.mix`
    scene: np.ndarray | None = None  # (B,) int64, the image whose background is used
    replaced: torch.Tensor | None = None  # (B,) bool, whether the background is replaced


def draw(config: TrainConfig, step: int) -> Draws:
    """The random draws of a step, for the whole batch, so that they do not depend on the number of processes."""
    rng, n = generator(config.seed, AUGMENT, step), config.batch_size
    augmentation = partner = mixing = scene = replaced = None
    if config.augment == "lab":
        augmentation = draw_lab(n, rng)
    elif config.augment == "strong":
        augmentation = draw_strong(n, rng)
        partner, mixing = draw_mix(n, rng)
    if config.background != "keep":
        rng = generator(config.seed, BACKGROUND, step)
        scene, replaced = rng.permutation(n), torch.from_numpy(rng.random(n) < REPLACED_SHARE)
    return Draws(augmentation, partner, mixing, scene, replaced)


def make_batch(
    config: TrainConfig,
    train: ClassificationDataset,
    rows: np.ndarray,
    piece: np.ndarray,
    draws: Draws,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and targets of `piece`, positions in the global batch `rows`.

    Images of other pieces that are mixed in are read here too, so the batch does not depend on how it is split.

    Returns:
        The model input (B, 3, S, S) float32, and the targets: labels (B,) int64 or, if images are mixed, class
        probabilities (B, C) float32.
    """
    needed = piece if draws.partner is None else np.union1d(piece, draws.partner[piece])
    images, crop_sizes, labels = train.batch(rows[needed], device)
    if draws.scene is not None:
        images = replace_backgrounds(images.float(), train, rows, needed, draws, config.background)
    augmentation = None if draws.augment is None else to_device(draws.augment[needed], device)
    images = augment(images, crop_sizes, augmentation, fit=config.fit, normalization=train.normalization)
    if draws.partner is None or draws.mix is None:
        return images, labels
    own, partner = (
        to_device(torch.from_numpy(np.searchsorted(needed, positions)), device)
        for positions in (piece, draws.partner[piece])
    )
    images, share = mix(images[own], images[partner], to_device(draws.mix[piece], device))
    targets = F.one_hot(labels, len(train.classes)).float()
    return images, targets[partner].lerp(targets[own], share)


def replace_backgrounds(
    images: torch.Tensor, train: ClassificationDataset, rows: np.ndarray, needed: np.ndarray, draws: Draws, kind: str
) -> torch.Tensor:
    """Replaces backgrounds as drawn. `images` (B, 3, S, S) in [0, 255] are those at the batch positions `needed`."""
    assert draws.scene is not None and draws.replaced is not None and train.masks is not None
    device, scenes = images.device, rows[draws.scene[needed]]
    others = train.batch(scenes, device)[0].float()
    masks, other_masks = (to_device(torch.from_numpy(train.masks[r]), device) / 255 for r in (rows[needed], scenes))
    replaced = to_device(draws.replaced[needed], device).view(-1, 1, 1, 1)
    mean_color = train.normalization.color
    return torch.where(replaced, replace_background(images, masks, others, other_masks, kind, mean_color), images)
