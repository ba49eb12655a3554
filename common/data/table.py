"""Rows of one split: ids, categories and boxes in memory, images in their files until they are read."""

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice, tee
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.config import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# The type of a column mask that holds JSON: a list of polygons x1, y1, x2, y2, ... in pixels of the upright image,
# {"fractions": one polygon in fractions of the image}, or COCO's {"counts": run lengths, "size": [height, width]}.
SEGMENTATION = "segmentation"
MAX_FILE = 2 * 10**9  # bytes of an image, or of a file of metadata or boxes
CHANGED = "the data was changed while it was read: start again when it is complete."


def as_text(value: Any) -> str | None:
    """An id or a category as text; None if it is missing, which NaN also means."""
    return None if value is None or value != value else str(value)


def clean_category(name: str | None) -> str | None:
    """Normalises a category name: 'Coffee Table' and 'coffee_table ' become 'coffee_table'. None if it is empty."""
    text = as_text(name)
    return None if text is None else "_".join(text.lower().split()) or None


def printable_name(name: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 become \\xNN."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # text from metadata that is no file name
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


@dataclass(frozen=True, eq=False)
class Table:
    """N rows. `"bbox" in table` says whether it has a column, and `table["bbox"]` is a list of its N values.

    A row is one object. The source has M rows, and its photos are in `files`; several rows may share a photo.
    """

    columns: dict[str, pa.ChunkedArray]  # the values of all M rows of the source, except for columns of images
    types: dict[str, str]  # the type of every column, in words; "image" for columns of images
    files: "ParquetFiles | ImageFiles"
    numbers: np.ndarray  # (N,) int64, rows of the source
    photo_of: np.ndarray  # (M,) int64, the photo in `files` that each row of the source shows
    box_format: str = ""  # of the column bbox, see `common.data.boxes.to_pixels`
    layout: str = ""  # such as "COCO annotations"; empty for tables and folders of classes, which are not announced
    remarks: tuple[str, ...] = ()  # such as "3 crowd boxes skipped"
    unread: tuple[str, ...] = ()  # names of files in the data's folder that are not read

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, name: str) -> bool:
        return name in self.types

    def __getitem__(self, name: str) -> list:
        return self.column(name).to_pylist()

    def column(self, name: str) -> pa.ChunkedArray:
        numbers = np.ascontiguousarray(self.numbers, np.int64)
        # As pa.array(numbers), which would import pandas: half a second in each run.
        indices = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])
        return self.columns[name].take(indices)

    @property
    def photos(self) -> np.ndarray:
        """The photo in `files` that each row shows, (N,) int64."""
        return self.photo_of[self.numbers]

    @property
    def shared(self) -> np.ndarray:
        """Whether several rows of the source, of which the table may be a part, show the photo of a row, (N,) bool."""
        return (np.bincount(self.photo_of, minlength=1) > 1)[self.photos]

    def images(self, column: str = "image") -> Iterator[bytes | str]:
        """Reads the encoded image of each row, one after another: its bytes or, as text, why there is none.

        The photo of successive rows is read once.
        """
        return self.read_photos(self.photos.tolist(), column)

    def read_photos(self, photos: Iterable[int], column: str = "image") -> Iterator[bytes | str]:
        """`images` of any photos in `files`."""
        firsts, photos = tee(photos)
        images = self.files.read(column, (photo for photo, _ in groupby(firsts)))
        for _, run in groupby(photos):
            image = next(images)
            yield from (image for _ in run)

    def check_unchanged(self) -> None:
        """Raises an InputError if a file was changed or replaced since the table was read."""
        if any(map(was_changed, self.files.paths, self.files.states)):
            raise InputError(CHANGED)

    def select(self, rows: np.ndarray | list[int]) -> "Table":
        """The table of these rows."""
        return replace(self, numbers=self.numbers[rows])

    def keep(self, names: Iterable[str]) -> "Table":
        """The table with only these columns, in this order, as far as they exist."""
        kept = [name for name in names if name in self.types]
        columns = {name: self.columns[name] for name in kept if name in self.columns}
        return replace(self, columns=columns, types={name: self.types[name] for name in kept})

    def with_column(self, name: str, values: list[str]) -> "Table":
        """The table with a column of N strings, which replaces one of the same name."""
        every_row = np.full(len(self.photo_of), None, dtype=object)
        every_row[self.numbers] = values
        columns = self.columns | {name: pa.chunked_array([pa.array(every_row, pa.string())])}
        return replace(self, columns=columns, types=self.types | {name: "string"})

    def append(self, other: "Table") -> "Table":
        """The rows of both tables, which must have the same columns and types."""
        columns = {
            name: pa.chunked_array(ours.chunks + other.columns[name].cast(ours.type).chunks, ours.type)
            for name, ours in self.columns.items()
        }
        numbers = np.concatenate([self.numbers, other.numbers + len(self.photo_of)])
        photo_of = np.concatenate([self.photo_of, other.photo_of + len(self.files)])
        return replace(self, columns=columns, files=self.files.append(other.files), numbers=numbers, photo_of=photo_of)


