"""What a run was made by (its script, the modules of `common`), and whether today's code still gives its outputs.

A run folder never contains code that is executed: the model is built by the script in the project folder. Three records
make sure that it is the same model: a copy of the script to compare with, a hash of every module that affects numbers,
and reference.safetensors, the outputs for a few images.
"""

from common.announce import PROJECT, STATES, file_state

import ast
import hashlib
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import ExifTags, Image
from torch import nn

from common.augment import augment
from common.config import DataConfig, InputError
from common.data.dataset import ClassificationDataset
from common.data.pixels import crop_with, open_image
from common.files import open_regular

# Modules that affect no number of a run
DISPLAY = ("conformal", "figures", "files", "model_card", "stats", "trackers", "data/audit", "data/hub")
REFERENCE = "reference.safetensors"
VAL_ROWS = 2  # in the reference
NOISE = 40  # standard deviation; on a smooth photo, resampling filters would hardly differ
CROP_TOLERANCE = 0.3  # mean difference in [0, 255]; versions of a JPEG decoder may differ in the last bit
LOGIT_TOLERANCE = 1e-3  # relative to the largest logit; float32 on different processors differs by about 1e-6


# Code ----------------------------------------------------------------------------------------------------------------


def code_hashes(script: Path) -> dict[str, str]:
    """The sha256 of the file `script` and of each module of `common` that affects numbers, by name."""
    display = {PROJECT / "common" / f"{name}.py" for name in DISPLAY}
    modules = {*PROJECT.glob("common/*.py"), *PROJECT.glob("common/data/*.py")} - display
    files = {script.name: script} | {file.relative_to(PROJECT).as_posix(): file for file in sorted(modules)}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def check_unchanged(script: Path) -> None:
    """Raises an InputError if `script` or a module was edited since the process started: its old code is in memory."""
    for path, state in STATES.items():
        if path == script.resolve() or path.is_relative_to(PROJECT / "common"):
            if not path.is_file() or file_state(path) != state:
                raise InputError(f"{path.name} was edited while this run was starting: start it again.")


def changed_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The files whose hashes differ between two results of `code_hashes`."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@lru_cache
def code_key(source: bytes) -> str:
    """A text that is equal for two scripts that differ only in comments, docstrings and layout. Nothing is executed."""
    try:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a source from elsewhere may be anything
        return hashlib.sha256(source).hexdigest()


# Outputs -------------------------------------------------------------------------------------------------------------


def write_reference(path: Path, config: DataConfig, model: nn.Module, val: ClassificationDataset) -> None:
    """Writes the outputs of a trained model that `reference_problem` checks.

    The file contains some photos with a box each and their crops; and the images of some val rows and of the first
    crop, with their logits. The model is moved to the CPU, where float32 is nearly the same on every machine.
    """
    tensors: dict[str, torch.Tensor] = {}
    crops = []
    for i, (photo, box) in enumerate(example_photos(config.image_size)):
        tensors |= {f"photo{i}": torch.frombuffer(bytearray(photo), dtype=torch.uint8), f"box{i}": torch.tensor(box)}
        crops.append(_crop(config, photo, box))
    rows = np.unique(np.linspace(0, len(val) - 1, VAL_ROWS).round().astype(np.int64))
    images = torch.from_numpy(np.concatenate([crops[:1], val.pixels[val.index[rows]]]))
    tensors |= {"crops": torch.from_numpy(np.stack(crops)), "images": images}
    path.write_bytes(safetensors.torch.save(tensors | {"logits": _logits(config, model, images)}))


def reference_problem(path: Path, config: DataConfig, model: nn.Module) -> str | None:
    """How `model`, on the CPU, or the way photos are cropped differs from the file `path`; None if it does not."""
    try:
        with open_regular(path, limit=10**8 + 50 * config.image_size**2) as file:
            stored = safetensors.torch.load(file.read())
        crops, images, logits = (stored[name] for name in ("crops", "images", "logits"))
        actual_crops = [
            _crop(config, stored[f"photo{i}"].numpy().tobytes(), stored[f"box{i}"].tolist()) for i in range(len(crops))
        ]
        same_shapes = images.dtype == torch.uint8 and images.shape[1:] == crops.shape[1:] == actual_crops[0].shape
        if not same_shapes or len(images) != len(logits):
            return f"{path.name} has images of another size"
    except InputError as error:
        return str(error)
    except Exception:  # safetensors and Pillow raise many kinds of exceptions for damaged files
        return f"{path.name} is damaged"
    for crop, actual_crop in zip(crops.numpy(), actual_crops, strict=True):
        difference = np.abs(actual_crop.astype(float) - crop).mean()
        if difference > CROP_TOLERANCE:
            return f"photos are cropped differently: a stored crop differs by {difference:.1f} of 255 on average"
    actual = _logits(config, model, images)
    if actual.shape != logits.shape:
        return f"the model has {actual.shape[1]} outputs instead of {logits.shape[-1]}"
    difference = (actual - logits).abs().max().item()
    if not difference <= LOGIT_TOLERANCE * max(1.0, logits.abs().max().item()):  # also true for NaN
        return f"the stored logits and those of the model differ by up to {difference:.2g}"
    return None


def example_photos(image_size: int) -> list[tuple[bytes, list[float]]]:
    """Photos of coloured blobs and noise, with a box in each.

    A rotated JPEG that is decoded at a reduced scale, with a tall box; a wide box; a transparent PNG with a box that is
    smaller than the model input; and 16-bit greyscale.
    """
    side = min(max(image_size, 16), 256)
    width, height = 14 * side // 3, 10 * side // 3
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    noisy = (np.asarray(blobs) + rng.normal(0, NOISE, (height, width, 3))).clip(0, 255).astype(np.uint8)
    small = noisy[: 2 * side, : 2 * side]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # upright, it is higher than wide
    transparent = Image.fromarray(np.dstack([small, small[:, :, 0]]))
    gray = Image.fromarray(small[:, :, 1].astype(np.uint16) * 257)
    tall, wide, part = [0.25, 1.0, 2.5, 2.9], [0.3, 0.2, 3.1, 2.2], [0.4, 0.3, 0.8, 0.6]
    return [
        (_encoded(Image.fromarray(noisy), "JPEG", exif=exif), [side * v for v in tall]),
        (_encoded(Image.fromarray(noisy), "JPEG"), [side * v for v in wide]),
        (_encoded(transparent, "PNG"), [side * v for v in part]),
        (_encoded(gray, "PNG"), [side * v for v in part]),
    ]


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _crop(config: DataConfig, photo: bytes, box: list[float]) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(crop_with(config, open_image(photo), box)[0]).transpose(2, 0, 1))


@torch.no_grad()
def _logits(config: DataConfig, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits (N, C) float32 of images (N, 3, S, S) uint8 on the CPU, in full precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        inputs = augment(images, torch.ones(len(images), 2), None, fit=config.fit, normalization=config.normalization)
        return model.cpu().eval()(inputs).float()
    finally:
        torch.set_float32_matmul_precision(before)
