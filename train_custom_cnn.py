"""Trains an own convolutional network from scratch: blocks of convolution and batch norm, then one linear layer.

python train_custom_cnn.py --data sample --crop --augment
accelerate launch train_custom_cnn.py --crop --augment
"""

import re
from dataclasses import dataclass, replace

from common.config import InputError, TrainConfig, option, parse, run


@dataclass(frozen=True)
class Config(TrainConfig):
    image_size: int = 64
    epochs: int = 80
    batch_size: int = 32
    lr: float = 1e-3
    blocks: str = option(
        "32s2-bn,32-bn,32-bn,64s2-bn,64-bn,128s2-bn,128-bn,256s2-bn,256-bn",
        "a block each: channels, k and kernel size, s and stride, p and pool size, -bn, -res, -linear for no ReLU",
    )
    hidden: int = option(0, "units of a hidden layer on the flattened map; 0: the channels' means, no layer", minimum=0)

    lab = TrainConfig.lab | dict(blocks="32k3p2,64k3p2,128k3p2", hidden=256)


if __name__ == "__main__":
    run(parse, Config)  # --help and mistyped options are answered here, before the imports below take their seconds

import torch
from torch import nn

from common.data import load_splits
from common.launch import start
from common.step import parameter_groups
from common.train import train_model


@dataclass(frozen=True)
class Block:
    channels: int
    kernel_size: int = 3
    use_relu: bool = True
    pool_size: int | None = None  # None: no pooling
    stride: int = 1
    batch_norm: bool = False
    residual: bool = False


def parse_blocks(text: str) -> list[Block]:
    """'32k3p2,64s2-bn-res' is a 3 x 3 convolution, ReLU and 2 x 2 pooling; then a residual block of stride 2."""
    blocks, names = [], ("channels", "kernel_size", "stride", "pool_size")
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:k(\d+))?(?:s(\d+))?(?:p(\d+))?(-bn)?(-res)?(-?linear)?", part.strip())
        if not match:
            raise InputError(f"--blocks: {part!r} is no block such as 32, 32k3p2, 32s2-bn-res or 32-linear.")
        numbers = {name: int(match[i]) for i, name in enumerate(names, 1) if match[i]}
        batch_norm, residual, linear = (match[i] is not None for i in (5, 6, 7))
        blocks.append(Block(**numbers, use_relu=not linear, batch_norm=batch_norm, residual=residual))
    return blocks


def convolution(channels: int, block: Block) -> nn.Sequential:
    size, bias = block.kernel_size, not block.batch_norm
    layer = nn.Conv2d(channels, block.channels, size, block.stride, padding=size // 2, bias=bias)
    return nn.Sequential(layer, nn.BatchNorm2d(block.channels)) if block.batch_norm else nn.Sequential(layer)


class Residual(nn.Module):  # two convolutions beside a shortcut (He et al., 2016)
    def __init__(self, channels: int, block: Block):
        super().__init__()
        second = convolution(block.channels, replace(block, stride=1))
        self.branch, self.shortcut = nn.Sequential(convolution(channels, block), nn.ReLU(), second), nn.Identity()
        if channels != block.channels or block.stride > 1:
            self.shortcut = convolution(channels, replace(block, kernel_size=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.branch(x) + self.shortcut(x)


def build_cnn(blocks: list[Block | dict], num_classes: int, *, image_size: int = 224, hidden: int = 256) -> nn.Module:
    """The network of `blocks`, each a `Block` or a dict of its fields, for images (B, 3, image_size, image_size)."""
    layers, channels, side = [], 3, image_size
    for block in (Block(**block) if isinstance(block, dict) else block for block in blocks):
        if min(block.channels, block.stride) < 1 or block.pool_size == 0 or block.kernel_size % 2 == 0:
            raise InputError(f"{block}: channels, stride and pool size must be at least 1, the kernel size odd.")
        layers.append(Residual(channels, block) if block.residual else convolution(channels, block))
        layers += [nn.ReLU()] if block.use_relu else []
        layers += [nn.MaxPool2d(block.pool_size)] if block.pool_size else []
        channels, side = block.channels, -(-side // block.stride) // (block.pool_size or 1)
    if side == 0:
        raise InputError(f"the pools leave nothing of {image_size} pixels: use a larger --image-size.")
    if hidden:
        head = [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    else:
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers, *head)


def build_model(config: Config, num_classes: int) -> nn.Module:
    model = build_cnn(parse_blocks(config.blocks), num_classes, image_size=config.image_size, hidden=config.hidden)
    return model.to(memory_format=torch.channels_last)  # the faster convolutions


def main(argv=None):
    config = parse(Config, argv)
    with torch.device("meta"):
        build_model(config, num_classes=2)  # options that do not go together fail here, before the data is read
    accelerator = start(config)
    train, val = load_splits(config)
    model = build_model(config, len(train.classes))
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, fused=True)
    return train_model(config, accelerator, model, optimizer, train, val)


if __name__ == "__main__":
    run(main)
