"""Inputs of predict.py: images with one or more boxes each, from image files or from a table in the training format."""

import csv
import glob
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from common.config import InputError
from common.data.sources import IMAGE_SUFFIXES, VAL_NAMES, clean_categories, is_hub_id, read_splits, undecoded


@dataclass(frozen=True)
class Inputs:
    """N crops to classify. An image with several boxes yields several crops."""

    names: list[str]  # the image's path or, in a table, its image_id
    images: list[int]  # number of the image that each crop is taken from
    boxes: list[Sequence[float] | None]  # x, y, width, height in pixels of the upright image
    labels: list[str | None]  # normalised categories; None if unknown
    stored: Callable[[int, int], list[dict]]  # stored(a, b): images of crops a to b - 1, {"bytes": ..., "path": ...}
    description: str  # such as "130 rows of val"

    def __len__(self) -> int:
        return len(self.names)

    def items(self, chunk_size: int = 64) -> Iterator[tuple[dict, Sequence[float] | None]]:
        """Yields the stored image and the box of each crop. Images are read in chunks of `chunk_size`."""
        for first in range(0, len(self), chunk_size):
            stored = self.stored(first, min(first + chunk_size, len(self)))
            yield from zip(stored, self.boxes[first : first + chunk_size], strict=True)


def read_inputs(source: str, *, bbox: str = "", boxes: str = "", split: str = "") -> Inputs:
    """Reads the inputs that the command line of predict.py describes.

    Args:
        source: an image, a folder or glob of images, or a table: any data that `common.data.sources.read_splits` reads.
        bbox: "x,y,width,height" of a single image.
        boxes: a CSV file with the columns file, x, y, width and height, one line per box.
        split: the split of a table. The default is val, or the only split.

    Raises:
        InputError: there are no images, or the boxes do not match them.
    """
    if _is_table(source):
        if bbox or boxes:
            raise InputError(f"{source} is a table, whose boxes are in the column bbox: remove --bbox and --boxes.")
        return _read_table(source, split)
    files = _image_files(source)
    if split:
        raise InputError(f"--split {split} applies only to tables, and {source} is not one: remove --split.")
    if bbox and boxes:
        raise InputError("--bbox and --boxes cannot be used together: remove one of them.")
    if bbox and len(files) != 1:
        raise InputError(
            f"--bbox applies to a single image, but {source} refers to {len(files)} images: use --boxes FILE instead."
        )
    boxes_of: dict[str, list] = {name: [None] for name in files}
    if bbox:
        boxes_of = {name: [_parse_box(bbox.split(","), "--bbox")] for name in files}
    if boxes:
        boxes_of |= _read_boxes(Path(boxes), list(files))
    crops = [(i, name, box) for i, (name, image_boxes) in enumerate(boxes_of.items()) for box in image_boxes]
    return Inputs(
        names=[name for _, name, _ in crops],
        images=[i for i, _, _ in crops],
        boxes=[box for _, _, box in crops],
        labels=[None] * len(crops),
        stored=lambda a, b: [{"bytes": None, "path": str(files[name])} for _, name, _ in crops[a:b]],
        description=f"{len(files)} image{'s' * (len(files) != 1)}",
    )


def _is_table(source: str) -> bool:
    """Whether `source` has the format of training data, as opposed to plain image files.

    That is a Parquet file, a folder that contains one, a folder with images only in SPLIT/CLASS/, a Hub id or "sample".
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
    """Image files in `folder` and its subfolders, sorted, except hidden ones."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))


def _image_files(source: str) -> dict[str, Path]:
    """Image files by name: the path relative to `source` if that is a folder, otherwise the path as given."""
    path = Path(source)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in _images_in(path)}
    elif path.exists():
        files = {source: path}
    else:
        files = {name: Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()}
    if not files:
        raise InputError(
            f"{source}: no images found. Use an image, a folder, a glob, a Parquet file, a Hub id or 'sample'."
        )
    return files


def _read_table(source: str, split: str) -> Inputs:
    splits = read_splits(source)
    val = next((name for name in VAL_NAMES if name in splits), None)
    if split in VAL_NAMES or (not split and val):
        split, rows = split or "val", splits.get(val or "")
    elif not split and len(splits) == 1:
        ((split, rows),) = splits.items()
    else:
        rows = splits.get(split)
    if rows is None:
        raise InputError(f"{source} has no split {split or 'val'}, only {', '.join(splits)}: choose one with --split.")
    columns = rows.column_names
    if "image" not in columns:
        raise InputError(f"{source} has no column image; its columns are {', '.join(columns)}.")
    if "bbox" in columns and not isinstance(rows.features["bbox"], datasets.Sequence | datasets.List):
        raise InputError(
            f"the column bbox of {source} must contain lists of x, y, width, height; it contains "
            f"{rows.features['bbox']}."
        )
    images = undecoded(rows.select_columns(["image"]), split).with_format("arrow")
    n = len(rows)
    ids = list(rows["image_id"]) if "image_id" in columns else [None] * n
    return Inputs(
        names=[f"row {i}" if name is None else str(name) for i, name in enumerate(ids)],
        images=list(range(n)),
        boxes=list(rows["bbox"]) if "bbox" in columns else [None] * n,
        labels=clean_categories(rows) if "category" in columns else [None] * n,
        stored=lambda a, b: [image or {} for image in images[a:b]["image"].to_pylist()],
        # the split is not mentioned for a single file: datasets always names it train
        description=f"{n} row{'s' * (n != 1)}" + f" of {split}" * (len(splits) > 1),
    )


def _read_boxes(path: Path, names: list[str]) -> dict[str, list[list[float]]]:
    """The boxes in the CSV file `path`, by image name. Every line must belong to one of `names`."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--boxes {path} cannot be read: {error}") from error
    required = ("file", "x", "y", "width", "height")
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(f"--boxes {path} has no column {', '.join(missing)}: start it with file,x,y,width,height.")
    name_of = {os.path.normpath(name): name for name in names}
    boxes: dict[str, list[list[float]]] = {}
    for number, line in enumerate(lines, 2):
        location = f"--boxes {path}, line {number}"
        name = name_of.get(os.path.normpath(line["file"] or ""))
        if name is None:
            raise InputError(f"{location}: {line['file']} is not one of the images. Write names such as {names[0]}.")
        boxes.setdefault(name, []).append(_parse_box([line[column] for column in required[1:]], location))
    return boxes


def _parse_box(values: list[str], location: str) -> list[float]:
    """Four finite floats. `location` begins the error message."""
    try:
        box = [float(value) for value in values]
    except (TypeError, ValueError):
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise InputError(
            f"{location}: {','.join(map(str, values))} is not a box. A box is x, y, width, height in pixels."
        )
    return box
