"""The run folder: its location, files and fields. All code that reads or writes a run folder is here.

run.json            RunInfo: options, data, versions, device, speed
data_report.json    the audit of the data (`common.data.audit`); bad_rows.csv lists the rows that were left out
log.jsonl           a line with the loss every few steps, and a line with the scores after each epoch
checkpoint/last.pt  until the run is finished (`common.checkpoint`)
metrics.json        scores of the last epoch; written last, so a folder that has it is finished
predictions.csv     one line for each val row
model.safetensors, labels.json, README.md, curves.png, confusion.png, mistakes.png
"""

import atexit
import hashlib
import importlib
import importlib.metadata
import io
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from accelerate import Accelerator
from scipy.special import softmax
from torch import nn
from torchinfo import summary
from tqdm import tqdm

from common.config import ID_COLUMNS, InputError, TrainConfig, identity
from common.data.audit import audit, describe, findings
from common.data.dataset import ClassificationDataset, load_splits
from common.figures import confusion, curves, mistakes, save_figure
from common.files import atomic_path, write_csv, write_json
from common.metrics import epoch_line, row_losses, scores
from common.model_card import model_card

PROJECT = Path(__file__).parent.parent
PACKAGES = ("torch", "torchvision", "accelerate", "datasets", "scikit-learn", "timm", "numpy", "pillow")
IDS = [*ID_COLUMNS, "label"]  # columns of predictions.csv that are the same for every model
PREDICTED = ["prediction", "probability", "loss"]  # columns that differ between models


@dataclass
class RunInfo:
    """The fields of run.json."""

    script: str  # without .py
    config: dict[str, Any]  # every option
    classes: list[str]  # in the order of the outputs
    rows: dict[str, int]  # train, val, and dropped: train rows of categories that val lacks
    data_fingerprint: str  # see `data_fingerprint`
    parameters: int
    variant: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None  # None outside a git checkout
    device: str = ""
    processes: int = 1
    mixed_precision: str = "no"
    seconds: float | None = None  # this and the next two are None until the run is finished
    train_seconds: float | None = None  # without evaluation and checkpoints
    images_per_second: float | None = None  # in training


# Location ------------------------------------------------------------------------------------------------------------


def script_name(config: TrainConfig) -> str:
    """The script that defines `config`'s class, without .py."""
    return Path(str(sys.modules[type(config).__module__].__file__)).stem


def run_name(config: TrainConfig) -> str:
    """SCRIPT-VARIANT, with the recipe between them unless it is the default."""
    recipe = "" if config.recipe == "default" else f"-{config.recipe}"
    return f"{script_name(config)}{recipe}-{config.variant}"


def folder_of(config: TrainConfig) -> Path:
    """`--out`, or runs/SCRIPT-VARIANT-sSEED."""
    return Path(config.out or f"runs/{run_name(config)}-s{config.seed}")


def claim_folder(folder: Path, resume: bool) -> None:
    """Creates the folder of a new run.

    Raises:
        InputError: the folder holds results or a checkpoint that the run would overwrite, or it cannot be created.
    """
    if (folder / "metrics.json").exists():
        raise InputError(f"{folder} holds a finished run, which is never overwritten: choose another --out.")
    if not resume and (folder / "checkpoint").exists():
        raise InputError(f"{folder} holds an unfinished run: continue it with --resume, or choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the run folder {folder}: {error.strerror}. Choose another --out.") from error


# Identity ------------------------------------------------------------------------------------------------------------


def data_fingerprint(train: ClassificationDataset, val: ClassificationDataset) -> str:
    """Hexadecimal sha256 of the content of all rows: image bytes, boxes and labels."""
    return hashlib.sha256((train.fingerprint + val.fingerprint).encode()).hexdigest()


def run_identity(
    config: TrainConfig, accelerator: Accelerator, train: ClassificationDataset, val: ClassificationDataset
) -> dict[str, Any]:
    """Everything that affects the results of a run except hardware and versions. A resumed run must have the same."""
    result = {
        "script": script_name(config),
        "classes": train.classes,
        "data_fingerprint": data_fingerprint(train, val),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        **identity(asdict(config)),
    }
    if config.teacher:  # its weights, wherever they are stored
        with open(Path(config.teacher, "model.safetensors"), "rb") as file:
            result["teacher"] = hashlib.file_digest(file, "sha256").hexdigest()
    if train.masks is not None:
        result["masks"] = hashlib.sha256(train.masks.data).hexdigest()
    return result


