"""Tables from an image folder, SPLIT/CLASS/IMAGE, with optional metadata: boxes and ids."""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from common.config import ID_COLUMNS, InputError, count
from common.data.split_names import KEYWORDS, WORDS, is_split
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

NO_CLASS = re.compile("(jpeg)?images?|imgs?|photos?|pictures?|assets|data|labels?|annotations?")  # names of folders
METADATA = ("metadata.jsonl", "metadata.csv")
# Other names of the column file_name, as `plain` writes them
FILE_COLUMNS = (
    "filename", "imagefilename", "file", "filepath", "path", "image", "imagename", "imagefile", "imagepath", "img",
)  # fmt: skip


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

    If it has no folders of splits, all images in .../CLASS/ are train.

    SPLIT/metadata.jsonl or, if there is none, SPLIT/metadata.csv may have the columns file_name, bbox and ids.

    Args:
        folder: the image folder.
        files, skipped: its files, from `list_files`.

    Raises:
        InputError: metadata cannot be read, or a category may have two meanings.
    """
    no_splits = are_classes(files)
    if no_splits:
        files = [f"./{name}" for name in files]  # the folder itself is that of train
    images: dict[str, list[str]] = {}
    for name in files:
        if is_image(name) and name.count("/") > 1:
            images.setdefault(name.split("/")[0], []).append(name)
    class_folders = {split: {name.rpartition("/")[0] for name in names} for split, names in images.items()}
    other_splits = [split for split in images if len(images) > 1 and not is_split(split)]
    for split in other_splits:  # such as a folder of icons, which may be sorted in another way
        _check_categories(folder, class_folders.pop(split))
    _check_categories(folder, set().union(*class_folders.values()))
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
    unread = [printable_name(name.removeprefix("./")) for name in [*skipped, *sorted(others), *unread]]
    called = {split: "train" if split.lower() in (".", *KEYWORDS["train"]) else split.lower() for split in tables}
    called = called if len(set(called.values())) == len(called) else {split: split for split in tables}
    remarks = ("without folders of splits",) * no_splits
    return {called[split]: replace(table, unread=tuple(unread), remarks=remarks) for split, table in tables.items()}


def are_classes(files: Sequence[str]) -> bool:
    """Whether the photos among `files` are in folders of classes, without folders of splits above these."""
    folders = [f.split("/") for f in {name.rpartition("/")[0].lower() for name in files if is_image(name)} - {""}]
    return len(folders) > 1 and not any(
        is_split(parts[0]) or WORDS.intersection(parts) or NO_CLASS.fullmatch(parts[-1]) for parts in folders
    )


def _in_split(name: str) -> str:
    """A file name relative to its split's folder, as it stands in metadata."""
    return printable_name(name.partition("/")[2])


def _check_categories(folder: Path, class_folders: set[str]) -> None:
    """Raises an InputError if the category of an image could be read in two ways from its folder."""
    first: dict[str | None, tuple[list, str]] = {}
    for name in sorted(class_folders):
        path = [clean_category(printable_name(part)) for part in name.split("/")[1:]]
        other_path, other = first.setdefault(path[-1], (path, name))
        if path[0] != other_path[0] or not (_within(path, other_path) or _within(other_path, path)):
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


def _within(path: list, longer: list) -> bool:
    """Whether the folders of a path occur in another one in this order, as fruit/apple in fruit/red/apple."""
    folders = iter(longer)
    return all(part in folders for part in path)


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
        InputError: the file cannot be read, or a line has no file_name, see `file_column`.
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
    columns = list(dict.fromkeys(key for line in lines if isinstance(line, dict) for key in line))
    column = file_column(path, columns, [line for line in lines if isinstance(line, dict)])
    for number, line in enumerate(lines, 1):
        if isinstance(line, dict) and column in line:
            line["file_name"] = line[column]
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
            if not isinstance(line, dict):
                problem = " is not an object with file_name"
            elif "file_name" in line:
                problem = f": file_name must be a text, not {json.dumps(line['file_name'])[:60]}"
            else:
                problem = (
                    f" has no column file_name; its columns are {', '.join(map(str, line))}. One called filename, "
                    "image or path counts too, if all its values are names such as chair/1.jpg"
                )
            raise InputError(f"{path}, line {number}{problem}.")
    return lines


def file_column(path: Path, columns: Sequence[str], lines: Sequence[dict]) -> str | None:
    """The column with the names of images: file_name or, if there is none, the only one of `FILE_COLUMNS` with such
    names. The library `datasets` also reads image_file_name.

    Raises:
        InputError: there are several.
    """
    if "file_name" in columns:
        return "file_name"
    found = [column for column in columns if plain(column) in FILE_COLUMNS]
    values = {column: [line[column] for line in lines if line.get(column)] for column in found}
    found = [c for c in found if values[c] and all(isinstance(name, str) and is_image(name) for name in values[c])]
    if len(found) > 1:
        raise InputError(
            f"{path} has no column file_name, but {' and '.join(found)}, each of which could be it: rename one to "
            "file_name."
        )
    return found[0] if found else None


def plain(column: str) -> str:
    """The name of a column in lower case without "_", "-" and white space."""
    return re.sub(r"[-_\s]", "", column.lower())


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
