"""What must happen before the slow imports of a training script: its first line, and a note of the state of all code.

The training scripts import this module before all others, which pyproject.toml lets ruff sort to the top. The line goes
to standard error, and only if the script is the main program, in the main process, and not asked for --help.
"""

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent

main_file = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
script = main_file.stem
if script.startswith("train_") and not {"-h", "--help"} & set(sys.argv) and os.environ.get("RANK", "0") == "0":
    print(f"{script}: loading PyTorch ...", file=sys.stderr, flush=True)


def file_state(path: Path) -> tuple[int, int, int]:
    """Inode, size and time of change of a file: different if it was edited or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_ctime_ns


# A run compares these with the files that it records as its code: what was edited since is not what is being executed.
code_files = [*PROJECT.glob("*.py"), *PROJECT.glob("common/**/*.py"), *([main_file] if main_file.is_file() else [])]
STATES = {path.resolve(): file_state(path) for path in code_files}
