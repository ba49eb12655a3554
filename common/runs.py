"""The run folder: where it is, whether it may be used, and what is written into it while a run goes on."""

import hashlib
import importlib.metadata
import io
import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from common.config import InputError, TrainConfig
from common.files import whole, write_csv, write_json

PACKAGES = ("torch", "torchvision", "accelerate", "datasets", "scikit-learn", "timm", "numpy", "pillow")
# Options that change no number.
HARMLESS = {"out", "resume", "checkpoint_every", "cache", "data_device", "summary", "dry_run"}


def script_name(config: TrainConfig) -> str:
    """The script that defines `config`'s class, without .py."""
    return Path(sys.modules[type(config).__module__].__file__).stem


def run_folder(config: TrainConfig) -> Path:
    """`--out`, or runs/SCRIPT-VARIANT-sSEED."""
    recipe = "" if config.recipe == "default" else f"-{config.recipe}"
    return Path(config.out or f"runs/{script_name(config)}{recipe}-{config.variant}-s{config.seed}")


def check_folder(folder: Path, resume: bool) -> None:
    """Refuses a folder whose results or checkpoint a new run would destroy."""
    if (folder / "metrics.json").exists():
        raise InputError(f"{folder} holds a finished run, which is kept: name another folder with --out.")
    if not resume and (folder / "checkpoint").exists():
        raise InputError(f"{folder} holds an unfinished run: go on with --resume, or name another folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the run folder {folder} cannot be made: {error.strerror}. Name another with --out."
        ) from error


def run_identity(config: TrainConfig, accelerator: Accelerator, train, val) -> dict:
    """All that decides a run's numbers, but for the hardware and the versions: a resumed run has the same."""
    identity = {
        "script": script_name(config),
        "classes": train.classes,
        "data_fingerprint": data_fingerprint(train, val),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        **{name: value for name, value in asdict(config).items() if name not in HARMLESS},
    }
    if config.teacher:  # what it is, not where it lies
        with open(Path(config.teacher, "model.safetensors"), "rb") as file:
            identity["teacher"] = hashlib.file_digest(file, "sha256").hexdigest()
    if train.masks is not None:
        identity["masks"] = hashlib.sha256(train.masks).hexdigest()
    return identity


def data_fingerprint(train, val) -> str:
    return hashlib.sha256((train.fingerprint + val.fingerprint).encode()).hexdigest()


def describe_run(config: TrainConfig, accelerator: Accelerator, model: torch.nn.Module, train, val) -> dict:
    """What run.json says when the run begins."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        commit = ""
    gpu = accelerator.device.type == "cuda"
    return {
        "script": script_name(config),
        "variant": config.variant,
        "command": shlex.join(sys.argv),
        "config": asdict(config),
        "classes": train.classes,
        "rows": {"train": len(train), "val": len(val), "dropped": train.dropped},
        "data_fingerprint": data_fingerprint(train, val),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": commit or None,
        "device": torch.cuda.get_device_name() if gpu else f"{accelerator.device}, {torch.get_num_threads()} threads",
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
    }


def write_start(folder: Path, run: dict, report: dict) -> None:
    """What is known before the first step: the run, the data, and the rows that were left out."""
    write_json(folder / "run.json", run)
    write_json(folder / "data_report.json", report)
    if report["bad_rows"]:
        write_csv(folder / "bad_rows.csv", report["bad_rows"])


def unwrapped(accelerator: Accelerator, model: torch.nn.Module) -> torch.nn.Module:
    """The script's own model, without what Accelerate or torch.compile put around it: its weights keep their names."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def save_checkpoint(folder: Path, identity: dict, progress: dict, accelerator: Accelerator, model, optimizer) -> None:
    """Everything that a resumed run needs, in one file, which is replaced whole."""
    state = {
        "identity": identity,
        "progress": progress,
        "model": unwrapped(accelerator, model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
    }
    buffer = io.BytesIO()  # torch.save into a file on a full disk says "unexpected pos", a plain write says why
    torch.save(state, buffer)
    with whole(folder / "checkpoint" / "last.pt") as partial:
        partial.write_bytes(buffer.getbuffer())


def load_checkpoint(folder: Path, identity: dict, accelerator: Accelerator, model, optimizer) -> dict | None:
    """Puts a checkpoint's state into model and optimizer; returns its progress, or None where there is no checkpoint.

    Raises:
        InputError: the checkpoint is of a run with another `identity`; the message names what differs.
    """
    path = folder / "checkpoint" / "last.pt"
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no error of its own for this
        raise InputError(f"{path} cannot be read as a checkpoint. Delete the folder to start over.") from error
    old = state["identity"]
    differ = [
        f"{k} was {str(old.get(k))[:60]}, now {str(identity[k])[:60]}" for k in identity if old.get(k) != identity[k]
    ]
    if differ:
        raise InputError(f"{folder} holds another run: {'; '.join(differ)}. Use the old values, or another --out.")
    unwrapped(accelerator, model).load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state["progress"]


class Log:
    """log.jsonl, one JSON object a line. Lines after `step`, which a resumed run writes again, are dropped."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "log.jsonl"
        old = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        old = [line for line in old if line.endswith("\n")]  # a killed run may leave half a line
        with whole(self.path) as partial:
            partial.write_text("".join(line for line in old if json.loads(line)["step"] <= step))

    def write(self, **values: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def read(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]