def describe_run(
    config: TrainConfig,
    accelerator: Accelerator,
    model: nn.Module,
    train: ClassificationDataset,
    val: ClassificationDataset,
) -> RunInfo:
    """The `RunInfo` of a run before its first step."""
    git = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    gpu = accelerator.device.type == "cuda"
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return RunInfo(
        script=script_name(config),
        config=asdict(config),
        classes=train.classes,
        rows={"train": len(train), "val": len(val), "dropped": train.dropped},
        data_fingerprint=data_fingerprint(train, val),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        variant=config.variant,
        command=shlex.join(sys.argv),
        versions={"python": platform.python_version(), **versions},
        commit=commit or None,
        device=torch.cuda.get_device_name() if gpu else f"{accelerator.device}, {torch.get_num_threads()} threads",
        processes=accelerator.num_processes,
        mixed_precision=accelerator.mixed_precision,
    )


# Writing -------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Measures the duration of a run, including resumed parts: in total, and without evaluation and checkpoints."""

    def __init__(self) -> None:
        self.total = self.training = 0.0
        self.last = time.perf_counter()

    def lap(self, *, training: bool) -> None:
        """Adds the time since the last lap."""
        now = time.perf_counter()
        self.total += now - self.last
        self.training += (now - self.last) * training
        self.last = now


def main_process_only(method: Callable) -> Callable:
    """Decorates methods of `RunFolder` that only the main process executes; in other processes they return None."""

    @wraps(method)
    def wrapper(self, *args, **kwargs):
        return method(self, *args, **kwargs) if self.is_main else None

    return wrapper


