"""Fine-tunes an ImageNet vision transformer: a new head, and a learning rate that falls from block to block downwards.

python train_vit.py --data sample --crop --augment --weights none
accelerate launch train_vit.py --crop --augment
"""

import re
from dataclasses import dataclass

from common.config import InputError, TrainConfig, option, parse, run


@dataclass(frozen=True)
class Config(TrainConfig):
    batch_size: int = 32
    lr: float = 3e-4
    model: str = option("vit_b_16", "a torchvision ViT, or any timm ViT, by its name")
    weights: str = option("imagenet", "'imagenet', 'none' or a file with a state dict")
    freeze: str = option("none", "what is not trained", choices=("none", "backbone"))
    layer_decay: float = option(0.75, "learning rate of a block, as a fraction of that of the block above", minimum=0)

    lab = TrainConfig.lab | dict(layer_decay=1.0)


if __name__ == "__main__":
    run(parse, Config)  # --help and mistyped options are answered here, before the imports below take their seconds

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from common.data import load_splits
from common.launch import start
from common.step import parameter_groups
from common.train import train_model
from common.weights import freeze, load_backbone, timm_model, torchvision_weights

TORCHVISION_VITS = torchvision.models.list_models(module=torchvision.models, include="vit_*")


def build_model(config: Config, num_classes: int) -> nn.Module:
    if config.model in TORCHVISION_VITS:
        patch_size = int(config.model.split("_")[-1])
        check_image_size(config, patch_size)
        model = torchvision.models.get_model(config.model, image_size=config.image_size)
        state = torchvision_weights(config.model, config.weights)
        if state is not None:
            if "encoder.pos_embedding" in state:  # positions of another image size
                state = interpolate_embeddings(config.image_size, patch_size, state)
            load_backbone(model, state, source=config.weights, head="heads.")
        model.heads = head = nn.Linear(model.hidden_dim, num_classes)
    else:
        model = timm_model(config.model, config.weights, img_size=config.image_size)
        model.reset_classifier(num_classes)
        head = model.get_classifier()
        if not (hasattr(model, "blocks") and hasattr(model, "patch_embed") and isinstance(head, nn.Linear)):
            raise InputError(f"--model {config.model} is not a plain ViT: it lacks blocks, patches or a linear head.")
        check_image_size(config, model.patch_embed.patch_size[0])
    nn.init.zeros_(head.weight)  # the first steps then move the head alone
    nn.init.zeros_(head.bias)
    if config.freeze == "backbone":
        freeze(model, head)
    return model


def check_image_size(config: Config, patch_size: int) -> None:
    if config.image_size % patch_size:
        raise InputError(f"--image-size {config.image_size} is not a multiple of the patch size {patch_size}.")


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with layer-wise learning rate decay (BEiT, Bao et al., 2021): the head at lr, each block below at
    `layer_decay` of the one above it, patches, tokens and positions lowest. All alike where training is from scratch.
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
    accelerator = start(config)
    train, val = load_splits(config)
    model = build_model(config, len(train.classes))
    return train_model(config, accelerator, model, build_optimizer(config, model), train, val)


if __name__ == "__main__":
    run(main)
