"""Mixup and CutMix of a batch: each image with another one of the batch, and the targets in the same shares."""

import numpy as np
import torch

from common.augment import rectangle

MIXUP_ALPHA, CUTMIX_ALPHA = 0.4, 1.0  # of the Beta distributions of the shares
MIXUP, CUTMIX = 0.4, 0.4  # shares of the images; the rest stay as they are


def draw_mix(n: int, rng: np.random.Generator) -> tuple[np.ndarray, torch.Tensor]:
    """The partner of each of n images, (n,) int64, and (n, 5) float32 for `mix`.

    Those are the own share of mixup (Zhang et al., 2018) and the box of CutMix (Yun et al., 2019) that the partner
    fills: its centre x, y and its half-sides, where the image reaches from -1 to 1. An image gets one of the two.
    """
    kind = rng.random(n)
    share = np.where(kind < MIXUP, rng.beta(MIXUP_ALPHA, MIXUP_ALPHA, n), 1.0)
    area = np.where((kind >= MIXUP) & (kind < MIXUP + CUTMIX), rng.beta(CUTMIX_ALPHA, CUTMIX_ALPHA, n), 0.0)
    center, half = rng.uniform(-1, 1, (2, n)), np.sqrt(area)
    return rng.permutation(n), torch.from_numpy(np.stack([share, *center, half, half], axis=1).astype(np.float32))


def mix(images: torch.Tensor, others: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, S, S) mixed with `others` by `draws` (B, 5), and the share of its own pixels in each, (B, 1)."""
    own = draws[:, 0, None, None] * ~rectangle(draws[:, 1:], images.shape[-1])  # (B, S, S)
    return others.lerp(images, own[:, None]), own.mean((1, 2))[:, None]
