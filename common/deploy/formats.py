"""Writes a model with built-in normalisation as an ONNX or torch.export file, and loads such files to check them."""

import inspect
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.config import DataConfig, InputError, Normalization, printable
from common.data import crop, pixels
from common.data.pixels import scale_and_shift
from common.evaluate import EVAL_BATCH
from common.files import atomic_path
from common.finished_run import FinishedRun

BATCH = torch.export.Dim("n", max=2**31)  # without a bound, torch 2.6 and 2.7 cannot export timm's ViTs


class RawModel(nn.Module):
    """A model with built-in normalisation (`common.data.pixels.normalize`).

    Maps images (N, 3, S, S) uint8 to logits (N, C) float32.
    """

    def __init__(self, model: nn.Module, normalization: Normalization):
        super().__init__()
        self.scale, self.shift = map(nn.Buffer, scale_and_shift(normalization, torch.device("cpu")))
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images * self.scale + self.shift)


def verification_images(run: FinishedRun, data: str, cache: str) -> tuple[list[np.ndarray], bool]:
    """Images to check an exported file with: the run's val split or, if its data is not available, random noise.

    Returns batches (B, 3, S, S) uint8, and whether they are the val split.
    """
    try:
        val = run.splits(data, cache)[1]
    except InputError as error:
        reason = printable(str(error))
        print(f"the exported model is checked on random noise, because the val split is not available. {reason}")
        size = run.config.image_size
        noise = np.random.default_rng(0).integers(0, 256, (100, 3, size, size), dtype=np.uint8)
        return [noise], False
    images = [val.pixels[val.index[i : i + EVAL_BATCH]] for i in range(0, len(val), EVAL_BATCH)]
    return images, True


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

    All values are strings. "labels", a list in the order of the logits, and "preprocessing", a dict, are JSON;
    "preprocessing_steps" describes in words how `common.data.crop.crop_image` uses the latter.
    """
    preprocessing = {name: getattr(run.config, name) for name in ("crop", "margin", "fit", "image_size")}
    preprocessing |= {"mean": run.config.normalization.mean, "std": run.config.normalization.std}
    preprocessing["formats"] = pixels.FORMATS
    if run.config.fit == "pad":
        preprocessing["pad_color"] = run.config.normalization.color
    return {
        "labels": json.dumps(run.info.classes),
        "preprocessing": json.dumps(preprocessing),
        "preprocessing_steps": preprocessing_steps(run.config),
        "input": "images: uint8 (N, 3, image_size, image_size), RGB, not normalised",
        "output": "logits: float32 (N, number of labels)",
        "script": run.info.script,
    }


def preprocessing_steps(config: DataConfig) -> str:
    """How a photo becomes an input of the model, one numbered step per line, as `common.data.crop.crop_image` does it.

    Reading it suffices to write the preprocessing in another language.
    """
    size, normalization, color = config.image_size, config.normalization, config.normalization.color
    box, side = "the whole image", "min(width, height)" if config.fit == "squash" else "max(width, height)"
    if config.crop:
        box = "the product's box (x, y, width, height)"
        if config.margin:
            box += f", extended by {config.margin} x its width on the left and right and {config.margin} x its height "
            box += "above and below, and clipped to the image"
    resize = f"Resize the box to {size} x {size} pixels"
    pad = ""
    if config.fit == "pad":
        resize = (
            f"Resize the box to ({size} - 2 px) x ({size} - 2 py) pixels, where px = min(round({size} x (1 - width / "
            f"max(width, height)) / 2), {(size - 1) // 2}) with width and height from step 2, py likewise with the "
            "height, and halves are rounded to even"
        )
        pad = f" Paste the result at (px, py) onto a square of {size} x {size} pixels of the RGB colour {color}."
    steps = [
        f"Files are {', '.join(pixels.FORMATS)}; JPEG includes MPO, and other formats are refused. Coordinates are "
        "pixels of the upright image, that is, after the EXIF orientation has been applied. They are in general "
        "fractions of pixels: nothing is rounded unless a step says so.",
        f"Take {box}. If the upright image has W x H pixels, the box is left, top, right, bottom within 0..W and 0..H; "
        "its width is right - left and its height bottom - top.",
        f"JPEG and MPO files are decoded at a reduced scale. Let r = {size} / {side} of step 2. If r < 1, let w x h "
        "be the size of the stored image, before rotation, and q = min(floor(w / ceil(r w)), floor(h / ceil(r h))). "
        "Decode at scale 1/s (libjpeg's scaled inverse DCT, scale_num / scale_denom = 1 / s), where s is the largest "
        "of 8, 4, 2 and 1 that is at most q; the decoded image has ceil(w / s) x ceil(h / s) pixels. With Pillow: "
        "image.draft(None, (ceil(r w), ceil(r h))) before the pixels are loaded. Other formats are decoded in full.",
        "Apply the EXIF orientation (mirroring and rotation; in a TIFF, the tag of that name); 1 or none means no "
        "change.",
        "If the decoded upright image has W' x H' pixels, multiply left and right by W' / W, and top and bottom by "
        "H' / H.",
        "Cut out whole pixels: floor(left), floor(top) to ceil(right), ceil(bottom), and subtract floor(left) and "
        "floor(top) from the box. Nothing outside of this cut-out is used.",
        "Convert to RGB, 8 bits per channel, as Pillow does. 16-bit greyscale: divide by 256 and round down. Images "
        "with transparency: composite on white. Palette, greyscale, CMYK and other modes: Image.convert('RGB'). 32-bit "
        "greyscale (Pillow's modes I and F) is refused. Colour profiles are ignored. Of animations, the first frame is "
        "used.",
        f"{resize}. The filter is Pillow's Image.resize(..., Image.Resampling.BILINEAR, box=...): a triangle filter "
        "whose support grows with the reduction (antialiasing), over the box with its fractions of pixels, first "
        f"horizontally, then vertically, with each result rounded to uint8.{pad}",
        f"Input: uint8, RGB, shape (N, 3, {size}, {size}), values 0 to 255. The model itself normalises, with (value / "
        f"255 - mean) / std, mean {normalization.mean} and std {normalization.std} of R, G and B: do not normalise "
        "before.",
        "Output: logits (N, number of labels) in the order of the labels. Probabilities are their softmax.",
    ]
    return "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))


SCRIPT = Path(__file__).with_name("onnx_script.py")


def script_path(model: Path) -> Path:
    """The path of the script beside the ONNX file `model`: model_onnx.py for model.onnx.

    Raises:
        InputError: there is another file of this name, which is not from an earlier export.
    """
    path = model.with_name(f"{model.stem}_onnx.py")
    first_line = SCRIPT.read_bytes().splitlines(keepends=True)[0]
    if os.path.lexists(path) and not (path.is_file() and path.read_bytes().startswith(first_line)):
        raise InputError(
            f"{path}, the script beside the model, would replace a file of yours: choose another --output."
        )
    return path


def write_script(path: Path) -> None:
    """Writes the script `path`, which classifies a photo with the ONNX file beside it, without this project or PyTorch.

    It is `common.deploy.onnx_script`, with the source of `common.data.crop` in place of its import.
    """
    template = SCRIPT.read_text(encoding="utf-8")
    comment = "# export.py copied the following from common/data/crop.py:"
    source = inspect.getsource(crop).replace(f'"""{crop.__doc__}"""', comment, 1)
    with atomic_path(path) as partial:
        partial.write_text(template.replace("from common.data.crop import crop_image", source), encoding="utf-8")


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
    buffer = io.BytesIO()  # on a full disk, torch.export.save aborts the process; a plain write gives the reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that share memory, which these do not
        torch.export.save(program, buffer, extra_files={f"{name}.txt": text for name, text in metadata.items()})
    path.write_bytes(buffer.getbuffer())


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


def is_export(path: Path) -> bool:
    """Whether `path` is a file of `write_onnx` or `write_pt2`: it ends with our metadata or, in a zip, their names."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2**20))
        return b"preprocessing_steps" in file.read()


FORMATS = {"onnx": (write_onnx, read_onnx), "pt2": (write_pt2, read_pt2)}
