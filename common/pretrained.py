"""Pretrained weights, from torchvision, timm or a file, and freezing of the backbone."""

import os
import sys
import urllib.error
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from common.config import InputError
from common.data.hub import hub_or_cache, reachable


def torchvision_weights(name: str, weights: str) -> dict[str, torch.Tensor] | None:
    """Loads weights for the torchvision model `name`.

    Args:
        name: a torchvision model, such as "resnet18".
        weights: "imagenet" for torchvision's default weights, "none", or a .safetensors or .pth file.

    Returns:
        A state dict on the CPU; None for "none".

    Raises:
        InputError: the ImageNet weights are neither cached nor downloadable, or the file cannot be read.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        return read_state_dict(weights)
    entry, file = torchvision.models.get_model_weights(name).DEFAULT, weights_file(name)
    if not file.exists() and not reachable(entry.url):
        raise InputError(_unavailable(f"{name} ({file.name})"))
    try:
        return entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, urllib.error.URLError) as error:
        raise InputError(_unavailable(f"{name} ({file.name}): {error}")) from error


def weights_file(name: str) -> Path:
    """Where torch.hub stores the ImageNet weights of the torchvision model `name`, whether or not they are there."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    return Path(torch.hub.get_dir(), "checkpoints", os.path.basename(url))


def timm_model(name: str, weights: str, **kwargs: Any) -> Any:
    """Creates the timm model `name` without a classifier.

    Args:
        name: a timm model, such as "convnext_tiny" or "convnext_tiny.fb_in22k".
        weights: "imagenet" for the pretrained weights of timm, "none", or a .safetensors or .pth file.
        kwargs: further arguments of `timm.create_model`. Position embeddings are resized if they include `img_size`.

    Raises:
        InputError: the weights do not exist, are neither cached nor downloadable, cannot be read or do not fit.
    """
    import timm  # slow to import, and most runs use torchvision models

    with hub_or_cache() if weights == "imagenet" else nullcontext():
        try:
            model = timm.create_model(name, pretrained=weights == "imagenet", num_classes=0, **kwargs)
        except (OSError, HfHubHTTPError) as error:
            raise InputError(_unavailable(name)) from error
        except RuntimeError as error:
            raise InputError(f"--model {name} with --weights {weights}: {error}") from error
    if weights not in ("imagenet", "none"):
        state = read_state_dict(weights)
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm's own, if needed
        load_backbone(model, convert(state, model) if convert else state, source=weights, head=())
    return model


def load_backbone(
    model: nn.Module, state: dict[str, torch.Tensor], *, source: str, head: str | tuple[str, ...]
) -> None:
    """Loads the backbone weights in `state` into `model`. The head keeps its own weights.

    Args:
        model: changed in place.
        state: a state dict; entries that the backbone does not have are ignored.
        source: where `state` comes from, for error messages.
        head: prefix, or prefixes, of the parameter names of the head; () for a model without a head.

    Raises:
        InputError: a backbone weight is missing from `state` or has a different shape.
    """
    backbone = {name: value for name, value in model.state_dict().items() if not name.startswith(head)}
    mismatched = [name for name, value in backbone.items() if name not in state or state[name].shape != value.shape]
    if mismatched:
        raise InputError(
            f"the weights in {source} do not fit this model: {len(mismatched)} of {len(backbone)} backbone tensors are "
            f"missing or have a different shape (the first is {mismatched[0]}). Use the --model and --image-size that "
            "the weights were trained with."
        )
    model.load_state_dict({name: state[name] for name in backbone}, strict=False)


def freeze(model: nn.Module, head: nn.Module) -> None:
    """Freezes all parameters except those of `head`. `set_train_mode` keeps frozen modules in evaluation mode."""
    model.requires_grad_(False)
    head.requires_grad_(True)


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """The weights in a .safetensors or .pth file, on the CPU; InputError if they cannot be read. It runs no code."""
    if not Path(path).is_file():
        raise InputError(f"--weights {path}: no such file. Use 'imagenet', 'none' or a .safetensors or .pth file.")
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state.get("state_dict", state)
    except Exception as error:  # the exception depends on the file format
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--weights {path} is not a .safetensors or .pth file with a state dict: {reason}") from error


def _unavailable(model: str) -> str:
    """Error message for ImageNet weights that cannot be obtained."""
    return (
        f"the ImageNet weights of {model} cannot be downloaded and are not in the cache. "
        "Use --weights none to train from scratch, or --weights FILE."
    )
