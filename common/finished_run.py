"""Reads finished runs: checks their files against each other, and rebuilds the model and the data.

A run folder may come from anywhere. It is read like a command line, never executed, and does not decide which other
files are read or written.
"""

import atexit
import hashlib
import importlib
import io
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from common import provenance
from common.config import KNOWN_DATA, DataConfig, InputError, TrainConfig, fits
from common.data.dataset import ClassificationDataset, load_splits
from common.data.hub import hub_or_cache
from common.data.sources import is_hub_id
from common.data.splits import parse_split
from common.data.table import file_problem
from common.files import csv_text, open_regular
from common.metrics import scores_of_predictions
from common.provenance import REFERENCE, changed_files, code_hashes, code_key, reference_problem
from common.run_folder import (
    IDS,
    PREDICTED,
    PROBABILITIES,
    RunInfo,
    data_fingerprint,
    normalization_fields,
    package_versions,
)

NEEDED = (
    "run.json", "data_report.json", "metrics.json", "labels.json", "predictions.csv", "model.safetensors",
    PROBABILITIES, REFERENCE, "train_*.py",
)  # fmt: skip


@dataclass(frozen=True)
class FinishedRun:
    """The contents of a run folder."""

    folder: Path
    info: RunInfo  # run.json
    report: dict  # data_report.json
    rows: pd.DataFrame  # predictions.csv
    name: str  # what a user calls it: its folder or, for a run on the Hub, owner/name

    @property
    def script(self) -> Path:
        """The copy of the script in the run folder, which is compared with others, but never executed."""
        return self.folder / f"{self.info.script}.py"

    @cached_property
    def code_key(self) -> str:
        """`common.provenance.code_key` of the script; "" if an older version wrote the run and did not record it."""
        return code_key(_read(self.script)) if self.info.code else ""

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities (N, C) float32 of all classes, for the rows of predictions.csv, in the order of labels.json.

        Raises:
            InputError: the file is missing, damaged, not the one that the run wrote, or contradicts predictions.csv.
        """
        path, shape = self.folder / PROBABILITIES, (len(self.rows), len(self.info.classes))
        if path.name not in self.info.files:
            raise InputError(f"{self.name} has no {path.name}, because an older version wrote it: train the run again.")
        encoded = _read(path, limit=4 * shape[0] * shape[1] + 10**6)
        if hashlib.sha256(encoded).hexdigest() != self.info.files[path.name]:
            raise InputError(f"{path} is not the file that the run wrote: restore it, or train the run again.")
        try:
            probabilities = safetensors.numpy.load(encoded)["probabilities"]
        except (safetensors.SafetensorError, KeyError) as error:
            raise InputError(f"{path} cannot be read: {error}.") from error
        if probabilities.shape != shape or probabilities.dtype != np.float32:
            raise InputError(f"{path} is {probabilities.dtype} {probabilities.shape} instead of float32 {shape}.")
        predicted = np.searchsorted(self.info.classes, self.rows["prediction"])
        stated = probabilities[np.arange(shape[0]), predicted]
        fits_csv = np.abs(stated - self.rows["probability"]).max() <= 1e-6
        if not (fits_csv and probabilities.min() >= 0 and np.abs(probabilities.sum(1) - 1).max() <= 1e-4):
            raise InputError(f"{path} contradicts predictions.csv: restore them, or train the run again.")
        return probabilities

    def _module(self) -> ModuleType:
        """The script of the run, from the project folder only, as a run folder may come from an untrusted source."""
        if not (provenance.PROJECT / self.script.name).exists():
            raise InputError(f"{self.name} was written by {self.script.name}, which is not in {provenance.PROJECT}.")
        return importlib.import_module(self.info.script)

    @property
    def config(self) -> TrainConfig:
        """The options of the run, but without pretrained weights, as the trained weights are in the folder."""
        options = dict(self.info.config)
        options |= {"weights": "none"} if "weights" in options else {}
        try:
            config = self._module().Config(**options)
        except TypeError as error:
            raise InputError(f"{self.name} was written by another version of {self.script.name}: {error}") from error
        today = normalization_fields(config.normalization)
        if self.info.normalization != today:
            raise InputError(
                f"the model in {self.name} was trained on pixels normalised with {self.info.normalization}, but "
                f"{self.script.name} normalises with {today} today. {self._cause()}"
            )
        return config

    def model(self) -> nn.Module:
        """The trained model, on the CPU, in evaluation mode.

        It is built by today's script and returned only if it reproduces the outputs that are stored in the folder.

        Raises:
            InputError: it does not; or the weights are damaged, of another model, or not those that the run wrote.
        """
        if not self.info.files:
            raise InputError(
                f"{self.name} has no outputs to check its model with, because an older version wrote it: use the "
                f"code of commit {self.info.commit or 'unknown'}, or train the run again."
            )
        build, config = self._module().build_model, self.config
        try:
            with torch.device("meta"):  # no memory: run.json may describe a model of any size
                skeleton = build(config, len(self.info.classes)).state_dict()
        except RuntimeError as error:  # even of more elements than an int64 counts
            raise InputError(f"the model in {self.name} cannot be built: {str(error).splitlines()[0]}.") from error
        path = self.folder / "model.safetensors"
        try:
            size = sum(tensor.nbytes for tensor in skeleton.values())
            with open_regular(path, limit=10 * size + 10**7) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except InputError as error:
            raise InputError(f"the model in {self.name} cannot be loaded: {error}.") from error
        if sha256 != self.info.files.get(path.name):
            raise InputError(
                f"{path} is not the file that the run wrote: it is damaged or was replaced. Restore it, or train the "
                "run again."
            )
        try:
            state = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise InputError(f"the model in {self.name} cannot be loaded: {error}.") from error
        wrong = sorted(name for name, _ in _shapes(skeleton).items() ^ _shapes(state).items())
        problem: str | None
        if wrong:
            problem = f"{wrong[0]} is missing, or has another shape or dtype"
        else:
            model = build(config, len(self.info.classes))
            model.load_state_dict(state)
            problem = reference_problem(self.folder / REFERENCE, config, model)
        if problem:
            raise InputError(f"{self.name}: {self.script.name} builds another model today: {problem}. {self._cause()}")
        files = self._changed_files()
        if files:
            print(
                f"note: changed since {self.name} was made, with the same outputs: {', '.join(files)}",
                file=sys.stderr,
            )
        return model.eval()

    def _changed_files(self) -> list[str]:
        return changed_files(self.info.code, code_hashes(provenance.PROJECT / self.script.name))

    def _cause(self) -> str:
        """What has changed since the run was made, and what to do about it."""
        files = self._changed_files()
        packages = [name for name, version in self.info.versions.items() if package_versions().get(name) != version]
        if files:
            commit = self.info.commit or "unknown"
            return f"Changed since commit {commit}: {', '.join(files)}. Use the code of that commit."
        if packages:
            old = ", ".join(f"{name} {self.info.versions[name]}" for name in packages)
            return f"The code is the same, but the run used {old}: install that."
        return "The code and the packages are the same, so the run folder was changed: restore it."

    def splits(
        self, data: str = "", cache: str = DataConfig.cache
    ) -> tuple[ClassificationDataset, ClassificationDataset]:
        """The train and val splits of the run.

        Args:
            data: where the data is now. The run folder may come from anywhere, so it does not decide what is read: ""
                stands for the run's data only if that is the bundled sample or the default data set.
            cache: folder for decoded pixels.

        Raises:
            InputError: `data` is needed, or the data is missing or has changed.
        """
        config = self.config
        if not data and config.data not in KNOWN_DATA:
            raise InputError(
                f"{self.name} was trained on {config.data}: add --data {shlex.quote(config.data)} to read it."
            )
        limit = DataConfig.max_megapixels  # like `cache`, not up to the run folder
        config = replace(config, data=data or config.data, cache=cache, max_megapixels=limit)
        train, val = load_splits(config)
        if data_fingerprint(train, val) != self.info.data_fingerprint:
            raise InputError(f"--data {config.data} is not the data that {self.name} was trained on, or has changed.")
        ids = val.ids() | {"label": [val.classes[label] for label in val.labels.tolist()]}
        if any(ids[name] != self.rows[name].tolist() for name in IDS):
            raise InputError(f"predictions.csv in {self.name} does not have the val rows of --data {config.data}.")
        return train, val

    def check_predictions(self, predicted: np.ndarray) -> int:
        """Compares the predictions of a model, class numbers (N,), with predictions.csv, and returns how many agree.

        Raises:
            InputError: more than 1 % differ (5 % for mixed precision), which is more than another processor causes:
                today's code prepares or evaluates the val rows in another way.
        """
        most = 0.01 if self.info.mixed_precision == "no" else 0.05
        agree = int((np.array(self.info.classes, dtype=object)[predicted] == self.rows["prediction"]).sum())
        if len(self.rows) - agree > 1 + most * len(self.rows):
            raise InputError(
                f"{self.name}: today, the model predicts {len(self.rows) - agree} of {len(self.rows)} val rows "
                f"otherwise than predictions.csv. {self._cause()}"
            )
        return agree


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


def read_run(folder: Path, name: str = "") -> FinishedRun:
    """The finished run in `folder`; InputError if there is none, or if a file is missing, damaged or inconsistent.

    `name` is what messages call it, by default the folder.
    """
    name = name or str(folder)
    if not (folder / "metrics.json").exists():
        state = "an unfinished run" if (folder / "run.json").exists() else "no run"
        raise InputError(f"{name} holds {state}: give run folders, or folders that contain run folders.")
    try:
        info, report, metrics, labels = (
            _read_json(folder / name) for name in ("run.json", "data_report.json", "metrics.json", "labels.json")
        )
        problem = _problem(info, report)
        if not problem:
            known = {f.name for f in fields(RunInfo)}
            info = RunInfo(**{name: value for name, value in info.items() if name in known})
            encoded = _read(folder / "predictions.csv", limit=10**10)
            if info.files and hashlib.sha256(encoded).hexdigest() != info.files.get("predictions.csv"):
                raise ValueError("predictions.csv is not the file that the run wrote")
            table = io.BytesIO(encoded)
            rows = pd.read_csv(table, dtype=str, na_filter=False, encoding_errors="surrogateescape")
            if not {*IDS, *PREDICTED} <= {*rows.columns}:
                raise ValueError(f"predictions.csv must have the columns {', '.join([*IDS, *PREDICTED])}")
            rows = rows[[*IDS, *PREDICTED]].map(csv_text).astype({"probability": float, "loss": float})
            problem = _contradiction(info, rows, metrics, labels)
            script = folder / f"{info.script}.py"
            if not problem and info.code and hashlib.sha256(_read(script)).hexdigest() != info.code.get(script.name):
                problem = f"{script.name} is not the script of the run"
    except KeyError as error:
        problem = f"{error} is missing"
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        problem = str(error)
    if problem:
        raise InputError(f"{name} is not a complete run folder: {problem}.")
    return FinishedRun(folder, info, report, rows, name)


def _read(path: Path, limit: int = 10**8) -> bytes:
    with open_regular(path, limit=limit) as file:
        return file.read()


def _read_json(path: Path) -> Any:
    value = json.loads(_read(path))
    json.dumps(value, ensure_ascii=False).encode()  # fails for text that is not valid, such as half characters
    return value


def _problem(info: dict, report: dict) -> str | None:
    """What is missing or has another type in run.json or data_report.json, or None."""
    for f in fields(RunInfo):
        if f.name in info and not fits(info[f.name], f.type):
            return f"{f.name} in run.json is {str(info[f.name])[:60]!r}"
    config = info["config"]
    shared = {f.name for f in fields(TrainConfig)}
    TrainConfig(**{name: value for name, value in config.items() if name in shared})  # checks types and ranges
    for name, value in config.items():
        if not fits(value, bool | int | float | str):
            return f"{name} in run.json is {str(value)[:60]}"
    missing = [name for name in ("seed", "crop", "augment", "split_by", "recipe") if name not in config]
    missing += [name for name in ("majority", "products") if name not in report]
    missing += [name for name in ("images_per_second", "seconds") if info.get(name) is None]
    if missing:
        return f"{', '.join(sorted(missing))} missing"
    if config["split_by"]:
        parse_split(config["split_by"])
    if not re.fullmatch(r"train_\w+", info["script"], re.ASCII):
        return f"{info['script']} is not a training script"
    if info["classes"] != sorted(set(info["classes"])):
        return "the classes are not sorted or not unique"
    products = report["products"]
    if report["majority"] not in info["classes"] or not (products is None or fits(products["shared"], list[str])):
        return "data_report.json does not fit run.json"
    return None


def _contradiction(info: RunInfo, rows: pd.DataFrame, metrics: dict, labels: list) -> str | None:
    """How the files of a run contradict each other, or None."""
    if labels != info.classes:
        return "labels.json and run.json have different classes"
    if len(rows) != info.rows["val"] or not len(rows):
        return f"{len(rows)} predictions for {info.rows['val']} val rows"
    unknown = sorted({*rows["label"], *rows["prediction"]} - {*labels})
    if unknown:
        return f"predictions.csv has the category {unknown[0]!r}, which is not in labels.json"
    if not (rows["probability"].between(0, 1).all() and rows["loss"].between(0, np.inf, inclusive="left").all()):
        return "invalid probability or loss"
    actual = scores_of_predictions(rows["label"].to_numpy(), rows["prediction"].to_numpy())
    actual |= {"n": len(rows), "loss": rows["loss"].mean()}
    for name, value in actual.items():
        if not abs(metrics[name] - value) <= 1e-9 * max(1, value):
            return f"{name} is {metrics[name]} in metrics.json, but {value} in predictions.csv"
    return None


def open_run(name: str) -> FinishedRun:
    """The finished run in the folder `name` or, if it has the form owner/name and is no path, that run on the Hub."""
    if is_hub_id(name):
        return read_run(_downloaded(name), name)
    return read_run(Path(name))


def _downloaded(name: str) -> Path:
    """A copy of the run `name`, owner/name or owner/name@REVISION, on the Hub.

    Only the files of a run folder are downloaded, or taken from the local Hub cache if the Hub is unreachable.

    Raises:
        InputError: there is no such model, or it holds something else than regular files.
    """
    with hub_or_cache() as online:
        try:
            repo, _, revision = name.partition("@")
            folder = huggingface_hub.snapshot_download(
                repo, revision=revision or None, allow_patterns=list(NEEDED), local_files_only=not online
            )
        except Exception as error:  # depending on its version and the network, the library raises errors of many kinds
            why = str(error) if online else "the Hub cannot be reached, and the run is not in the local cache"
            raise InputError(f"{name} is neither a run folder nor a run on the Hub: {why}") from error
    copy = Path(tempfile.mkdtemp(prefix="run-"), *repo.split("/"))  # files of the cache are links, which a run is not
    atexit.register(shutil.rmtree, copy.parents[1], ignore_errors=True)
    copy.mkdir(parents=True)
    for file in Path(folder).iterdir():
        if not any(file.match(pattern) for pattern in NEEDED):  # the cache may hold more files of the model
            continue
        if problem := file_problem(str(file), str(Path(folder).parents[1])):
            raise InputError(f"{name}: {file.name} cannot be read: {problem}.")
        shutil.copyfile(file, copy / file.name)
    return copy


def find_runs(folders: Sequence[str]) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs in `folders`, each a run folder, a folder of run folders or a run on the Hub, owner/name.

    Returns:
        The runs, and a sentence for each folder within one of `folders` that holds an unfinished or damaged run.

    Raises:
        InputError: one of `folders` is not a complete run folder and does not contain one.
    """
    runs: dict[Path, FinishedRun] = {}
    notes = []
    for name in folders:
        folder = Path(name)
        if (folder / "run.json").exists() or not folder.is_dir():
            runs[folder] = open_run(name)
            continue
        found = {}
        for path in sorted(file.parent for file in folder.glob("*/run.json")):
            if not (path / "metrics.json").exists():
                notes.append(f"left out: {path} is not finished")
                continue
            try:
                found[path] = read_run(path)
            except InputError as error:
                notes.append(f"left out: {str(error).removesuffix('.')}")
        if not found:
            raise InputError(f"{folder} holds no finished run." + "".join(f" {note}." for note in notes[:1]))
        runs |= found
    return list(runs.values()), notes
