"""What a run was made by (its script, the modules of `common`), and whether today's code still gives its outputs.

A run folder never contains code that is executed: the model is built by the script in the project folder. Three records
make sure that it is the same model: a copy of the script to compare with, a hash of every module that affects numbers,
and reference.safetensors, the outputs for a few images.
"""

import ast
import hashlib
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import ExifTags, Image
from torch import nn

from common.config import DataConfig
from common.data.dataset import ClassificationDataset
from common.data.pixels import crop_with, normalize, open_image

PROJECT = Path(__file__).parent.parent
DISPLAY = ("figures", "files", "model_card", "stats", "data/audit", "data/hub")  # modules that affect no number
REFERENCE = "reference.safetensors"
VAL_ROWS = 2  # in the reference
CROP_TOLERANCE = 0.3  # mean difference in [0, 255]; versions of a JPEG decoder may differ in the last bit
LOGIT_TOLERANCE = 1e-3  # relative to the largest logit; float32 on different processors differs by about 1e-6


# Code ----------------------------------------------------------------------------------------------------------------


def code_hashes(script: Path) -> dict[str, str]:
    """The sha256 of the file `script` and of each module of `common` that affects numbers, by name."""
    display = {PROJECT / "common" / f"{name}.py" for name in DISPLAY}
    modules = {*PROJECT.glob("common/*.py"), *PROJECT.glob("common/data/*.py")} - display
    files = {script.name: script} | {file.relative_to(PROJECT).as_posix(): file for file in sorted(modules)}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


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

    The file contains a photo with a box, the images that the model gets (the crop of the photo and some val rows), and
    their logits. The model is moved to the CPU, where float32 is nearly the same on every machine.
    """
    photo, box = example_photo(config.image_size)
    rows = np.unique(np.linspace(0, len(val) - 1, VAL_ROWS).round().astype(np.int64))
    images = torch.from_numpy(np.concatenate([_crop(config, photo, box)[None], val.pixels[val.index[rows]]]))
    tensors = {
        "photo": torch.frombuffer(bytearray(photo), dtype=torch.uint8),
        "box": torch.tensor(box),
        "images": images,
        "logits": _logits(model, images),
    }
    path.write_bytes(safetensors.torch.save(tensors))


def reference_problem(path: Path, config: DataConfig, model: nn.Module) -> str | None:
    """How `model`, on the CPU, or the way photos are cropped differs from the file `path`; None if it does not."""
    try:
        encoded = path.read_bytes()
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    try:
        stored = safetensors.torch.load(encoded)
        photo, box, images, logits = (stored[name] for name in ("photo", "box", "images", "logits"))
        crop = _crop(config, photo.numpy().tobytes(), box.tolist())
        if images.dtype != torch.uint8 or images.shape[1:] != crop.shape or len(images) != len(logits):
            return f"{path.name} has images of another size"
    except Exception:  # safetensors and Pillow raise many kinds of exceptions for damaged files
        return f"{path.name} is damaged"
    difference = np.abs(crop.astype(float) - images[0].numpy()).mean()
    if difference > CROP_TOLERANCE:
        return f"photos are cropped differently: the stored crop differs by {difference:.1f} of 255 on average"
    actual = _logits(model, images)
    if actual.shape != logits.shape:
        return f"the model has {actual.shape[1]} outputs instead of {logits.shape[-1]}"
    difference = (actual - logits).abs().max().item()
    if not difference <= LOGIT_TOLERANCE * max(1.0, logits.abs().max().item()):  # also true for NaN
        return f"the stored logits and those of the model differ by up to {difference:.2g}"
    return None


def example_photo(image_size: int) -> tuple[bytes, list[float]]:
    """A JPEG of coloured blobs and noise, and a box in it.

    The photo is larger than the model input, so that it is decoded at a reduced scale, and it is stored rotated.
    """
    side = min(max(image_size, 16), 256)
    width, height = 14 * side // 3, 10 * side // 3
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.normal(0, 40, (height, width, 3))
    image = Image.fromarray((np.asarray(blobs) + noise).clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # upright, it is higher than wide
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", exif=exif)
    return encoded.getvalue(), [0.25 * side, side, 2.5 * side, 2.9 * side]


def _crop(config: DataConfig, photo: bytes, box: list[float]) -> np.ndarray:
    return np.asarray(crop_with(config, open_image(photo), box)[0]).transpose(2, 0, 1)


@torch.no_grad()
def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits (N, C) float32 of images (N, 3, S, S) uint8 on the CPU, in full precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return model.cpu().eval()(normalize(images)).float()
    finally:
        torch.set_float32_matmul_precision(before)
