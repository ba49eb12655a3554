"""Loads the train and val splits: selects and checks rows, and maps their decoded pixels into memory."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from common.config import ID_COLUMNS, DataConfig, InputError, Normalization, TrainConfig, printable
from common.data.boxes import convention_problem
from common.data.pixels import load_pixels, normalize
from common.data.sources import clean_categories, describe_layout, load_tables
from common.data.splits import assign_folds, parse_split
from common.data.table import Table
from common.files import write_csv
from common.processes import local_main_process_first


@dataclass(eq=False)
class ClassificationDataset(torch.utils.data.Dataset):
    """One decoded split. Item i is (image, label): float32 (3, S, S), normalised, and int."""

    pixels: np.ndarray  # uint8 memory map (M, 3, S, S), M >= N; row i's image is pixels[index[i]]
    index: np.ndarray  # (N,) int64
    crop_sizes: torch.Tensor  # (N, 2) float32, width and height of each crop in pixels before it was made square
    hashes: np.ndarray  # (N, 2) uint64: hash of the image file, perceptual hash of the crop (see common.data.pixels)
    labels: torch.Tensor  # (N,) int64, indices into classes
    classes: list[str]  # normalised category names, sorted; the same list in both splits
    rows: Table  # the N rows: id columns, category, bbox, encoded image
    numbers: np.ndarray  # (N,) int64, row numbers in the source
    source_rows: int  # number of rows of the split in the source
    dropped: int  # source rows whose category is not used: absent from val or, with --split-by, in a single group
    problems: list[dict]  # rows skipped by --bad-rows skip: split, row (its number in the source), id, reason
    fingerprint: str  # hexadecimal sha256 of the rows' content (image bytes, boxes, labels) and of what is left out
    normalization: Normalization  # of the model that the images are for
    boxes: np.ndarray | None = None  # (N, 7) float64 with --crop, see common.data.crop.box_row
    device_pixels: torch.Tensor | None = None  # copy of pixels on a GPU
    masks: np.ndarray | None = None  # (N, 1, S, S) uint8 product masks; loaded only for runs that use them

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        images = torch.from_numpy(self.pixels[self.index[[i]]])
        return normalize(images, self.normalization)[0], int(self.labels[i])

    def batch(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, 3, S, S) uint8, crop sizes (B, 2) float32 and labels (B,) int64 on `device`.

        `rows` (B,) are integer indices into the split.
        """
        if self.device_pixels is None:
            images = torch.from_numpy(self.pixels[self.index[rows]])
        else:
            images = self.device_pixels[to_device(torch.from_numpy(self.index[rows]), device)]
        return to_device(images, device), to_device(self.crop_sizes[rows], device), to_device(self.labels[rows], device)

    def copy_pixels_to(self, device: torch.device) -> None:
        """Copies the pixels to `device`; `batch` then takes images from this copy."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the array is read-only; the tensor is never written to
            self.device_pixels = torch.from_numpy(self.pixels).to(device)

    def part(self, chosen: np.ndarray, **replacements) -> "ClassificationDataset":
        """The subset of rows where `chosen`, (N,) bool, is true. It shares the pixels.

        `replacements` are attributes that are set to other values in the result.
        """
        attributes = dict(
            index=self.index[chosen],
            crop_sizes=self.crop_sizes[chosen],
            hashes=self.hashes[chosen],
            boxes=self.boxes[chosen] if self.boxes is not None else None,
            labels=self.labels[chosen],
            rows=self.rows.select(np.flatnonzero(chosen)),
            numbers=self.numbers[chosen],
            masks=self.masks[chosen] if self.masks is not None else None,
            fingerprint=hashlib.sha256(self.fingerprint.encode() + chosen.tobytes()).hexdigest(),
        )
        return replace(self, **(attributes | replacements))

    def ids(self) -> dict[str, list[str]]:
        """All id columns as lists of N strings. Missing ids, and ids of missing columns, are empty strings."""
        columns = {name: self.rows[name] if name in self.rows else [None] * len(self) for name in ID_COLUMNS}
        return {name: ["" if v is None else str(v) for v in values] for name, values in columns.items()}


def load_splits(
    config: DataConfig, decode_too: Sequence[DataConfig] = ()
) -> tuple[ClassificationDataset, ClassificationDataset]:
    """Loads the train and val splits of `config.data`, cropped and resized as `config` says.

    One process per machine decodes the images; the others wait and then map the same file into memory. If it fails in
    one process, it fails in all.

    Args:
        config: data source, crop and image size.
        decode_too: further crops and image sizes of the same data, to be decoded in the same pass for later runs.

    Raises:
        InputError: the data cannot be found, read or used.
    """
    with local_main_process_first():
        tables = load_tables(config)
        if PartialState().is_main_process and (line := describe_layout(tables)):
            print(printable(line), flush=True)
        categories = {split: clean_categories(table) for split, table in tables.items()}
        if config.split_by:
            return _load_and_split(tables["all"], categories["all"], config, decode_too)
        classes = sorted({name for name in categories["val"] if name})
        unseen = sorted(set(classes) - set(categories["train"]))
        if unseen:
            raise InputError(
                f"val has classes without train rows: {', '.join(unseen)}. Add train rows, remove their "
                "val rows, or divide all rows anew with --split-by image_id."
            )
        train, val = (
            _load_split(split, table, categories[split], classes, config, decode_too) for split, table in tables.items()
        )
        return train, val


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies `tensor` to `device`. A copy to a GPU goes through pinned memory and does not block the host."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def place_pixels(config: TrainConfig, device: torch.device, *splits: ClassificationDataset) -> None:
    """Copies the pixels of each split to the GPU if they fill less than a quarter of its free memory.

    Does nothing without a GPU or with `--data-device cpu`.
    """
    for split in splits:
        if config.data_device == "auto" and device.type == "cuda":
            copied = next((s for s in splits if s.pixels is split.pixels and s.device_pixels is not None), None)
            if copied is not None:
                split.device_pixels = copied.device_pixels
            elif 4 * split.pixels.nbytes < torch.cuda.mem_get_info(device)[0]:
                split.copy_pixels_to(device)


def format_problems(problems: list[dict], limit: int = 10) -> str:
    """The first `limit` bad rows, one per line."""
    lines = [printable(f"  row {p['row']} ({p['id']}): {p['reason']}") for p in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  and {len(problems) - limit} more")
    return "\n".join(lines)


def _load_and_split(rows, categories, config, decode_too) -> tuple[ClassificationDataset, ClassificationDataset]:
    """The train and val splits of `--split-by`. All folds share one pixel array that holds all rows."""
    split_by = parse_split(config.split_by)
    classes, folds = assign_folds(rows, categories, split_by)
    all_rows = _load_split("all", rows, categories, classes, config, decode_too)
    splits = []
    for name, in_split in (("train", folds != split_by.fold), ("val", folds == split_by.fold)):
        problems = [problem | {"split": name} for problem in all_rows.problems if in_split[problem["row"]]]
        chosen = in_split[all_rows.numbers]
        dropped = all_rows.dropped if name == "train" else 0
        if not chosen.any():
            raise InputError(f"--split-by {config.split_by} leaves no {name} rows: use fewer folds or more rows.")
        source_rows = int(in_split.sum())  # rows that are dropped are in no fold, and so in train
        splits.append(all_rows.part(chosen, problems=problems, dropped=dropped, source_rows=source_rows))
    train, val = splits
    return train, val


def _format_hint(problem: str, rows: Table, config: DataConfig) -> str:
    """Names `--box-format` if it can convert the boxes that `convention_problem` refuses."""
    words = {"xywh": "fractions", "xyxy": "corners", "cxcywh": "centre"}
    formats = [name for name, word in words.items() if word in problem]
    if config.box_format != "auto" or rows.box_format or not formats:
        return ""
    return f" Or let --box-format {' or '.join(formats)} convert them."


def _rows_of(split: str) -> str:
    """Such as "train rows"; without a name for the rows of --split-by."""
    return "rows" if split == "all" else f"{split} rows"


def _load_split(split, rows, categories, classes, config, decode_too) -> ClassificationDataset:
    """Selects the rows of a split, decodes them or reuses pixels from an earlier run, and handles bad rows."""
    label_of = {name: label for label, name in enumerate(classes)}
    chosen = np.array([i for i, name in enumerate(categories) if name is None or name in label_of], dtype=np.int64)
    dropped = len(categories) - len(chosen)
    limit = config.limit * (2 if config.split_by else 1)  # with --split-by, this table holds both train and val
    if 0 < limit < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, limit).round().astype(np.int64)]
    reasons = {int(i): "no category" for i in chosen if categories[i] is None}
    chosen = np.array([i for i in chosen if categories[i] is not None], dtype=np.int64)
    if not len(chosen):
        raise InputError(f"--data {config.data} has no {_rows_of(split)} with a category.")
    ids = rows["image_id"]
    rows = rows.select(chosen)

    selection = [split, hashlib.sha256(chosen.tobytes()).hexdigest()]
    content, decoded = load_pixels(split, rows, selection, [config, *decode_too])
    problem = convention_problem(decoded.boxes) if config.crop else None
    if problem:
        raise InputError(f"--data {config.data}, {_rows_of(split)}: {problem}{_format_hint(problem, rows, config)}")
    reasons |= {int(chosen[i]): reason for i, reason in decoded.problems.items()}
    problems = [{"split": split, "row": i, "id": ids[i], "reason": reasons[i]} for i in sorted(reasons)]
    if problems and config.bad_rows == "error":
        report = Path(config.cache, "bad_rows.csv")
        try:
            write_csv(report, problems)
            see = f", see {report}"
        except OSError:  # a shared cache may be read-only
            see = ""
        raise InputError(
            f"{len(problems)} of {len(categories)} {_rows_of(split)} cannot be used{see}. Fix them, or skip them with "
            f"--bad-rows skip.\n{format_problems(problems)}"
        )
    index = np.setdiff1d(np.arange(len(chosen)), np.array(list(decoded.problems), dtype=np.int64))
    if not len(index):
        first = f" The first of {len(problems)} reasons: {problems[0]['reason']}." if problems else ""
        raise InputError(f"--data {config.data} has no usable {_rows_of(split)}.{first}")
    labels = torch.tensor([label_of[categories[i]] for i in chosen[index]])
    identity = [content, labels.tolist(), *[index.tolist()] * (len(index) < len(chosen))]
    return ClassificationDataset(
        pixels=decoded.pixels,
        index=index,
        crop_sizes=torch.from_numpy(decoded.crop_sizes)[index],
        hashes=decoded.hashes[index],
        boxes=decoded.boxes[index] if config.crop else None,
        labels=labels,
        classes=classes,
        rows=rows.select(index),
        numbers=chosen[index],
        source_rows=len(categories),
        dropped=dropped,
        problems=problems,
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        normalization=config.normalization,
    )
