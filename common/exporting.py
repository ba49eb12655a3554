"""A model with its normalisation as one file, ONNX or torch.export, and the file used again to check it."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.augment import MEAN, STD
from common.config import InputError
from common.crop import PAD_COLOR
from common.finished import FinishedRun


class RawModel(nn.Module):
    """uint8 images (N, 3, S, S) to logits (N, C): `common.augment.normalize` and the model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        self.scale, self.shift, self.model = nn.Buffer(1 / (255 * std)), nn.Buffer(-mean / std), model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images * self.scale + self.shift)


def metadata(run: FinishedRun) -> dict[str, str]:
    """What a user of the file must know, as texts; "labels" and "preprocessing" are JSON."""
    crop = {name: getattr(run.config, name) for name in ("crop", "margin", "fit", "image_size")}
    crop |= {"pad_color": PAD_COLOR} if run.config.fit == "pad" else {}
    return {
        "labels": json.dumps(run.run["classes"]),
        "preprocessing": json.dumps(crop),
        "input": "images: uint8 (N, 3, image_size, image_size), RGB, not normalised",
        "output": "logits: float32 (N, number of labels)",
        "script": run.script,
    }


def write_onnx(model: RawModel, example: torch.Tensor, texts: dict[str, str], path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX needs three packages more: pip install onnx onnxruntime onnxscript ({error})."
        ) from error
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        dynamic_shapes={"images": {0: torch.export.Dim("n")}},
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    program.model.metadata_props.update(texts)
    program.save(str(path))


def write_pt2(model: RawModel, example: torch.Tensor, texts: dict[str, str], path: Path) -> None:
    program = torch.export.export(model, (example,), dynamic_shapes={"images": {0: torch.export.Dim("n")}})
    with open(path, "wb") as file, warnings.catch_warnings():  # a path must end in .pt2
        warnings.simplefilter("ignore")  # of weights that share their memory, which these do not
        torch.export.save(program, file, extra_files={f"{name}.txt": text for name, text in texts.items()})


def read_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def read_pt2(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    with open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


FORMATS = {"onnx": (write_onnx, read_onnx), "pt2": (write_pt2, read_pt2)}
