"""Pixel cache: each image is decoded, cropped and resized once, into a memory-mapped array shared by all runs."""

import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from common.config import DataConfig
from common.data.crop import crop_image, padding
from common.files import atomic_path

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # JPEG includes MPO; EPS, for one, would start Ghostscript
FILES = ("pixels.npy", "crop_sizes.npy", "hashes.npy", "problems.json")
SCALED_FORMATS = ("JPEG", "MPO")  # PIL decodes these at a reduced scale, which depends on the target size
WORKERS = min(32, os.cpu_count() or 1)  # decoding threads
MEAN = (0.485, 0.456, 0.406)  # ImageNet mean and standard deviation of the R, G and B channels, in [0, 1]
STD = (0.229, 0.224, 0.225)
T = TypeVar("T")
R = TypeVar("R")


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Images (..., 3, H, W) in [0, 255], uint8 or float32, normalised with `MEAN` and `STD`, as float32."""
    scale, shift = _scale_and_shift(images.device)
    return (images * scale).add_(shift)  # in place: only two passes over memory


@cache  # creating a GPU tensor from Python numbers synchronises with the GPU
def _scale_and_shift(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return 1 / (255 * std), -mean / std


def content_hash(rows: datasets.Dataset, selection: list, cache: str) -> str:
    """Hexadecimal sha256 of the image files and boxes of `rows`.

    The hash is stored in the folder `cache`, because rereading gigabytes takes longer than the rest of the start-up.
    Its key combines `selection`, which identifies the rows within their files, with the path, size and modification
    time of these files. If each image is a separate file, the key combines the same properties of all image files
    with the boxes instead.
    """
    key = _content_key(rows, selection)
    stored = Path(cache, "content", key or "none")
    if key and stored.exists():
        return stored.read_text()
    digest = hashlib.sha256()
    for _, batch in _image_batches(rows):
        for image, bbox in batch:
            encoded = encoded_bytes(image)
            digest.update(json.dumps([len(encoded), bbox], default=str).encode() + encoded)
    if key:
        with suppress(OSError), atomic_path(stored) as partial:  # a shared cache may be read-only
            partial.write_text(digest.hexdigest())
    return digest.hexdigest()


def _content_key(rows: datasets.Dataset, selection: list) -> str | None:
    """A key that identifies `rows` without reading image files; None if there are no files to identify them by."""
    paths = [file["filename"] for file in rows.cache_files]
    if not paths or pc.struct_field(rows.data.column("image"), "bytes").null_count:
        images = [pair for _, batch in _image_batches(rows) for pair in batch]
        paths = [image.get("path") if image.get("bytes") is None else None for image, _ in images]
        selection = [bbox for _, bbox in images]
    states = [_file_state(path) for path in paths]
    if None in states:
        return None
    return hashlib.sha256(json.dumps([selection, states], default=str).encode()).hexdigest()[:32]


def decode_images(split: str, rows: datasets.Dataset, content: str, configs: Sequence[DataConfig]) -> list[Path]:
    """Returns the cache folder of `rows` for each of `configs`, and creates those that do not exist yet.

    A folder contains pixels.npy (N, 3, S, S) uint8; crop_sizes.npy (N, 2) float32; hashes.npy (N, 2) uint64, a hash of
    the image file and the `difference_hash` of the crop; and problems.json, the reasons why rows have no pixels. The
    folder is named after a hash of `content` (see `content_hash`) and of every setting that affects the pixels. All new
    folders are filled in one pass: each image is read once and, except for JPEG, decoded once.
    """
    version = 3  # to be increased when the content of the folder changes
    folders = {}
    for config in configs:
        settings = [version, content, config.crop, config.margin * config.crop, config.fit, config.image_size]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
        folders[Path(config.cache, name)] = config
    missing = {path: config for path, config in folders.items() if not _is_complete(path)}
    if missing:
        with ExitStack() as stack:
            arrays: list[_PixelArray] = []
            for path, config in missing.items():
                if not _is_complete(path):
                    shutil.rmtree(path, ignore_errors=True)  # some of its files were deleted
                arrays.append(_PixelArray(stack.enter_context(atomic_path(path)), len(rows), config))
            progress = stack.enter_context(
                tqdm(total=len(rows), desc=f"decoding {split}", disable=None, unit=" images")
            )
            batches = _image_batches(rows)
            for count in map_ahead(lambda batch: _decode_batch(batch[0], batch[1], arrays), batches, ahead=2 * WORKERS):
                progress.update(count)
            for array in arrays:
                array.finish()
    return list(folders)


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
    config: DataConfig, image: Image.Image, bbox: Sequence[float] | None, **kwargs
) -> tuple[Image.Image, tuple[float, float]]:
    """Calls `common.data.crop.crop_image` with the settings of `config`. The box is ignored without `--crop`."""
    box = bbox if config.crop else None
    return crop_image(image, box, size=config.image_size, margin=config.margin, fit=config.fit, **kwargs)


def error_reason(error: Exception) -> str:
    """The reason why an image cannot be cropped, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "unreadable image (unknown format)"
    return str(error) if type(error) is ValueError else f"unreadable image ({error})"


