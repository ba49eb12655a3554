"""Writes a model with built-in normalisation as an ONNX or torch.export file, and loads such files to check them."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.config import InputError
from common.data.crop import PAD_COLOR
from common.data.pixels import MEAN, STD
from common.evaluate import EVAL_BATCH
from common.run_folder import FinishedRun

BATCH = torch.export.Dim("n", max=2**31)  # without a bound, torch 2.6 and 2.7 cannot export timm's ViTs


class RawModel(nn.Module):
    """A model with built-in normalisation (`common.data.pixels.normalize`).

    Maps images (N, 3, S, S) uint8 to logits (N, C) float32.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        self.scale = nn.Buffer(1 / (255 * std))
        self.shift = nn.Buffer(-mean / std)
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images * self.scale + self.shift)


def verification_images(run: FinishedRun) -> tuple[list[np.ndarray], str]:
    """Images to check an exported file with: the run's val split or, if its data is not available, random noise.

    Returns batches (B, 3, S, S) uint8, and a description such as "130 val rows".
    """
    try:
        val = run.splits()[1]
    except InputError as error:
        print(f"the val split is not available, so the check uses random noise instead: {error}")
        size = run.config.image_size
        noise = np.random.default_rng(0).integers(0, 256, (100, 3, size, size), dtype=np.uint8)
        return [noise], "100 noise images"
    images = [val.pixels[val.index[i : i + EVAL_BATCH]] for i in range(0, len(val), EVAL_BATCH)]
    return images, f"{len(val)} val rows"


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Switches off torch's fused attention, which other runtimes lack, and restores the setting at the end."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def metadata(run: FinishedRun) -> dict[str, str]:
    """Metadata of an exported file: what is needed to use it without this project.

    All values are strings. "labels", a list in the order of the logits, and "preprocessing", a dict, are JSON.
    """
    preprocessing = {name: getattr(run.config, name) for name in ("crop", "margin", "fit", "image_size")}
    if run.config.fit == "pad":
        preprocessing["pad_color"] = PAD_COLOR
    return {
        "labels": json.dumps(run.info.classes),
        "preprocessing": json.dumps(preprocessing),
        "input": "images: uint8 (N, 3, image_size, image_size), RGB, not normalised",
        "output": "logits: float32 (N, number of labels)",
        "script": run.info.script,
    }


def write_onnx(model: RawModel, example: torch.Tensor, metadata: dict[str, str], path: Path) -> None:
    """Writes `model` as ONNX, for any batch size. `example` is an input, (2, 3, S, S) uint8.

    Raises:
        InputError: a package that the export needs is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX export needs more packages ({error}): run pip install -e '.[onnx]' in the project folder."
        ) from error
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        dynamic_shapes={"images": {0: BATCH}},
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None  # with dynamo=True
    program.model.metadata_props.update(metadata)
    program.save(str(path))


def write_pt2(model: RawModel, example: torch.Tensor, metadata: dict[str, str], path: Path) -> None:
    """Writes `model` with torch.export, for any batch size. `example` is an input, (2, 3, S, S) uint8."""
    program = torch.export.export(model, (example,), dynamic_shapes={"images": {0: BATCH}})
    with open(path, "wb") as file, warnings.catch_warnings():  # a file object, because a path would have to end in .pt2
        warnings.simplefilter("ignore")  # about weights that share memory, which these do not
        torch.export.save(program, file, extra_files={f"{name}.txt": text for name, text in metadata.items()})


def read_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Loads an ONNX file as a function from images (N, 3, S, S) uint8 to logits (N, C) float32, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def read_pt2(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a torch.export file as a function from images (N, 3, S, S) uint8 to logits (N, C) float32."""
    with open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


FORMATS = {"onnx": (write_onnx, read_onnx), "pt2": (write_pt2, read_pt2)}
