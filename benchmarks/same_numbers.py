"""Checks whether a change of the code affects results: records small seeded runs and compares two records.

python -m benchmarks.same_numbers record before.json            # in the old checkout
python -m benchmarks.same_numbers record after.json             # in the new one, with the same packages and machine
python -m benchmarks.same_numbers compare before.json after.json

A record contains hashes of the weights and predictions of each run, its scores and log, and the output of compare.py,
predict.py, audit.py and export.py for the runs. Everything but the losses in the log must be equal bit for bit.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

ROOT = Path(__file__).parent.parent
CNN = "train_custom_cnn.py --image-size 32 --blocks 8k3p2,16s2-bn,16-bn-res"
VIT = "train_custom_vit.py --image-size 32 --dim 32 --depth 2 --num-heads 4"
RESNET = "train_resnet.py --weights none --image-size 32"
VARIANTS = {"full": "", "crop": "--crop", "augment": "--crop --augment", "strong": "--crop --augment strong"}
SHORT = "--data sample --limit 96 --epochs 3 --batch-size 16 --checkpoint-every 4"
SHORT_LAB = "--data sample --limit 32 --recipe lab --epochs 1"
RUNS = {
    **{f"cnn-{name}": f"{CNN} {SHORT} {flags}" for name, flags in VARIANTS.items()},
    **{f"vit-{name}": f"{VIT} {SHORT} {flags}" for name, flags in VARIANTS.items()},
    **{f"resnet-{name}": f"{RESNET} {SHORT} {flags}" for name, flags in VARIANTS.items()},
    "vit_b": f"train_vit.py --weights none --image-size 32 {SHORT} --crop",
    "timm-strong": f"train_timm.py --weights none --image-size 32 --model test_vit {SHORT} --crop --augment strong",
    "cnn-crop-s1": f"{CNN} {SHORT} --crop --seed 1",
    "cnn-strong-s1": f"{CNN} {SHORT} --crop --augment strong --seed 1",
    "cnn-hidden": f"{CNN} {SHORT} --hidden 16 --crop --margin 0.2 --fit squash --label-smoothing 0.1 --clip-norm 0",
    "cnn-accumulate": f"{CNN} {SHORT} --crop --augment strong --accumulate 4",
    "cnn-processes": f"{CNN} {SHORT} --crop --augment strong --accumulate 2",  # run by two processes
    "cnn-swap": f"{CNN} {SHORT} --crop --background swap",
    "cnn-blur": f"{CNN} {SHORT} --background blur --augment",
    "cnn-gray": f"{CNN} {SHORT} --background gray --crop --augment strong",
    "cnn-split": f"{CNN} {SHORT} --crop --split-by product_id:2/3",
    "cnn-teacher": f"{CNN} {SHORT} --crop --augment strong --teacher runs/resnet-crop",
    "vit-teacher": f"{VIT} {SHORT} --crop --background swap --teacher runs/resnet-crop --accumulate 2",
    "vit-other": f"{VIT} {SHORT} --pool class --positions learned --stem patch --no-norm-first --dropout 0.1 --crop",
    "resnet-frozen": f"{RESNET} {SHORT} --crop --freeze backbone",
    "resnet-slow": f"{RESNET} {SHORT} --crop --backbone-lr 0.1",
    "cnn-lab": f"train_custom_cnn.py {SHORT_LAB} --crop --augment",
    "vit-lab": f"train_custom_vit.py {SHORT_LAB} --crop",
    "resnet-lab": f"train_resnet.py {SHORT_LAB} --weights none",
}
COMPARED = "cnn-crop cnn-crop-s1 cnn-strong cnn-strong-s1 cnn-full vit-full vit-crop resnet-crop resnet-full"
AFTER = {  # commands that use the runs, and the file to record; for export.py, the numbers it prints
    "compare": (f"compare.py {' '.join(f'runs/{n}' for n in COMPARED.split())} --out out", "out/comparison.json"),
    "shortcuts": ("compare.py --shortcuts runs/cnn-crop --out out", "out/shortcuts.json"),
    "predict": ("predict.py runs/resnet-crop sample --output predict.csv", "predict.csv"),
    "predict-jsonl": ("predict.py runs/vit-full sample --split train --output predict.jsonl", "predict.jsonl"),
    "audit": ("audit.py --data sample --crop --image-size 32 --out audit.json", "audit.json"),
    "export-onnx": ("export.py runs/cnn-crop", ""),
    "export-pt2": ("export.py runs/vit-crop --to pt2", ""),
}
LEFT_OUT = ("seconds", "images_per_second", "train_seconds", "sentence", "notes", "question", "reason", "runs")


def record(path: str) -> None:
    """Executes all runs in a temporary folder, each on one thread, and writes their results to `path`."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, line in RUNS.items():
            launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2"] if name == "cnn-processes" else []
            execute(name, [*launcher, *f"{ROOT}/{line} --out runs/{name}".split()], folder)
            result[name] = read_numbers(Path(folder, "runs", name))
        for name, (line, file) in AFTER.items():
            printed = execute(name, f"{ROOT}/{line}".split(), folder)
            text = Path(folder, file).read_text() if file else " ".join(w for w in printed.split() if w[0].isdigit())
            result[name] = without_words(json.loads(text)) if file.endswith(".json") else text
    Path(path).write_text(json.dumps(result, indent=1))


