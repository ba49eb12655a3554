"""Files and folders that are whole or absent."""

import csv
import glob
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, for a file or a folder, and renames it to `path` at the end.

    A crash leaves the old file; what it left half-written goes when the path is next written on the same machine. A
    folder that another process finished first is kept, and ours is dropped.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = platform.node().replace(".", "-")
    for stale in path.parent.glob(f".{glob.escape(path.name)}.{host}.*.tmp"):
        if not psutil.pid_exists(int(stale.name.split(".")[-3])):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield partial
        for file in [partial] if partial.is_file() else partial.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        try:
            os.replace(partial, path)
        except OSError:
            if not (partial.is_dir() and path.is_dir()):
                raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def write_csv(path: str | os.PathLike, rows: list[dict]) -> None:
    """A header and a line per dict of `rows`, which all have the same keys."""
    names = dict(encoding="utf-8", errors="surrogateescape")  # a file's name need not be UTF-8
    with whole(path) as partial, open(partial, "w", newline="", **names) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