def difference_hash(image: Image.Image) -> int:
    """A 64-bit perceptual hash that changes little under resizing, compression or new lighting: dHash (Krawetz, 2013).

    The image is reduced to 8 rows of 9 cells; each bit says whether a cell is brighter than its left neighbour.
    """
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes())


def _is_complete(folder: Path) -> bool:
    return all((folder / name).exists() for name in FILES)


class _PixelArray:
    """The arrays of one cache folder while it is being filled."""

    def __init__(self, folder: Path, n: int, config: DataConfig):
        folder.mkdir()
        size = config.image_size
        self.folder, self.config = folder, config
        self.pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (n, 3, size, size))
        if hasattr(os, "posix_fallocate"):  # otherwise a full disk kills the process with SIGBUS on a later write
            with open(folder / "pixels.npy", "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
        self.crop_sizes = np.ones((n, 2), np.float32)
        self.hashes = np.zeros((n, 2), np.uint64)
        self.problems: dict[int, str] = {}

    def put(self, i: int, image: Image.Image, bbox: Sequence[float] | None, file_hash: int) -> None:
        """Crops `image` into row i."""
        config = self.config
        image, self.crop_sizes[i] = crop_with(config, image, bbox)
        self.pixels[i] = np.asarray(image).transpose(2, 0, 1)
        if config.fit == "pad":  # hash without the padding, which would make all narrow crops look alike
            x, y = padding(self.crop_sizes[i].tolist(), config.image_size)
            image = image.crop((x, y, config.image_size - x, config.image_size - y))
        self.hashes[i] = file_hash, difference_hash(image)

    def finish(self) -> None:
        """Writes everything but the pixels, which are already in their file."""
        self.pixels.flush()
        np.save(self.folder / "crop_sizes.npy", self.crop_sizes)
        np.save(self.folder / "hashes.npy", self.hashes)
        (self.folder / "problems.json").write_text(json.dumps(self.problems))


def _decode_batch(first: int, batch: list[tuple[dict, list | None]], arrays: list[_PixelArray]) -> int:
    """Decodes rows first, first + 1, ... into every array and records failures in `problems`.

    Returns the number of rows in the batch.
    """
    for i, (stored, bbox) in enumerate(batch, first):
        image = None
        for array in arrays:
            try:
                if array.config.crop and bbox is None:
                    raise ValueError("no box")
                if image is None or image.format in SCALED_FORMATS:
                    encoded = encoded_bytes(stored)
                    file_hash = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest())
                    image = Image.open(io.BytesIO(encoded))
                array.put(i, image, bbox, file_hash)
            except Exception as error:  # PIL raises many kinds of exceptions for broken files
                array.problems[i] = error_reason(error)
                image = None  # used again, it would raise no error but give a partly decoded image
    return len(batch)


def _image_batches(rows: datasets.Dataset, size: int = 8) -> Iterator[tuple[int, list[tuple[dict, list | None]]]]:
    """Batches of `size` rows: the first row's number, and for each row the stored image and the box.

    A stored image is a dict with the keys "bytes" and "path", or an empty dict.
    """
    columns = [name for name in ("image", "bbox") if name in rows.column_names]
    batches = rows.select_columns(columns).with_format("arrow").iter(batch_size=size)
    for first, batch in zip(range(0, len(rows), size), batches, strict=True):
        boxes = batch["bbox"].to_pylist() if "bbox" in columns else [None] * len(batch)
        yield first, [(image or {}, bbox) for image, bbox in zip(batch["image"].to_pylist(), boxes, strict=True)]


def encoded_bytes(image: dict) -> bytes:
    """The bytes of a stored image's file, from the table itself or from the path it names; empty if there is none."""
    if image.get("bytes") is not None:
        return image["bytes"]
    try:
        return Path(image.get("path") or "").read_bytes()
    except OSError:
        return b""


def _file_state(path: str | None) -> list | None:
    """Absolute path, size and modification time of a file; None if it does not exist."""
    if path is None:
        return None
    try:
        status = os.stat(path)
        return [os.path.abspath(path), status.st_size, status.st_mtime_ns]
    except OSError:
        return None
