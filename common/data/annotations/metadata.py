"""metadata.jsonl or metadata.csv with a category or, as the library `datasets` has it, with a list of objects."""

from typing import Any

from common.config import ID_COLUMNS, InputError
from common.data.annotations.photos import AnnotatedPhotos
from common.data.image_folder import METADATA, metadata_lines
from common.data.parquet import CATEGORY_COLUMNS, objects_of
from common.data.split_names import KEYWORDS
from common.data.table import as_text, printable_name

SURE = (b"file_name", b"bbox", b"objects")  # texts in metadata of boxes


def read_metadata(photos: AnnotatedPhotos) -> None:
    """Files in the folder, or in those of its splits."""
    names = [name for name in photos.files if name.rpartition("/")[2] in METADATA and name.count("/") < 2]
    folders = {name.rpartition("/")[0]: name for name in sorted(names)}  # .jsonl rather than .csv
    layouts, listed = set(), dict[str, str]()
    for folder, name in sorted(folders.items()):
        content = photos.peek(name)
        try:
            lines = metadata_lines(photos.folder, name)
        except InputError:
            if folder or isinstance(content, str) or any(word in content for word in SURE):
                raise
            continue  # a file of another kind, beside photos
        keys = {key for line in lines for key in line}
        kind = next((key for key in ("objects", *CATEGORY_COLUMNS) if key in keys), None)
        if kind is None:
            continue
        photos.used.add(name)
        layouts.add("Hugging Face objects" if kind == "objects" else name.rpartition("/")[2])
        of_lines = [photos.find(printable_name(line["file_name"]), [folder]) for line in lines]
        of_lines = [photo if photo in photos.images else f"{folder}/{photo}".strip("/") for photo in of_lines]
        for photo in of_lines:
            if listed.setdefault(photo, name) != name:
                raise InputError(f"{photos.path(name)} and {photos.path(listed[photo])} both list {photo}: keep one.")
        splits = photos.splits_by_folder(of_lines) if "split" not in keys else [_split(line) for line in lines]
        for number, (line, photo, split) in enumerate(zip(lines, of_lines, splits, strict=True), 1):
            if not split:
                raise InputError(
                    f"{photos.path(name)}, line {number}: split is {line.get('split')!r}; write train, val or test."
                )
            ids = {key: as_text(line.get(key)) for key in ID_COLUMNS if line.get(key) is not None}
            try:
                objects = objects_of(line.get(kind)) if kind == "objects" else [(_box(line), line.get(kind))]
            except ValueError as error:
                raise InputError(f"{photos.path(name)}, line {number}: {error}") from error
            for bbox, category in objects:
                photos.add(split, photo, category, bbox, **ids)
    photos.layout = " and ".join(sorted(layouts))


def _split(line: dict) -> str:
    """The split in a column of this name; empty if it is none."""
    text = str(line.get("split")).lower()
    return next((split for split, words in KEYWORDS.items() if text in words), "")


def _box(line: dict) -> Any:
    """The column bbox or, if there is none, the columns x, y, width and height, as in `predict.py --boxes`."""
    sides = [line.get(name) for name in ("x", "y", "width", "height")]
    return line.get("bbox") if "bbox" in line or None in sides else sides
