"""CSV files with a line for each box: filename, class, xmin, ymin, xmax, ymax, as TensorFlow's tutorials have it."""

import csv
from typing import Any

from common.config import InputError
from common.data.annotations.photos import AnnotatedPhotos
from common.data.boxes import are_fractions
from common.data.image_folder import csv_lines, file_column, plain
from common.data.parquet import CATEGORY_COLUMNS
from common.data.split_names import file_splits, folder_splits, parquet_splits
from common.data.table import printable_name

CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))


def read_csv_corners(photos: AnnotatedPhotos) -> None:
    """One file for each split, such as train_labels.csv or train/_annotations.csv, or one for all photos.

    The splits of the latter are those of the folders of photos.
    """
    tables = {}
    for name in photos.files if photos.images else []:
        if name.lower().endswith(".csv") and name.count("/") < 2:
            tables[name] = _read_lines(photos, name)
    tables = {name: lines for name, lines in tables.items() if lines}
    splits = parquet_splits([name.lower() for name in tables])
    split_of = {name: split for split, names in splits.items() for name in tables if name.lower() in names}
    in_names = any(folder_splits(name.lower()) or file_splits(name.lower()) for name in tables)
    for name, split in split_of.items():
        photos.used.add(name)
        near = photos.folders_near(split if in_names else "", name)
        of_lines = [photos.find(file, near) for file, _, _ in tables[name]]
        line_splits = [split] * len(of_lines) if in_names else photos.splits_by_folder(of_lines)
        for line_split, photo, (_, category, box) in zip(line_splits, of_lines, tables[name], strict=True):
            if any(box):
                photos.add(line_split, photo, category, box)
            else:
                photos.counts["line", "without a box skipped"] += 1
    boxes = [row["bbox"] for rows in photos.splits.values() for _, row in rows]
    photos.layout, photos.box_format = "CSV annotations", "xyxy" + " fractions" * are_fractions(boxes)


def _read_lines(photos: AnnotatedPhotos, name: str) -> list[tuple[str, Any, list]]:
    """File name, category and corners in each line of a CSV file; [] if it has no such columns."""
    content = photos.peek(name)
    header = plain(content.split(b"\n")[0].decode("utf-8-sig", "replace")) if isinstance(content, bytes) else ""
    corners = next((corners for corners in CORNERS if all(edge in header for edge in corners)), None)
    if not isinstance(content, bytes) or not corners:
        return []
    try:
        columns, numbered = csv_lines(content.decode("utf-8-sig", "backslashreplace"))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{photos.path(name)} cannot be read: {error}") from error
    lines = [line for _, line in numbered]
    by_plain = {plain(column): column for column in columns}
    category = next((by_plain[word] for word in CATEGORY_COLUMNS if word in by_plain), None)
    file = file_column(photos.path(name), columns, lines)
    if not category or not file or not by_plain.keys() >= {*corners}:
        return []
    return [
        (printable_name(line[file]), line[category], [line[by_plain[edge]] for edge in corners])
        for line in lines
        if line[file]
    ]
