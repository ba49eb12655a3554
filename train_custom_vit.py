"""Trains a small vision transformer from scratch: patch tokens, position embeddings, encoder blocks, linear head.

python train_custom_vit.py --data sample --crop --augment
accelerate launch -q --config_file accelerate_config.yaml train_custom_vit.py --crop --augment
"""

import common.announce  # noqa: F401, prints a line before the slow imports below

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from common.config import InputError, TrainConfig, option, parse, run
from common.data.dataset import load_splits
from common.launch import start
from common.step import parameter_groups
from common.train import train_model


@dataclass(frozen=True)
class Config(TrainConfig):
    image_size: int = 64
    epochs: int = 80
    batch_size: int = 32
    lr: float = 3e-4
    patch_size: int = option(8, "width and height of a patch in pixels", minimum=1, maximum=8192)
    dim: int = option(128, "embedding dimension of a token", minimum=4, maximum=1_000_000)
    depth: int = option(6, "number of encoder blocks", minimum=1, maximum=1000)
    num_heads: int = option(8, "number of attention heads", minimum=1, maximum=1_000_000)
    mlp_ratio: float = option(4.0, "width of the MLP as a multiple of --dim", minimum=0.01, maximum=1000)
    stem: str = option("conv", "patch embedding: 3 x 3 convolutions, or a single projection", choices=("conv", "patch"))
    positions: str = option("sincos", "position embeddings: fixed or learned", choices=("sincos", "learned"))
    pool: str = option("mean", "input of the head: the mean of the tokens, or a class token", choices=("mean", "class"))
    norm_first: bool = option(True, "layer norm before attention and MLP (pre-norm) instead of after")
    dropout: float = option(0.0, "dropout in attention and MLP", minimum=0, maximum=1)

    lab = TrainConfig.lab | dict(
        patch_size=16, stem="patch", positions="learned", pool="class", norm_first=False, dropout=0.1
    )


def conv_stem(dim: int, patch_size: int) -> nn.Sequential:
    """A convolutional stem (Xiao et al., 2021): 3 x 3 convolutions with stride 2 reduce each patch to a token."""
    halvings = patch_size.bit_length() - 1
    widths = [3, *(dim >> i for i in reversed(range(halvings)))]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, kernel_size=1))


def sincos(side: int, dim: int) -> torch.Tensor:
    """Position embeddings (side * side, dim): sines and cosines of row and column (Vaswani et al., 2017)."""
    angles = torch.arange(side)[:, None] / 10_000 ** torch.linspace(0, 1, dim // 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, dim / 2)
    return torch.cat([waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)], dim=1)


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., 2021): images (B, 3, S, S) to logits (B, num_classes)."""

    def __init__(self, config: Config, num_classes: int):
        super().__init__()
        dim, patch_size = config.dim, config.patch_size
        side = config.image_size // patch_size
        class_tokens = 1 if config.pool == "class" else 0
        if config.stem == "conv":
            self.patches: nn.Module = conv_stem(dim, patch_size)
        else:
            self.patches = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(class_tokens, dim), std=0.02))
        if config.positions == "sincos":
            positions = torch.cat([torch.zeros(class_tokens, dim), sincos(side, dim)])
            self.positions: nn.Buffer | nn.Parameter = nn.Buffer(positions, persistent=False)
        else:
            positions = nn.init.trunc_normal_(torch.empty(class_tokens + side**2, dim), std=0.02)
            self.positions = nn.Parameter(positions)
        blocks = [
            nn.TransformerEncoderLayer(
                dim,
                nhead=config.num_heads,
                dim_feedforward=max(1, int(dim * config.mlp_ratio)),
                dropout=config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=config.norm_first,
            )
            for _ in range(config.depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim) if config.norm_first else nn.Identity()  # post-norm blocks end with a norm
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if len(self.class_token) else x.mean(dim=1))


def build_model(config: Config, num_classes: int) -> ViT:
    patch_size, dim = config.patch_size, config.dim
    if config.image_size % patch_size:
        raise InputError(f"--image-size {config.image_size} is not a multiple of --patch-size {patch_size}.")
    if dim % config.num_heads or dim % 4:
        raise InputError(f"--dim {dim} must be a multiple of 4 and of --num-heads {config.num_heads}.")
    if config.stem == "conv" and (patch_size & (patch_size - 1) or patch_size > dim):
        raise InputError(f"--stem conv needs a --patch-size that is a power of 2 and at most --dim, not {patch_size}.")
    return ViT(config, num_classes)


def main(argv=None):
    config = parse(Config, argv)
    accelerator = start(config, build_model)
    train, val = load_splits(config)
    model = build_model(config, len(train.classes))
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, fused=True)
    return train_model(config, accelerator, model, optimizer, train, val)


if __name__ == "__main__":
    run(main)
