"""Chooses a script's defaults by cross-validation within the train split; no model sees the val split.

python -m benchmarks.sweep custom_cnn               # three folds of the products per trial, on the bundled sample
python -m benchmarks.sweep custom_vit --data Nfiniteai/product-masks-sample

A trial changes one option of the base: the script's defaults with `--crop --augment strong` and the options in BASES.
Writes OUT/MODEL/TRIAL/RUN, and tables to OUT/MODEL/sweep.md. The same command continues a sweep that was stopped.
Further options of the script (except --background) change the base. OMP_NUM_THREADS=1 leaves a core for another sweep.
"""

import contextlib
import importlib
import os
import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.compare.experiments import group_runs
from common.compare.grid import Job, finished_run, plan_jobs
from common.compare.markdown import question_table, score_table
from common.compare.questions import ScoredExperiment, ask, correct
from common.config import DataConfig, run
from common.data.dataset import load_splits
from common.data.sources import clean_categories, load_tables
from common.data.table import Table
from common.files import atomic_path, markdown_table
from common.finished_run import FinishedRun, read_run
from common.run_folder import data_fingerprint

BASES = {
    "custom_cnn": "--epochs 40",
    "custom_vit": "--epochs 40",
    "resnet": "--epochs 40 --weights none --image-size 64",
    "timm": "--model efficientnet_lite0 --image-size 96",
}
TRIALS = [
    "--lr 3e-4",
    "--lr 3e-3",
    "--epochs 80",
    "--augment none",
    "--augment lab",
    "--fit squash",
    "--margin 0.1",
    "--label-smoothing 0.1",
]
MODEL_TRIALS = {
    "custom_cnn": ["--blocks 32s2-bn,32-bn-res,64s2-bn-res,128s2-bn-res,256s2-bn-res", "--hidden 256"],
    "custom_vit": ["--stem patch", "--positions learned", "--pool class"],
    "timm": ["--layer-decay 1", "--layer-decay 0.75", "--epochs 30"],
}


def write_train_split(data: str, folder: Path) -> None:
    """Writes the train split of `data`, without classes that do not occur in val, as a separate data set."""
    tables = load_tables(DataConfig(data=data, crop=True))
    names, kept = clean_categories(tables["train"]), set(clean_categories(tables["val"]))
    write_rows(tables["train"].select([i for i, name in enumerate(names) if name in kept]), folder)


def write_rows(rows: Table, folder: Path, **replaced: list) -> None:
    """Writes `rows`, with other values in the columns `replaced`, as a data set without a val split.

    Does nothing if the folder holds one.
    """
    if (folder / "train.parquet").exists():
        return
    columns = pa.table({name: rows.column(name) for name in rows.columns} | replaced)
    images = ({"bytes": image if isinstance(image, bytes) else None, "path": None} for image in rows.images())
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = columns.schema.append(pa.field("image", kind))
    with atomic_path(folder / "train.parquet") as partial, pq.ParquetWriter(partial, schema) as writer:
        for first in range(0, len(rows), 100):
            part = columns.slice(first, 100)
            writer.write_table(part.append_column("image", pa.array(islice(images, len(part)), kind)))


def fold_jobs(script: str, options: str, *, seeds: int, folds: int, root: Path) -> list[Job]:
    """The runs of a script on folds of the products, with crops and strong augmentation; `options` are further ones."""
    words = [option.split() for option in re.split(r"\s+(?=--)", options.strip())]  # each option with its values
    experiment = (script, importlib.import_module(script).Config, "crop-strong")
    return plan_jobs([experiment], words, seeds=seeds, folds=folds, root=root)


def train_missing(jobs: Sequence[Job], *, quiet: bool = False) -> list[FinishedRun]:
    """The runs of `jobs`, which are trained now unless they are finished; prints the folders of these, or is `quiet`.

    Raises:
        InputError: a folder holds a finished run with other options or data.
    """
    for job in jobs:
        if not finished_run(job, data_fingerprint(*load_splits(job.config))):
            if not quiet:
                print(job.folder, flush=True)
            with contextlib.redirect_stdout(open(os.devnull, "w")):
                importlib.import_module(job.script).main(job.argv)
    return [read_run(job.folder) for job in jobs]


def results(trials: dict[str, ScoredExperiment]) -> str:
    """Two tables: the scores of the trials, the most accurate first, and the difference of each from the base."""
    questions = correct([ask("model", trials["base"], trial) for name, trial in trials.items() if name != "base"])
    ranked = sorted(trials.values(), key=lambda trial: -trial.estimates["accuracy"].value)
    return "\n".join([*score_table(ranked, []), "", *markdown_table(*question_table(questions))]) + "\n"


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("model", choices=BASES)
    parser.add_argument("--data", default="sample", help="as in the scripts; its train split is used")
    parser.add_argument("--trials", nargs="+", help="options of each trial, instead of the default trials")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    args, base_options = parser.parse_known_args(argv)
    data, root = args.out / "data" / re.sub(r"\W+", "-", args.data), args.out / args.model
    write_train_split(args.data, data)
    trials = {}
    for trial in ["", *(args.trials or TRIALS + MODEL_TRIALS.get(args.model, []))]:
        options = " ".join([f"--data {data}", BASES[args.model], *base_options, trial])
        folder = root / (re.sub(r"\W+", "-", trial).strip("-") or "base")
        runs = train_missing(fold_jobs(f"train_{args.model}", options, seeds=1, folds=args.folds, root=folder))
        experiment = group_runs(runs)[0]
        trials[trial or "base"] = ScoredExperiment(replace(experiment, model=trial or "base"))
    with atomic_path(root / "sweep.md") as partial:
        partial.write_text(results(trials))
    print(results(trials))


if __name__ == "__main__":
    run(main)
