"""Pretrained weights: from ImageNet by way of the library's own cache, or from a file; and freezing."""

import os
import urllib.error
from contextlib import nullcontext
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
import torchvision
from torch import nn

from common.config import InputError
from common.network import hub_or_cache, reachable


def torchvision_weights(name: str, weights: str) -> dict[str, torch.Tensor] | None:
    """The state dict that `weights` ("imagenet", "none" or a file) names for the torchvision model `name`.

    Raises:
        InputError: the weights are neither in torch.hub's folder nor to be had, or the file cannot be read.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        return _read_state_dict(weights)
    entry = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(entry.url))
    if not file.exists() and not reachable(entry.url):
        raise InputError(_unavailable(f"{name} ({file.name})"))
    try:
        return entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, urllib.error.URLError) as error:
        raise InputError(_unavailable(f"{name} ({file.name}): {error}")) from error


def timm_model(name: str, weights: str, **kwargs) -> nn.Module:
    """The timm model `name` without a head, its weights from "imagenet", "none" or a file."""
    import timm  # takes seconds, and most runs use torchvision's models

    if not timm.is_model(name):
        raise InputError(f"--model {name} is neither a ViT of torchvision's, such as vit_b_16, nor one of timm's.")
    with hub_or_cache() if weights == "imagenet" else nullcontext():
        try:
            model = timm.create_model(name, pretrained=weights == "imagenet", num_classes=0, **kwargs)
        except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise InputError(_unavailable(name)) from error
        except (AssertionError, RuntimeError, TypeError) as error:
            raise InputError(f"timm cannot build {name} with {kwargs}: {error}") from error
    if weights not in ("imagenet", "none"):
        load_backbone(model, _read_state_dict(weights), source=weights)
    return model


def load_backbone(model: nn.Module, state: dict[str, torch.Tensor], *, source: str, head: str = "head.") -> None:
    """Loads `state` into `model`, except the head: the parameters whose name begins with `head`.

    Raises:
        InputError: a weight of the backbone is missing in `state` or has another shape.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(head)}
    wrong = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise InputError(
            f"the weights in {source} do not fit this model: {len(wrong)} of {len(own)} are missing or of another "
            f"shape, first {wrong[0]}. Choose the --model and --image-size that they were made with."
        )
    model.load_state_dict({name: state[name] for name in own}, strict=False)


def freeze(model: nn.Module, head: nn.Module) -> None:
    """Leaves only `head` to be trained. `common.train` keeps frozen modules in evaluation mode."""
    model.requires_grad_(False)
    head.requires_grad_(True)


def _read_state_dict(path: str) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise InputError(f"--weights {path}: no such file. Use 'imagenet', 'none' or a .safetensors or .pth file.")
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state.get("state_dict", state)
    except Exception as error:  # each format fails in its own way
        raise InputError(f"--weights {path} cannot be read as a state dict: {str(error).splitlines()[0]}") from error


def _unavailable(what: str) -> str:
    return (
        f"the ImageNet weights of {what} cannot be downloaded and are not in the cache. "
        "Use --weights none to train from scratch, or --weights FILE."
    )
