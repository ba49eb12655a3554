"""Chooses a script's defaults by cross-validation inside the train split; val is never looked at.

python benchmarks/sweep.py custom_cnn                # three folds of the products for each trial, on the bundled sample
python benchmarks/sweep.py custom_vit --data Nfiniteai/product-masks-sample

A trial changes one thing of the base, which is the script as it comes with `--crop --augment strong --epochs 40`. Every
model gets the same trials, the own ones three more of their nets. `efficientnet` is the check of the fine-tuning recipe
(see train_efficientnet.py), with as many trials of its own. Writes OUT/MODEL/TRIAL/fold-K, and the table to
OUT/MODEL/sweep.md and sweep.json; finished runs are kept, so that a sweep can be stopped and gone on with.
Any option of the script but --background may follow, and changes the base. OMP_NUM_THREADS=1 leaves a core to another
sweep.
"""

import argparse
import contextlib
import importlib
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from common.comparison import Scored, ask
from common.config import DataConfig, parse, run
from common.data import load_splits
from common.files import whole, write_json
from common.finished import find_runs, gather
from common.grid import Job, is_finished
from common.runs import data_fingerprint
from common.sources import clean_categories, load_tables
from common.stats import holm
from common.tables import table

TRIALS = (
    "",
    "--lr 3e-4",
    "--lr 3e-3",
    "--epochs 80",
    "--augment none",
    "--augment lab",
    "--fit squash",
    "--margin 0.1",
    "--label-smoothing 0.1",
)
NETS = {  # for the two whose net is ours to choose
    "custom_cnn": (
        "--blocks 32s2-bn,32-bn-res,64s2-bn-res,128s2-bn-res,256s2-bn-res",
        "--blocks 32s2,32,32,64s2,64,128s2,128,256s2,256",
        "--hidden 256",
    ),
    "custom_vit": ("--stem patch", "--positions learned", "--pool class"),
}


FINE_TUNING = (
    "",
    "--backbone-lr 0.1",
    "--backbone-lr 0.3",
    "--lr 3e-3",
    "--lr 3e-3 --backbone-lr 0.1",
    "--lr 3e-3 --backbone-lr 0.3",
    "--lr 3e-4",
    "--epochs 30",
    "--epochs 30 --backbone-lr 0.1",
    "--head-first 36",
    "--label-smoothing 0.1",
)
BASES = {
    "custom_cnn": "--epochs 40",
    "custom_vit": "--epochs 40",
    "resnet": "--epochs 40 --weights none --image-size 64",
    "efficientnet": "--image-size 96",
}


def train_alone(data: str, folder: Path) -> None:
    """The train split of `data`, without the classes that val lacks, as a folder of its own."""
    if (folder / "train.parquet").exists():
        return
    tables = load_tables(DataConfig(data=data, crop=True))
    names, kept = clean_categories(tables["train"]), set(clean_categories(tables["val"]))
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "train.parquet") as partial:
        tables["train"].select([i for i, name in enumerate(names) if name in kept]).to_parquet(partial)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", choices=BASES)
    parser.add_argument("--data", default="sample", help="as in the scripts; its train split is used")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    options, more = parser.parse_known_args(argv)
    data, root = options.out / "data" / re.sub(r"\W+", "-", options.data), options.out / options.model
    train_alone(options.data, data)
    script = importlib.import_module(f"train_{options.model}")
    base = " ".join([f"--data {data} --crop --augment strong {BASES[options.model]}", *more])
    splits = {f: f"--split-by product_id:{f}/{options.folds}" for f in range(1, options.folds + 1)}
    fingerprints = {
        fold: data_fingerprint(*load_splits(parse(script.Config, f"{base} {split}".split())))
        for fold, split in splits.items()
    }
    trials = FINE_TUNING if options.model == "efficientnet" else (*TRIALS, *NETS.get(options.model, ()))

    scored, seconds = {}, {}
    for change in trials:
        folder = root / (change.replace("--", "").replace(" ", "-").replace(",", "-") or "base")
        for fold, split in splits.items():
            out = folder / f"fold-{fold}"
            line = f"{base} {change} {split} --out {out} --resume".split()
            config = parse(script.Config, line)
            job = Job(script.__name__, config.variant, tuple(line), config)
            if not is_finished(job, fingerprints[fold]):
                print(f"{change or 'base'}, fold {fold}", flush=True)
                with contextlib.redirect_stdout(open(os.devnull, "w")):
                    script.main(line)
        runs = find_runs([str(folder)])
        name = change or "base"
        scored[name], seconds[name] = Scored(gather(runs)[0]), sum(run.run["train_seconds"] for run in runs)

    asked = {name: ask("model", scored["base"], one) for name, one in scored.items() if name != "base"}
    corrected = dict(zip(asked, holm([question.p for question in asked.values()]), strict=True))
    rows, results = [], []
    for name, one in sorted(scored.items(), key=lambda item: -item[1].estimates["accuracy"].value):
        accuracy, result = one.estimates["accuracy"], {"trial": name, "seconds": seconds[name]}
        low, high = accuracy.interval()
        result |= {"accuracy": accuracy.value, "low": low, "high": high}
        row = [name, f"{accuracy.value:.3f} [{low:.3f}, {high:.3f}]"]
        if name in asked:
            low, high = asked[name].change.interval()
            result |= {"change": asked[name].change.value, "change_low": low, "change_high": high}
            result |= {"p": asked[name].p, "holm_p": corrected[name]}
            row += [
                f"{100 * asked[name].change.value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                f"{corrected[name]:.3f}",
            ]
        results.append(result)
        rows.append([*row, *[""] * (4 - len(row)), f"{seconds[name]:.0f}"])
    lines = table(["trial", f"accuracy, n = {scored['base'].n}", "points to base", "p (Holm)", "seconds"], rows)
    with whole(root / "sweep.md") as partial:
        partial.write_text("\n".join(lines) + "\n")
    write_json(root / "sweep.json", results)
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
