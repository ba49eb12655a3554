"""Finished runs read back from their folders, and gathered into experiments: the same thing done with several seeds."""

import importlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import safetensors.torch
from torch import nn

from common.config import VARIANTS, InputError, TrainConfig, variant_of
from common.data import ClassificationDataset, load_splits
from common.runs import HARMLESS, data_fingerprint

PROJECT = Path(__file__).parent.parent
IDS = ["image_id", "product_id", "scene_id", "label"]
PREDICTED = ["prediction", "probability", "loss"]
RUN_KEYS = ("script", "config", "classes", "data_fingerprint", "parameters", "images_per_second", "seconds", "rows")
REPORT_KEYS = ("majority", "products")
CONFIG_KEYS = ("seed", "crop", "augment", "split_by", "recipe")


@dataclass(frozen=True)
class FinishedRun:
    """A run folder's contents."""

    folder: Path
    run: dict  # run.json
    report: dict  # data_report.json
    rows: pd.DataFrame  # predictions.csv

    @property
    def script(self) -> str:
        return self.run["script"]

    def _module(self) -> ModuleType:
        """The script, from the project's folder alone: run.json may come from anywhere."""
        if not (PROJECT / f"{self.script}.py").exists():
            raise InputError(f"{self.folder} is of {self.script}.py, which is not in {PROJECT}.")
        return importlib.import_module(self.script)

    @property
    def config(self) -> TrainConfig:
        """What the run was started with, without a way to the network: its weights are in the folder."""
        options = dict(self.run["config"])
        options |= {"weights": "none"} if "weights" in options else {}
        try:
            return self._module().Config(**options)
        except TypeError as error:
            raise InputError(f"{self.folder} was written by another version of {self.script}.py: {error}") from error

    def model(self) -> nn.Module:
        """The trained model, in evaluation mode."""
        model = self._module().build_model(self.config, len(self.run["classes"]))
        try:
            model.load_state_dict(safetensors.torch.load_file(self.folder / "model.safetensors"))
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise InputError(f"the weights in {self.folder} do not fit its run.json: {error}") from error
        return model.eval()

    def splits(self) -> tuple[ClassificationDataset, ClassificationDataset]:
        """The train and val split that the run used; InputError where the data is gone, or not what it was."""
        train, val = load_splits(self.config)
        if data_fingerprint(train, val) != self.run["data_fingerprint"]:
            raise InputError(f"--data {self.config.data} is not what {self.folder} was trained on.")
        return train, val


def read_run(folder: Path) -> FinishedRun:
    """The run in `folder`; InputError where there is none, or where a part is missing or is not what it should be."""
    if not (folder / "metrics.json").exists():
        state = "an unfinished run" if (folder / "run.json").exists() else "no run"
        raise InputError(f"{folder} holds {state}: name run folders, or folders of run folders.")
    try:
        run, report = (json.loads((folder / name).read_text()) for name in ("run.json", "data_report.json"))
        rows = pd.read_csv(folder / "predictions.csv", dtype=str, na_filter=False)[[*IDS, *PREDICTED]]
        rows = rows.astype({"probability": float, "loss": float})
        missing = {*RUN_KEYS} - run.keys() | {*REPORT_KEYS} - report.keys() | {*CONFIG_KEYS} - run["config"].keys()
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        if not re.fullmatch(r"train_\w+", str(run["script"])):
            raise ValueError(f"{run['script']} is no training script")
        if json.loads((folder / "labels.json").read_text()) != run["classes"]:
            raise ValueError("labels.json and run.json name other classes")
        if len(rows) != run["rows"]["val"] or not len(rows):
            raise ValueError(f"{len(rows)} predictions of {run['rows']['val']} val rows")
        if not (rows["probability"].between(0, 1).all() and np.isfinite(rows["loss"]).all()):
            raise ValueError("a probability or a loss that is none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} is no whole run folder: {error}.") from error
    return FinishedRun(folder, run, report, rows)


def find_runs(folders: Sequence[str]) -> list[FinishedRun]:
    """The runs in `folders`: each is a run folder, or holds run folders, of which the finished ones are taken."""
    found = []
    for folder in map(Path, folders):
        if (folder / "run.json").exists() or not folder.is_dir():
            found.append(folder)
            continue
        inside = sorted(path.parent for path in folder.glob("*/metrics.json"))
        if not inside:
            raise InputError(f"{folder} holds no finished run.")
        unfinished = {path.parent for path in folder.glob("*/run.json")} - {*inside}
        if unfinished:
            print(f"left out, not finished: {', '.join(sorted(map(str, unfinished)))}", file=sys.stderr)
        found += inside
    return [read_run(folder) for folder in dict.fromkeys(found)]


