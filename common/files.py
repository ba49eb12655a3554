"""Atomic file writing, checks of what may be overwritten, locked folders, and JSON, CSV and Markdown output."""

import atexit
import csv
import errno
import glob
import io
import json
import os
import platform
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil

from common.config import InputError, printable

# What a run writes into its folder; no tool may replace these.
RUN_FILES = (
    "run.json", "data_report.json", "bad_rows.csv", "log.jsonl", "metrics.json", "predictions.csv", "model.safetensors",
    "probabilities.safetensors", "reference.safetensors", "labels.json", "config.json", "README.md", "curves.png",
    "confusion.png", "mistakes.png",
)  # fmt: skip
LOCK = ".run.lock"
CHECKPOINT = "checkpoint/last.pt"  # in a run folder, until the run is finished


@contextmanager
def atomic_path(path: str | os.PathLike, suffix: Callable[[], str] = str) -> Iterator[Path]:
    """Writes a file or a folder atomically: yields a temporary path beside `path` and renames it to `path` at the end.

    If the last part of the name is only known then, `suffix` returns it.

    After a crash the old file is intact, and the unfinished temporary file is removed when `path` is next written on
    the same machine. If another process has created the same folder in the meantime, its folder is kept and the new one
    is discarded.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = platform.node().replace(".", "-")
    for stale in path.parent.glob(f".{glob.escape(path.name)}.{host}.*.tmp"):
        process = stale.name.split(".")[-3]
        if re.fullmatch("[0-9]{1,9}", process) and not psutil.pid_exists(int(process)):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield partial
        for file in [partial] if partial.is_file() else partial.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        path = path.with_name(path.name + suffix())
        try:
            os.replace(partial, path)
        except OSError:
            if not (partial.is_dir() and path.is_dir()):
                raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def open_regular(path: Path, *, limit: int = 10**8) -> io.BufferedReader:
    """Opens a file of a run folder from elsewhere for reading: a regular file of at most `limit` bytes, and no link.

    Raises:
        InputError: it is something else, such as a FIFO, which would wait forever; or it cannot be read.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path.name} is not a regular file")
        if status.st_size > limit:
            raise InputError(f"{path.name} has {status.st_size:,} bytes, which is more than it can be")
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}") from error


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_output(path: str | os.PathLike, made_by_us: Callable[[Path], bool]) -> None:
    """Checks that a result may be written to `path`, which is called before the result is computed.

    Args:
        made_by_us: whether an existing file is an earlier result of this kind, which may be replaced.

    Raises:
        InputError: `path` is something else than an earlier result, belongs to a run, or cannot be created.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a symbolic link" if path.is_symlink() else "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{path} is {kind}, which is never replaced: choose another name.")
    folder = path.parent.resolve()  # so that neither links nor .. hide the run
    of_a_run = path.name.lower() in map(str.lower, RUN_FILES) or path.match("train_*.py")
    if of_a_run and (folder / "run.json").exists():
        raise InputError(f"{path} belongs to the run in that folder and is never replaced: choose another name.")
    if folder.name.lower() == "checkpoint" and (folder.parent / "run.json").exists():
        raise InputError(f"{path} would be deleted together with the checkpoint of that run: choose another folder.")
    if path.exists() and not (os.access(path, os.R_OK) and made_by_us(path)):
        raise InputError(
            f"{path} is not from an earlier call, and other files are never replaced: choose another name."
        )
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path} cannot be created, because {existing} is not a folder in which you may write.")


def check_output_folder(folder: Path, names: Sequence[str], **fields: type) -> None:
    """Checks that files `names` may be written to or removed from `folder`, before they are computed.

    The first is a JSON file. It must be written before the others, so that they are known to be from an earlier call.

    Args:
        fields: see `has_fields`, for the JSON file.

    Raises:
        InputError: `folder` belongs to a run, or has files of these names that are not from an earlier call.
    """
    if (folder / "run.json").exists():
        raise InputError(f"{folder} is the folder of a run: choose another --out.")
    for name in names:
        check_output(folder / name, lambda path: True)
    foreign = [name for name in names if (folder / name).exists()]
    if foreign and not has_fields(folder / names[0], **fields):
        raise InputError(f"{folder} has a {foreign[0]} of other origin, which is never replaced: choose another --out.")


def has_fields(path: Path, **fields: type) -> bool:
    """Whether `path` is a JSON file of an object that has `fields` with values of these types, or of a list of such."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    parts = value if isinstance(value, list) else [value]
    return bool(parts) and all(
        isinstance(part, dict) and all(isinstance(part.get(name), kind) for name, kind in fields.items())
        for part in parts
    )


