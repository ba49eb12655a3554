"""Inference with a trained model on new images, decoded on all cores."""

import math
from collections.abc import Sequence
from itertools import chain, islice

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from common.config import DataConfig, InputError
from common.data.boxes import convention_problem, to_pixels
from common.data.crop import box_row, upright_size
from common.data.dataset import to_device
from common.data.pixels import WORKERS, Photo, crop_with, error_reason, map_ahead, normalize, open_photo
from common.deploy.inputs import Inputs
from common.evaluate import EVAL_BATCH
from common.finished_run import FinishedRun
from common.launch import use_all_cores


def load_model(run: FinishedRun) -> tuple[nn.Module, torch.device]:
    """Loads the model of a run, in evaluation mode, onto the available device. Returns the model and the device.

    The model uses the mixed precision of the run, except that a run in float16 uses float32 on a CPU.
    """
    use_all_cores()
    precision = run.info.mixed_precision
    if precision != "bf16" and not (precision == "fp16" and torch.cuda.is_available()):
        precision = "no"
    torch.set_float32_matmul_precision("high")  # as in training
    accelerator = Accelerator(mixed_precision=precision)
    return accelerator.prepare_model(run.model(), evaluation_mode=True), accelerator.device


def classify(
    model: nn.Module,
    inputs: Inputs,
    config: DataConfig,
    num_classes: int,
    device: torch.device,
    *,
    no_box_ok: bool = False,
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Crops `inputs` as in training and computes their logits, in batches of the same size as in evaluation.

    Args:
        model: maps normalised images (B, 3, S, S) float32 to logits (B, C).
        inputs: N crops.
        config: crop, margin, fit, image size and normalisation of the run, and the largest photos to read.
        num_classes: C.
        device: the device that `model` is on.
        no_box_ok: use the whole image for crops without a box, which are otherwise reported as failed if the model was
            trained with `--crop`.

    Returns:
        Logits (N, C) float32, NaN for crops that failed; for each crop the reason for the failure, or ""; and the
        `common.data.crop.box_row` of each crop, (N, 7), NaN for crops without a box.

    Raises:
        InputError: the boxes are not x, y, width, height in pixels of the upright images.
    """
    boxes = np.full((len(inputs), 7), np.nan)
    logits = np.full((len(inputs), num_classes), np.nan, np.float32)
    reasons = [""] * len(inputs)
    # On a GPU, threads decode the next batches during the forward pass. On a CPU, both would compete for cores.
    per_photo = max(1, len(inputs) // max(1, len(set(inputs.images))))
    ahead = 2 * WORKERS if device.type == "cpu" else 3 * EVAL_BATCH // per_photo
    photos = map_ahead(
        lambda photo: decode_crops(*photo, config, box_format=inputs.box_format, no_box_ok=no_box_ok),
        inputs.photos(),
        ahead=ahead,
    )
    decoded = chain.from_iterable(photos)
    batches = np.array_split(np.arange(len(inputs)), max(1, math.ceil(len(inputs) / EVAL_BATCH)))
    with tqdm(total=len(inputs), unit=" images", dynamic_ncols=True, disable=None) as progress, torch.no_grad():
        for rows in batches:
            crops: list[tuple[int, np.ndarray]] = []
            for row, (result, box) in zip(rows, islice(decoded, len(rows)), strict=True):
                boxes[row] = box
                if isinstance(result, str):
                    reasons[row] = result
                else:
                    crops.append((row, result))
            if crops:
                images = to_device(torch.from_numpy(np.stack([pixels for _, pixels in crops])), device)
                logits[[row for row, _ in crops]] = model(normalize(images, config.normalization)).float().cpu().numpy()
            progress.update(len(rows))
    problem = convention_problem(boxes)
    if problem:
        raise InputError(f"{inputs.description}: {problem}")
    return logits, reasons, boxes


def decode_crops(
    encoded: bytes | str,
    shared: bool,
    boxes: Sequence[Sequence[float] | None],
    config: DataConfig,
    *,
    box_format: str = "",
    no_box_ok: bool = False,
) -> list[tuple[np.ndarray | str, np.ndarray]]:
    """Decodes an encoded image, its bytes or, as text, why there is none, and crops it to each of `boxes`.

    `shared` says whether several crops are taken from it, see `common.data.pixels.open_photo`, and `box_format` what
    the numbers of the boxes mean, see `common.data.boxes.to_pixels`.

    Returns for each box the crop, (3, S, S) uint8, or the reason why it cannot be made; and its
    `common.data.crop.box_row`, NaN if there is no box or if it is not used.
    """
    results: list[tuple[np.ndarray | str, np.ndarray]] = []
    photo: Photo | None = None
    for bbox in boxes:
        row = np.full(7, np.nan)
        result: np.ndarray | str
        try:
            if config.crop and bbox is None and not no_box_ok:
                raise ValueError("no box")
            if photo is None:
                photo = open_photo(encoded, shared=shared, max_megapixels=config.max_megapixels)
            if config.crop:
                bbox = to_pixels(bbox, box_format, upright_size(photo.opened))
                row = box_row(bbox, photo.opened)
            crop, _ = crop_with(config, photo.image, bbox, reduce=photo.reduce)
            result = np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1))  # as stored for training
        except Exception as error:  # PIL raises many kinds of exceptions for broken files
            result = error_reason(error)
        results.append((result, row))
    return results
