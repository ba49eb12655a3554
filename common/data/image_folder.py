"""Tables from an image folder, SPLIT/CLASS/IMAGE, with optional metadata: boxes and ids."""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from common.config import ID_COLUMNS, InputError, count
from common.data.table import (
    ImageFiles,
    Table,
    as_text,
    clean_category,
    file_state,
    is_image,
    parse_box,
    printable_name,
    read_file,
)

METADATA = ("metadata.jsonl", "metadata.csv")


def list_files(folder: str | Path) -> tuple[list[str], list[str]]:
    """The names, relative to `folder`, of the files in it and in its subfolders, and of what is skipped: hidden files,
    hidden folders and links to folders. Both are sorted by folder."""
    files, skipped, prefixes = [], [], [""]
    while prefixes:
        prefix = prefixes.pop()
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                name, hidden = prefix + entry.name, entry.name.startswith(".")
                if entry.is_dir(follow_symlinks=False) and not hidden:
                    prefixes.append(f"{name}/")
                elif hidden or entry.is_dir():
                    skipped.append(name + "/" * entry.is_dir())
                else:
                    files.append(name)
    return sorted(files, key=_parts), sorted(skipped, key=_parts)


def _parts(name: str) -> list[str]:
    return name.split("/")


def count_and_names(names: Sequence[str], n: int | None = None) -> str:
    """Such as "7 files (a, b, c, d, e, ...)": their number, by default that of `names`, and the first names."""
    n = len(names) if n is None else n
    first = [*map(printable_name, names[:5]), *["..."] * (n > 5)]
    return f"{count(n, 'file')} ({', '.join(first)})"


def read_image_folder(folder: Path, files: list[str], skipped: list[str]) -> dict[str, Table]:
    """A table for each split of an image folder: the images in SPLIT/.../CLASS/, the class being the last folder.

    SPLIT/metadata.jsonl or, if there is none, SPLIT/metadata.csv may have the columns file_name, bbox and ids.

    Args:
        folder: the image folder.
        files, skipped: its files, from `list_files`.

    Raises:
        InputError: metadata cannot be read, or a category may have two meanings.
    """
    images: dict[str, list[str]] = {}
    for name in files:
        if is_image(name) and name.count("/") > 1:
            images.setdefault(name.split("/")[0], []).append(name)
    _check_categories(folder, {name.rpartition("/")[0] for names in images.values() for name in names})
    others = set(files).difference(*images.values())
    unread, tables = [], {}
    for split, names in images.items():
        paths = [os.path.join(folder, name) for name in names]
        image_files = ImageFiles(paths, [file_state(path) for path in paths], str(folder))
        metadata: dict[str, dict] = {}
        file = next((f"{split}/{name}" for name in METADATA if f"{split}/{name}" in others), None)
        if file:
            others.remove(file)
            metadata = _read_metadata(folder, file, names)
            known = {_in_split(name) for name in names}
            unread += [f"{file}: {name}" for name in metadata if name not in known]
        tables[split] = _table(image_files, names, metadata)
    unread = [*skipped, *sorted(others), *unread]
    lower = len({split.lower() for split in tables}) == len(tables)  # such as Train and Val
    return {
        split.lower() if lower else split: replace(table, unread=tuple(map(printable_name, unread)))
        for split, table in tables.items()
    }


def _in_split(name: str) -> str:
    """A file name relative to its split's folder, as it stands in metadata."""
    return printable_name(name.partition("/")[2])


def _check_categories(folder: Path, class_folders: set[str]) -> None:
    """Raises an InputError if the category of an image could be read in two ways from its folder."""
    first: dict[str | None, tuple[list, str]] = {}
    for name in sorted(class_folders):
        path = [clean_category(printable_name(part)) for part in name.split("/")[1:]]
        other_path, other = first.setdefault(path[-1], (path, name))
        if path != other_path:
            raise InputError(
                f"{folder}: {printable_name(other)} and {printable_name(name)} are the same category, {path[-1]}, in "
                "different folders. Rename one if they differ in meaning, or put them into the same folder."
            )
    for name in class_folders:
        parts = name.split("/")
        outer = next((f for f in map("/".join, (parts[:i] for i in range(2, len(parts)))) if f in class_folders), None)
        if outer:
            raise InputError(
                f"{folder}: {printable_name(outer)} contains both images and a folder with images, "
                f"{printable_name(name)}: an image's category is its folder, so use one folder for each category."
            )


def _table(files: ImageFiles, names: list[str], metadata: dict[str, dict]) -> Table:
    file_names = [_in_split(name) for name in names]
    lines = [metadata.get(name, {}) for name in file_names]
    given = {key for line in metadata.values() for key in line}
    columns: dict[str, list] = {"image_id": file_names}
    for key in ID_COLUMNS:
        if key in given:
            texts = [as_text(line.get(key)) for line in lines]
            ids = [text and printable_name(text) for text in texts]
            columns[key] = ids if key != "image_id" else [i or name for i, name in zip(ids, file_names, strict=True)]
    columns["category"] = [printable_name(name.split("/")[-2]) for name in names]
    types = {"image": "image"} | dict.fromkeys(columns, "string")
    if "bbox" in given:
        columns["bbox"], types["bbox"] = [parse_box(line.get("bbox")) for line in lines], "list of double"
    arrays = {name: pa.chunked_array([pa.array(values)]) for name, values in columns.items()}
    numbers = np.arange(len(names))
    return Table(arrays, types, files, numbers, numbers)


def _read_metadata(folder: Path, file: str, images: list[str]) -> dict[str, dict]:
    """The lines of a metadata file by their file_name."""
    path = folder / file
    by_name: dict[str, dict] = {}
    for line in metadata_lines(folder, file):
        name = printable_name(line["file_name"])
        if name in by_name:
            raise InputError(
                f"{path} lists {name} more than once: keep one line per image or, if its lines are several objects, "
                "add a column category."
            )
        by_name[name] = line
    if not any(_in_split(name) in by_name for name in images):
        raise InputError(
            f"{path} lists none of the images in its folder: file_name must be a path such as {_in_split(images[0])}."
        )
    return by_name


def metadata_lines(folder: Path, file: str) -> list[dict]:
    """The lines of a metadata file, each with a text file_name.

    Raises:
        InputError: the file cannot be read, or a line has no file_name.
    """
    path = folder / file
    content = read_file(str(path), str(folder))
    if isinstance(content, str):
        raise InputError(f"{path} cannot be read: {content}.")
    text = content.decode("utf-8-sig", "backslashreplace")
    try:
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            lines = [{key: value for key, value in line.items() if value} for _, line in csv_lines(text)[1]]
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
            if not isinstance(line, dict):
                problem = " is not an object with file_name"
            elif "file_name" in line:
                problem = f": file_name must be a text, not {json.dumps(line['file_name'])[:60]}"
            else:
                problem = f" has no column file_name; its columns are {', '.join(map(str, line))}"
            raise InputError(f"{path}, line {number}{problem}.")
    return lines


def csv_lines(text: str) -> tuple[Sequence[str], list[tuple[int, dict[str, Any]]]]:
    """The header of a CSV file, and the number and the values of each line. Values missing at the end are None.

    Raises:
        ValueError: two columns have the same name, or a line has more values than the header.
        csv.Error: the text is not CSV.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns, lines = reader.fieldnames or [], []
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise ValueError(f"it has several columns {twice[0]}")
    for line in reader:
        if None in line:
            raise ValueError(
                f"line {reader.line_num} has more values than the header has columns. Write decimal numbers with a "
                "point, and values that contain a comma in double quotes."
            )
        lines.append((reader.line_num, line))
    return columns, lines
