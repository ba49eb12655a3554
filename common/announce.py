"""Prints the first line of a training script at once: the imports that follow take several seconds.

The training scripts import this module before all others, which pyproject.toml lets ruff sort to the top. The line goes
to standard error, and only if the script is the main program, in the main process, and not asked for --help.
"""

import os
import sys
from pathlib import Path

script = Path(getattr(sys.modules["__main__"], "__file__", None) or "").stem
if script.startswith("train_") and not {"-h", "--help"} & set(sys.argv) and os.environ.get("RANK", "0") == "0":
    print(f"{script}: loading PyTorch ...", file=sys.stderr, flush=True)
