"""Pixel cache: each image is decoded, cropped and resized once, into a memory-mapped array shared by all runs."""

import hashlib
import io
import json
import os
import shutil
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from itertools import groupby, islice, product, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from common.config import DataConfig, InputError, Normalization
from common.data.boxes import to_pixels
from common.data.crop import MAX_CROPS, box_row, clip_box, crop_image, orientation_of, padding, upright_size
from common.data.table import CHANGED, ImageFiles, Table
from common.files import atomic_path

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # JPEG includes MPO; EPS, for one, would start Ghostscript
FILES = ("pixels.npy", "crop_sizes.npy", "boxes.npy", "hashes.npy", "problems.json")
SCALED_FORMATS = ("JPEG", "MPO")  # PIL decodes these at a reduced scale, which depends on the target size
WORKERS = min(32, os.cpu_count() or 1)  # decoding threads
# PIL warns at half of the limit that `open_image` sets
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
T = TypeVar("T")
R = TypeVar("R")


def normalize(images: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """Images (..., 3, H, W) in [0, 255], uint8 or float32, minus the mean and divided by the deviation, as float32."""
    scale, shift = scale_and_shift(normalization, images.device)
    return (images * scale).add_(shift)  # in place: only two passes over memory


@cache  # creating a GPU tensor from Python numbers synchronises with the GPU
def scale_and_shift(normalization: Normalization, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors and summands, each (3, 1, 1) float32, that normalise pixels in [0, 255]. They must not be changed."""
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (normalization.mean, normalization.std))
    return 1 / (255 * std), -mean / std


def open_image(encoded: bytes | str, *, max_megapixels: int = DataConfig.max_megapixels) -> Image.Image:
    """Opens an encoded image; its pixels are not decoded yet. This is the only place where image files are opened.

    Args:
        encoded: the bytes of the file or, as text, why there are none (see `common.data.table.Table.images`).

    Raises:
        ValueError: there is no image.
        OSError: its format is not in `FORMATS`. PIL also raises other exceptions for broken files.
        Image.DecompressionBombError: the image has more pixels than allowed. PIL also raises it while decoding, if a
            part of the file claims to be larger than that.
    """
    if isinstance(encoded, str):
        raise ValueError(encoded)
    Image.MAX_IMAGE_PIXELS = max_megapixels * 1_000_000 // 2  # PIL refuses images with more than twice as many
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


class Photo(NamedTuple):
    """A photo whose pixels are decoded when they are needed or, if several crops are made of it, already decoded."""

    opened: Image.Image  # as `open_image` returns it, for its format, size and EXIF orientation
    image: Image.Image  # what is cropped: the same or, if it is already decoded, the upright image
    reduce: bool  # see `common.data.crop.crop_image`


def open_photo(encoded: bytes | str, *, shared: bool, max_megapixels: int = DataConfig.max_megapixels) -> Photo:
    """Opens a photo as `open_image`, which see for the arguments and errors.

    A photo of one crop is decoded by `crop_image`, a JPEG at the scale that this crop needs. A `shared` photo, of which
    several crops are made, is decoded here, once and at full scale, so that the pixels of a crop depend on no other.
    The crops of a JPEG are then reduced by the factor at which `crop_image` would have decoded it for each of them.
    """
    opened = image = open_image(encoded, max_megapixels=max_megapixels)
    if shared:
        opened.load()
        image = ImageOps.exif_transpose(opened) if orientation_of(opened) != 1 else opened
    return Photo(opened, image, reduce=shared and opened.format in SCALED_FORMATS)


class Pixels(NamedTuple):
    """The decoded images of N rows."""

    pixels: np.ndarray  # uint8 memory map (N, 3, S, S)
    crop_sizes: np.ndarray  # (N, 2) float32, width and height of each crop in pixels before it was made square
    boxes: np.ndarray  # (N, 7) float64, `common.data.crop.box_row` of each row, not clipped; NaN without `--crop`
    hashes: np.ndarray  # (N, 2) uint64, a hash of the image file and that of `difference_hashes` of the crop
    problems: dict[int, str]  # the reasons why rows have no pixels


def load_pixels(split: str, rows: Table, selection: list, configs: Sequence[DataConfig]) -> tuple[str, Pixels]:
    """The content of `rows`, and their pixels for the first of `configs`; new pixels are cached for all of `configs`.

    The content is the hexadecimal sha256 of the image files and boxes. A folder of the cache contains the arrays of
    `Pixels`, and checksums.json with a checksum of each file and the name of the folder, SETTINGS-CONTENT: a hash of
    every setting that affects the pixels, and the first 32 digits of the content. So data that was copied or touched
    is not decoded again.

    All new folders are filled in one pass: each image is read once and, except for JPEG, decoded once. A photo of
    several rows is always decoded once. If there are no pixels of these settings, the same pass computes the content.
    Otherwise it is needed first: it was stored by an earlier pass, or the image files are read for it alone.

    Args:
        selection: identifies the rows within their files, see `_content_key`.

    Raises:
        InputError: the cache cannot be written, or the data was changed since `rows` was read.
    """
    settings = {_settings_key(rows, config): config for config in configs}
    first, config = next(iter(settings.items()))
    stored = Path(config.cache, "content", _content_key(rows, selection) or "none")
    content = _read_content(stored)
    if content is None and any(any(Path(c.cache).glob(f"{key}-*")) for key, c in settings.items()):
        content = _hash_images(rows)
        _write_content(stored, content)
    folders = {key: Path(c.cache, f"{key}-{content[:32]}") for key, c in settings.items()} if content else {}
    found = {key: _read_folder(folder, len(rows), settings[key].image_size) for key, folder in folders.items()}
    missing = {key: config for key, config in settings.items() if found.get(key) is None}
    if missing:
        for folder in [folders[key] for key in missing if key in folders and folders[key].exists()]:
            print(f"note: {folder} is damaged: the images are decoded again")
            shutil.rmtree(folder, ignore_errors=True)
        try:
            decoded = _fill_folders(split, rows, content, missing)
        except OSError as error:
            raise InputError(
                f"the cache {config.cache} cannot be written ({error.strerror or error}): name another folder with "
                "--cache."
            ) from error
        if content is None:
            content = decoded
            _write_content(stored, content)
    assert content is not None, "or pixels are missing"
    folder = Path(config.cache, f"{first}-{content[:32]}")
    result = found.get(first) or _read_folder(folder, len(rows), config.image_size)
    if result is None:
        raise InputError(f"{folder} is damaged and cannot be replaced: name another folder with --cache.")
    return content, result


def _settings_key(rows: Table, config: DataConfig) -> str:
    """A hash of everything but the images and boxes that determines the pixels of `rows`, and of their number."""
    version = 8  # to be increased when the content of the folder changes
    settings = [version, len(rows), rows.box_format, *config.pixel_options]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]


def _content_key(rows: Table, selection: list) -> str | None:
    """A key that identifies `rows` without reading image files; None if a file is missing.

    The key combines `selection`, which identifies the rows within their files, with the state of these files when
    `rows` was read: path, size, times, device and inode. If each image is a separate file, the key combines the same
    properties of all image files with the boxes instead.
    """
    states = rows.files.states
    if isinstance(rows.files, ImageFiles):
        states = [states[number] for number in rows.photos]
        selection = rows["bbox"] if "bbox" in rows else [None] * len(rows)
        if rows.shared.any():  # the hash of a photo depends on it, and so do its crops
            selection = [selection, rows.shared.tolist()]
    if None in states:
        return None
    return hashlib.sha256(json.dumps([selection, states], default=str).encode()).hexdigest()[:32]


def _read_content(path: Path) -> str | None:
    """The content that an earlier pass stored in `path`, as rereading gigabytes takes long; None if there is none."""
    if not path.is_file():
        return None
    content, _, checksum = path.read_text(encoding="utf-8", errors="replace").partition(" ")
    if checksum == _checksum(path.name, content):
        return content
    print(f"note: {path} is damaged: the image files are read again")
    return None


def _write_content(path: Path, content: str) -> None:
    if path.name != "none":
        with suppress(OSError), atomic_path(path) as partial:  # a shared cache may be read-only
            partial.write_text(f"{content} {_checksum(path.name, content)}", encoding="utf-8")


def _hash_images(rows: Table) -> str:
    """Reads all images for the content of `rows` alone."""
    sha256 = hashlib.sha256()
    deque(_image_batches(rows, sha256), maxlen=0)
    rows.check_unchanged()
    return sha256.hexdigest()


def _fill_folders(split: str, rows: Table, content: str | None, settings: dict[str, DataConfig]) -> str:
    """Decodes `rows` into new folders of the cache and returns their content, which must be `content` if it is known.

    `settings` are the configs by their `_settings_key`.
    """
    sha256 = hashlib.sha256()

    def suffix() -> str:
        return f"-{sha256.hexdigest()[:32]}"

    with ExitStack() as stack:
        folders = [Path(config.cache, key) for key, config in settings.items()]
        partials = [stack.enter_context(atomic_path(folder, suffix)) for folder in folders]
        arrays = [_PixelArray(path, rows, config) for path, config in zip(partials, settings.values(), strict=True)]
        for array in arrays:
            stack.enter_context(array.file)
        progress = stack.enter_context(tqdm(total=len(rows), desc=f"decoding {split}", disable=None, unit=" images"))
        batches = _image_batches(rows, sha256)
        for count in map_ahead(lambda batch: _decode_batch(*batch, arrays), batches, ahead=2 * WORKERS):
            progress.update(count)
        rows.check_unchanged()
        if content not in (None, sha256.hexdigest()):
            raise InputError(CHANGED)
        for folder, array in zip(folders, arrays, strict=True):
            array.finish(folder.name + suffix())
    return sha256.hexdigest()


def _read_folder(folder: Path, n: int, size: int) -> Pixels | None:
    """The content of a folder of the cache for `n` images of `size` pixels; None if there is none or it is damaged.

    One process per machine compares the checksums, all of them the shapes.
    """
    try:
        if PartialState().is_local_main_process:
            checksums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
            if checksums["folder"] != folder.name or any(checksums[n] != _file_checksum(folder / n) for n in FILES):
                return None
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        crop_sizes, boxes, hashes = (np.load(folder / name, allow_pickle=False) for name in FILES[1:4])
        problems = json.loads((folder / "problems.json").read_text(encoding="utf-8"))
        problems = {int(row): reason for row, reason in problems.items()}
    except Exception:  # damaged files raise errors of many kinds
        return None
    found = [(array.shape, array.dtype) for array in (pixels, crop_sizes, boxes, hashes)]
    expected = [((n, 3, size, size), np.uint8), ((n, 2), np.float32), ((n, 7), np.float64), ((n, 2), np.uint64)]
    if found != expected or not all(0 <= row < n for row in problems):
        return None
    return Pixels(pixels, crop_sizes, boxes, hashes, problems)


def _file_checksum(path: Path) -> str:
    """CRC-32 of a file, read in parts."""
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def _checksum(*texts: str) -> str:
    return f"{zlib.crc32(' '.join(texts).encode()):08x}"


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Iterator[R]:
    """Yields function(item) for each item, in order. Threads compute up to `ahead` results in advance.

    Items are taken from the iterable only as needed, so a large input is never entirely in memory.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def crop_with(
    config: DataConfig,
    image: Image.Image,
    bbox: Sequence[float] | None,
    *,
    fill: tuple[int, int, int] | None = None,
    reduce: bool = False,
) -> tuple[Image.Image, tuple[float, float]]:
    """Calls `common.data.crop.crop_image` with the settings of `config`, and the box as `clip_box` returns it.

    The box is ignored without `--crop`. Padding has the colour `fill`, by default the mean colour of the normalisation.
    """
    box = clip_box(bbox, *upright_size(image)) if config.crop else None
    fill = fill or config.normalization.color
    size, margin, fit = config.image_size, config.margin, config.fit
    return crop_image(image, box, size=size, margin=margin, fit=fit, fill=fill, reduce=reduce)


def error_reason(error: Exception) -> str:
    """The reason why an image cannot be cropped, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "unreadable image (unknown format)"
    if isinstance(error, Image.DecompressionBombError):  # "Image size (N pixels) exceeds limit of M pixels, could ..."
        return f"image too large ({str(error).partition(',')[0]}: raise --max-megapixels to use it)"
    return str(error) if type(error) is ValueError else f"unreadable image ({error})"


def difference_hashes(strip: Image.Image, pads: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """64-bit perceptual hashes that change little under resizing, compression or new lighting: dHash (Krawetz, 2013).

    Each image is reduced to 8 rows of 9 cells; each bit says whether a cell is brighter than its left neighbour.

    Args:
        strip: N square images, one below the other.
        pads: the padding of each image, (horizontal, vertical) in pixels, which the hash ignores. It would make all
            narrow crops look alike.

    Returns:
        (N,) uint64.
    """
    size, n = strip.width, strip.height // strip.width
    grey, box = strip.convert("L"), Image.Resampling.BOX
    if pads is None:  # few calls, as each takes longer than its work on a small image
        wide = grey.resize((9, strip.height), box)  # first, as Pillow does for a single image, so rounding is the same
        cells = np.asarray(wide.resize((9, 8 * n), box))
    else:
        inner = [(x, i * size + y, size - x, (i + 1) * size - y) for i, (x, y) in enumerate(pads)]
        cells = np.concatenate([np.asarray(grey.crop(edges).resize((9, 8), box)) for edges in inner])
    brighter = (cells[:, 1:] > cells[:, :-1]).reshape(n, 64)
    return np.packbits(brighter, axis=1).view(">u8")[:, 0].astype(np.uint64)


class _PixelArray:
    """The arrays of one cache folder while it is being filled."""

    def __init__(self, folder: Path, rows: Table, config: DataConfig):
        folder.mkdir()
        n, size = len(rows), config.image_size
        self.folder, self.config, self.box_format = folder, config, rows.box_format
        self.offset = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (n, 3, size, size)).offset
        self.file = open(folder / "pixels.npy", "rb+")  # writing to it is faster than writing to its memory map
        self.lock = threading.Lock()  # between seeking and writing
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not after hours of decoding
            os.posix_fallocate(self.file.fileno(), 0, self.file.seek(0, os.SEEK_END))
        self.crop_sizes = np.ones((n, 2), np.float32)
        self.boxes = np.full((n, 7), np.nan)
        self.hashes = np.zeros((n, 2), np.uint64)
        self.problems: dict[int, str] = {}

    def crop(self, i: int, photo: Photo, bbox: Sequence[float] | None) -> Image.Image:
        """The crop of row i, whose box and size are stored."""
        config = self.config
        if config.crop:
            bbox = to_pixels(bbox, self.box_format, upright_size(photo.opened))
            self.boxes[i] = box_row(bbox, photo.opened)
        image, self.crop_sizes[i] = crop_with(config, photo.image, bbox, reduce=photo.reduce)
        return image

    def store(self, rows: slice, strip: Image.Image) -> None:
        """Stores the crops of `rows`, one below the other in `strip`; rows without a crop are black."""
        size = self.config.image_size
        pixels = np.ascontiguousarray(np.asarray(strip).reshape(-1, size, size, 3).transpose(0, 3, 1, 2))
        with self.lock:
            self.file.seek(self.offset + rows.start * pixels[0].nbytes)
            self.file.write(pixels.data)
        sizes = self.crop_sizes[rows].tolist()
        pads = [padding(crop_size, size) for crop_size in sizes] if self.config.fit == "pad" else None
        self.hashes[rows, 1] = difference_hashes(strip, pads)

    def finish(self, name: str) -> None:
        """Writes everything but the pixels, which are already in their file. `name` is the folder's final name."""
        self.file.flush()
        np.save(self.folder / "crop_sizes.npy", self.crop_sizes)
        np.save(self.folder / "boxes.npy", self.boxes)
        np.save(self.folder / "hashes.npy", self.hashes)
        (self.folder / "problems.json").write_text(json.dumps(self.problems), encoding="utf-8")
        checksums = {"folder": name} | {file: _file_checksum(self.folder / file) for file in FILES}
        (self.folder / "checksums.json").write_text(json.dumps(checksums), encoding="utf-8")


def _decode_batch(first: int, batch: list["_PhotoRows"], arrays: list[_PixelArray]) -> int:
    """Decodes rows first, first + 1, ... into every array and records failures in `problems`.

    Returns the number of rows in the batch.
    """
    end = first
    for photo in batch:
        start, end = end, end + len(photo.boxes)
        _decode_photo(start, photo, arrays)
    return end - first


def _decode_photo(first: int, rows: "_PhotoRows", arrays: list[_PixelArray]) -> None:
    """Decodes the rows of a photo; the first of them is row `first`."""
    photo: Photo | None = None
    file_hash = 0
    parts = [range(len(rows.boxes))[i : i + MAX_CROPS] for i in range(0, len(rows.boxes), MAX_CROPS)]
    for array, part in product(arrays, parts):
        config, size = array.config, array.config.image_size
        strip = Image.new("RGB", (size, size * len(part)))
        for place, number in enumerate(part):
            row, bbox = first + number, rows.boxes[number]
            try:
                if config.crop and bbox is None:
                    raise ValueError("no box")
                if photo is None or (photo.opened.format in SCALED_FORMATS and not rows.shared):
                    photo = open_photo(rows.encoded, shared=rows.shared, max_megapixels=config.max_megapixels)
                    assert isinstance(rows.encoded, bytes), "or open_photo would fail"
                    digest = rows.sha256 or hashlib.sha256(rows.encoded).digest()
                    file_hash = int.from_bytes(digest[:8])
                strip.paste(array.crop(row, photo, bbox), (0, size * place))
                array.hashes[row, 0] = file_hash
            except Exception as error:  # PIL raises many kinds of exceptions for broken files
                array.problems[row] = error_reason(error)
                if not rows.shared:
                    photo = None  # used again, it would raise no error but give a partly decoded image
        array.store(slice(first + part.start, first + part.stop), strip)


class _PhotoRows(NamedTuple):
    """Successive rows that show one photo."""

    encoded: bytes | str  # the image or, as text, why there is none
    shared: bool  # see `Table.shared`
    boxes: list[Sequence[float] | None]  # of each row
    sha256: bytes  # of a shared photo, otherwise empty


def _image_batches(rows: Table, sha256: Any, size: int = 8) -> Iterator[tuple[int, list[_PhotoRows]]]:
    """Batches of `size` photos: the number of the first row, and the rows of each photo.

    All images and boxes are added to the hash `sha256`; the image of successive rows only once, and as its own hash if
    it is shared.
    """
    boxes = (box.as_py() for box in rows.column("bbox")) if "bbox" in rows else repeat(None)
    values = zip(rows.photos.tolist(), rows.shared.tolist(), rows.images(), boxes, strict=False)
    photos = groupby(values, key=lambda row: row[0])
    first = 0
    while batch := [_photo_rows(list(group), sha256) for _, group in islice(photos, size)]:
        yield first, batch
        first += sum(len(photo.boxes) for photo in batch)


def _photo_rows(group: list[tuple], sha256: Any) -> _PhotoRows:
    (_, shared, image, _), boxes = group[0], [bbox for *_, bbox in group]
    digest = hashlib.sha256(image).digest() if shared and isinstance(image, bytes) else b""
    for number, bbox in enumerate(boxes):
        length = len(image) if isinstance(image, bytes) else image
        sha256.update(json.dumps([None if number else length, bbox], default=str).encode())
        if isinstance(image, bytes) and not number:
            sha256.update(digest or image)
    return _PhotoRows(image, shared, boxes, digest)
