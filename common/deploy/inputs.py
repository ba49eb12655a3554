"""Inputs of predict.py: images with one or more boxes each, from image files or from data in the training format."""

import csv
import glob
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from common.config import DataConfig, InputError, count
from common.data.annotations.coco import read_image_names
from common.data.crop import MAX_CROPS
from common.data.image_folder import count_and_names, csv_lines, list_files
from common.data.nested import roots_of_classes
from common.data.sources import (
    OWN_BOX_FORMAT,
    VAL_NAMES,
    check_images,
    clean_categories,
    is_hub_id,
    read_photos,
    read_splits,
    with_box_format,
)
from common.data.table import IMAGE_SUFFIXES, Table, clean_category, is_image, read_file


@dataclass(frozen=True)
class Detections:
    """The JSON file of a detector: COCO results, a list of objects, or a COCO file with images and annotations."""

    content: Any  # of the file
    numbers: list[int]  # (N,) the object that each crop was made for, by its number in the file

    @property
    def objects(self) -> list[dict]:
        return self.content["annotations"] if isinstance(self.content, dict) else self.content


@dataclass(frozen=True)
class Inputs:
    """N crops to classify. An image with several boxes yields several crops."""

    names: list[str]  # the image's path or, in a table, its image_id
    images: list[int]  # number of the image that each crop is taken from
    boxes: list[Sequence[float] | None]  # x, y, width, height in pixels of the upright image
    labels: list[str | None]  # normalised categories; None if unknown
    encoded: Callable[[Iterable[int]], Iterator[bytes | str]]  # reads the images of these crops, see `Table.images`
    description: str  # such as "130 rows of val"
    unread: Sequence[str] = ()  # names of files in the source that are not read
    box_format: str = ""  # of the boxes, see `common.data.boxes.to_pixels`
    detections: Detections | None = None  # of --boxes FILE.json

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> Iterator[tuple[bytes | str, Sequence[float] | None]]:
        """Yields the encoded image and the box of each crop. Images are read as they are needed."""
        return zip(self.encoded(range(len(self))), self.boxes, strict=True)

    def photos(self) -> Iterator[tuple[bytes | str, bool, list[Sequence[float] | None]]]:
        """Yields photos in the order of the crops: the encoded image, whether several crops are taken from it, and the
        boxes of successive crops, at most `MAX_CROPS`; for more, the photo is repeated."""
        counts = Counter(self.images)
        runs = [list(run) for _, run in groupby(range(len(self)), key=self.images.__getitem__)]
        parts = [run[i : i + MAX_CROPS] for run in runs for i in range(0, len(run), MAX_CROPS)]
        for encoded, part in zip(self.encoded(part[0] for part in parts), parts, strict=True):
            yield encoded, counts[self.images[part[0]]] > 1, [self.boxes[i] for i in part]


def read_inputs(
    source: str,
    *,
    bbox: str = "",
    boxes: str = "",
    split: str = "",
    config: DataConfig | None = None,
    classes: Sequence[str] = (),
) -> Inputs:
    """Reads the inputs that the command line of predict.py describes.

    Args:
        source: an image, a folder or glob of images, or a table: any data that `common.data.sources.read_splits` reads.
            A folder of images with annotations is a table if no boxes are given.
        bbox: "x,y,width,height" of a single image.
        boxes: a CSV file with the columns file, x, y, width and height, one line per box; or the JSON file of a
            detector, COCO results, in which images are named by file_name or image_id. Images without a box in the JSON
            file are left out.
        split: the split of a table. The default is val, or the only split.
        config: that of the model. Its `--val-split` and `--box-format` say what is val in a table, and what the numbers
            of its boxes mean, unless the table has no such split or its layout defines them.
        classes: those of the model. The folders of images are their labels if one of them is named after a class.

    Raises:
        InputError: there are no images, or the boxes do not match them.
    """
    if _is_table(source):
        if bbox or boxes:
            raise InputError(f"{source} is a table, whose boxes are in the column bbox: remove --bbox and --boxes.")
        return _read_table(source, split, read_splits(source), config or DataConfig())
    if not bbox and not boxes and os.path.isdir(source):
        splits = read_photos(Path(source), *list_files(source), classes=False)
        if splits:
            return _read_table(source, split, splits, config or DataConfig())
    files, unread = _image_files(source)
    folder = source if os.path.isdir(source) else None  # links must not leave it
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
    detections = None
    if boxes.lower().endswith(".json"):
        ids = read_image_names(Path(source), list_files(source)[0]) if folder else {}
        detections, boxes_of = _read_detections(Path(boxes), list(files), ids)
    elif boxes:
        boxes_of |= _read_boxes(Path(boxes), list(files))
    crops = [(i, name, box) for i, (name, image_boxes) in enumerate(boxes_of.items()) for box in image_boxes]
    labels = [clean_category(Path(name).parent.name) for _, name, _ in crops]
    labelled = bool(folder) and not detections and not set(labels).isdisjoint(classes)
    return Inputs(
        names=[name for _, name, _ in crops],
        images=[i for i, _, _ in crops],
        boxes=[box for _, _, box in crops],
        labels=labels if labelled else [None] * len(crops),
        encoded=lambda rows: (read_file(files[crops[row][1]], folder) for row in rows),
        description=count(len(boxes_of), "image") + ", labelled by their folders" * labelled,
        unread=unread,
        detections=detections,
    )


