"""Decoded pixels: each image decoded, cropped and resized once, into a memory-mapped array that all runs share."""

import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from common.config import DataConfig
from common.crop import crop_image, padding
from common.files import whole

FILES = ("pixels.npy", "crop_sizes.npy", "hashes.npy", "problems.json")
SCALED = ("JPEG", "MPO")  # formats that are decoded at the smallest scale that covers the target


def content_hash(rows: datasets.Dataset, place: list, cache: str) -> str:
    """sha256, in hex, of the image files and boxes of `rows`.

    It is remembered in `cache`, because reading a few GB again takes longer than the rest of a start. What it is
    remembered by is `place`, which says where in their files these rows are, with the path, size and time of those
    files; or, where each image is a file of its own, the same of all images, and their boxes.
    """
    key = _memo_key(rows, place)
    memo = Path(cache, "content", key or "none")
    if key and memo.exists():
        return memo.read_text()
    digest = hashlib.sha256()
    for _, batch in _image_batches(rows):
        for image, bbox in batch:
            encoded = encoded_bytes(image)
            digest.update(json.dumps([len(encoded), bbox], default=str).encode() + encoded)
    if key:
        with suppress(OSError), whole(memo) as partial:  # a shared cache may be read only
            partial.write_text(digest.hexdigest())
    return digest.hexdigest()


def _memo_key(rows: datasets.Dataset, place: list) -> str | None:
    """What tells `rows` from others without reading an image, or None where nothing does."""
    paths = [file["filename"] for file in rows.cache_files]
    if not paths or pc.struct_field(rows.data.column("image"), "bytes").null_count:
        images = [pair for _, batch in _image_batches(rows) for pair in batch]
        paths = [image.get("path") if image.get("bytes") is None else None for image, _ in images]
        place = [bbox for _, bbox in images]
    states = [_file_state(path) for path in paths]
    if None in states:
        return None
    return hashlib.sha256(json.dumps([place, states], default=str).encode()).hexdigest()[:32]


def decoded(split: str, rows: datasets.Dataset, content: str, configs: Sequence[DataConfig]) -> list[Path]:
    """The cache folder of `rows` for each of `configs`, written where it is not there yet.

    A folder holds pixels.npy (N, 3, S, S) uint8, crop_sizes.npy (N, 2) float32, hashes.npy (N, 2) uint64 (of the image
    file's bytes, and `look_hash` of the pixels) and problems.json, the reasons why a row has no pixels. Its name is a
    hash of the rows' `content` and of every setting that changes a pixel. Configs that are asked for together share one
    reading and, but for JPEG, one decoding of each image.
    """
    form = 3  # to be raised when the folder's files change their form
    folders = {}
    for config in configs:
        settings = [form, content, config.crop, config.margin * config.crop, config.fit, config.image_size]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
        folders[Path(config.cache, name)] = config
    missing = {path: config for path, config in folders.items() if not _is_whole(path)}
    if missing:
        workers = min(32, os.cpu_count() or 1)
        with ExitStack() as stack, ThreadPoolExecutor(workers) as pool:
            arrays = []
            for path, config in missing.items():
                if not _is_whole(path):
                    shutil.rmtree(path, ignore_errors=True)  # somebody has deleted a part of it
                arrays.append(_PixelArray(stack.enter_context(whole(path)), len(rows), config))
            bar = stack.enter_context(tqdm(total=len(rows), desc=f"decoding {split}", disable=None, unit=" images"))
            waiting = deque()  # a few batches only: not the files and futures of all rows at once
            for first, batch in _image_batches(rows):
                waiting.append(pool.submit(_decode_batch, first, batch, arrays))
                if len(waiting) > 2 * workers:
                    bar.update(waiting.popleft().result())
            for future in waiting:
                bar.update(future.result())
            for array in arrays:
                array.finish()
    return list(folders)


