"""Trains an own vision transformer from scratch: patches, class token, learned positions, encoder blocks, linear head.

python train_custom_vit.py --data sample --crop --augment
accelerate launch train_custom_vit.py --crop --augment
"""

from dataclasses import dataclass

from common.config import InputError, TrainConfig, option, parse, run


@dataclass(frozen=True)
class Config(TrainConfig):
    image_size: int = 64
    epochs: int = 30
    lr: float = 3e-4
    patch_size: int = option(8, "side of a patch in pixels", minimum=1)
    dim: int = option(128, "width of a token", minimum=1)
    depth: int = option(6, "encoder blocks", minimum=1)
    num_heads: int = option(8, "attention heads", minimum=1)
    mlp_ratio: float = option(4.0, "width of the MLP in token widths", minimum=0.01)
    norm_first: bool = option(True, "normalise before attention and MLP, or after each residual sum")
    dropout: float = option(0.0, "dropout after attention and within the MLP", minimum=0, maximum=1)

    lab = TrainConfig.lab | dict(patch_size=16, norm_first=False, dropout=0.1)


if __name__ == "__main__":
    run(parse, Config)  # --help and mistyped options are answered here, before the imports below take their seconds

import torch
from torch import nn

from common.data import load_splits
from common.launch import start
from common.train import parameter_groups, train_model


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, D) (Vaswani et al., 2017)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, D // self.num_heads)
        x = nn.functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))  # q, k and v, each (B, H, N, D / H)
        return self.out(x.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Attention and MLP, each in a residual branch; normalised first as in ViT, or last as in Vaswani et al."""

    def __init__(self, dim: int, num_heads: int, hidden: int, norm_first: bool, dropout: float):
        super().__init__()
        self.norm_first = norm_first
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.Sequential(Attention(dim, num_heads), nn.Dropout(dropout))
        widen, narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.mlp = nn.Sequential(widen, nn.GELU(), nn.Dropout(dropout), narrow, nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.norm_first:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Images (B, 3, S, S) to logits (B, num_classes) (Dosovitskiy et al., 2021)."""

    def __init__(self, image_size, num_classes, patch_size, dim, depth, num_heads, hidden, norm_first, dropout):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        num_tokens = 1 + (image_size // patch_size) ** 2
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_tokens, dim), std=0.02))
        self.blocks = nn.Sequential(*[Block(dim, num_heads, hidden, norm_first, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim) if norm_first else nn.Identity()  # the last block's output is normalised already
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def build_vit(
    image_size, num_classes, *, patch_size=16, dim=128, depth=6, num_heads=8, mlp_ratio=4, norm_first=True, dropout=0.0
) -> ViT:
    """A vision transformer for square images, options as in `Config`; InputError where they do not go together."""
    if image_size % patch_size:
        raise InputError(f"image size {image_size} is not a multiple of patch size {patch_size}.")
    if dim % num_heads:
        raise InputError(f"dim {dim} is not a multiple of num_heads {num_heads}.")
    return ViT(image_size, num_classes, patch_size, dim, depth, num_heads, int(dim * mlp_ratio), norm_first, dropout)


def build_model(config: Config, num_classes: int) -> ViT:
    names = ("patch_size", "dim", "depth", "num_heads", "mlp_ratio", "norm_first", "dropout")
    return build_vit(config.image_size, num_classes, **{name: getattr(config, name) for name in names})


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
