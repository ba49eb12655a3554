"""The train and the val split: rows chosen, labelled and checked, their pixels in one array that training reads."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState

from common.augment import normalize
from common.config import DataConfig, InputError, TrainConfig
from common.files import write_csv
from common.folds import assign_folds, parse_split
from common.pixels import content_hash, decoded
from common.sources import ID_COLUMNS, clean_categories, load_tables


@dataclass(eq=False)
class ClassificationDataset(torch.utils.data.Dataset):
    """One split, decoded. Item i is (float32 image (3, S, S), normalised; int label)."""

    pixels: np.ndarray  # uint8 memory map; row i's pixels (3, S, S) are pixels[index[i]]
    index: np.ndarray  # (N,) int64
    crop_sizes: torch.Tensor  # (N, 2) float32, width and height of each crop in pixels before it was made square
    hashes: np.ndarray  # (N, 2) uint64: of each image file's bytes, and of what its crop looks like (see common.pixels)
    labels: torch.Tensor  # (N,) int64, numbers into classes
    classes: list[str]  # the clean category names, sorted; the same list in both splits
    rows: datasets.Dataset  # of the N rows: id columns, category, bbox, the encoded image
    numbers: np.ndarray  # (N,) int64, the rows' numbers in the source
    source_rows: int  # rows of the split in the source
    dropped: int  # of these, left out with their category: val lacks it, or (--split-by) it has one group only
    problems: list[dict]  # left out by --bad-rows skip: split, row (its number in the source), id, reason
    fingerprint: str  # sha256 of the rows' content (image bytes, boxes, labels), in hex
    device_pixels: torch.Tensor | None = None  # a copy of pixels on a GPU
    masks: np.ndarray | None = None  # (N, 1, S, S) uint8, of the product; read where a run needs them

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return normalize(torch.from_numpy(self.pixels[self.index[[i]]]))[0], int(self.labels[i])

    def batch(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, 3, S, S) uint8, crop sizes (B, 2) float32 and labels (B,) int64 of `rows` (B,), on `device`."""
        if self.device_pixels is None:
            images = torch.from_numpy(self.pixels[self.index[rows]])
        else:
            images = self.device_pixels[to_device(torch.from_numpy(self.index[rows]), device)]
        return tuple(to_device(part, device) for part in (images, self.crop_sizes[rows], self.labels[rows]))

    def keep_on(self, device: torch.device) -> None:
        """Copies the pixels to `device`, from where `batch` takes its images then."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warning that the array is read only: so is this use of it
            self.device_pixels = torch.from_numpy(self.pixels).to(device)

    def part(self, chosen: np.ndarray, **other) -> "ClassificationDataset":
        """The rows where `chosen` (N,) bool is true, which share the pixels; `other` attributes are replaced."""
        of_rows = dict(
            index=self.index[chosen],
            crop_sizes=self.crop_sizes[chosen],
            hashes=self.hashes[chosen],
            labels=self.labels[chosen],
            rows=self.rows.select(np.flatnonzero(chosen)),
            numbers=self.numbers[chosen],
            masks=self.masks[chosen] if self.masks is not None else None,
            fingerprint=hashlib.sha256(self.fingerprint.encode() + chosen.tobytes()).hexdigest(),
        )
        return replace(self, **(of_rows | other))

    def ids(self) -> dict[str, list[str]]:
        """The id columns of the rows, empty where the data lacks one."""
        there = self.rows.column_names
        columns = {name: self.rows[name] if name in there else [None] * len(self) for name in ID_COLUMNS}
        return {name: ["" if v is None else str(v) for v in values] for name, values in columns.items()}


def load_splits(
    config: DataConfig, also: Sequence[DataConfig] = ()
) -> tuple[ClassificationDataset, ClassificationDataset]:
    """The train and the val split of `config.data`. One process per machine decodes, the others wait and map.

    `also` are other crops and sizes of the same data that are to be decoded in the same pass, for runs that follow.

    Raises:
        InputError: the data cannot be found, read or used; the message says why and what to do.
    """
    with PartialState().local_main_process_first():
        tables = load_tables(config)
        names = {split: clean_categories(table) for split, table in tables.items()}
        if config.split_by:
            return _load_and_cut(tables["all"], names["all"], config, also)
        classes = sorted({name for name in names["val"] if name})
        unseen = sorted(set(classes) - set(names["train"]))
        if unseen:
            raise InputError(f"val has rows of {', '.join(unseen)}, a class without train rows: drop them or add some.")
        return tuple(_load_split(split, table, names[split], classes, config, also) for split, table in tables.items())


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; to a GPU from pinned memory, so that the host does not wait for it."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def place_pixels(config: TrainConfig, device: torch.device, *splits: ClassificationDataset) -> None:
    """With `--data-device auto`, copies the pixels of `splits` to a GPU that has four times their size free."""
    for split in splits:
        if config.data_device == "auto" and device.type == "cuda":
            twin = next((s for s in splits if s.pixels is split.pixels and s.device_pixels is not None), None)
            if twin is not None:
                split.device_pixels = twin.device_pixels
            elif 4 * split.pixels.nbytes < torch.cuda.mem_get_info(device)[0]:
                split.keep_on(device)


def listed(problems: list[dict], most: int = 10) -> str:
    """The first bad rows, a line each."""
    lines = [f"  row {p['row']} ({p['id']}): {p['reason']}" for p in problems[:most]]
    return "\n".join(lines + [f"  and {len(problems) - most} more"] * (len(problems) > most))


def _load_and_cut(rows, names, config, also) -> tuple[ClassificationDataset, ClassificationDataset]:
    """Train and val of `--split-by`. All folds share one pixel array, that of all rows together."""
    split = parse_split(config.split_by)
    classes, folds = assign_folds(rows, names, split)
    everything = _load_split("all", rows, names, classes, config, also)
    parts = []
    for name, of_part in (("train", folds != split.fold), ("val", folds == split.fold)):
        problems = [problem | {"split": name} for problem in everything.problems if of_part[problem["row"]]]
        chosen, dropped = of_part[everything.numbers], everything.dropped * (name == "train")
        if not chosen.any():
            raise InputError(f"--split-by {config.split_by} leaves no {name} rows: choose fewer folds or more rows.")
        source_rows = int(chosen.sum()) + len(problems) + dropped
        parts.append(everything.part(chosen, problems=problems, dropped=dropped, source_rows=source_rows))
    return tuple(parts)


def _load_split(split, rows, names, classes, config, also) -> ClassificationDataset:
    """Chooses the rows of a split, decodes them or maps what an earlier run decoded, and settles the bad ones."""
    numbers = {name: number for number, name in enumerate(classes)}
    chosen = np.array([i for i, name in enumerate(names) if name is None or name in numbers], dtype=np.int64)
    dropped = len(names) - len(chosen)
    limit = config.limit * (2 if config.split_by else 1)  # of train and val together
    if 0 < limit < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, limit).round().astype(np.int64)]
    reasons = {int(i): "no category" for i in chosen if names[i] is None}
    chosen = np.array([i for i in chosen if names[i] is not None], dtype=np.int64)
    if not len(chosen):
        raise InputError(f"--data {config.data} has no {split} rows with a category.")
    ids, rows = rows["image_id"], rows.select(chosen)

    place = [split, hashlib.sha256(chosen.tobytes()).hexdigest()]
    content = content_hash(rows, place, config.cache)
    folder = decoded(split, rows, content, [config, *also])[0]
    unusable = {int(i): reason for i, reason in json.loads((folder / "problems.json").read_text()).items()}
    reasons |= {int(chosen[i]): reason for i, reason in unusable.items()}
    problems = [{"split": split, "row": i, "id": ids[i], "reason": reasons[i]} for i in sorted(reasons)]
    if problems and config.bad_rows == "error":
        report = Path(config.cache, "bad_rows.csv")
        write_csv(report, problems)
        raise InputError(
            f"{len(problems)} of {len(names)} {split} rows cannot be used, see {report}. Mend them, or go on without "
            f"them with --bad-rows skip.\n{listed(problems)}"
        )
    index = np.setdiff1d(np.arange(len(chosen)), np.array(list(unusable), dtype=np.int64))
    if not len(index):
        raise InputError(f"--data {config.data} has no usable {split} rows.")
    labels = torch.tensor([numbers[names[i]] for i in chosen[index]])
    return ClassificationDataset(
        pixels=np.load(folder / "pixels.npy", mmap_mode="r"),
        index=index,
        crop_sizes=torch.from_numpy(np.load(folder / "crop_sizes.npy"))[index],
        hashes=np.load(folder / "hashes.npy")[index],
        labels=labels,
        classes=classes,
        rows=rows.select(index),
        numbers=chosen[index],
        source_rows=len(names),
        dropped=dropped,
        problems=problems,
        fingerprint=hashlib.sha256(json.dumps([content, labels.tolist()]).encode()).hexdigest(),
    )
