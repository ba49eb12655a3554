"""A finished run's model on new images, which are decoded on all cores."""

import io
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm import tqdm

from common.augment import normalize
from common.config import DataConfig
from common.data import to_device
from common.evaluate import EVAL_BATCH
from common.finished import FinishedRun
from common.inputs import Inputs
from common.launch import use_all_cores
from common.pixels import cut, encoded_bytes, reason

AHEAD = 3  # batches that are decoded while a GPU is at work; on a CPU both would only fight for the cores


def prepare(finished: FinishedRun) -> tuple[nn.Module, torch.device]:
    """The run's model on the device there is, in the run's precision where that device has it."""
    use_all_cores()
    precision = finished.run.get("mixed_precision")
    if precision != "bf16" and not (precision == "fp16" and torch.cuda.is_available()):
        precision = "no"
    torch.set_float32_matmul_precision("high")  # as in training
    accelerator = Accelerator(mixed_precision=precision)
    return accelerator.prepare_model(finished.model(), evaluation_mode=True), accelerator.device


def classify(
    model: nn.Module,
    inputs: Inputs,
    config: DataConfig,
    num_classes: int,
    device: torch.device,
    *,
    no_box_ok: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Logits (N, C) float32 and, for each item, why it has none, or "". The batches are those of an evaluation.

    Crops are made as in training. An item without a box, where `config` asks for one, is a problem, or with
    `no_box_ok` the whole image.
    """
    ahead = 0 if device.type == "cpu" else AHEAD
    logits, reasons = np.full((len(inputs), num_classes), np.nan, np.float32), [""] * len(inputs)
    with tqdm(total=len(inputs), unit=" images", dynamic_ncols=True, disable=None) as bar, torch.no_grad():
        for rows, pixels, problems in decoded_batches(inputs, config, no_box_ok=no_box_ok, ahead=ahead):
            for row, problem in zip(rows, problems, strict=True):
                reasons[row] = problem
            good = np.array([not problem for problem in problems])
            if good.any():
                images = to_device(torch.from_numpy(pixels[good]), device)
                logits[rows[good]] = model(normalize(images)).float().cpu().numpy()
            bar.update(len(rows))
    return logits, reasons


def decoded_batches(
    inputs: Inputs, config: DataConfig, *, no_box_ok: bool = False, ahead: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Batches of item numbers (B,), uint8 images (B, 3, S, S) and problems, in order, `ahead` of what is asked for."""
    batches = np.array_split(np.arange(len(inputs)), max(1, math.ceil(len(inputs) / EVAL_BATCH)))
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        waiting = deque()
        for rows in batches:
            pixels = np.zeros((len(rows), 3, config.image_size, config.image_size), np.uint8)
            stored = inputs.stored(rows[0], rows[-1] + 1) if len(rows) else []
            futures = [
                pool.submit(_decode, image, inputs.boxes[row], config, no_box_ok, pixels, i)
                for i, (row, image) in enumerate(zip(rows, stored, strict=True))
            ]
            waiting.append((rows, pixels, futures))
            if len(waiting) > ahead:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(rows: np.ndarray, pixels: np.ndarray, futures: list) -> tuple[np.ndarray, np.ndarray, list[str]]:
    return rows, pixels, [future.result() for future in futures]


def _decode(stored: dict, bbox: list | None, config: DataConfig, no_box_ok: bool, pixels: np.ndarray, i: int) -> str:
    """One crop into pixels[i]; returns "", or why there is none."""
    if config.crop and bbox is None and not no_box_ok:
        return "no box"
    try:
        encoded = encoded_bytes(stored)
        if not encoded:
            return "no image" if stored.get("path") is None else "the file is empty or cannot be read"
        crop, _ = cut(Image.open(io.BytesIO(encoded)), bbox, config)
        pixels[i] = np.asarray(crop).transpose(2, 0, 1)
    except Exception as error:  # PIL raises nearly every kind
        return reason(error)
    return ""
