"""The run folder: its location, files and fields, and how a run writes them. `common.finished_run` reads them.

run.json            RunInfo: options, data, versions, device, speed
data_report.json    the audit of the data (`common.data.audit`); bad_rows.csv lists the rows that were left out
log.jsonl           a line with the loss every few steps, and a line with the scores after each epoch
checkpoint/last.pt  until the run is finished (`common.checkpoint`)
metrics.json        scores of the last epoch; written last, so a folder that has it is finished
predictions.csv     one line for each val row
probabilities.safetensors
                    of all classes (N, C) float32, for the rows of predictions.csv and the classes of labels.json
model.safetensors, labels.json, config.json, README.md, curves.png, confusion.png, mistakes.png
reference.safetensors, train_*.py
                    outputs for a few images and a copy of the script, to check the model by (`common.provenance`)
"""

import atexit
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from accelerate import Accelerator
from scipy.special import softmax
from torch import nn
from torchinfo import summary
from tqdm import tqdm

from common import provenance
from common.config import (
    ID_COLUMNS,
    IMAGENET,
    KNOWN_DATA,
    InputError,
    Normalization,
    TrainConfig,
    differences,
    identity,
    printable,
)
from common.data.audit import audit, describe, findings
from common.data.dataset import ClassificationDataset
from common.files import CHECKPOINT, LOCK, atomic_path, check_lock, lock_folder, unlock_folder, write_csv, write_json
from common.metrics import epoch_line, row_losses, scores
from common.model_card import hub_config, model_card, score_intervals
from common.processes import check_equal
from common.provenance import REFERENCE, changed_files, check_unchanged, code_hashes, write_reference
from common.stats import format_score
from common.trackers import start_trackers

PACKAGES = ("torch", "torchvision", "accelerate", "scikit-learn", "timm", "numpy", "pillow", "pyarrow")
IDS = [*ID_COLUMNS, "label"]  # columns of predictions.csv that are the same for every model
PREDICTED = ["prediction", "probability", "loss"]  # columns that differ between models
PROBABILITIES = "probabilities.safetensors"


def normalization_fields(normalization: Normalization) -> dict[str, list[float]]:
    """A normalisation as it is written in run.json."""
    return {name: list(value) for name, value in asdict(normalization).items()}


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
    code: dict[str, str] = field(default_factory=dict)  # see `common.provenance.code_hashes`
    id: str = field(default_factory=lambda: secrets.token_hex(4))  # under which trackers know the run
    resumed: list[dict[str, Any]] = field(default_factory=list)  # step, command and commit of each continuation
    files: dict[str, str] = field(default_factory=dict)  # sha256 of what `finish` wrote, once it is finished
    normalization: dict[str, list[float]] = field(default_factory=lambda: normalization_fields(IMAGENET))
    device: str = ""
    processes: int = 1
    mixed_precision: str = "no"
    seconds: float | None = None  # this and the next two are None until the run is finished
    train_seconds: float | None = None  # without evaluation and checkpoints
    images_per_second: float | None = None  # in training


# Location ------------------------------------------------------------------------------------------------------------


def script_file(config: TrainConfig) -> Path:
    """The script that defines `config`'s class."""
    return Path(str(sys.modules[type(config).__module__].__file__))


def run_name(config: TrainConfig) -> str:
    """SCRIPT-VARIANT, with the recipe between them unless it is the default."""
    recipe = "" if config.recipe == "default" else f"-{config.recipe}"
    return f"{script_file(config).stem}{recipe}-{config.variant}"


def folder_of(config: TrainConfig) -> Path:
    """`--out`, or runs/SCRIPT-VARIANT-sSEED."""
    return Path(config.out or f"runs/{run_name(config)}-s{config.seed}")


def claim_folder(config: TrainConfig) -> None:
    """Creates the folder of a new or resumed run, and locks it until `release_folder` or the end of the process.

    Raises:
        InputError: another process uses the folder, it holds results or a checkpoint that the run would overwrite or
            files that are not of a run, or it cannot be created.
    """
    folder = folder_of(config)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        kind = "a symbolic link" if folder.is_symlink() else "not a folder"
        raise InputError(f"{folder} is {kind}, which is never replaced: choose another --out.")
    lock_folder(folder)
    problem = _occupied(folder, config)
    if problem:
        unlock_folder(folder)
        raise InputError(f"{folder} holds {problem}")


