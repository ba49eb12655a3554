"""Groups finished runs into experiments: the same script and options, trained with several seeds."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import unified_diff
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.config import VARIANTS, InputError, identity, variant_of
from common.data.splits import Split, parse_split
from common.finished_run import FinishedRun
from common.provenance import changed_files
from common.run_folder import IDS


@dataclass
class Experiment:
    """One script with one set of options, trained with S seeds and validated on the same N rows each time."""

    model: str  # such as custom_cnn; if the script has several experiments, with the options that differ
    variant: str  # one of `common.config.VARIANTS`; for a baseline, the pixels it uses: "full", "crop" or ""
    seeds: list[int]
    ids: pd.DataFrame  # (N,) image_id, product_id, scene_id and label, sorted by these
    splits: np.ndarray  # (S, N) str, `--split-by` of the run that validated the row, as `Split` writes it, or ""
    predictions: np.ndarray  # (S, N) class names
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # (S, N) of the predicted class
    losses: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # (S, N) in nats; both empty for baselines
    runs: list[FinishedRun] = field(default_factory=list)
    shared_products: set = field(default_factory=set)  # product ids that occur in both train and val

    @property
    def name(self) -> str:
        return f"{self.model} {self.variant}".strip()

    @cached_property
    def folds(self) -> int:
        """The number of folds of the cross-validation; 0 without, also if a single fold was run."""
        folded = any(len(np.unique(row)) > 1 for row in self.splits)
        return parse_split(self.splits[0, 0]).folds if folded else 0

    @cached_property
    def repetitions(self) -> np.ndarray:
        """(S,) int, equal for seeds that are not independent: with folds, the partition; without, 0 to S - 1."""
        if not self.folds:
            return np.arange(len(self.splits))
        return np.array([parse_split(row[0]).partition for row in self.splits])

    @property
    def run_of_split(self) -> dict[Split, FinishedRun]:
        """A run for each split that the runs validate on."""
        return {split_of(run): run for run in self.runs}

    def mean_of(self, name: str) -> float:
        """The mean over the runs of a number in run.json."""
        return float(np.mean([getattr(run.info, name) for run in self.runs]))


def comparable(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Leaves out copies, and runs that most of the others cannot be compared with.

    Returns:
        The other runs, and a sentence for each run that is left out. If less than two would remain, or if there is no
        majority, all runs but copies, for `group_runs` to say what is wrong.
    """
    keep, notes = list(runs), list[str]()

    def leave_out(reasons: dict[Path, str]) -> None:
        nonlocal keep
        notes.extend(f"left out: {run.name} {reasons[run.folder]}" for run in keep if run.folder in reasons)
        keep = [run for run in keep if run.folder not in reasons]

    leave_out(
        _repeats(keep, lambda run: run.info.files.get("model.safetensors", run.folder), "has the same weights as")
    )
    distinct, copies = keep.copy(), notes.copy()
    # Different rows may be unusable with and without --crop, so the data is compared separately for each.
    leave_out(_minority(keep, lambda run: (split_of(run), run.info.config["crop"]), _data, "data"))
    leave_out(_minority(keep, split_of, _val_rows, "val rows"))
    leave_out(_repeats(keep, lambda run: (_key(run), _seed(run), split_of(run)), "has the same options and seed as"))

    def partition(run: FinishedRun) -> tuple:
        return _key(run), _seed(run), split_of(run).partition

    folds = Counter(map(partition, keep))  # no fold is counted twice, as repeats have been left out
    complete = {partition(run) for run in keep if folds[partition(run)] == split_of(run).folds}
    have_complete = {key for key, *_ in complete}
    incomplete = [run for run in keep if _key(run) in have_complete and partition(run) not in complete]
    leave_out({run.folder: "belongs to a seed whose other folds are missing" for run in incomplete})
    return (keep, notes) if len(keep) > 1 else (distinct, copies)


def _repeats(runs: Sequence[FinishedRun], key: Callable[[FinishedRun], Any], words: str) -> dict[Path, str]:
    """The runs with the same `key` as an earlier one, and the reason to leave them out, which begins with `words`."""
    firsts: dict[Any, FinishedRun] = {}
    for run in runs:
        firsts.setdefault(key(run), run)
    return {run.folder: f"{words} {firsts[key(run)].name}" for run in runs if firsts[key(run)] is not run}