@dataclass
class Experiment:
    """One script with one set of options, trained with S seeds and validated on the same N rows each time."""

    model: str  # such as custom_cnn, with what tells it from other experiments of the same script
    variant: str  # full, crop, crop-augment; of a baseline: what it looks at
    seeds: list[int]
    ids: pd.DataFrame  # (N,) image_id, product_id, scene_id, label, split_by; sorted by image_id
    predictions: np.ndarray  # (S, N) class names
    probabilities: np.ndarray | None = None  # (S, N) of the predicted class
    losses: np.ndarray | None = None  # (S, N) in nats
    runs: list[FinishedRun] = field(default_factory=list)
    shared_products: set = field(default_factory=set)  # products that train shows too

    @property
    def name(self) -> str:
        return f"{self.model} {self.variant}".strip()

    def mean_of(self, key: str) -> float:
        """The mean over the runs of a number in run.json."""
        return float(np.mean([run.run[key] for run in self.runs]))


def gather(runs: Sequence[FinishedRun]) -> list[Experiment]:
    """The experiments that `runs` belong to: models in the order of the runs, each one's variants from the plainest.

    Raises:
        InputError: the runs read different data, a seed occurs twice, or a fold is missing.
    """
    names = _model_names(runs)
    groups: dict[tuple, dict[int, dict[str, FinishedRun]]] = {}
    data: dict[tuple, FinishedRun] = {}
    for run in runs:
        config = run.run["config"]
        same = data.setdefault((config["split_by"], config["crop"]), run)  # bad rows may be others with --crop
        if same.run["data_fingerprint"] != run.run["data_fingerprint"]:
            raise InputError(f"{same.folder} and {run.folder} read different data: compare runs of the same.")
        key = names[_options(run)], variant_of(config["crop"], config["augment"])
        folds = groups.setdefault(key, {}).setdefault(config["seed"], {})
        fold = config["split_by"]
        if fold in folds:
            raise InputError(f"{folds[fold].folder} and {run.folder} are the same run: same options, same seed.")
        folds[fold] = run
    models = list(dict.fromkeys(model for model, _ in groups))
    order = sorted(groups, key=lambda key: (models.index(key[0]), list(VARIANTS).index(key[1])))
    experiments = [_experiment(*key, groups[key]) for key in order]
    first = experiments[0]
    for other in experiments[1:]:
        if not first.ids[IDS].equals(other.ids[IDS]):
            raise InputError(
                f"{first.name} and {other.name} were validated on different rows ({len(first.ids)} and "
                f"{len(other.ids)}): compare runs with the same --data, --limit, --split-by and --bad-rows."
            )
    return experiments


def _experiment(model: str, variant: str, seeds: dict[int, dict[str, FinishedRun]]) -> Experiment:
    tables, shared = [], set()
    for seed, folds in sorted(seeds.items()):
        splits = [fold for fold in folds if "/" in fold]
        missing = int(splits[0].split("/")[1]) - len(splits) if len(folds) > 1 else 0
        if missing or any(fold not in folds for fold in seeds[min(seeds)]):
            raise InputError(f"{model} {variant}, seed {seed}: some folds are missing; finish the study first.")
        rows = pd.concat([folds[fold].rows.assign(split_by=fold) for fold in sorted(folds)], ignore_index=True)
        tables.append(rows.sort_values("image_id", kind="stable", ignore_index=True))
        for run in folds.values():
            shared |= set((run.report["products"] or {}).get("shared", []))
    ids = tables[0][[*IDS, "split_by"]]
    for table in tables[1:]:
        if not ids.equals(table[[*IDS, "split_by"]]):
            raise InputError(f"the seeds of {model} {variant} were validated on different rows.")
    columns = {name: np.stack([table[name] for table in tables]) for name in ("prediction", "probability", "loss")}
    runs = [run for folds in seeds.values() for run in folds.values()]
    return Experiment(
        model, variant, sorted(seeds), ids, columns["prediction"], columns["probability"], columns["loss"], runs, shared
    )


def _options(run: FinishedRun) -> tuple:
    """All of a run's options that make it another experiment, but for the variant."""
    left_out = HARMLESS | {"seed", "crop", "augment"}
    options = {name: value for name, value in run.run["config"].items() if name not in left_out}
    options["split_by"] = re.sub(r":\d+/", ":/", options["split_by"])  # the folds of one split are one experiment
    return run.script, tuple(sorted(options.items()))


def _model_names(runs: Sequence[FinishedRun]) -> dict[tuple, str]:
    """The script's name for each set of options and, where there are several of a script, the options that differ."""
    kinds = list(dict.fromkeys(_options(run) for run in runs))
    names = {}
    for script, options in kinds:
        others = [dict(o) for s, o in kinds if s == script]
        differ = [name for name, value in options if any(other.get(name) != value for other in others)]
        if len({other["recipe"] for other in others}) == len(others) > 1:
            differ = ["recipe"]  # which decides many of the others
        values = {name: value for name, value in options if name in differ}
        shown = ", ".join(f"no {name}" if value == "" else f"{name} {value}" for name, value in values.items())
        names[script, options] = script.removeprefix("train_") + (f" ({shown})" if shown else "")
    return names
