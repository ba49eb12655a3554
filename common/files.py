"""Atomic file writing, JSON and CSV output, and Markdown tables."""

import csv
import glob
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file or a folder atomically: yields a temporary path beside `path` and renames it to `path` at the end.

    After a crash the old file is intact, and the unfinished temporary file is removed when `path` is next written on
    the same machine. If another process has created the same folder in the meantime, its folder is kept and the new one
    is discarded.
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
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def write_csv(path: str | os.PathLike, rows: list[dict]) -> None:
    """Writes `rows` as CSV, atomically.

    `rows` must not be empty, and all its dicts must have the same keys, which become the header.
    """
    with (
        atomic_path(path) as partial,
        open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,  # for file names
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. Cells are padded so that the columns also align in plain text."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]