def _minority(
    runs: Sequence[FinishedRun], group: Callable[[FinishedRun], Any], value: Callable[[FinishedRun], str], what: str
) -> dict[Path, str]:
    """The runs whose `value` is not that of most runs in the same group, and the reason to leave them out."""
    counts: dict[Any, Counter[str]] = {}
    for run in runs:
        counts.setdefault(group(run), Counter())[value(run)] += 1
    odd = {}
    for run in runs:
        (common, count), *others = counts[group(run)].most_common()
        if value(run) != common and count > others[0][1]:
            odd[run.folder] = f"used other {what} than most runs"
    return odd


def split_of(run: FinishedRun) -> Split:
    """The parsed `--split-by` of a run; for the split that the data has, the only fold of one."""
    text = run.info.config["split_by"]
    return parse_split(text) if text else Split("", 1, 1)


def _seed(run: FinishedRun) -> int:
    return run.info.config["seed"]


def _data(run: FinishedRun) -> str:
    return run.info.data_fingerprint


def _val_rows(run: FinishedRun) -> str:
    return run.rows[IDS].sort_values("image_id", kind="stable").to_csv(index=False)


def code_notes(runs: Sequence[FinishedRun]) -> list[str]:
    """How the code of `runs` differs: versions of a script, which are experiments of their own, and of `common`."""
    notes = []
    for script, versions in _script_versions(runs).items():
        first, *others = versions.values()
        for number, run in enumerate(others, 2):
            old, new = (_script_lines(r) for r in (first, run))
            lines = [line for line in unified_diff(old, new, n=0, lineterm="") if line[0] in "+-"][2:]
            shown = "; ".join(" ".join(line.split()) for line in lines[:4])
            if not (old and new):
                shown = "not recorded in the run folders of an older version"
            elif len(lines) > 4:
                shown += f"; and {len(lines) - 4} more lines"
            notes.append(
                f"script {number} of {script.removeprefix('train_')} ({run.name}, commit {run.info.commit}) differs "
                f"from script 1 ({first.name}, commit {first.info.commit}): {shown}"
            )
    shared = {run.folder: {k: v for k, v in run.info.code.items() if "/" in k} for run in runs if run.info.code}
    files = sorted({name for code in shared.values() for name in changed_files(next(iter(shared.values())), code)})
    if files:
        commits = ", ".join(sorted({str(run.info.commit) for run in runs}))
        notes.append(f"the runs were made by different versions of {', '.join(files)} (commits {commits})")
    return notes


def _script_lines(run: FinishedRun) -> list[str]:
    return run.script.read_bytes().decode("utf-8", "replace").splitlines() if run.info.code else []


def group_runs(runs: Sequence[FinishedRun]) -> list[Experiment]:
    """Groups `runs` into experiments.

    Models are in the order of their first runs, and the variants of a model in the order of `VARIANTS`.

    Raises:
        InputError: the runs used different data, two runs have the same options and seed, a fold is missing, or a seed
            has several partitions.
    """
    model_names = _model_names(runs)
    groups: dict[tuple, dict[int, dict[Split, FinishedRun]]] = {}  # by model and variant, then by seed and fold
    first_runs: dict[tuple, FinishedRun] = {}
    for run in runs:
        config, fold = run.info.config, split_of(run)
        first_run = first_runs.setdefault((fold, config["crop"]), run)
        if first_run.info.data_fingerprint != run.info.data_fingerprint:
            raise InputError(
                f"{first_run.name} and {run.name} used different data: compare only runs on the same data."
            )
        key = model_names[_model_key(run)], variant_of(config["crop"], config["augment"])
        folds = groups.setdefault(key, {}).setdefault(config["seed"], {})
        if fold in folds:
            raise InputError(
                f"{folds[fold].name} and {run.name} have the same options and the same seed: leave one of them out."
            )
        folds[fold] = run
    models = list(dict.fromkeys(model for model, _ in groups))
    order = sorted(groups, key=lambda key: (models.index(key[0]), list(VARIANTS).index(key[1])))
    experiments = [_experiment(model, variant, groups[model, variant]) for model, variant in order]
    first = experiments[0]
    for experiment in experiments[1:]:
        if not first.ids.equals(experiment.ids):
            raise InputError(
                f"{first.name} and {experiment.name} were validated on different rows ({len(first.ids)} and "
                f"{len(experiment.ids)}): compare runs with the same --data, --limit, --split-by and --bad-rows."
            )
    return experiments


