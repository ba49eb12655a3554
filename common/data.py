"""Splits of rows as arrays of decoded pixels.

Every image is decoded, cropped and resized once, into one memory-mapped uint8 array in `--cache`; training reads only
that. The array's key is the content of the rows and every setting that changes a pixel.
"""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from common.augment import normalize
from common.config import InputError, TrainConfig
from common.crop import crop_image
from common.files import whole, write_csv
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
        self.crop_sizes, self.labels, self.classes, self.rows = crop_sizes, labels, classes, rows
        self.source_rows, self.dropped, self.problems, self.fingerprint = source_rows, dropped, problems, fingerprint

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return normalize(torch.from_numpy(self.pixels[self.index[[i]]]))[0], int(self.labels[i])

    def batch(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, 3, S, S) uint8, crop sizes (B, 2) float32 and labels (B,) int64 of `rows` (B,), on `device`."""
        images = torch.from_numpy(self.pixels[self.index[rows]])
        return tuple(part.to(device) for part in (images, self.crop_sizes[rows], self.labels[rows]))

    def ids(self) -> dict[str, list[str]]:
        """The id columns of the rows, empty where the data lacks one."""
        there = self.rows.column_names
        columns = {name: self.rows[name] if name in there else [None] * len(self) for name in ID_COLUMNS}
        return {name: ["" if v is None else str(v) for v in values] for name, values in columns.items()}


def load_splits(config: TrainConfig) -> tuple[ClassificationDataset, ClassificationDataset]:
    """The train and the val split of `config.data`. One process per machine decodes, the others wait and map.

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
        return tuple(_load_split(split, tables[split], names[split], classes, config) for split in ("train", "val"))


def describe(train: ClassificationDataset, val: ClassificationDataset) -> str:
    """The split sizes, columns and classes as a text for the start of a run."""
    counts = [Counter(split.labels.tolist()) for split in (train, val)]
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


def _load_split(split, rows, names, classes, config) -> ClassificationDataset:
    """Chooses the rows of a split, decodes them or maps what an earlier run decoded, and settles the bad ones."""
    chosen = np.array([i for i, name in enumerate(names) if name is None or name in classes], dtype=np.int64)
    dropped = len(names) - len(chosen)
    if config.limit and config.limit < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, config.limit).round().astype(np.int64)]
    reasons = {int(i): "no category" for i in chosen if names[i] is None}
    chosen = np.array([i for i in chosen if names[i] is not None], dtype=np.int64)
    if not len(chosen):
        raise InputError(f"--data {config.data} has no {split} rows with a category.")
    ids = rows["image_id"]
    rows = rows.select(chosen)

    content = _content_hash(rows, config)
    folder = _decoded(split, rows, content, config)
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
    index = np.array([i for i in range(len(chosen)) if i not in unusable], dtype=np.int64)
    if not len(index):
        raise InputError(f"--data {config.data} has no usable {split} rows.")
    labels = torch.tensor([classes.index(names[i]) for i in chosen[index]])
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


def _encoded(row: dict) -> bytes:
    """The image file of a row, from the table or from the path in it; empty where there is none."""
    image = row["image"] or {}
    if image.get("bytes") is not None:
        return image["bytes"]
    try:
        return Path(image.get("path") or "").read_bytes()
    except OSError:
        return b""


def _content_hash(rows: datasets.Dataset, config: TrainConfig) -> str:
    digest = hashlib.sha256()
    for row in rows:
        encoded = _encoded(row)
        digest.update(json.dumps([len(encoded), row["bbox"] if config.crop else None]).encode() + encoded)
    return digest.hexdigest()


def _decoded(split: str, rows: datasets.Dataset, content: str, config: TrainConfig) -> Path:
    """The cache folder with pixels.npy (N, 3, S, S), crop_sizes.npy (N, 2) and problems.json of `rows`."""
    form = 1  # to be raised when the folder's files change their form
    settings = [form, content, config.crop, config.margin * config.crop, config.fit, config.image_size]
    folder = Path(config.cache, hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32])
    if all((folder / name).exists() for name in ("pixels.npy", "crop_sizes.npy", "problems.json")):
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # somebody has deleted a part of it
    size, problems = config.image_size, {}
    with whole(folder) as partial, ThreadPoolExecutor() as pool:
        partial.mkdir()
        pixels = np.lib.format.open_memmap(partial / "pixels.npy", "w+", np.uint8, (len(rows), 3, size, size))
        with open(partial / "pixels.npy", "rb+") as file:  # a map on a full disk would end the process without a word
            os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
        crop_sizes = np.ones((len(rows), 2), np.float32)

        def decode(i: int) -> None:
            row = rows[i]
            try:
                if config.crop and row["bbox"] is None:
                    raise ValueError("no box")
                with Image.open(io.BytesIO(_encoded(row))) as image:
                    bbox = row["bbox"] if config.crop else None
                    image, crop_sizes[i] = crop_image(image, bbox, size=size, margin=config.margin, fit=config.fit)
                pixels[i] = np.asarray(image).transpose(2, 0, 1)
            except UnidentifiedImageError:
                problems[i] = "unreadable image (of no known format)"
            except Exception as error:  # PIL raises nearly every kind
                problems[i] = str(error) if type(error) is ValueError else f"unreadable image ({error})"

        for _ in tqdm(pool.map(decode, range(len(rows))), f"decoding {split}", len(rows), disable=None, unit=" images"):
            pass
        pixels.flush()
        np.save(partial / "crop_sizes.npy", crop_sizes)
        (partial / "problems.json").write_text(json.dumps(problems))
    return folder