# Locked folders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lock:
    lock: filelock.BaseFileLock
    owner: str  # content of the lock file: process, machine, and a number of this lock
    created: list[Path]  # the folder and its parents, as far as they were created for this lock


_locks: dict[Path, _Lock] = {}  # of this process, by folder


def lock_folder(folder: Path) -> None:
    """Creates `folder` if necessary and locks it until `unlock_folder` is called or the process ends.

    The system releases the lock of a process that dies. A process may lock a folder twice.

    Raises:
        InputError: another process holds the lock, or the folder cannot be created.
    """
    if folder.resolve() in _locks:
        return
    lock, created = filelock.FileLock(folder / LOCK), []
    owner = f"{os.getpid()}\n{platform.node()}\n{uuid.uuid4().hex}\n"
    try:
        created = [path for path in [folder, *folder.parents] if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        if isinstance(lock, filelock.UnixFileLock):  # the others write something like this, or nobody can read it
            (folder / LOCK).write_text(owner, encoding="utf-8")
    except filelock.Timeout:
        raise InputError(f"{folder} is in use by {_holder(folder)}: wait until that has ended, or stop it.") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            _remove_empty(created)
            raise InputError(f"cannot write to the folder {folder}: {error.strerror}. Choose another --out.") from error
        print(f"note: {printable(str(folder))} cannot be locked: do not use it for two runs at once", file=sys.stderr)
    _locks[folder.resolve()] = _Lock(lock, owner, created)


def _holder(folder: Path) -> str:
    """The process that has locked `folder`, in words."""
    try:
        process, node, *_ = (folder / LOCK).read_text(encoding="utf-8").split()
        return f"process {int(process)} on {node}"
    except (OSError, ValueError):
        return "another process"


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds the lock of `folder`, as far as the file says, which is only read."""
    with suppress(OSError, ValueError, psutil.Error):
        process, node, *_ = (folder / LOCK).read_text(encoding="utf-8").split()
        started = psutil.Process(int(process)).create_time()  # a later process may have the number of an earlier one
        return node == platform.node() and started <= (folder / LOCK).stat().st_mtime + 1
    return False


def check_lock(folder: Path) -> None:
    """Raises InputError if a folder that this process has locked was deleted since: another process may use it now."""
    held = _locks.get(folder.resolve())
    if not held or not isinstance(held.lock, filelock.UnixFileLock) or not held.lock.is_locked:
        return
    try:
        owner = (folder / LOCK).read_text(encoding="utf-8")
    except FileNotFoundError:
        owner = ""
    if owner != held.owner:
        raise InputError(f"{folder} was deleted while it was in use: nothing more is written to it.")


def unlock_folder(folder: Path) -> None:
    """Releases the lock of `lock_folder`, and removes the folders that it created if they are still empty."""
    if folder.resolve() not in _locks:
        return
    with suppress(OSError, InputError):
        check_lock(folder)
        (folder / LOCK).unlink()  # while it is locked: who waits for this file notices, and looks for a new one
    held = _locks.pop(folder.resolve())
    held.lock.release()
    _remove_empty(held.created)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """`lock_folder` for the duration of a block."""
    lock_folder(folder)
    try:
        yield
    finally:
        unlock_folder(folder)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty
            folder.rmdir()


@atexit.register
def _unlock_all() -> None:
    for folder in list(_locks):
        unlock_folder(folder)


# Tables --------------------------------------------------------------------------------------------------------------

# What a spreadsheet takes for a formula, after any number of apostrophes; OWASP, "CSV injection"
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def csv_cell(value: Any) -> Any:
    """A value as `write_csv` writes it: a text that a spreadsheet would run as a formula gets an apostrophe in front.

    `csv_text` is the inverse.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return "'" + value
    return value


def csv_text(cell: str) -> str:
    """The text that `write_csv` wrote as `cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_csv(path: str | os.PathLike, rows: list[dict]) -> None:
    """Writes `rows` as CSV, atomically; texts as `csv_cell` changes them.

    `rows` must not be empty, and all its dicts must have the same keys, which become the header.
    """
    with (
        atomic_path(path) as partial,
        open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,  # for file names
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table for the terminal: Markdown, but with cells as they are, apart from control characters."""
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table of plain texts. Cells are padded so that the columns also align in plain text."""
    first, *others = ([markdown_text(cell) for cell in row] for row in [header, *rows])
    return terminal_table(first, others)


def markdown_text(text: str) -> str:
    """A plain text as Markdown: HTML, links, pictures and code in it are shown, not interpreted."""
    return re.sub(r"[\\<`]|\](?=[(\[:])", r"\\\g<0>", printable(text))
