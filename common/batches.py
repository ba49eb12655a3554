"""What the model is shown in a step: the rows of a batch, augmented and mixed by draws that depend on the step."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from common.augment import augment, draw_lab, draw_strong
from common.config import TrainConfig
from common.data import ClassificationDataset, to_device
from common.masks import replace_background
from common.mix import draw_mix, mix
from common.schedule import AUGMENT, BACKGROUND, generator

REPLACED = 0.5  # share of the images that get another background


@dataclass(frozen=True)
class Draws:
    """The random numbers of a global batch of B rows; None for what the run does not do. Partners are places in it."""

    augment: torch.Tensor | None = None  # (B, D), for `common.augment.augment`
    partner: np.ndarray | None = None  # (B,) int64, the image to mix with
    mix: torch.Tensor | None = None  # (B, 5), for `common.mix.mix`
    scene: np.ndarray | None = None  # (B,) int64, the image that lends its background
    replaced: torch.Tensor | None = None  # (B,) bool, which images get another background


def draw(config: TrainConfig, step: int) -> Draws:
    rng, n, draws = generator(config.seed, AUGMENT, step), config.batch_size, {}
    if config.augment == "lab":
        draws |= dict(augment=draw_lab(n, rng))
    elif config.augment == "strong":
        draws |= dict(augment=draw_strong(n, rng))
        draws |= dict(zip(("partner", "mix"), draw_mix(n, rng), strict=True))
    if config.background != "keep":
        rng = generator(config.seed, BACKGROUND, step)
        draws |= dict(scene=rng.permutation(n), replaced=torch.from_numpy(rng.random(n) < REPLACED))
    return Draws(**draws)


def make_batch(
    config: TrainConfig,
    train: ClassificationDataset,
    rows: np.ndarray,
    piece: np.ndarray,
    draws: Draws,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model input (B, 3, S, S) float32 of `piece`, places in the global batch `rows`, and its targets.

    Targets are labels (B,) int64 or, where images are mixed, shares of classes (B, C) float32. Partners from other
    pieces are read here too, so that the batch is the same however it is cut into pieces.
    """
    shown = piece if draws.partner is None else np.union1d(piece, draws.partner[piece])
    images, crop_sizes, labels = train.batch(rows[shown], device)
    if draws.scene is not None:
        images = with_backgrounds(images.float(), train, rows, shown, draws, config.background)
    own_draws = to_device(draws.augment[shown], device) if draws.augment is not None else None
    images = augment(images, crop_sizes, own_draws, fit=config.fit)
    if draws.partner is None:
        return images, labels
    own, partner = (
        to_device(torch.from_numpy(np.searchsorted(shown, p)), device) for p in (piece, draws.partner[piece])
    )
    images, share = mix(images[own], images[partner], to_device(draws.mix[piece], device))
    targets = F.one_hot(labels, len(train.classes)).float()
    return images, targets[partner].lerp(targets[own], share)


def with_backgrounds(
    images: torch.Tensor, train: ClassificationDataset, rows: np.ndarray, places: np.ndarray, draws: Draws, kind: str
) -> torch.Tensor:
    """Images (B, 3, S, S) in [0, 255] of `places` in the batch, those to be replaced on their new backgrounds."""
    device, scenes = images.device, rows[draws.scene[places]]
    others = train.batch(scenes, device)[0].float()
    masks, other_masks = (to_device(torch.from_numpy(train.masks[r]), device) / 255 for r in (rows[places], scenes))
    replaced = to_device(draws.replaced[places], device).view(-1, 1, 1, 1)
    return torch.where(replaced, replace_background(images, masks, others, other_masks, kind), images)
