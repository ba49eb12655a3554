"""Files and folders that are whole or absent, and a quick answer to whether a server can be reached."""

import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, for a file or a folder, and renames it to `path` at the end.

    A crash leaves the old file. A folder that another process finished first is kept, and ours is dropped.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        for file in [partial] if partial.is_file() else partial.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        try:
            os.replace(partial, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def reachable(url: str, seconds: float = 6) -> bool:
    """Whether a server answers at `url`, with any status, within `seconds`; proxies are honoured.

    The asking happens in a thread because a name look-up cannot be given a time limit.
    """
    answered = threading.Event()

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
