"""Trains an own vision transformer from scratch: tokens of patches, positions, encoder blocks, mean, linear head.

python train_custom_vit.py --data sample --crop --augment
accelerate launch train_custom_vit.py --crop --augment
"""

from dataclasses import dataclass
from itertools import pairwise

from common.config import InputError, TrainConfig, option, parse, run


@dataclass(frozen=True)
class Config(TrainConfig):
    image_size: int = 64
    epochs: int = 80
    batch_size: int = 32
    lr: float = 3e-4
    patch_size: int = option(8, "side of a patch in pixels", minimum=1)
    dim: int = option(128, "width of a token", minimum=4)
    depth: int = option(6, "encoder blocks", minimum=1)
    num_heads: int = option(8, "attention heads", minimum=1)
    mlp_ratio: float = option(4.0, "width of the MLP in token widths", minimum=0.01)
    stem: str = option("conv", "tokens by 3 x 3 convolutions, or each from its patch alone", choices=("conv", "patch"))
    positions: str = option("sincos", "fixed sines and cosines, or learned", choices=("sincos", "learned"))
    pool: str = option("mean", "what the head sees: the tokens' mean, or a class token", choices=("mean", "class"))
    norm_first: bool = option(True, "normalise before attention and MLP, or after each residual sum")
    dropout: float = option(0.0, "dropout in attention and in the MLP", minimum=0, maximum=1)

    lab = TrainConfig.lab | dict(
        patch_size=16, stem="patch", positions="learned", pool="class", norm_first=False, dropout=0.1
    )


if __name__ == "__main__":
    run(parse, Config)  # --help and mistyped options are answered here, before the imports below take their seconds

import torch
from torch import nn

from common.data import load_splits
from common.launch import start
from common.step import parameter_groups
from common.train import train_model


def conv_stem(dim: int, patch_size: int) -> nn.Sequential:
    """3 x 3 convolutions of stride 2, as many as make a token of a patch (Xiao et al., 2021)."""
    layers, widths = [], [3, *(dim >> i for i in reversed(range(patch_size.bit_length() - 1)))]
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1))


def sincos(side: int, dim: int) -> torch.Tensor:
    """Positions (side * side, dim): sines and cosines of row and column, after Vaswani et al. (2017)."""
    angles = torch.arange(side)[:, None] / 10_000 ** torch.linspace(0, 1, dim // 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, dim / 2)
    return torch.cat([waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)], dim=1)


class ViT(nn.Module):
    """Images (B, 3, S, S) to logits (B, num_classes) (Dosovitskiy et al., 2021)."""

    def __init__(self, image_size, num_classes, *, patch_size, dim, depth, stem, positions, pool, norm_first, **layer):
        super().__init__()
        side, extra = image_size // patch_size, int(pool == "class")
        self.patches = conv_stem(dim, patch_size) if stem == "conv" else nn.Conv2d(3, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(extra, dim), std=0.02))
        if positions == "sincos":
            self.positions = nn.Buffer(torch.cat([torch.zeros(extra, dim), sincos(side, dim)]), persistent=False)
        else:
            self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(extra + side**2, dim), std=0.02))
        layer |= dict(activation="gelu", batch_first=True, norm_first=norm_first)
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(dim, **layer) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim) if norm_first else nn.Identity()  # the last block's output is normalised already
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if len(self.class_token) else x.mean(dim=1))


def build_vit(
    image_size, num_classes, *, patch_size=16, dim=128, depth=6, num_heads=8, mlp_ratio=4, dropout=0.0, **options
) -> ViT:
    """A vision transformer for square images, options as in `Config`; InputError where they do not go together."""
    if image_size % patch_size:
        raise InputError(f"image size {image_size} is not a multiple of patch size {patch_size}.")
    if dim % num_heads or dim % 4:
        raise InputError(f"dim {dim} is not a multiple of num_heads {num_heads} and of 4.")
    options = dict(stem="patch", positions="learned", pool="class", norm_first=True) | options
    if options["stem"] == "conv" and (patch_size & (patch_size - 1) or patch_size > dim):
        raise InputError(f"patch size {patch_size} is no power of 2 up to dim {dim}, as the convolutions need.")
    layer = dict(nhead=num_heads, dim_feedforward=max(1, int(dim * mlp_ratio)), dropout=dropout)
    return ViT(image_size, num_classes, patch_size=patch_size, dim=dim, depth=depth, **layer, **options)


def build_model(config: Config, num_classes: int) -> ViT:
    own = ("patch_size", "dim", "depth", "num_heads", "mlp_ratio", "stem", "positions", "pool", "norm_first", "dropout")
    return build_vit(config.image_size, num_classes, **{name: getattr(config, name) for name in own})


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
