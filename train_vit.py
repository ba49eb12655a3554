"""Fine-tunes a vision transformer pretrained on ImageNet, with a new head and layer-wise learning-rate decay.

python train_vit.py --data sample --crop --augment --weights none
accelerate launch -q --config_file accelerate_config.yaml train_vit.py --crop --augment
"""

import common.announce  # noqa: F401, prints a line before the slow imports below

import re
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from common.config import InputError, TrainConfig, option, parse, run
from common.data.dataset import load_splits
from common.launch import start
from common.pretrained import freeze, load_backbone, timm_model, torchvision_weights
from common.step import parameter_groups
from common.train import train_model

TORCHVISION_VITS = torchvision.models.list_models(module=torchvision.models, include="vit_*")


@dataclass(frozen=True)
class Config(TrainConfig):
    batch_size: int = 32
    lr: float = 3e-4
    model: str = option("vit_b_16", "name of a torchvision ViT or of a plain timm ViT")
    weights: str = option("imagenet", "'imagenet', 'none' or a file with a state dict")
    freeze: str = option("none", "part of the model that is not trained", choices=("none", "backbone"))
    layer_decay: float = option(0.75, "learning rate of each block relative to the block above", minimum=0)

    lab = TrainConfig.lab | dict(layer_decay=1.0)


def build_model(config: Config, num_classes: int) -> nn.Module:
    if config.model in TORCHVISION_VITS:
        patch_size = int(config.model.split("_")[-1])
        check_image_size(config, patch_size)
        model: Any = torchvision.models.get_model(config.model, image_size=config.image_size)
        state = torchvision_weights(config.model, config.weights)
        if state is not None:
            if "encoder.pos_embedding" in state:  # resized to this image size
                state = interpolate_embeddings(config.image_size, patch_size, state)
            load_backbone(model, state, source=config.weights, head="heads.")
        model.heads = head = nn.Linear(model.hidden_dim, num_classes)
    else:
        model = timm_model(config.model, config.weights, img_size=config.image_size)
        model.reset_classifier(num_classes)
        head = model.get_classifier()
        if not (hasattr(model, "blocks") and hasattr(model, "patch_embed") and isinstance(head, nn.Linear)):
            raise InputError(
                f"--model {config.model} is not a plain ViT with blocks, a patch embedding and a linear head."
            )
        check_image_size(config, model.patch_embed.patch_size[0])
    nn.init.zeros_(head.weight)  # so that the first steps change mainly the head
    nn.init.zeros_(head.bias)
    if config.freeze == "backbone":
        freeze(model, head)
    return model


def check_image_size(config: Config, patch_size: int) -> None:
    if config.image_size % patch_size:
        raise InputError(f"--image-size {config.image_size} is not a multiple of the patch size {patch_size}.")


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with layer-wise learning-rate decay (BEiT, Bao et al., 2021).

    The head has the learning rate `lr`, and each block `layer_decay` times that of the block above it; the patch
    embedding, class token and position embeddings have the lowest. Without pretrained weights, all layers have `lr`.
    """
    pattern = re.compile(r"(?:encoder_layer_|blocks\.)(\d+)\.")
    blocks = {int(match[1]) for name, _ in model.named_parameters() if (match := pattern.search(name))}
    decay = 1.0 if config.weights == "none" else config.layer_decay

    def lr_scale(name: str) -> float:
        match = pattern.search(name)
        if match:
            return decay ** (len(blocks) - int(match[1]))
        above = re.match(r"(encoder\.ln|heads|norm|fc_norm|attn_pool|head)\.", name)
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