def _occupied(folder: Path, config: TrainConfig) -> str | None:
    """What is in a locked `folder` that keeps a run from using it, and what to do; None if nothing is."""
    files = {path.name: path for path in folder.iterdir() if path.name != LOCK and path.suffix != ".tmp"}
    foreign = [name for name, path in files.items() if not (path.is_file() or path.is_dir())]  # may block when read
    if not (folder / "run.json").is_file() and not (folder / CHECKPOINT).exists():
        foreign = [*files]
    if foreign:
        return f"files that are not of a run, such as {min(foreign)}: choose another --out."
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        differ = differences(run["config"], config)
        differ = [f"{run['script']}.py"] * (run["script"] != script_file(config).stem) + differ
        options = ", ".join(differ) or "the same options"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        options = "unknown options"
    if (folder / "metrics.json").exists():
        return f"a finished run with {options}, which is never overwritten: choose another --out."
    if not config.resume and (folder / "checkpoint").exists():
        return f"an unfinished run with {options}: continue that one with --resume, or choose another --out."
    results = [name for name in ("model.safetensors", "predictions.csv") if name in files]
    if results and not (folder / CHECKPOINT).exists():
        return f"{results[0]} of a run with {options}, whose metrics.json is missing: choose another --out."
    return None


def releases_folder(train: Callable) -> Callable:
    """Decorates a function of a config and more: unlocks the run folder at its end, whether it returns or raises."""

    @wraps(train)
    def wrapper(config, *args, **kwargs):
        try:
            return train(config, *args, **kwargs)
        finally:
            unlock_folder(folder_of(config))

    return wrapper


# Identity ------------------------------------------------------------------------------------------------------------


def data_fingerprint(train: ClassificationDataset, val: ClassificationDataset) -> str:
    """Hexadecimal sha256 of the content of all rows: image bytes, boxes and labels."""
    return hashlib.sha256((train.fingerprint + val.fingerprint).encode()).hexdigest()