def execute(name: str, command: list[str], folder: str) -> str:
    """Runs a command on the CPU in `folder` and returns its output."""
    print(name, flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def read_numbers(run: Path) -> dict:
    """The numbers in a run folder that must not change."""
    files = {name: json.loads((run / f"{name}.json").read_text()) for name in ("run", "metrics", "data_report")}
    info = {name: files["run"][name] for name in ("config", "classes", "rows", "data_fingerprint", "parameters")}
    with open(run / "predictions.csv", newline="") as file:
        rows = json.dumps(list(csv.DictReader(file)))
    return {
        "weights": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "predictions": hashlib.sha256(rows.encode()).hexdigest(),
        "metrics": files["metrics"],
        "info": info,
        "report": without_words(files["data_report"]),
        "log": [without_words(json.loads(line)) for line in (run / "log.jsonl").read_text().splitlines()],
    }


def without_words(value):
    """`value` without times, without the commits of runs and without sentences, which may be reworded."""
    if isinstance(value, dict):
        return {name: without_words(item) for name, item in value.items() if name not in LEFT_OUT}
    return [without_words(item) for item in value] if isinstance(value, list) else value


def compare(before: str, after: str) -> None:
    """Prints for each run "equal" or what differs, and then the largest difference between losses in the logs."""
    old, new = (json.loads(Path(path).read_text()) for path in (before, after))
    largest = 0.0
    for name in sorted(old.keys() | new.keys()):
        differ = [name] * (name not in old or name not in new)
        if not differ and isinstance(old[name], dict) and "log" in old[name]:
            largest = max(largest, log_difference(old[name].pop("log"), new[name].pop("log")))
            differ = [part for part in old[name] if old[name][part] != new[name].get(part)]
        elif not differ:
            differ = ["content"] * (old[name] != new[name])
        print(f"{name:18} {'differs: ' + ', '.join(differ) if differ else 'equal'}")
    print(f"largest relative difference in a log: {largest:.1e}")


def log_difference(old: list[dict], new: list[dict]) -> float:
    """The largest relative difference between the numbers of two logs; infinite if their fields differ."""
    if [list(line) for line in old] != [list(line) for line in new]:
        return float("inf")
    pairs = [(a[name], b[name]) for a, b in zip(old, new, strict=True) for name in a]
    return max(abs(a - b) / max(abs(a), abs(b), 1e-9) for a, b in pairs)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("files", nargs="+", help="JSON files: one to write, or two to compare")
    options = parser.parse_args()
    (record if options.action == "record" else compare)(*options.files)
