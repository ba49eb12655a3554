"""What predict.py is given: images, each with a box or several, from files or from a table in the Hub's schema."""

import csv
import glob
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from common.config import InputError
from common.sources import IMAGE_SUFFIXES, VAL_NAMES, clean_categories, is_hub_id, read_splits, undecoded


@dataclass(frozen=True)
class Inputs:
    """N crops to be classified. The same image may occur several times, with another box each."""

    names: list[str]  # a path, or the table's image_id
    images: list[int]  # the number of the image that the crop is of
    boxes: list[Sequence[float] | None]  # x, y, width, height in pixels of the upright image
    labels: list[str | None]  # clean categories; None where nothing is known
    stored: Callable[[int, int], list[dict]]  # of crops a to b: {"bytes": ..., "path": ...}, as a table stores images
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
    if _is_table(source):
        if bbox or boxes:
            raise InputError(f"{source} is a table with boxes of its own: leave out --bbox and --boxes.")
        return _table(source, split)
    files = _image_files(source)
    if split:
        raise InputError(f"--split {split} is for tables, and {source} is none.")
    if bbox and boxes:
        raise InputError("--bbox and --boxes both say where the products are: leave out one.")
    if bbox and len(files) != 1:
        raise InputError(f"--bbox is for a single image, and {source} is {len(files)}: list the boxes in --boxes FILE.")
    found: dict[str, list] = {name: [None] for name in files}
    if bbox:
        found = {name: [_box(bbox.split(","), f"--bbox {bbox}")] for name in files}
    if boxes:
        found |= _read_boxes(Path(boxes), list(files))
    crops = [(i, name, box) for i, (name, its_boxes) in enumerate(found.items()) for box in its_boxes]
    return Inputs(
        names=[name for _, name, _ in crops],
        images=[i for i, _, _ in crops],
        boxes=[box for _, _, box in crops],
        labels=[None] * len(crops),
        stored=lambda a, b: [{"bytes": None, "path": str(files[name])} for _, name, _ in crops[a:b]],
        what=f"{len(files)} image{'s' * (len(files) != 1)}",
    )


def _is_table(source: str) -> bool:
    """Whether `source` is read as training data is: a Parquet file or a folder with one, a folder whose images all lie
    in SPLIT/CLASS/, or no path at all but a name.
    """
    path = Path(source)
    if path.is_dir():
        if any(path.rglob("*.parquet")):
            return True
        images = [file.relative_to(path).parts for file in _images_in(path)]
        return bool(images) and all(len(parts) == 3 and parts[0] in ("train", *VAL_NAMES) for parts in images)
    if path.exists() or path.suffix == ".parquet":
        return path.suffix == ".parquet"
    return source == "sample" or (is_hub_id(source) and path.suffix.lower() not in IMAGE_SUFFIXES)


def _images_in(folder: Path) -> list[Path]:
    """Image files in `folder`, sorted; without hidden ones."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(folder).parts))


def _image_files(source: str) -> dict[str, Path]:
    """Image files by the name they go by: below a folder the path within it, otherwise the path as it is given."""
    path = Path(source)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in _images_in(path)}
    elif path.exists():
        files = {source: path}
    else:
        files = {name: Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()}
    if not files:
        raise InputError(f"{source}: no image there. Name an image, a folder, a glob, a Parquet file or a Hub id.")
    return files


def _table(source: str, split: str) -> Inputs:
    splits = read_splits(source)
    val = next((name for name in VAL_NAMES if name in splits), None)
    if split in VAL_NAMES or (not split and val):
        split, rows = split or "val", splits.get(val)
    elif not split and len(splits) == 1:
        ((split, rows),) = splits.items()
    else:
        rows = splits.get(split)
    if rows is None:
        raise InputError(f"{source} has no split {split or 'val'}, but {', '.join(splits)}: choose one with --split.")
    columns = rows.column_names
    if "image" not in columns:
        raise InputError(f"{source} has no column image; its columns are {', '.join(columns)}.")
    if "bbox" in columns and not isinstance(rows.features["bbox"], datasets.Sequence | datasets.List):
        raise InputError(
            f"the column bbox of {source} holds no boxes, x, y, width, height, but {rows.features['bbox']}."
        )
    images, n = undecoded(rows.select_columns(["image"]), split).with_format("arrow"), len(rows)
    ids = list(rows["image_id"]) if "image_id" in columns else [None] * n
    return Inputs(
        names=[f"row {i}" if name is None else str(name) for i, name in enumerate(ids)],
        images=list(range(n)),
        boxes=list(rows["bbox"]) if "bbox" in columns else [None] * n,
        labels=clean_categories(rows) if "category" in columns else [None] * n,
        stored=lambda a, b: [image or {} for image in images[a:b]["image"].to_pylist()],
        what=f"{n} row{'s' * (n != 1)}" + f" of {split}" * (len(splits) > 1),  # of one file, datasets calls it train
    )


def _read_boxes(path: Path, names: list[str]) -> dict[str, list[list[float]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--boxes {path} cannot be read: {error}") from error
    wanted = ("file", "x", "y", "width", "height")
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise InputError(f"--boxes {path} lacks {', '.join(missing)}: its first line is file,x,y,width,height.")
    known, boxes = {os.path.normpath(name): name for name in names}, {}
    for number, line in enumerate(lines, 2):
        name, where = known.get(os.path.normpath(line["file"] or "")), f"--boxes {path}, line {number}"
        if name is None:
            raise InputError(f"{where}: {line['file']} is not among the images, such as {names[0]}.")
        boxes.setdefault(name, []).append(_box([line[column] for column in wanted[1:]], where))
    return boxes


def _box(values: list[str], where: str) -> list[float]:
    try:
        box = [float(value) for value in values]
    except (TypeError, ValueError):
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise InputError(f"{where}: a box is four numbers, x, y, width and height in pixels.")
    return box
