"""What all layouts of annotated photos have in common: finding the photos, and making tables of the objects in them.

A row is one object; a photo may have many, which follow one another. Annotations name photos; only photos that are in
the folder are read, whatever the names are. Sizes of photos in annotations are not used: for rotated photos, tools
disagree on them.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from common.config import ID_COLUMNS, InputError, count
from common.data.split_names import KEYWORDS, folder_splits
from common.data.table import (
    SEGMENTATION,
    ImageFiles,
    Table,
    as_text,
    file_state,
    is_image,
    parse_box,
    printable_name,
    read_file,
)


def same_form(name: str) -> str:
    """A file name in the Unicode form that annotations mostly have; macOS writes another one."""
    return unicodedata.normalize("NFC", name)


def same_case(name: str) -> str:
    """A file name in this form and in lower case."""
    return same_form(name.lower())


# How names of photos may differ from those in annotations, in the words of the remark on them, and what stays the same.
SIMILAR: dict[str, Callable[[str], str]] = {
    "": str,
    "matched after Unicode normalisation": same_form,
    "matched ignoring case": same_case,
}


class AnnotatedPhotos:
    """The photos of a folder, and the objects in them as they are found."""

    def __init__(self, folder: Path, files: list[str]):
        self.folder, self.files = folder, files
        self.images = {printable_name(name): name for name in files if is_image(name)}
        self.layout = ""  # such as "COCO annotations"
        self.box_format = ""  # see `common.data.boxes.to_pixels`
        self.used: set[str] = set()  # files of annotations
        self.counts: Counter[tuple[str, str]] = Counter()  # of what is left out, such as ("crowd box", "skipped")
        self.splits: dict[str, list[tuple[str, dict]]] = {}  # photo and columns of each object
        self.named: dict[str, set[str]] = {}  # what annotations call each photo that was found, without folders

    @cached_property
    def by_base(self) -> dict[str, list[str]]:
        """The photos by their names without folders, as `same_case` writes them."""
        found: dict[str, list[str]] = {}
        for name in self.images:
            found.setdefault(same_case(name.rpartition("/")[2]), []).append(name)
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """The photos by their names without folders and suffixes."""
        found: dict[str, list[str]] = {}
        for name in self.images:
            found.setdefault(os.path.splitext(name.rpartition("/")[2])[0], []).append(name)
        return found

    def path(self, name: str) -> Path:
        return self.folder / name

    def peek(self, name: str) -> bytes | str:
        """The content of a file that may be of annotations or, as text, why it is not read."""
        return read_file(str(self.path(name)), str(self.folder))

    def read(self, name: str) -> bytes:
        """The content of a file of annotations."""
        content = self.peek(name)
        if isinstance(content, str):
            raise InputError(f"{self.path(name)} cannot be read: {content}.")
        self.used.add(name)
        return content

    def read_lines(self, name: str) -> list[str]:
        """The lines of a text file of annotations."""
        return self.read(name).decode("utf-8-sig", "backslashreplace").splitlines()

    def folders_near(self, split: str, name: str) -> list[str]:
        """Where the photos of a split may be that the file `name` annotates: in folders named like it or like the
        split, beside it or above."""
        folder, _, base = name.rpartition("/")
        stem = os.path.splitext(base)[0].removeprefix("instances_")
        words = KEYWORDS.get(split, ())
        tails = [
            "",
            stem,
            f"images/{stem}",
            *(f"{above}{word}" for word in words for above in ("", "images/")),
            "images",
        ]
        return [f"{above}/{tail}".strip("/") for above in (folder, folder.rpartition("/")[0]) for tail in tails]

    def find(self, name: str, near: Iterable[str]) -> str:
        """The photo that annotations call `name`, or `name` itself if there is none.

        It is sought in the folders `near`, then among all photos whose names end like `name`, then among those with the
        same name in any folder; in both cases there must be only one. If there is none, so are photos whose names are
        similar to `name`, see `SIMILAR`.
        """
        near, base = list(near), name.replace("\\", "/").rpartition("/")[2]
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        for folder in near:
            for candidate in ("/".join([*filter(None, [folder]), *parts]), "/".join([*filter(None, [folder]), name])):
                if candidate in self.images:
                    self.named.setdefault(candidate, set()).add(candidate.rpartition("/")[2])
                    return candidate
        similar = self.by_base.get(same_case(base), [])
        for key in SIMILAR.values():
            same = [image for image in similar if key(image.rpartition("/")[2]) == key(base)]
            ending = [image for image in same if key(f"/{image}").endswith(key("/" + "/".join(parts)))]
            paths = {key("/".join([*filter(None, [folder]), *parts])) for folder in near}
            beside = [image for image in same if key(image) in paths]
            photo = next((found[0] for found in (beside, ending, same) if len(found) == 1), None)
            if photo:
                self.named.setdefault(photo, set()).add(base)
                return photo
        return name

    def splits_by_folder(self, names: Sequence[str]) -> list[str]:
        """The splits that the folders of files are named after; train for each file if this holds for none of them."""
        found = [next(iter(folder_splits(name.lower())), "") for name in names]  # Train, of CVAT
        if any(found) and not all(found):
            inside, outside = (
                next(name for name, split in zip(names, found, strict=True) if bool(split) is is_in)
                for is_in in (True, False)
            )
            raise InputError(
                f"{self.folder}: {inside} is in a folder named after a split, but {outside} is not. Put all files into "
                "folders of splits such as train and val, or rename the folder."
            )
        return [split or "train" for split in found]

    def add(self, split: str, photo: str, category: Any, bbox: Any, **columns: Any) -> None:
        """Adds an object; `columns` may be ids and a mask, see `common.data.segmentation`."""
        columns |= {"category": as_text(category), "bbox": parse_box(bbox)}
        self.splits.setdefault(split, []).append((photo, columns))

    def tables(self, skipped: list[str]) -> dict[str, Table]:
        """A table for each split. `skipped` are files that `common.data.image_folder.list_files` leaves out."""
        shown = {photo for rows in self.splits.values() for photo, _ in rows}
        others = [name for name in self.files if printable_name(name) not in shown and name not in self.used]
        unread = tuple(map(printable_name, [*skipped, *others]))
        self._count_similar()
        remarks = tuple(f"{count(n, noun)} {rest}" for (noun, rest), n in self.counts.items())
        columns = {name for rows in self.splits.values() for _, row in rows for name in row if row[name] is not None}
        return {split: self._table(split, rows, columns, unread, remarks) for split, rows in self.splits.items()}

    def _count_similar(self) -> None:
        """Counts the photos whose names are only similar to those in annotations.

        Raises:
            InputError: one photo stands for two.
        """
        for photo, names in self.named.items():
            if len(names) > 1:
                raise InputError(
                    f"{self.folder}: annotations name {' and '.join(sorted(names))}, but only {photo} is there. Unpack "
                    "the photos where upper and lower case differ, or rename one of them."
                )
            base, (name,) = photo.rpartition("/")[2], names
            how = next(how for how, key in SIMILAR.items() if key(name) == key(base))
            if how:
                self.counts["file name", how] += 1

    def _table(self, split: str, rows: list[tuple[str, dict]], names: set[str], unread: tuple, remarks: tuple) -> Table:
        numbers: dict[str, int] = {}
        for photo, _ in rows:
            numbers.setdefault(photo, len(numbers))
        rows = sorted(rows, key=lambda row: numbers[row[0]])  # objects of a photo follow one another
        found = [photo in self.images for photo in numbers]
        if not any(found):
            example = next(iter(self.images), None)
            has = f"which contains photos such as {example!r}" if example else "which contains no photos"
            raise InputError(
                f"{self.layout}: none of the photos of {split}, such as {rows[0][0]!r}, is in {self.folder}, {has}."
            )
        paths = [str(self.path(self.images[photo])) if ok else "" for photo, ok in zip(numbers, found, strict=True)]
        states = [file_state(path) if path else [] for path in paths]
        columns: dict[str, list] = {}
        for name in (*ID_COLUMNS, "category", "bbox", "mask"):
            if name in names or name in ("image_id", "category"):
                columns[name] = [row.get(name) for _, row in rows]
        photos = [photo for photo, _ in rows]
        columns["image_id"] = [given or photo for given, photo in zip(columns["image_id"], photos, strict=True)]
        for name in columns.keys() - {"bbox"}:  # JSON may hold half characters
            columns[name] = [text and printable_name(text) for text in columns[name]]
        kinds = {"bbox": pa.list_(pa.float64())}
        arrays = {name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()}
        words = {"bbox": "list of double", "mask": SEGMENTATION}
        return Table(
            columns={name: pa.chunked_array([array]) for name, array in arrays.items()},
            types={"image": "image"} | {name: words.get(name, "string") for name in columns},
            files=ImageFiles(paths, states, str(self.folder)),
            numbers=np.arange(len(rows)),
            photo_of=np.array([numbers[photo] for photo in photos]),
            box_format=self.box_format,
            layout=self.layout,
            remarks=remarks,
            unread=unread,
        )
