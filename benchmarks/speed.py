"""Compares the speed of this project with a notebook's training loop (naive.py) and with the hardware's limits.

python -m benchmarks.speed                              # every part; about half an hour on two cores, no download
python -m benchmarks.speed --parts batches training     # some parts
python -m benchmarks.speed --device cuda                # on a GPU, training in bf16

Prints Markdown tables. The candidates are measured alternately. A rate is the median over --rounds rounds; a ratio is
the median of the ratios in each round, with the smallest and the largest.
"""

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from unittest import mock

import datasets
import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import train_custom_cnn
import train_custom_vit
import train_resnet
import train_vit
from benchmarks.naive import images_per_second
from benchmarks.photos import make_data
from benchmarks.timing import alternate, machine, other_process, print_rows, row, throughput
from common.config import IMAGENET, parse
from common.data.dataset import load_splits, place_pixels
from common.data.pixels import WORKERS, map_ahead, normalize
from common.deploy.classify import classify, decode_crops
from common.deploy.inputs import read_inputs
from common.evaluate import EVAL_BATCH, set_train_mode
from common.launch import keep_freed_memory
from common.schedule import Plan
from common.step import draw, make_batch, train_step

MODELS = {
    "ResNet-18, 224 px": (train_resnet, "--weights none"),
    "lab's CNN, 224 px": (train_custom_cnn, "--recipe lab"),
    "lab's ViT, 224 px": (train_custom_vit, "--recipe lab"),
    "custom CNN, 64 px": (train_custom_cnn, ""),
    "custom ViT, 64 px": (train_custom_vit, ""),
    "ViT-B/16, 224 px": (train_vit, "--weights none"),
}
LAUNCHERS = {
    "python": (),
    "accelerate launch": ("-m", "accelerate.commands.launch", "-q", "--config_file", "accelerate_config.yaml"),
}


def batches(args: Namespace, case: str) -> dict:
    """Batches of 16 crops of 224 pixels: decoded by two DataLoader workers, or read from the pixel array"""
    keep_freed_memory()  # as in every run
    kind, *augment = case.split()
    options = options_for(args.folder / kind, "--batch-size", "16", "--weights", "none", *augment)
    config, device, places = parse(train_resnet.Config, options), torch.device("cpu"), np.arange(16)
    train, _ = load_splits(config)
    plan = Plan(config, len(train))
    feed = (make_batch(config, train, plan.rows(step), places, draw(config, step), device) for step in count())
    turns = {
        "naive": partial(args.naive, args.folder / kind, "train_resnet", options, "cpu", args.seconds, False),
        "ours": throughput(partial(next, feed), 16, args.seconds),
    }
    return row(case, alternate(turns, args.rounds), ("ours", "naive"))


def training(args: Namespace, name: str) -> dict:
    """Training on augmented crops: the naive loop, this project's steps, and steps on one fixed batch (the ceiling)"""
    script, flags = MODELS[name]
    batch_size = 64 if args.device == "cuda" else 16
    options = options_for(args.folder / "jpeg", "--augment", *flags.split(), "--batch-size", str(batch_size))
    with mock.patch.object(script, "train_model") as train_model:  # receives everything that the script prepares
        script.main(options)
    config, accelerator, model, optimizer, train, _ = train_model.call_args.args
    model, optimizer = accelerator.prepare(model, optimizer)
    place_pixels(config, accelerator.device, train)
    set_train_mode(model)
    plan = Plan(config, len(train))
    steps = (train_step(config, accelerator, model, optimizer, train, plan.rows(step), step) for step in count())
    pixels, _, labels = train.batch(plan.rows(0), accelerator.device)
    images = normalize(pixels, IMAGENET)

    def ceiling() -> None:
        accelerator.backward(F.cross_entropy(model(images), labels))
        if config.clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as flops:
        ceiling()
    turns = {
        "naive": partial(args.naive, args.folder / "jpeg", script.__name__, options, args.device, args.seconds, True),
        "ours": throughput(partial(next, steps), batch_size, args.seconds),
        "ceiling": throughput(ceiling, batch_size, args.seconds),
    }
    rates = alternate(turns, args.rounds)
    gflops = flops.get_total_flops() / batch_size * median(rates["ours"]) / 1e9
    return row(name, rates, ("ours", "ceiling"), ("ours", "naive")) | {"ours, GFLOP/s": f"{gflops:,.0f}"}


def start(args: Namespace, launcher: str) -> dict:
    """train_custom_cnn.py --data sample --crop --dry-run with cached pixels: the whole process"""
    command = [sys.executable, *LAUNCHERS[launcher], "train_custom_cnn.py", "--data", "sample", "--crop", "--dry-run"]
    command += ["--cache", f"{args.folder}/start-cache"]
    wall, cpu = [], []
    for measured in range(-1, args.rounds):  # the first one fills the caches
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if measured >= 0:
            wall.append(time.perf_counter() - begin)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"case": launcher} | {
        name: f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        for name, values in (("wall time, s", wall), ("user and system time, s", cpu))
    }


def load(args: Namespace, n: int) -> dict:
    """train_custom_cnn.py --dry-run on small photos, from the end of the imports to the results of two steps"""
    folder, cache, cells = args.folder / f"small-{n}", args.folder / "small-cache", {"case": f"{n:,} rows"}
    make_data(folder, "small", {"train": n, "val": 100})
    options = options_for(folder, "--image-size", "32", "--cache", f"{cache}/pixels")
    results = {"cold cache": [], "warm cache": []}
    for _ in range(args.rounds):
        for measured in results.values():
            with other_process() as call:
                measured.append(call(dry_run, options))
        shutil.rmtree(cache)
    for name, measured in results.items():
        seconds, memory = (median(values) for values in zip(*measured, strict=True))
        cells |= {f"{name}, s": f"{seconds:.1f}", f"{name}, private MB": f"{memory:,.0f}"}
    return cells


