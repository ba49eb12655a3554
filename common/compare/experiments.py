"""Groups finished runs into experiments: the same script and options, trained with several seeds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from common.config import VARIANTS, InputError, identity, variant_of
from common.run_folder import IDS, FinishedRun


@dataclass
class Experiment:
    """One script with one set of options, trained with S seeds and validated on the same N rows each time."""

    model: str  # such as custom_cnn; if the script has several experiments, with the options that differ
    variant: str  # one of `common.config.VARIANTS`; for a baseline, the pixels it uses: "full", "crop" or ""
    seeds: list[int]
    ids: pd.DataFrame  # (N,) image_id, product_id, scene_id, label, split_by; sorted by image_id
    predictions: np.ndarray  # (S, N) class names
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # (S, N) of the predicted class
    losses: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # (S, N) in nats; both empty for baselines
    runs: list[FinishedRun] = field(default_factory=list)
    shared_products: set = field(default_factory=set)  # product ids that occur in both train and val

    @property
    def name(self) -> str:
        return f"{self.model} {self.variant}".strip()

    def mean_of(self, name: str) -> float:
        """The mean over the runs of a number in run.json."""
        return float(np.mean([getattr(run.info, name) for run in self.runs]))


def group_runs(runs: Sequence[FinishedRun]) -> list[Experiment]:
    """Groups `runs` into experiments.

    Models are in the order of their first runs, and the variants of a model in the order of `VARIANTS`.

    Raises:
        InputError: the runs used different data, two runs have the same options and seed, or a fold is missing.
    """
    model_names = _model_names(runs)
    groups: dict[tuple, dict[int, dict[str, FinishedRun]]] = {}  # by model and variant, then by seed and fold
    first_runs: dict[tuple, FinishedRun] = {}
    for run in runs:
        config = run.info.config
        # Different rows may be unusable with and without --crop, so the data is compared separately for each.
        first_run = first_runs.setdefault((config["split_by"], config["crop"]), run)
        if first_run.info.data_fingerprint != run.info.data_fingerprint:
            raise InputError(
                f"{first_run.folder} and {run.folder} used different data: compare only runs on the same data."
            )
        key = model_names[_options(run)], variant_of(config["crop"], config["augment"])
        folds = groups.setdefault(key, {}).setdefault(config["seed"], {})
        fold = config["split_by"]
        if fold in folds:
            raise InputError(
                f"{folds[fold].folder} and {run.folder} have the same options and the same seed: leave one of them out."
            )
        folds[fold] = run
    models = list(dict.fromkeys(model for model, _ in groups))
    order = sorted(groups, key=lambda key: (models.index(key[0]), list(VARIANTS).index(key[1])))
    experiments = [_experiment(model, variant, groups[model, variant]) for model, variant in order]
    first = experiments[0]
    for experiment in experiments[1:]:
        if not first.ids[IDS].equals(experiment.ids[IDS]):
            raise InputError(
                f"{first.name} and {experiment.name} were validated on different rows ({len(first.ids)} and "
                f"{len(experiment.ids)}): compare runs with the same --data, --limit, --split-by and --bad-rows."
            )
    return experiments


def _experiment(model: str, variant: str, seeds: dict[int, dict[str, FinishedRun]]) -> Experiment:
    """The experiment with the runs `seeds`, a dict by seed and fold."""
    tables, shared_products = [], set()
    for seed, folds in sorted(seeds.items()):
        splits = [fold for fold in folds if "/" in fold]
        missing = int(splits[0].split("/")[1]) - len(splits) if len(folds) > 1 else 0
        if missing or any(fold not in folds for fold in seeds[min(seeds)]):
            raise InputError(f"{model} {variant}, seed {seed}: some folds are missing; finish the study first.")
        rows = pd.concat([folds[fold].rows.assign(split_by=fold) for fold in sorted(folds)], ignore_index=True)
        tables.append(rows.sort_values("image_id", kind="stable", ignore_index=True))
        for run in folds.values():
            shared_products |= set((run.report["products"] or {}).get("shared", []))
    ids = tables[0][[*IDS, "split_by"]]
    for table in tables[1:]:
        if not ids.equals(table[[*IDS, "split_by"]]):
            raise InputError(
                f"the seeds of {model} {variant} were validated on different rows: compare runs with the same --data, "
                "--limit, --split-by and --bad-rows."
            )
    return Experiment(
        model,
        variant,
        sorted(seeds),
        ids,
        predictions=np.stack([table["prediction"] for table in tables]),
        probabilities=np.stack([table["probability"] for table in tables]),
        losses=np.stack([table["loss"] for table in tables]),
        runs=[run for folds in seeds.values() for run in folds.values()],
        shared_products=shared_products,
    )


def _options(run: FinishedRun) -> tuple:
    """The script and all options that distinguish experiments, except for the variant."""
    options = identity(run.info.config)
    for name in ("seed", "crop", "augment"):
        del options[name]
    options["split_by"] = re.sub(r":\d+/", ":/", options["split_by"])  # the folds of one split are one experiment
    return run.info.script, tuple(sorted(options.items()))


def _model_names(runs: Sequence[FinishedRun]) -> dict[tuple, str]:
    """A name for each result of `_options`: the script and, if it occurs with several sets, the options that differ."""
    option_sets = list(dict.fromkeys(_options(run) for run in runs))
    names = {}
    for script, options in option_sets:
        alternatives = [dict(o) for s, o in option_sets if s == script]
        differ = [name for name, value in options if any(other.get(name) != value for other in alternatives)]
        if len({other["recipe"] for other in alternatives}) == len(alternatives) > 1:
            differ = ["recipe"]  # it sets many of the options that differ
        values = {name: value for name, value in options if name in differ}
        description = ", ".join(f"no {name}" if value == "" else f"{name} {value}" for name, value in values.items())
        names[script, options] = script.removeprefix("train_") + (f" ({description})" if description else "")
    return names
