"""Trackers of `--log-with`: the lines of log.jsonl also go to TensorBoard, Weights & Biases and others (Accelerate)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from common.config import InputError

PROJECT = "image-classification"  # in which trackers show the runs


def tracker_names(text: str) -> list[str]:
    """The trackers in a value of `--log-with`, such as "tensorboard,wandb".

    Raises:
        InputError: Accelerate does not support one of them, or its package is not installed.
    """
    names = list(dict.fromkeys(filter(None, text.split(","))))
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"--log-with {name}: choose from {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
        if name not in map(str, get_available_trackers()):  # Accelerate would only warn, and log nothing
            raise InputError(f"--log-with {name} needs a package that is not installed: pip install {name}")
    return names


def start_trackers(accelerator: Accelerator, folder: Path, run_id: str, config: Mapping[str, Any], step: int) -> None:
    """Starts the trackers of the run in `folder` after `step` steps, and gives them its options.

    A resumed run, which has the same `run_id`, is continued by W&B and Trackio and, in TensorBoard, replaces what was
    logged after its checkpoint.

    Args:
        config: values of type bool, int, float or str.

    Raises:
        InputError: a tracker cannot be started, for example because it needs a login.
    """
    name = f"{folder.resolve().name}-{run_id}"
    options = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"id": run_id, "name": folder.resolve().name, "resume": "allow"},
        "trackio": {"name": name, "resume": "allow"},
    }
    try:
        accelerator.init_trackers(PROJECT, config=dict(config), init_kwargs=options)
    except Exception as error:  # each package has its own
        names = ",".join(map(str, accelerator.log_with))
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"--log-with {names} cannot be started: {reason[0]}") from error