def dry_run(options: tuple[str, ...]) -> tuple[float, float]:
    """The duration in seconds and the final memory of the process in MB, without mapped files."""
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        train_custom_cnn.main(options)
    memory = psutil.Process().memory_info()
    return time.perf_counter() - begin, (memory.rss - memory.shared) / 2**20


def study(args: Namespace, epochs: int) -> dict:
    """Four runs of the small CNN on the sample, one after another with all threads, and side by side (--jobs auto)"""
    models = "--data sample --models custom_cnn --variants crop crop-strong --seeds 2".split()
    count, cache = 4, args.folder / "study-cache"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # all threads
    if args.device == "cpu":  # as a user without a GPU: with ACCELERATE_USE_CPU set, the runs would need the launcher
        del environment["ACCELERATE_USE_CPU"]
        environment["CUDA_VISIBLE_DEVICES"] = ""

    def runs_an_hour(jobs: str) -> float:
        out = args.folder / "study"
        options = ["--epochs", str(epochs), "--jobs", jobs, "--cache", str(cache), "--out", str(out)]
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "study.py", *models, *options], env=environment, check=True, capture_output=True
        )
        seconds = time.perf_counter() - begin
        shutil.rmtree(out)
        return 3600 * count / seconds

    train_custom_cnn.main(["--data", "sample", "--crop", "--dry-run", "--cache", str(cache)])  # fills the cache
    rates = alternate({jobs: partial(runs_an_hour, jobs) for jobs in ("1", "auto")}, args.rounds)
    cells = {"case": f"{epochs} epochs"} | {f"--jobs {j}, runs/h": f"{median(rates[j]):,.0f}" for j in rates}
    times = [one / side_by_side for one, side_by_side in zip(rates["1"], rates["auto"], strict=True)]
    return cells | {"time auto / 1": f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})"}


@torch.no_grad()
def predict(args: Namespace, name: str) -> dict:
    """predict.py on JPEGs, compared with decoding alone, the model alone, and their bound, as both need all cores"""
    script, flags = MODELS[name]
    config = parse(script.Config, options_for(args.folder / "jpeg", *flags.split()))
    model, device = script.build_model(config, 12).eval().to(args.device), torch.device(args.device)
    inputs = read_inputs(f"{args.folder}/jpeg", split="train")
    pixels = torch.zeros(EVAL_BATCH, 3, config.image_size, config.image_size, dtype=torch.uint8)

    def decode_all() -> list:
        return list(map_ahead(lambda photo: decode_crops(*photo, config), inputs.photos(), ahead=2 * WORKERS))

    turns = {
        "decode": throughput(decode_all, len(inputs), args.seconds),
        "model": throughput(lambda: model(normalize(pixels.to(device), IMAGENET)).cpu(), EVAL_BATCH, args.seconds),
        "both": throughput(lambda: classify(model, inputs, config, 12, device), len(inputs), args.seconds),
    }
    rates = alternate(turns, args.rounds)
    rates["bound"] = [1 / (1 / a + 1 / b) for a, b in zip(rates["decode"], rates["model"], strict=True)]
    return row(name, rates, ("both", "bound"))


def options_for(data: Path, *flags: str) -> tuple[str, ...]:
    """Options of a script for the same crops as in the naive loop: no margin, stretched to a square."""
    return ("--data", f"{data}", "--cache", f"{data.parent}/cache", "--crop", "--fit", "squash", "--dry-run", *flags)


PARTS = {part.__name__: part for part in (batches, training, start, load, study, predict)}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all; on a CPU all but the last")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=300, help="number of photos of each kind, at least a batch")
    parser.add_argument("--seconds", type=float, default=6.0, help="minimum length of a turn")
    parser.add_argument("--sizes", type=int, nargs="*", default=[2_000, 20_000, 200_000], help="rows of `load`")
    parser.add_argument("--epochs", type=int, nargs="*", default=[6], help="epochs of the runs of `study`")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    args.models = args.models or list(MODELS)[: None if args.device == "cuda" else -1]
    os.environ |= {"ACCELERATE_USE_CPU": "1"} if args.device == "cpu" else {"ACCELERATE_MIXED_PRECISION": "bf16"}
    print(machine(args.device))
    with tempfile.TemporaryDirectory(prefix="speed-") as folder, other_process() as call:
        args.naive = partial(call, images_per_second)
        args.folder, datasets.config.HF_DATASETS_CACHE = Path(folder), Path(folder, "datasets")
        datasets.disable_progress_bars()  # both settings apply to this process, the next line to others
        os.environ |= {"HF_DATASETS_CACHE": f"{folder}/datasets", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        for kind in ("jpeg", "png") if "batches" in args.parts else ("jpeg",):
            make_data(args.folder / kind, kind, {"train": args.rows, "val": 12})
        cases = {
            "batches": ("jpeg", "jpeg --augment", "png", "png --augment"),
            "start": LAUNCHERS,
            "load": args.sizes,
            "study": args.epochs,
        }
        for name in args.parts:
            print_rows(PARTS[name].__doc__, [PARTS[name](args, case) for case in cases.get(name, args.models)])


if __name__ == "__main__":
    main()