class ParquetFiles:
    """The photos in the rows of Parquet files, one file after another, read from one row group at a time."""

    def __init__(self, paths: list[str], states: list[list | None]):
        self.paths, self.states = paths, states  # see `file_state`
        self.groups: list[tuple[int, int]] = []  # number of the file, and number within the file, of each row group
        sizes = []
        for number, path in enumerate(paths):
            with open_parquet(path) as file:
                self.groups += [(number, i) for i in range(file.metadata.num_row_groups)]
                sizes += [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])  # the first row of each group, and the number of all rows

    def __len__(self) -> int:
        return int(self.starts[-1])

    def append(self, other: Any) -> "ParquetFiles":
        return ParquetFiles(self.paths + other.paths, self.states + other.states)

    def read(self, column: str, numbers: Iterable[int]) -> Iterator[bytes | str]:
        """Reads the images of these rows in this order. Rows in ascending order are read in one pass."""
        group, following, stream = -1, 0, iter(())
        for number in numbers:
            wanted = int(np.searchsorted(self.starts, number, side="right")) - 1
            if wanted != group or number < following:
                group, following = wanted, int(self.starts[wanted])
                stream = self._scan(group, column)
            yield _image_of(next(islice(stream, number - following, None)), column)
            following = number + 1

    def _scan(self, group: int, column: str) -> Iterator[Any]:
        """The values of a row group, a few at a time: a row group may hold hundreds of megabytes."""
        file_number, number = self.groups[group]
        path = self.paths[file_number]
        try:
            with open_parquet(path) as file:
                if was_changed(path, self.states[file_number]):  # these would be images of other rows
                    raise InputError(CHANGED)
                for batch in file.iter_batches(8, row_groups=[number], columns=[column], use_threads=False):
                    yield from batch.column(0)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class ImageFiles:
    """Photos that are image files of their own, in a folder."""

    paths: list[str]  # "" for a photo that is not there
    states: list[list | None]  # see `file_state`; [] for a photo that is not there
    folder: str  # files outside of it are not read

    def __len__(self) -> int:
        return len(self.paths)

    def append(self, other: Any) -> "ImageFiles":
        return ImageFiles(self.paths + other.paths, self.states + other.states, self.folder)

    def read(self, column: str, numbers: Iterable[int]) -> Iterator[bytes | str]:
        """Reads the images of these rows in this order."""
        paths = (self.paths[number] for number in numbers)
        return (read_file(path, self.folder) if path else "the image file is not in the folder" for path in paths)


def open_parquet(path: str) -> pq.ParquetFile:
    """Opens a Parquet file without reading its rows. Its name need not be valid UTF-8.

    Raises:
        InputError: the file cannot be read.
    """
    try:  # a buffer: a column of a row group is then read in small parts, not at once
        return pq.ParquetFile(pa.OSFile(os.fsencode(path)), buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def file_problem(path: str, folder: str | None = None) -> str | None:
    """Why a file must not be read, in a few words: it is missing, not regular, or a link that leaves `folder`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "not a regular file"
    except (OSError, ValueError) as error:
        return f"the file cannot be read: {getattr(error, 'strerror', error)}"
    if folder and os.path.islink(path):
        target, folder = os.path.realpath(path), os.path.realpath(folder)
        if os.path.commonpath([target, folder]) != folder:
            return "a link to a file outside of the folder"
    return None


def read_file(path: str, folder: str | None = None) -> bytes | str:
    """The content of a regular file or, as text, why it is not read. Anything else is never opened: it could block.

    Args:
        path: the file.
        folder: if given, links must not leave this folder. Links to folders are not considered.
    """
    problem = file_problem(path, folder)
    if problem:
        return problem
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE:
                return f"the file is larger than {MAX_FILE // 10**9} GB"
            return file.read() or "the file is empty"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    except MemoryError:
        return "the file does not fit into memory"


def file_state(path: str) -> list | None:
    """Absolute path, size, times, device and inode of a file, which also change if it is replaced by another.

    None if it does not exist.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    times = status.st_mtime_ns, status.st_ctime_ns
    return [os.path.abspath(path), status.st_size, *times, status.st_dev, status.st_ino]


def was_changed(path: str, state: list | None) -> bool:
    """Whether a file was changed or replaced since its `file_state` was `state`."""
    return (file_state(path) or [])[:4] != (state or [])[:4]  # the inode may change on network file systems


def parse_box(value: Any) -> list[float] | None:
    """A box from metadata, a list or a string such as "[10, 20, 30, 40]", as floats.

    None if there is none, and NaN if it is anything else, which is reported as a box that is not made of numbers.
    """
    if value is None or value == "" or value != value:
        return None
    try:
        box = json.loads(value) if isinstance(value, str) else value
        return [float(v) for v in box] if box is not None else None
    except (TypeError, ValueError, OverflowError, RecursionError):
        return [math.nan] * 4


def _image_of(scalar: Any, column: str) -> bytes | str:
    """The bytes of a stored image. A path in a table is not followed: it could name any file of this machine."""
    value: Any
    try:
        value = scalar.as_py()
    except UnicodeDecodeError:
        return "the row stores text that is not UTF-8"
    path = value if isinstance(value, str) else None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return value
    return "the row stores a path instead of an image" if path else f"no {column}"
