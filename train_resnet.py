"""Fine-tunes a ResNet pretrained on ImageNet, with a new head.

python train_resnet.py --data sample --crop --augment --weights none
accelerate launch -q --config_file accelerate_config.yaml train_resnet.py --crop --augment
"""

import common.announce  # noqa: F401, prints a line before the slow imports below

from dataclasses import dataclass

import torch
import torchvision
from torch import nn

from common.config import InputError, TrainConfig, option, parse, run
from common.data.dataset import load_splits
from common.launch import start
from common.pretrained import freeze, load_backbone, torchvision_weights
from common.step import parameter_groups
from common.train import train_model

RESNETS = torchvision.models.list_models(module=torchvision.models, include=["*resnet*", "resnext*"])


@dataclass(frozen=True)
class Config(TrainConfig):
    batch_size: int = 32
    lr: float = 1e-3
    model: str = option("resnet18", "name of a torchvision ResNet")
    weights: str = option("imagenet", "'imagenet', 'none' or a file with a state dict")
    freeze: str = option("none", "part of the model that is not trained", choices=("none", "backbone"))
    backbone_lr: float = option(1.0, "learning rate of the backbone as a fraction of --lr", minimum=0)


def build_model(config: Config, num_classes: int) -> nn.Module:
    if config.model not in RESNETS:
        raise InputError(f"--model {config.model} is not a torchvision ResNet. Choose from {', '.join(RESNETS)}.")
    model = torchvision.models.get_model(config.model)
    state = torchvision_weights(config.model, config.weights)
    if state is not None:
        load_backbone(model, state, source=config.weights, head="fc.")
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    if config.freeze == "backbone":
        freeze(model, model.fc)
    return model.to(memory_format=torch.channels_last)  # faster convolutions


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    def lr_scale(name: str) -> float:
        return 1.0 if name.startswith("fc.") else config.backbone_lr

    return torch.optim.AdamW(parameter_groups(model, config.weight_decay, lr_scale), lr=config.lr, fused=True)


def main(argv=None):
    config = parse(Config, argv)
    accelerator = start(config, build_model)
    train, val = load_splits(config)
    model = build_model(config, len(train.classes))
    return train_model(config, accelerator, model, build_optimizer(config, model), train, val)


if __name__ == "__main__":
    run(main)