def _is_table(source: str) -> bool:
    """Whether `source` has the format of training data, as opposed to plain image files.

    That is a Parquet file, a folder that contains one, a folder with images only in SPLIT/.../CLASS/ or with images in
    train/.../CLASS/ beside those of another split, a Hub id or "sample".
    """
    path = Path(source)
    if os.path.isdir(source):
        files, _ = list_files(path)
        splits = [name.split("/")[0] for name in files if is_image(name) and name.count("/") > 1]
        table = splits and len(splits) == sum(map(is_image, files)) and set(splits) <= {"train", *VAL_NAMES}
        return (
            table
            or len(roots_of_classes({name.rpartition("/")[0] for name in files if is_image(name)})) == 1
            or any(name.endswith(".parquet") for name in files)
        )
    if os.path.exists(source) or path.suffix == ".parquet":
        return path.suffix == ".parquet"
    return source == "sample" or (is_hub_id(source) and path.suffix.lower() not in IMAGE_SUFFIXES)


def _image_files(source: str) -> tuple[dict[str, str], list[str]]:
    """Paths of image files by name, which is relative to `source` if that is a folder; and what is not read."""
    unread: list[str] = []
    if os.path.isdir(source):
        names, unread = list_files(source)
        unread = sorted(unread + [name for name in names if not is_image(name)])
        files = {name: os.path.join(source, name) for name in names if is_image(name)}
    elif os.path.exists(source):
        files = {source: source}
    else:
        files = {name: name for name in sorted(glob.glob(source, recursive=True)) if not os.path.isdir(name)}
    if not files:
        found = f" It contains {count_and_names(unread)}." if unread else ""
        raise InputError(
            f"{source}: no images found. Use an image, a folder, a glob, a Parquet file, a Hub id or 'sample'.{found}"
        )
    return files, unread


def _read_table(source: str, split: str, splits: dict[str, Table], config: DataConfig) -> Inputs:
    val = next((name for name in VAL_NAMES if name in splits), None)
    if not split and config.val_split in splits:
        split = config.val_split
    if split in VAL_NAMES or (not split and val):
        split, rows = split or "val", splits.get(val or "")
    elif not split and len(splits) == 1:
        ((split, rows),) = splits.items()
    else:
        rows = splits.get(split)
    if rows is None:
        raise InputError(f"{source} has no split {split or 'val'}, only {', '.join(splits)}: choose one with --split.")
    if "image" not in rows:
        raise InputError(f"{source} has no column image; its columns are {', '.join(rows.types)}.")
    if "bbox" in rows and not rows.types["bbox"].startswith("list"):
        raise InputError(
            f"the column bbox of {source} must contain lists of x, y, width, height; it contains {rows.types['bbox']}."
        )
    check_images(rows, split)
    description = count(len(rows), "row") + f" of {split}" * (len(splits) > 1)  # a single file is always called train
    if "bbox" in rows and config.box_format != "auto" and rows.layout not in OWN_BOX_FORMAT:
        rows = with_box_format({split: rows}, config)[split]
        description += f", {rows.remarks[-1]}"
    n = len(rows)
    ids = rows["image_id"] if "image_id" in rows else [None] * n
    return Inputs(
        names=[f"row {i}" if name is None else str(name) for i, name in enumerate(ids)],
        images=rows.photos.tolist(),
        boxes=rows["bbox"] if "bbox" in rows else [None] * n,
        labels=clean_categories(rows) if "category" in rows else [None] * n,
        encoded=lambda chosen: rows.read_photos(int(rows.photos[i]) for i in chosen),
        description=description,
        unread=rows.unread,
        box_format=rows.box_format,
    )