def _experiment(model: str, variant: str, seeds: dict[int, dict[Split, FinishedRun]]) -> Experiment:
    """The experiment with the runs `seeds`, a dict by seed and fold."""
    tables, shared_products = [], set()
    alone = len(set().union(*seeds.values())) == 1  # the given split, or the same single fold for all seeds
    for seed, folds in sorted(seeds.items()):
        partitions = sorted({fold.partition for fold in folds})
        if len(partitions) > 1:
            raise InputError(
                f"{model} {variant}, seed {seed}: the folds belong to partitions {', '.join(map(str, partitions))}; "
                "leave out the runs of all but one."
            )
        if not alone and any(len(folds) < fold.folds for fold in folds):
            raise InputError(f"{model} {variant}, seed {seed}: some folds are missing; finish the study first.")
        tables.append(join_folds({fold: run.rows for fold, run in folds.items()}))
        for run in folds.values():
            shared_products |= set((run.report["products"] or {}).get("shared", []))
    ids = tables[0][IDS]
    for table in tables[1:]:
        if not ids.equals(table[IDS]):
            raise InputError(
                f"the seeds of {model} {variant} were validated on different rows: compare runs with the same --data, "
                "--limit, --split-by and --bad-rows."
            )
    return Experiment(
        model,
        variant,
        sorted(seeds),
        ids,
        splits=np.stack([table["split_by"] for table in tables]).astype(str),
        predictions=np.stack([table["prediction"] for table in tables]),
        probabilities=np.stack([table["probability"] for table in tables]),
        losses=np.stack([table["loss"] for table in tables]),
        runs=[run for folds in seeds.values() for run in folds.values()],
        shared_products=shared_products,
    )


def join_folds(rows_of_fold: Mapping[Split, pd.DataFrame]) -> pd.DataFrame:
    """The rows of the folds of one partition, with the column split_by, in an order that the partition does not affect.

    Rows are sorted by `IDS`. Rows that have all of these in common are in the same fold, whatever the partition, and
    keep their order there, if the column of the split has a value for them. Without one, each may be in another fold,
    and nothing in predictions.csv tells them apart: they are then in the order of their folds.
    """
    tables = [rows_of_fold[fold].assign(split_by=str(fold)) for fold in sorted(rows_of_fold)]
    return pd.concat(tables).sort_values(IDS, kind="stable", ignore_index=True)


def fold_notes(experiments: Sequence[Experiment]) -> list[str]:
    """A sentence for each fold that was run without the other folds of its partition."""
    splits = [{split_of(run) for run in experiment.runs} for experiment in experiments]
    alone = {fold for folds in splits if len(folds) == 1 for fold in folds if fold.column}
    return [
        f"only fold {fold.fold} of {fold.folds} (--split-by {fold}) was run: the scores are those of about one "
        f"in {fold.folds} rows"
        for fold in sorted(alone)
    ]


def _key(run: FinishedRun) -> tuple:
    """What distinguishes experiments: everything except seed, fold and partition."""
    return _model_key(run), run.info.config["crop"], run.info.config["augment"]


def _model_key(run: FinishedRun) -> tuple:
    """The script, its code, and all options that distinguish experiments, except for the variant."""
    options = identity(run.info.config)
    for name in ("seed", "crop", "augment"):
        del options[name]
    split = split_of(run)  # all folds and partitions of one split are one experiment
    options["split_by"] = f"{split.folds} folds of {split.column}" if split.column else ""
    return run.info.script, run.code_key, tuple(sorted(options.items()))


def _script_versions(runs: Sequence[FinishedRun]) -> dict[str, dict[str, FinishedRun]]:
    """For each script, its versions (see `FinishedRun.code_key`) and the first run of each."""
    versions: dict[str, dict[str, FinishedRun]] = {}
    for run in runs:
        versions.setdefault(run.info.script, {}).setdefault(run.code_key, run)
    return versions


def _model_names(runs: Sequence[FinishedRun]) -> dict[tuple, str]:
    """A name for each result of `_model_key`: the script and, if it occurs with several, what differs."""
    keys = list(dict.fromkeys(map(_model_key, runs)))
    versions = {script: list(found) for script, found in _script_versions(runs).items()}
    names = {}
    for script, code, options in keys:
        alternatives = [dict(o) for s, _, o in keys if s == script]
        differ = [name for name, value in options if any(other.get(name) != value for other in alternatives)]
        if len({other["recipe"] for other in alternatives}) == len(alternatives) > 1:
            differ = ["recipe"]  # it sets many of the options that differ
        values = {name: value for name, value in options if name in differ}
        parts = [f"no {name}" if value == "" else f"{name} {value}" for name, value in values.items()]
        if len(versions[script]) > 1:
            parts.insert(0, f"script {versions[script].index(code) + 1}")
        names[script, code, options] = script.removeprefix("train_") + (f" ({', '.join(parts)})" if parts else "")
    return names
