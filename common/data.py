"""The train and the val split: rows chosen, labelled and checked, their pixels in one array that training reads."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from common.augment import normalize
from common.config import InputError, TrainConfig
from common.files import write_csv
from common.pixels import content_hash, decoded
from common.sources import ID_COLUMNS, clean_categories, load_tables


class ClassificationDataset(torch.utils.data.Dataset):
    """One split, decoded. Item i is (float32 image (3, S, S), normalised; int label).

    Attributes:
        labels: (N,) int64 tensor, numbers into `classes`.
        classes: the clean category names, sorted; the same list in both splits.
        crop_sizes: (N, 2) float32 tensor, width and height of each crop in pixels before it was made square.
        rows: the `datasets.Dataset` of the N rows: id columns, category, bbox, the encoded image.
        source_rows: rows of the split in the source.
        dropped: of these, train rows left out because their category does not occur in val.
        problems: the rows left out by `--bad-rows skip`: dicts with split, row (its number in the source), id, reason.
        fingerprint: sha256 of the rows' content (image bytes, boxes, labels), in hex.
    """

    def __init__(
        self, pixels, index, crop_sizes, labels, classes, rows, *, source_rows, dropped, problems, fingerprint
    ):
        self.pixels, self.index = pixels, index  # row i's pixels (3, S, S) are pixels[index[i]]
        self.device_pixels = None
        self.crop_sizes, self.labels, self.classes, self.rows = crop_sizes, labels, classes, rows
        self.source_rows, self.dropped, self.problems, self.fingerprint = source_rows, dropped, problems, fingerprint

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

    def ids(self) -> dict[str, list[str]]:
        """The id columns of the rows, empty where the data lacks one."""
        there = self.rows.column_names
        columns = {name: self.rows[name] if name in there else [None] * len(self) for name in ID_COLUMNS}
        return {name: ["" if v is None else str(v) for v in values] for name, values in columns.items()}


def load_splits(
    config: TrainConfig, also: Sequence[TrainConfig] = ()
) -> tuple[ClassificationDataset, ClassificationDataset]:
    """The train and the val split of `config.data`. One process per machine decodes, the others wait and map.

    `also` are other crops and sizes of the same data that are to be decoded in the same pass, for runs that follow.

    Raises:
        InputError: the data cannot be found, read or used; the message says why and what to do.
    """
    with PartialState().local_main_process_first():
        tables = load_tables(config)
        names = {split: clean_categories(table) for split, table in tables.items()}
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
            if 4 * split.pixels.nbytes < torch.cuda.mem_get_info(device)[0]:
                split.keep_on(device)


def describe(train: ClassificationDataset, val: ClassificationDataset) -> str:
    """The split sizes, columns and classes as a text for the start of a run."""
    counts = [torch.bincount(split.labels, minlength=len(split.classes)).tolist() for split in (train, val)]
    width = max(map(len, train.classes))
    lines = []
    for name, split in (("train", train), ("val", val)):
        kept = split.source_rows - split.dropped
        dropped = f" -> {kept:,}: {split.dropped} of categories that val lacks" if split.dropped else ""
        used = f", {len(split):,} used" if len(split) < kept else ""
        lines.append(f"{name:5}  {split.source_rows:,} rows{dropped}{used}")
        if split.problems:
            lines.append(f"       {len(split.problems)} bad rows left out:\n{_listed(split.problems)}")
    lines += [
        f"image  3 x {train.pixels.shape[2]} x {train.pixels.shape[3]} uint8",
        f"column {', '.join(f'{name} ({_type_name(t)})' for name, t in train.rows.features.items())}",
        f"{'class':<{width}}  train  val",
        *(f"{name:<{width}}  {counts[0][i]:5}  {counts[1][i]:3}" for i, name in enumerate(train.classes)),
    ]
    return "\n".join(lines)


def _listed(problems: list[dict], most: int = 10) -> str:
    lines = [f"  row {p['row']} ({p['id']}): {p['reason']}" for p in problems[:most]]
    return "\n".join(lines + [f"  and {len(problems) - most} more"] * (len(problems) > most))


def _type_name(feature) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__.lower()


def _load_split(split, rows, names, classes, config, also) -> ClassificationDataset:
    """Chooses the rows of a split, decodes them or maps what an earlier run decoded, and settles the bad ones."""
    numbers = {name: number for number, name in enumerate(classes)}
    chosen = np.array([i for i, name in enumerate(names) if name is None or name in numbers], dtype=np.int64)
    dropped = len(names) - len(chosen)
    if config.limit and config.limit < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, config.limit).round().astype(np.int64)]
    reasons = {int(i): "no category" for i in chosen if names[i] is None}
    chosen = np.array([i for i in chosen if names[i] is not None], dtype=np.int64)
    if not len(chosen):
        raise InputError(f"--data {config.data} has no {split} rows with a category.")
    ids, rows = rows["image_id"], rows.select(chosen)

    place = None if config.val_fraction else [split, hashlib.sha256(chosen.tobytes()).hexdigest()]
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
            f"them with --bad-rows skip.\n{_listed(problems)}"
        )
    index = np.setdiff1d(np.arange(len(chosen)), np.array(list(unusable), dtype=np.int64))
    if not len(index):
        raise InputError(f"--data {config.data} has no usable {split} rows.")
    labels = torch.tensor([numbers[names[i]] for i in chosen[index]])
    return ClassificationDataset(
        np.load(folder / "pixels.npy", mmap_mode="r"),
        index,
        torch.from_numpy(np.load(folder / "crop_sizes.npy"))[index],
        labels,
        classes,
        rows.select(index),
        source_rows=len(names),
        dropped=dropped,
        problems=problems,
        fingerprint=hashlib.sha256(json.dumps([content, labels.tolist()]).encode()).hexdigest(),
    )