def _read_boxes(path: Path, names: list[str]) -> dict[str, list[list[float]]]:
    """The boxes in the CSV file `path`, by image name. Every line must belong to one of `names`."""
    content = read_file(str(path))
    if isinstance(content, str):
        raise InputError(f"--boxes {path} cannot be read: {content}.")
    try:
        columns, lines = csv_lines(content.decode("utf-8-sig", "surrogateescape"))  # for file names
    except (ValueError, csv.Error) as error:
        raise InputError(f"--boxes {path} cannot be read: {error}") from error
    required = ("file", "x", "y", "width", "height")
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(f"--boxes {path} has no column {', '.join(missing)}: start it with file,x,y,width,height.")
    name_of = {os.path.normpath(name): name for name in names}
    boxes: dict[str, list[list[float]]] = {}
    for number, line in lines:
        location = f"--boxes {path}, line {number}"
        name = name_of.get(os.path.normpath(line["file"] or ""))
        if name is None:
            raise InputError(f"{location}: {line['file']} is not one of the images. Write names such as {names[0]}.")
        boxes.setdefault(name, []).append(_parse_box([line[column] for column in required[1:]], location))
    return boxes


def _read_detections(path: Path, names: list[str], file_of: dict[str, str]) -> tuple[Detections, dict[str, list]]:
    """The objects in the JSON file `path`, and the boxes of each image in the same order as the objects of the result.

    An image is named by file_name, or by image_id: the id of an image in the same file or, if it has no images, in the
    COCO files of the folder of images, which is in `file_of`; otherwise the name of an image file or its stem, with or
    without leading zeros.
    """
    content = read_file(str(path))
    if isinstance(content, str):
        raise InputError(f"--boxes {path} cannot be read: {content}.")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--boxes {path} is not valid JSON: {error}.") from error
    objects = value.get("annotations") if isinstance(value, dict) else value
    if objects == []:
        raise InputError(f"--boxes {path} has no objects: there is nothing to classify.")
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise InputError(
            f"--boxes {path} must be a list of objects with bbox and image_id or file_name, as in COCO results, or a "
            "COCO file with images and annotations."
        )
    images = value.get("images") if isinstance(value, dict) else None
    if images:
        file_of = {str(image.get("id")): str(image.get("file_name")) for image in images if isinstance(image, dict)}
    keys = [
        {os.path.normpath(name): name for name in names},
        *(_unique(names, key) for key in (os.path.basename, _stem, lambda name: _stem(name).lstrip("0") or "0")),
    ]
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(objects):
        wanted = item.get("file_name", file_of.get(str(item.get("image_id")), item.get("image_id")))
        text = os.path.normpath(str(wanted)[:4096])
        choices = (text, os.path.basename(text), _stem(text), str(wanted)[:4096])
        name = next((key[choice] for key in keys for choice in choices if choice in key), None)
        if wanted is None or name is None:
            shown = "no image_id and no file_name" if wanted is None else f"the image {str(wanted)[:60]!r}"
            raise InputError(
                f"--boxes {path}, object {number} has {shown}, which is none of the images such as {names[0]}. Add "
                "file_name to each object, or put the COCO file with these images into their folder."
            )
        numbers.setdefault(name, []).append(number)
    boxes = {name: [_detected_box(objects[i], i, path) for i in of_image] for name, of_image in numbers.items()}
    return Detections(value, [i for of_image in numbers.values() for i in of_image]), boxes


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _unique(names: list[str], key: Callable[[str], str]) -> dict[str, str]:
    """The names by `key`, without those that share it."""
    counts = Counter(map(key, names))
    return {key(name): name for name in names if counts[key(name)] == 1}


def _detected_box(item: dict, number: int, path: Path) -> list[float]:
    box = item.get("bbox")
    return _parse_box(box if isinstance(box, list) else [str(box)], f"--boxes {path}, object {number}")


def _parse_box(values: list[str], location: str) -> list[float]:
    """Four finite floats. `location` begins the error message."""
    try:
        box = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise InputError(
            f"{location}: {','.join(map(str, values))} is not a box. A box is x, y, width, height in pixels."
        )
    return box
