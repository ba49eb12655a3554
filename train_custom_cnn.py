"""Trains a small CNN from scratch: blocks of convolution and batch norm, then one linear layer.

python train_custom_cnn.py --data sample --crop --augment
accelerate launch -q --config_file accelerate_config.yaml train_custom_cnn.py --crop --augment
"""

import common.announce  # noqa: F401, prints a line before the slow imports below

import re
from dataclasses import dataclass, replace

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
    lr: float = 1e-3
    blocks: str = option(
        "32s2-bn,32-bn,32-bn,64s2-bn,64-bn,128s2-bn,128-bn,256s2-bn,256-bn",
        "comma-separated blocks: channels, k + kernel size, s + stride, p + pool size, -bn, -res, -linear (no ReLU)",
    )
    hidden: int = option(
        0,
        "units of a hidden layer on the flattened features; 0: global average pooling",
        minimum=0,
        maximum=1_000_000,
    )

    lab = TrainConfig.lab | dict(blocks="32k3p2,64k3p2,128k3p2", hidden=256)


@dataclass(frozen=True)
class Block:
    channels: int
    kernel_size: int = 3
    stride: int = 1
    batch_norm: bool = False
    residual: bool = False
    use_relu: bool = True
    pool_size: int | None = None  # None: no pooling


def parse_blocks(text: str) -> list[Block]:
    """Parses `--blocks`.

    "32k3p2,64s2-bn-res" is a 3 x 3 convolution with 32 channels, ReLU and 2 x 2 max pooling, then a residual block with
    64 channels, stride 2 and batch norm.
    """
    blocks: list[Block] = []
    for part in text.split(","):
        match = re.fullmatch(
            r"(\d{1,6})(?:k(\d{1,4}))?(?:s(\d{1,4}))?(?:p(\d{1,4}))?(-bn)?(-res)?(-?linear)?", part.strip()
        )
        if not match:
            raise InputError(f"--blocks: {part!r} is not a block. Examples: 32, 32k3p2, 32s2-bn-res, 32-linear.")
        channels, kernel_size, stride, pool_size, batch_norm, residual, linear = match.groups()
        block = Block(
            channels=int(channels),
            kernel_size=int(kernel_size or 3),
            stride=int(stride or 1),
            batch_norm=batch_norm is not None,
            residual=residual is not None,
            use_relu=linear is None,
            pool_size=int(pool_size) if pool_size else None,
        )
        if min(block.channels, block.stride) < 1 or block.pool_size == 0 or block.kernel_size % 2 == 0:
            raise InputError(
                f"--blocks: {part!r} needs channels, stride and pool size of at least 1 and an odd kernel size."
            )
        blocks.append(block)
        if len(blocks) > 1000:
            raise InputError("--blocks has more than 1000 blocks: choose a smaller model.")
    return blocks


def convolution(channels: int, block: Block) -> nn.Sequential:
    """The convolution of a block, without activation, on `channels` input channels."""
    layer = nn.Conv2d(
        channels,
        block.channels,
        kernel_size=block.kernel_size,
        stride=block.stride,
        padding=block.kernel_size // 2,
        bias=not block.batch_norm,
    )
    return nn.Sequential(layer, nn.BatchNorm2d(block.channels)) if block.batch_norm else nn.Sequential(layer)


class Residual(nn.Module):
    """Two convolutions with a shortcut (He et al., 2016)."""

    def __init__(self, channels: int, block: Block):
        super().__init__()
        second = convolution(block.channels, replace(block, stride=1))
        self.branch = nn.Sequential(convolution(channels, block), nn.ReLU(), second)
        self.shortcut: nn.Module = nn.Identity()
        if channels != block.channels or block.stride > 1:
            self.shortcut = convolution(channels, replace(block, kernel_size=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.branch(x) + self.shortcut(x)


def build_cnn(blocks: list[Block], num_classes: int, *, image_size: int, hidden: int) -> nn.Sequential:
    """The network for images (B, 3, image_size, image_size); InputError if pooling leaves no pixels."""
    layers: list[nn.Module] = []
    channels, side = 3, image_size
    for block in blocks:
        layers.append(Residual(channels, block) if block.residual else convolution(channels, block))
        if block.use_relu:
            layers.append(nn.ReLU())
        if block.pool_size:
            layers.append(nn.MaxPool2d(block.pool_size))
        channels, side = block.channels, -(-side // block.stride) // (block.pool_size or 1)
    if side == 0:
        raise InputError(f"--blocks: pooling leaves no pixels of --image-size {image_size}. Use larger images.")
    if hidden:
        head = [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    else:
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers, *head)


def build_model(config: Config, num_classes: int) -> nn.Module:
    blocks = parse_blocks(config.blocks)
    model = build_cnn(blocks, num_classes, image_size=config.image_size, hidden=config.hidden)
    return model.to(memory_format=torch.channels_last)  # faster convolutions


def main(argv=None):
    config = parse(Config, argv)
    accelerator = start(config, build_model)
    train, val = load_splits(config)
    model = build_model(config, len(train.classes))
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, fused=True)
    return train_model(config, accelerator, model, optimizer, train, val)


if __name__ == "__main__":
    run(main)
