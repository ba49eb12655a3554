"""Trains an own convolutional network from scratch: blocks of convolution, ReLU and pooling, then two linear layers.

python train_custom_cnn.py --data sample --crop --augment
accelerate launch train_custom_cnn.py --crop --augment
"""

import re
from dataclasses import dataclass

from common.config import InputError, TrainConfig, option, parse, run


@dataclass(frozen=True)
class Config(TrainConfig):
    image_size: int = 64
    epochs: int = 20
    lr: float = 3e-4
    blocks: str = option(
        "32k3p2,64k3p2,128k3p2", "a block each: channels, k and kernel size, p and pool size; 'linear' for no ReLU"
    )
    hidden: int = option(256, "units of the hidden layer", minimum=1)


if __name__ == "__main__":
    run(parse, Config)  # --help and mistyped options are answered here, before the imports below take their seconds

import torch
from torch import nn

from common.data import load_splits
from common.launch import start
from common.train import parameter_groups, train_model


@dataclass(frozen=True)
class Block:
    channels: int
    kernel_size: int = 3
    use_relu: bool = True
    pool_size: int | None = None  # None: no pooling


def parse_blocks(text: str) -> list[Block]:
    """'32k3p2,64linear' is a 3 x 3 convolution to 32 channels, ReLU, 2 x 2 pooling, then one to 64 channels alone."""
    blocks = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:k(\d+))?(?:p(\d+))?(linear)?", part.strip())
        if not match:
            raise InputError(f"--blocks: {part!r} is no block such as 32, 32k3, 32k3p2 or 32k3p2linear.")
        channels, kernel_size, pool_size, linear = match.groups()
        blocks.append(Block(int(channels), int(kernel_size or 3), not linear, int(pool_size) if pool_size else None))
    return blocks


class CNN(nn.Module):
    """Images (B, 3, S, S) to logits (B, num_classes)."""

    def __init__(self, blocks: list[Block], num_classes: int, *, image_size: int, hidden: int):
        super().__init__()
        layers, channels, side = [], 3, image_size
        for block in blocks:
            if min(block.channels, block.kernel_size) < 1 or block.pool_size == 0:
                raise InputError(f"{block}: channels, kernel size and pool size must be at least 1.")
            layers.append(nn.Conv2d(channels, block.channels, block.kernel_size, padding="same"))
            if block.use_relu:
                layers.append(nn.ReLU())
            if block.pool_size:
                layers.append(nn.MaxPool2d(block.pool_size))
                side //= block.pool_size
            channels = block.channels
        if side == 0:
            pools = " x ".join(str(block.pool_size) for block in blocks if block.pool_size)
            raise InputError(f"pooling by {pools} leaves nothing of {image_size} pixels: use a larger --image-size.")
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


def build_cnn(blocks: list[Block | dict], num_classes: int, *, image_size: int = 224, hidden: int = 256) -> CNN:
    """The network of `blocks`, each a `Block` or a dict of its fields, for square images of `image_size` pixels.

    Raises:
        InputError: a number below 1, or pools that leave a map of size 0.
    """
    blocks = [Block(**block) if isinstance(block, dict) else block for block in blocks]
    return CNN(blocks, num_classes, image_size=image_size, hidden=hidden)


def build_model(config: Config, num_classes: int) -> CNN:
    return build_cnn(parse_blocks(config.blocks), num_classes, image_size=config.image_size, hidden=config.hidden)


def main(argv=None):
    config = parse(Config, argv)
    with torch.device("meta"):
        build_model(config, num_classes=2)  # options that do not go together fail here, before the data is read
    accelerator = start(config)
    train, val = load_splits(config)
    model = build_model(config, len(train.classes)).to(memory_format=torch.channels_last)  # the faster convolutions
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, fused=True)
    return train_model(config, accelerator, model, optimizer, train, val)


if __name__ == "__main__":
    run(main)