class RunFolder:
    """Writes and prints the output of a run. All processes may call its methods; only the main process acts."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        train: ClassificationDataset,
        val: ClassificationDataset,
    ):
        self.config, self.val, self.is_main = config, val, accelerator.is_main_process
        self.path = folder_of(config)
        self.identity = run_identity(config, accelerator, train, val)
        self.clock = Stopwatch()
        if not self.is_main:
            return
        if config.dry_run:
            self.path = Path(tempfile.mkdtemp(prefix="dry-run-"))
            atexit.register(shutil.rmtree, self.path, ignore_errors=True)
        self.report = audit(train, val)
        self.info = describe_run(config, accelerator, model, train, val)
        print(describe(train, val, self.report))
        if config.summary:
            print(summary(model, (1, 3, config.image_size, config.image_size), verbose=0))

    def start(self, step: int, last_step: int) -> tqdm:
        """Writes the files that precede training, drops log lines after `step`, and returns the progress bar."""
        if not self.is_main:
            return tqdm(disable=True)
        write_json(self.path / "run.json", asdict(self.info))
        write_json(self.path / "data_report.json", self.report)
        if self.report["bad_rows"]:
            write_csv(self.path / "bad_rows.csv", self.report["bad_rows"])
        kept = [line for line in self.read_log() if line["step"] <= step]  # a resumed run repeats later steps
        with atomic_path(self.path / "log.jsonl") as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        resumes = self.config.resume and not self.config.dry_run
        begins = "no checkpoint found, starting from step 0" if resumes and not step else f"from step {step}"
        print(f"{self.info.parameters:,} parameters, {last_step} steps, {begins}, run folder {self.path}", flush=True)
        self.first_step, self.last_step = step, last_step
        self.first_total, self.first_training = self.clock.total, self.clock.training
        self.clock.last = time.perf_counter()
        # None hides the bar if the output is not a terminal
        self.bar = tqdm(total=last_step, initial=step, unit="step", dynamic_ncols=True, disable=None)
        return self.bar

    @main_process_only
    def log(self, *, step: int, epoch: float, loss: float, lr: float) -> None:
        """Logs the mean loss since the last log line, the learning rate of the last step, and the speed."""
        rate = (step - self.first_step) * self.config.batch_size / (self.clock.training - self.first_training)
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.2e}, {rate:.1f} images/s")
        self._append(step=step, epoch=epoch, loss=loss, lr=lr, images_per_second=rate)

    @main_process_only
    def log_epoch(self, *, step: int, epoch: int, train_loss: float, logits: np.ndarray) -> None:
        """Logs and prints the scores of an epoch, from the logits (N, C) of the val rows."""
        result = scores(self.val.labels.numpy(), logits)
        self._append(
            step=step, epoch=epoch, train_loss=train_loss, **{f"val_{name}": value for name, value in result.items()}
        )
        seconds_per_step = (self.clock.total - self.first_total) / (step - self.first_step)
        seconds_left = seconds_per_step * (self.last_step - step)
        self.bar.write(epoch_line(epoch, self.config.epochs, train_loss, result, seconds_left))

    def _append(self, **values: Any) -> None:
        with open(self.path / "log.jsonl", "a") as file:
            file.write(json.dumps(values) + "\n")

    def read_log(self) -> list[dict]:
        """The lines of log.jsonl, without the incomplete line that a killed run may leave."""
        path = self.path / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @main_process_only
    def write_checkpoint(self, state: dict) -> None:
        buffer = io.BytesIO()  # on a full disk, torch.save raises "unexpected pos"; a plain write gives the reason
        torch.save(state, buffer)
        with atomic_path(self.path / "checkpoint" / "last.pt") as partial:
            partial.write_bytes(buffer.getbuffer())

    def read_checkpoint(self) -> dict | None:
        """The state from `write_checkpoint`, or None if there is none; InputError if the file cannot be read."""
        path = self.path / "checkpoint" / "last.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds of exceptions
            raise InputError(f"{path} is not a readable checkpoint: delete {self.path} to start over.") from error

    @main_process_only
    def finish(self, model: nn.Module, logits: np.ndarray) -> None:
        """Writes the results, metrics.json last, and deletes the checkpoint.

        Args:
            model: the model without wrappers.
            logits: (N, C) float32 of the val rows after the last step.
        """
        self.clock.lap(training=False)
        self.info.seconds, self.info.train_seconds = self.clock.total, self.clock.training
        self.info.images_per_second = self.last_step * self.config.batch_size / self.clock.training
        write_json(self.path / "run.json", asdict(self.info))
        with atomic_path(self.path / "model.safetensors") as partial:
            partial.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()}))
        write_json(self.path / "labels.json", self.val.classes)
        rows, result = predictions(self.val, logits), scores(self.val.labels.numpy(), logits)
        write_csv(self.path / "predictions.csv", rows.to_dict("records"))
        log = self.read_log()
        save_figure(self.path / "curves.png", curves(log))
        save_figure(self.path / "confusion.png", confusion(self.val, logits))
        save_figure(self.path / "mistakes.png", mistakes(self.val, logits))
        with atomic_path(self.path / "README.md") as partial:
            text = model_card(run_name(self.config), asdict(self.info), findings(self.report), result, rows)
            partial.write_text(text, encoding="utf-8")
        epochs = [line for line in log if "val_accuracy" in line]
        last = {"epoch": self.config.epochs, "val_accuracy": result["accuracy"]}  # if the log has been deleted
        best = max(epochs, key=lambda line: line["val_accuracy"], default=last)
        best_epoch = {"epoch": best["epoch"], "accuracy": best["val_accuracy"]}
        write_json(self.path / "metrics.json", result | {"best_epoch": best_epoch})
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)  # three times the size of the weights
        print(f"finished: {self.path}")


def predictions(val: ClassificationDataset, logits: np.ndarray) -> pd.DataFrame:
    """The rows of predictions.csv: ids, label, prediction, its probability, and the loss of the label in nats."""
    labels, probabilities = val.labels.numpy(), softmax(logits.astype(np.float64), axis=1)
    classes = np.array(val.classes, dtype=object)
    return pd.DataFrame(
        {
            **val.ids(),
            "label": classes[labels],
            "prediction": classes[probabilities.argmax(1)],
            "probability": probabilities.max(1),
            "loss": row_losses(labels, logits),
        }
    )


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedRun:
    """The contents of a run folder."""

    folder: Path
    info: RunInfo  # run.json
    report: dict  # data_report.json
    rows: pd.DataFrame  # predictions.csv

    def _module(self) -> ModuleType:
        """The script of the run, from the project folder only, as run.json may come from an untrusted source."""
        if not (PROJECT / f"{self.info.script}.py").exists():
            raise InputError(f"{self.folder} was written by {self.info.script}.py, which is not in {PROJECT}.")
        return importlib.import_module(self.info.script)

    @property
    def config(self) -> TrainConfig:
        """The options of the run, but without pretrained weights, as the trained weights are in the folder."""
        options = dict(self.info.config)
        options |= {"weights": "none"} if "weights" in options else {}
        try:
            return self._module().Config(**options)
        except TypeError as error:
            raise InputError(
                f"{self.folder} was written by another version of {self.info.script}.py: {error}"
            ) from error

    def model(self) -> nn.Module:
        """The trained model, in evaluation mode."""
        model = self._module().build_model(self.config, len(self.info.classes))
        try:
            model.load_state_dict(safetensors.torch.load_file(self.folder / "model.safetensors"))
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise InputError(f"the weights in {self.folder} do not match its run.json: {error}") from error
        return model.eval()

    def splits(self) -> tuple[ClassificationDataset, ClassificationDataset]:
        """The train and val splits of the run; InputError if the data is missing or has changed."""
        train, val = load_splits(self.config)
        if data_fingerprint(train, val) != self.info.data_fingerprint:
            raise InputError(f"--data {self.config.data} has changed since {self.folder} was trained on it.")
        return train, val


def read_run(folder: Path) -> FinishedRun:
    """The finished run in `folder`; InputError if there is none, or if a file is missing or inconsistent."""
    if not (folder / "metrics.json").exists():
        state = "an unfinished run" if (folder / "run.json").exists() else "no run"
        raise InputError(f"{folder} holds {state}: give run folders, or folders that contain run folders.")
    try:
        info, report = (json.loads((folder / name).read_text()) for name in ("run.json", "data_report.json"))
        rows = pd.read_csv(folder / "predictions.csv", dtype=str, na_filter=False)[[*IDS, *PREDICTED]]
        rows = rows.astype({"probability": float, "loss": float})
        known = {f.name for f in fields(RunInfo)}
        run = FinishedRun(folder, RunInfo(**{k: v for k, v in info.items() if k in known}), report, rows)
        problem = _problem(run)
        if not problem and json.loads((folder / "labels.json").read_text()) != run.info.classes:
            problem = "labels.json and run.json have different classes"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = str(error)
    if problem:
        raise InputError(f"{folder} is not a complete run folder: {problem}.")
    return run


def _problem(run: FinishedRun) -> str | None:
    """A description of what is missing or inconsistent in a run, or None."""
    config = ("seed", "crop", "augment", "split_by", "recipe")
    missing = [name for name in config if name not in run.info.config]
    missing += [name for name in ("majority", "products") if name not in run.report]
    missing += [name for name in ("images_per_second", "seconds") if getattr(run.info, name) is None]
    if missing:
        return f"{', '.join(sorted(missing))} missing"
    if not re.fullmatch(r"train_\w+", str(run.info.script)):
        return f"{run.info.script} is not a training script"
    if len(run.rows) != run.info.rows["val"] or not len(run.rows):
        return f"{len(run.rows)} predictions for {run.info.rows['val']} val rows"
    if not (run.rows["probability"].between(0, 1).all() and np.isfinite(run.rows["loss"]).all()):
        return "invalid probability or loss"
    return None


def find_runs(folders: Sequence[str]) -> list[FinishedRun]:
    """The finished runs in `folders`, each a run folder or a folder of run folders."""
    selected: list[Path] = []
    for folder in map(Path, folders):
        if (folder / "run.json").exists() or not folder.is_dir():
            selected.append(folder)
            continue
        finished = sorted(path.parent for path in folder.glob("*/metrics.json"))
        if not finished:
            raise InputError(f"{folder} holds no finished run.")
        unfinished = {path.parent for path in folder.glob("*/run.json")} - {*finished}
        if unfinished:
            print(f"skipped because they are not finished: {', '.join(sorted(map(str, unfinished)))}", file=sys.stderr)
        selected += finished
    return [read_run(folder) for folder in dict.fromkeys(selected)]