def cut(
    image: Image.Image, bbox: Sequence[float] | None, config: DataConfig, **more
) -> tuple[Image.Image, tuple[float, float]]:
    """`crop_image` as `config` wants it; `more` are further options of it."""
    box = bbox if config.crop else None
    return crop_image(image, box, size=config.image_size, margin=config.margin, fit=config.fit, **more)


def reason(error: Exception) -> str:
    """Why an image gives no crop, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "unreadable image (of no known format)"
    return str(error) if type(error) is ValueError else f"unreadable image ({error})"


def look_hash(image: Image.Image) -> int:
    """64 bits that change little when a picture is resized, compressed or lit anew: dHash (Krawetz, 2013).

    Each bit says whether a cell of the picture, cut into 8 x 9, is brighter than its left neighbour.
    """
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes())


def _is_whole(folder: Path) -> bool:
    return all((folder / name).exists() for name in FILES)


class _PixelArray:
    """One cache folder while it is written."""

    def __init__(self, folder: Path, n: int, config: DataConfig):
        folder.mkdir()
        self.folder, self.config, size = folder, config, config.image_size
        self.pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (n, 3, size, size))
        if hasattr(os, "posix_fallocate"):  # a map on a full disk would end the process without a word
            with open(folder / "pixels.npy", "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
        self.crop_sizes, self.hashes, self.problems = np.ones((n, 2), np.float32), np.zeros((n, 2), np.uint64), {}

    def put(self, i: int, image: Image.Image, bbox: Sequence[float] | None, digest: int) -> None:
        config = self.config
        image, self.crop_sizes[i] = cut(image, bbox, config)
        self.pixels[i] = np.asarray(image).transpose(2, 0, 1)
        if config.fit == "pad":  # which makes all narrow crops look alike
            x, y = padding(self.crop_sizes[i].tolist(), config.image_size)
            image = image.crop((x, y, config.image_size - x, config.image_size - y))
        self.hashes[i] = digest, look_hash(image)

    def finish(self) -> None:
        self.pixels.flush()
        np.save(self.folder / "crop_sizes.npy", self.crop_sizes)
        np.save(self.folder / "hashes.npy", self.hashes)
        (self.folder / "problems.json").write_text(json.dumps(self.problems))


def _decode_batch(first: int, batch: list[tuple[dict, list | None]], arrays: list[_PixelArray]) -> int:
    """Rows first, first + 1, ... into every array, or the reason why not into its problems. Returns their number."""
    for i, (stored, bbox) in enumerate(batch, first):
        image = None
        for array in arrays:
            try:
                if array.config.crop and bbox is None:
                    raise ValueError("no box")
                if image is None or image.format in SCALED:
                    encoded = encoded_bytes(stored)
                    digest = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest())
                    image = Image.open(io.BytesIO(encoded))
                array.put(i, image, bbox, digest)
            except Exception as error:  # PIL raises nearly every kind
                array.problems[i] = reason(error)
                image = None  # after an error, PIL gives what it has decoded so far without another one
    return len(batch)


def _image_batches(rows: datasets.Dataset, size: int = 8) -> Iterator[tuple[int, list[tuple[dict, list | None]]]]:
    """The first row's number, and for each row the image (a dict with the file's bytes or path) and the box."""
    columns = [name for name in ("image", "bbox") if name in rows.column_names]
    batches = rows.select_columns(columns).with_format("arrow").iter(batch_size=size)
    for first, batch in zip(range(0, len(rows), size), batches, strict=True):
        boxes = batch["bbox"].to_pylist() if "bbox" in columns else [None] * len(batch)
        yield first, [(image or {}, bbox) for image, bbox in zip(batch["image"].to_pylist(), boxes, strict=True)]


def encoded_bytes(image: dict) -> bytes:
    """The image file's bytes, from the table or from the path in it; empty where there is none."""
    if image.get("bytes") is not None:
        return image["bytes"]
    try:
        return Path(image.get("path") or "").read_bytes()
    except OSError:
        return b""


def _file_state(path: str | None) -> list | None:
    try:
        state = os.stat(path or "")
        return [os.path.abspath(path), state.st_size, state.st_mtime_ns]
    except OSError:
        return None
