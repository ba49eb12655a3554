"""Fine-tunes any model of timm by its name, such as a ConvNeXt, EfficientNet, MobileNet, Swin, DINOv3 or SigLIP model.

python train_timm.py --data sample --crop --augment --weights none
accelerate launch -q --config_file accelerate_config.yaml train_timm.py --crop --augment --model mobilenetv3_large_100
"""

import common.announce  # noqa: F401, prints a line before the slow imports below

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.optim import param_groups_layer_decay
from torch import nn

from common.config import InputError, Normalization, TrainConfig, option, parse, run
from common.data.dataset import load_splits
from common.launch import start
from common.pretrained import freeze, timm_model
from common.train import train_model


@dataclass(frozen=True)
class Config(TrainConfig):
    image_size: int = option(
        0, "width and height of the model input in pixels; 0: as in pretraining", group="data", minimum=0, maximum=8192
    )
    batch_size: int = 32
    lr: float = option(
        0.0, "peak learning rate; 0: 1e-3 with batch norm alone, otherwise 3e-4", group="training", minimum=0
    )
    # As large as a ResNet-50, so one GPU or a CPU is enough, and pretrained on ImageNet-22k at 224 pixels
    model: str = option("convnext_tiny.fb_in22k_ft_in1k", "name of a timm model; a tag names its weights")
    weights: str = option("imagenet", "'imagenet': those of timm, 'none' or a file with a state dict")
    freeze: str = option("none", "part of the model that is not trained", choices=("none", "backbone"))
    layer_decay: float = option(0.9, "learning rate of each layer relative to the layer above", minimum=0)

    lab = TrainConfig.lab | dict(layer_decay=1.0)

    def __post_init__(self):
        super().__post_init__()
        size = timm_config(self.model).input_size[-1]
        object.__setattr__(self, "image_size", self.image_size or size)  # the config is frozen
        object.__setattr__(self, "lr", self.lr or default_lr(self.model))

    @property
    def normalization(self) -> Normalization:
        pretrained = timm_config(self.model)
        return Normalization(tuple(pretrained.mean), tuple(pretrained.std))


def timm_config(name: str) -> Any:
    """timm's configuration of the model `name` and its weights: input size, mean, std; InputError if there is none."""
    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError as error:  # an unknown tag
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise InputError(f"--model {name}: {error} Models with weights: {tags}.") from error
    if config is None:
        similar = ", ".join(difflib.get_close_matches(name, timm.list_models()))
        hint = f"Similar names: {similar}." if similar else "No name is similar; one that works is convnext_tiny."
        raise InputError(f"--model {name} is not a timm model. {hint}")
    return config


@cache
def default_lr(name: str) -> float:
    """As in train_resnet.py for networks with batch norm; models with layer norm, such as transformers, need less."""
    with torch.device("meta"):  # takes neither memory nor time
        layers = list(timm.create_model(name, num_classes=0).modules())
    batch_norm = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
    return 1e-3 if batch_norm and not any(isinstance(layer, nn.LayerNorm) for layer in layers) else 3e-4


def build_model(config: Config, num_classes: int) -> nn.Module:
    depends_on_size = timm_config(config.model).fixed_input_size  # as position embeddings and windows do
    options = {"img_size": config.image_size} if depends_on_size else {}
    check_image_size(config, options)
    model = timm_model(config.model, config.weights, **options)
    if not hasattr(model, "reset_classifier"):
        raise InputError(f"--model {config.model} is an encoder without a classifier: choose another model.")
    model.reset_classifier(num_classes)
    head = model.get_classifier()
    if isinstance(head, nn.Linear):  # some models have several heads, or heads of several layers
        nn.init.zeros_(head.weight)  # so that the first steps change mainly the head
        nn.init.zeros_(head.bias)
    if config.freeze == "backbone":
        freeze(model, nn.ModuleList(head) if isinstance(head, tuple) else head)
    return model.to(memory_format=torch.channels_last)  # faster convolutions


def check_image_size(config: Config, options: dict[str, Any]) -> None:
    """Raises an InputError if the model cannot use images of this size."""
    size = config.image_size
    try:
        with torch.device("meta"):
            model = timm.create_model(config.model, num_classes=0, **options).eval()
            model(torch.empty(2, 3, size, size))
        patch_embed = getattr(model, "patch_embed", None)
        if isinstance(patch_embed, PatchEmbed) and size % patch_embed.patch_size[0]:
            raise ValueError(f"The size is not a multiple of the patch size {patch_embed.patch_size[0]}.")
    except Exception as error:  # depends on the model
        usual = timm_config(config.model).input_size[-1]
        reason = f" {error}".rstrip(". ") + "." if str(error) else ""
        raise InputError(
            f"--model {config.model} cannot use --image-size {size}.{reason} The model was made for {usual} pixels."
        ) from error


def build_optimizer(config: Config, model: Any) -> torch.optim.Optimizer:
    """AdamW with timm's groups: layer-wise learning-rate decay (BEiT, Bao et al., 2021), and its rules of weight decay.

    The head has the learning rate `lr`, and each layer `layer_decay` times that of the layer above it. Without
    pretrained weights, all layers have `lr`.
    """
    groups = param_groups_layer_decay(
        model,
        weight_decay=config.weight_decay,
        no_weight_decay_list=model.no_weight_decay() if hasattr(model, "no_weight_decay") else (),
        layer_decay=1.0 if config.weights == "none" else config.layer_decay,
    )
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def main(argv=None):
    config = parse(Config, argv)
    accelerator = start(config, build_model)
    train, val = load_splits(config)
    model = build_model(config, len(train.classes))
    return train_model(config, accelerator, model, build_optimizer(config, model), train, val)


if __name__ == "__main__":
    run(main)
