"""What predict.py is given: images, each with a box or several, from files or from a table in the Hub's schema."""

import csv
import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import InputError
from common.sources import IMAGE_SUFFIXES, VAL_NAMES, clean_categories, read_splits, undecoded


@dataclass(frozen=True)
class Inputs:
    """N crops to be classified. The same image may occur several times, with another box each."""

    names: list[str]  # a path, or the table's image_id
    boxes: list[Sequence[float] | None]  # x, y, width, height in pixels of the upright image
    labels: list[str | None]  # clean categories; None where nothing is known
    stored: Callable[[int, int], list[dict]]  # of items a to b: {"bytes": ..., "path": ...}, as a table stores images
    what: str  # such as "130 rows of val"

    def __len__(self) -> int:
        return len(self.names)


def read_inputs(source: str, *, bbox: str = "", boxes: str = "", split: str = "") -> Inputs:
    """The images that `source` names: an image, a folder or a glob of images, or a table (see `read_splits`).

    Args:
        bbox: "x,y,width,height" for a single image.
        boxes: a CSV file with the columns file, x, y, width, height; a file may have several lines.
        split: of a table; by default val, or the only one there is.

    Raises:
        InputError: there is nothing there, or the boxes do not fit it.
    """
    files = None if _is_table(source) else _image_files(source)
    if files is None:
        if bbox or boxes:
            raise InputError(f"{source} is a table with boxes of its own: leave out --bbox and --boxes.")
        return _table(source, split)
    if split:
        raise InputError(f"--split {split} is for tables, and {source} is none.")
    if bbox and (boxes or len(files) != 1):
        raise InputError(f"--bbox is for a single image, and {source} is {len(files)}: list the boxes in --boxes FILE.")
    found = {name: [None] for name in files}
    if bbox:
        found = {name: [_box(bbox.split(","), f"--bbox {bbox}")] for name in files}
    if boxes:
        found |= _read_boxes(Path(boxes), list(files))
    items = [(name, box) for name, its_boxes in found.items() for box in its_boxes]
    return Inputs(
        [name for name, _ in items],
        [box for _, box in items],
        [None] * len(items),
        lambda a, b: [{"bytes": None, "path": str(files[name])} for name, _ in items[a:b]],
        f"{len(files)} images",
    )


def _is_table(source: str) -> bool:
    """Whether `source` is read as training data is: by name, or a file or folder with rows or with splits in it."""
    path = Path(source)
    if path.is_dir():
        return any(path.rglob("*.parquet")) or any((path / name).is_dir() for name in ("train", *VAL_NAMES))
    return path.suffix == ".parquet" or not (path.exists() or glob.has_magic(source) or path.suffix)


def _image_files(source: str) -> dict[str, Path]:
    """Image files by the name they go by: below a folder the path within it, otherwise the path as it is given."""
    path = Path(source)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        files = {file.relative_to(path).as_posix(): file for file in inside}
    elif path.exists():
        files = {source: path}
    else:
        files = {name: Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()}
    if not files:
        raise InputError(f"{source}: no image there. Name an image, a folder, a glob, a Parquet file or a Hub id.")
    return files


def _table(source: str, split: str) -> Inputs:
    splits = read_splits(source)
    if not split:
        split = next((name for name in VAL_NAMES if name in splits), next(iter(splits)))
        if len(splits) > 1 and split not in VAL_NAMES:
            raise InputError(f"{source} has the splits {', '.join(splits)}: choose one with --split.")
    if split not in splits:
        raise InputError(f"{source} has no split {split}; there are {', '.join(splits)}.")
    rows = splits[split]
    if "image" not in rows.column_names:
        raise InputError(f"{source} has no column image; its columns are {', '.join(rows.column_names)}.")
    images = undecoded(rows.select_columns(["image"]), split).with_format("arrow")
    columns = rows.column_names
    return Inputs(
        [str(name) for name in rows["image_id"]] if "image_id" in columns else [str(i) for i in range(len(rows))],
        list(rows["bbox"]) if "bbox" in columns else [None] * len(rows),
        clean_categories(rows) if "category" in columns else [None] * len(rows),
        lambda a, b: [image or {} for image in images[a:b]["image"].to_pylist()],
        f"{len(rows)} rows of {split}",
    )


def _read_boxes(path: Path, names: list[str]) -> dict[str, list[list[float]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--boxes {path} cannot be read: {error}") from error
    wanted = ("file", "x", "y", "width", "height")
    missing = [name for name in wanted if not lines or name not in lines[0]]
    if missing:
        raise InputError(f"--boxes {path} lacks {', '.join(missing)}: its first line is file,x,y,width,height.")
    known, boxes = set(names), {}
    for number, line in enumerate(lines, 2):
        if line["file"] not in known:
            raise InputError(
                f"--boxes {path}, line {number}: {line['file']} is not among the images, such as {names[0]}."
            )
        values = [line[name] for name in wanted[1:]]
        boxes.setdefault(line["file"], []).append(_box(values, f"--boxes {path}, line {number}"))
    return boxes


def _box(values: list[str], where: str) -> list[float]:
    try:
        box = [float(value) for value in values]
    except (TypeError, ValueError):
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise InputError(f"{where}: a box is four numbers, x, y, width and height in pixels.")
    return box