def run_identity(
    config: TrainConfig, accelerator: Accelerator, train: ClassificationDataset, val: ClassificationDataset
) -> dict[str, Any]:
    """Everything that affects the results of a run except hardware and versions. A resumed run must have the same."""
    result = {
        "script": script_file(config).stem,
        "classes": train.classes,
        "data_fingerprint": data_fingerprint(train, val),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        **identity(asdict(config)),
    }
    if config.teacher:  # its weights, wherever they are stored; `load_teacher` has compared them with this hash
        teacher = json.loads(Path(config.teacher, "run.json").read_text(encoding="utf-8"))
        result["teacher"] = teacher["files"]["model.safetensors"]
    if config.normalization != IMAGENET:  # a package determines it, and another version may do so differently
        result["normalization"] = normalization_fields(config.normalization)
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
    git = ["git", "-C", str(provenance.PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    gpu = accelerator.device.type == "cuda"
    return RunInfo(
        script=script_file(config).stem,
        config=asdict(config),
        classes=train.classes,
        rows={"train": len(train), "val": len(val), "dropped": train.dropped},
        data_fingerprint=data_fingerprint(train, val),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        variant=config.variant,
        command=shlex.join(sys.argv),
        versions=package_versions(),
        commit=commit or None,
        code=code_hashes(script_file(config)),
        normalization=normalization_fields(config.normalization),
        device=torch.cuda.get_device_name() if gpu else f"{accelerator.device}, {torch.get_num_threads()} threads",
        processes=accelerator.num_processes,
        mixed_precision=accelerator.mixed_precision,
    )


def package_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


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
    """Decorates methods of `RunFolder` that only the main process executes; in other processes they return None.

    They write, so they raise InputError if the folder was deleted and may be that of another run now.
    """

    @wraps(method)
    def wrapper(self, *args, **kwargs):
        if not self.is_main:
            return None
        check_lock(self.path)
        return method(self, *args, **kwargs)

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
        self.config, self.val, self.accelerator = config, val, accelerator
        self.is_main = accelerator.is_main_process
        self.path = folder_of(config)
        check_unchanged(script_file(config))
        self.script = script_file(config).read_bytes()
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

    def compare_processes(self) -> None:
        """Raises an InputError if the processes of the run do not have the same options, data, code and packages.

        Those on other machines may have other copies of them.
        """
        if self.accelerator.num_processes > 1:
            options = {name: getattr(self.config, name) for name in ("resume", "checkpoint_every", "dry_run")}
            code = code_hashes(script_file(self.config))
            own = self.identity | options | package_versions() | code
            del own["data"]  # the fingerprint counts, not the path
            check_equal(own)

    def start(self, step: int, last_step: int) -> tqdm:
        """Writes the files that precede training, drops log lines after `step`, and returns the progress bar."""
        if not self.is_main:
            return tqdm(disable=True)
        check_lock(self.path)
        write_json(self.path / "run.json", asdict(self.info))
        with atomic_path(self.path / f"{self.info.script}.py") as partial:
            partial.write_bytes(self.script)
        write_json(self.path / "data_report.json", self.report)
        if self.report["bad_rows"]:
            write_csv(self.path / "bad_rows.csv", self.report["bad_rows"])
        kept = [line for line in self.read_log() if line["step"] <= step]  # a resumed run repeats later steps
        with atomic_path(self.path / "log.jsonl") as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        options = asdict(self.config) | {"variant": self.info.variant, "parameters": self.info.parameters}
        start_trackers(self.accelerator, self.path, self.info.id, options, step)
        resumes = self.config.resume and not self.config.dry_run
        begins = "no checkpoint found, starting from step 0" if resumes and not step else f"from step {step}"
        folder = printable(str(self.path))
        print(f"{self.info.parameters:,} parameters, {last_step} steps, {begins}, run folder {folder}")
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
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        step = values.pop("step")
        if "train_loss" in values:  # the line before, of the same step, has the epoch too
            del values["epoch"]
        self.accelerator.log(values, step=step)

    def read_log(self) -> list[dict]:
        """The lines of log.jsonl, without the incomplete line that a killed run may leave."""
        path = self.path / "log.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        log = []
        for number, text in enumerate(lines, 1):
            if text.endswith(b"\n"):
                try:
                    line = json.loads(text)
                    int(line["step"])
                    log.append(line)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise InputError(
                        f"line {number} of {path} is damaged: delete the file to continue with a new log, or "
                        f"{self.path} to start over."
                    ) from error
        return log

    @main_process_only
    def write_checkpoint(self, state: dict) -> None:
        origin = {name: getattr(self.info, name) for name in ("id", "command", "commit", "code", "resumed")}
        buffer = io.BytesIO()  # on a full disk, torch.save raises "unexpected pos"; a plain write gives the reason
        torch.save(state | {"script": self.script, "origin": origin}, buffer)
        with atomic_path(self.path / CHECKPOINT) as partial:
            partial.write_bytes(buffer.getbuffer())

    def read_checkpoint(self) -> dict | None:
        """The state from `write_checkpoint`, or None if there is none.

        Raises:
            InputError: the file cannot be read, or the folder was deleted since this run started.
        """
        check_lock(self.path)
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            if not path.is_file():  # opening a FIFO would wait forever
                raise OSError("not a regular file")
            with zipfile.ZipFile(path) as file:
                if file.testzip():  # compares the checksums, which torch.load does not
                    raise zipfile.BadZipFile
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds of exceptions
            raise InputError(f"the checkpoint {path} is damaged: delete {self.path} to start over.") from error

    @main_process_only
    def continue_run(self, step: int, origin: dict) -> None:
        """Keeps the command, commit and code of the first start of a resumed run, and notes those of this one."""
        files = changed_files(origin["code"], self.info.code)
        if files:
            print(
                f"note: changed since the run was started: {', '.join(files)}; it may differ from an uninterrupted run"
            )
        again = {"step": step, "command": self.info.command, "commit": self.info.commit, "changed": files}
        self.info = replace(self.info, **origin | {"resumed": [*origin["resumed"], again]})

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
        contents = {
            "model.safetensors": safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()}),
            PROBABILITIES: safetensors.numpy.save({"probabilities": probabilities_of(logits).astype(np.float32)}),
        }
        for name, content in contents.items():
            with atomic_path(self.path / name) as partial:
                partial.write_bytes(content)
        with atomic_path(self.path / REFERENCE) as partial:
            write_reference(partial, self.config, model, self.val)
        write_json(self.path / "labels.json", self.val.classes)
        columns, result = predictions(self.val, logits), scores(self.val.labels.numpy(), logits)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        write_csv(self.path / "predictions.csv", rows)
        contents["predictions.csv"] = (self.path / "predictions.csv").read_bytes()
        self.info.files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        write_json(self.path / "run.json", asdict(self.info))
        # Imported here because it takes half a second, which would delay the first step.
        from common.figures import confusion, curves, mistakes, save_figure

        log = self.read_log()
        save_figure(self.path / "curves.png", curves(log))
        save_figure(self.path / "confusion.png", confusion(self.val, logits))
        save_figure(self.path / "mistakes.png", mistakes(self.val, logits))
        intervals = score_intervals(columns)
        with atomic_path(self.path / "README.md") as partial:
            text = model_card(
                run_name(self.config), asdict(self.info), findings(self.report), result, columns, intervals
            )
            partial.write_text(text, encoding="utf-8")
        write_json(self.path / "config.json", hub_config(asdict(self.info)))
        epochs = [line for line in log if "val_accuracy" in line]
        last = {"epoch": self.config.epochs, "val_accuracy": result["accuracy"]}  # if the log has been deleted
        best = max(epochs, key=lambda line: line["val_accuracy"], default=last)
        best_epoch = {"epoch": best["epoch"], "accuracy": best["val_accuracy"]}
        write_json(self.path / "metrics.json", result | {"best_epoch": best_epoch})
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)  # three times the size of the weights
        print("\n" + "\n".join(self._closing_lines(result, intervals)))

    def _closing_lines(self, result: dict, intervals: dict) -> list[str]:
        """The last lines of a run: its accuracy, where its files are, and commands for the next steps."""
        score = f"{result['accuracy']:.3f}"
        if intervals:
            score = format_score(result["accuracy"], intervals["accuracy"]) + " (95 % confidence interval)"
        on_path = Path(shutil.which("python") or "").parent == Path(sys.executable).parent
        python = "python" if on_path else shlex.quote(sys.executable)
        paths = str(self.path), self.config.data
        run, data = (shlex.quote(f"./{path}" if path.startswith("-") else path) for path in paths)
        lines = [
            f"finished: {self.path}: accuracy {score} on {result['n']} val rows",
            f"results:  {self.path / 'README.md'}, and beside it curves.png, confusion.png and mistakes.png",
        ]
        if not self.config.dry_run:  # whose folder is deleted at the end
            predict, compare = (
                shlex.quote(os.path.relpath(provenance.PROJECT / name)) for name in ("predict.py", "compare.py")
            )
            own = "" if self.config.data in KNOWN_DATA else f" --data {data}"
            following = [f"next:     {python} {predict} {run} {data}", f"          {python} {compare} {run}{own}"]
            if following == list(map(printable, following)):
                lines += following
        return [printable(line) for line in lines]


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) float64 of logits (N, C) float32."""
    return softmax(logits.astype(np.float64), axis=1)


def predictions(val: ClassificationDataset, logits: np.ndarray) -> dict[str, list]:
    """The columns of predictions.csv: ids, label, prediction, its probability, and the loss of the label in nats."""
    labels, probabilities = val.labels.numpy(), probabilities_of(logits)
    classes = np.array(val.classes, dtype=object)
    return {
        **val.ids(),
        "label": classes[labels].tolist(),
        "prediction": classes[probabilities.argmax(1)].tolist(),
        "probability": probabilities.max(1).tolist(),
        "loss": row_losses(labels, logits).tolist(),
    }
