"""Fine-tunes a vision transformer pretrained on ImageNet, with a new head and layer-wise learning-rate decay.

python train_vit.py --data sample --crop --augment --weights none
accelerate launch -q --config_file accelerate_config.yaml train_vit.py --crop --augment
"""

import common.announce  # noqa: F401, prints a line before the slow imports below

import re
from dataclasses import dataclass

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from common.config import InputError, TrainConfig, option, parse, run
from common.data.dataset import load_splits
from common.launch import start
from common.pretrained import freeze, load_backbone, torchvision_weights
from common.step import parameter_groups
from common.train import train_model

VITS = torchvision.models.list_models(module=torchvision.models, include="vit_*")


@dataclass(frozen=True)
class Config(TrainConfig):
    batch_size: int = 32
    lr: float = 3e-4
    model: str = option("vit_b_16", "name of a torchvision ViT")
    weights: str = option("imagenet", "'imagenet', 'none' or a file with a state dict")
    freeze: str = option("none", "part of the model that is not trained", choices=("none", "backbone"))
    layer_decay: float = option(0.75, "learning rate of each block relative to the block above", minimum=0)

    lab = TrainConfig.lab | dict(layer_decay=1.0)


def build_model(config: Config, num_classes: int) -> nn.Module:
    if config.model not in VITS:
        raise InputError(
            f"--model {config.model} is not a torchvision ViT. Choose from {', '.join(VITS)}, or use train_timm.py."
        )
    patch_size = int(config.model.split("_")[-1])
    if config.image_size % patch_size:
        raise InputError(f"--image-size {config.image_size} is not a multiple of the patch size {patch_size}.")
    model = torchvision.models.get_model(config.model, image_size=config.image_size)
    state = torchvision_weights(config.model, config.weights)
    if state is not None:
        if "encoder.pos_embedding" in state:  # resized to this image size
            state = interpolate_embeddings(config.image_size, patch_size, state)
        load_backbone(model, state, source=config.weights, head="heads.")
    model.heads = nn.Linear(model.hidden_dim, num_classes)
    nn.init.zeros_(model.heads.weight)  # so that the first steps change mainly the head
    nn.init.zeros_(model.heads.bias)
    if config.freeze == "backbone":
        freeze(model, model.heads)
    return model


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with layer-wise learning-rate decay (BEiT, Bao et al., 2021).

    The head has the learning rate `lr`, and each block `layer_decay` times that of the block above it; the patch
    embedding, class token and position embeddings have the lowest. Without pretrained weights, all layers have `lr`.
    """
    pattern = re.compile(r"encoder_layer_(\d+)\.")
    blocks = {int(match[1]) for name, _ in model.named_parameters() if (match := pattern.search(name))}
    decay = 1.0 if config.weights == "none" else config.layer_decay

    def lr_scale(name: str) -> float:
        match = pattern.search(name)
        if match:
            return decay ** (len(blocks) - int(match[1]))
        above = name.startswith(("encoder.ln.", "heads."))
        return 1.0 if above else decay ** (len(blocks) + 1)

    return torch.optim.AdamW(parameter_groups(model, config.weight_decay, lr_scale), lr=config.lr, fused=True)


def main(argv=None):
    config = parse(Config, argv)
    accelerator = start(config, build_model)
    train, val = load_splits(config)
    model = build_model(config, len(train.classes))
    return train_model(config, accelerator, model, build_optimizer(config, model), train, val)


if __name__ == "__main__":
    run(main)
