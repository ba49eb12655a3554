"""Where the time goes: this project's path beside a notebook's loop (naive.py) and beside the ceiling, in one run.

python benchmarks/speed.py                            # every part; 20 minutes on two cores, no download
python benchmarks/speed.py --parts prepare batches    # some of them
python benchmarks/speed.py --quick                    # a minute or two: does it run?
python benchmarks/speed.py --device cuda              # training on a GPU in bf16, with the FLOP utilisation

Prints tables and writes them to speed.json (--out). The candidates take turns, so that what else the machine does hits
all of them: every rate is the median of --rounds turns, every ratio the median of the rounds' own ratios, and its
smallest and largest stand beside it.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import datasets
import numpy as np
import psutil
import torch
import torch.nn.functional as F
from photos import make_data
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import train_custom_cnn
import train_custom_vit
import train_resnet
import train_vit
from common.augment import normalize
from common.batches import draw, make_batch
from common.config import parse
from common.crop import crop_image
from common.data import load_splits, place_pixels
from common.evaluate import EVAL_BATCH, set_train_mode
from common.inference import classify, decoded_batches
from common.inputs import read_inputs
from common.launch import keep_freed_memory
from common.schedule import RowOrder
from common.step import train_step

LAB_CNN = "--blocks 32k3p2,64k3p2,128k3p2 --hidden 256"
LAB_VIT = "--patch-size 16 --stem patch --positions learned --pool class"
PARTS = {  # and the kinds of photos that they use
    "prepare": ("jpeg", "png"),
    "batches": ("jpeg", "png"),
    "training": ("jpeg",),
    "start": ("jpeg",),
    "run": ("png",),
    "predict": ("jpeg",),
    "growth": (),
}


def alternate(candidates: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Calls each candidate once per round; images/s of each round.

    A candidate returns how many images it has done or, to leave something out of its time, that and its seconds.
    """
    rates = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            start = time.perf_counter()
            done = work()
            images, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - start)
            rates[name].append(images / seconds)
    return rates


def ratio(rates: dict[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    ratios = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def row(case: str, rates: dict[str, list[float]], ours: str, theirs: str) -> dict:
    """A line of a table: the medians of all candidates, and the ratio of two of them."""
    medians = {f"{name} img/s": statistics.median(values) for name, values in rates.items()}
    return {"case": case, **medians, f"{ours}/{theirs}": ratio(rates, ours, theirs)}


def prepare(args) -> list[dict]:
    """One photo from bytes to its square, on one core: full decode, crop and resize, against crop_image."""
    rows = []
    for kind in ("jpeg", "png"):
        table = load_splits(settings(args, kind, "--crop"))[0].rows
        photos = [(photo["image"]["bytes"], photo["bbox"]) for photo in table][:24]

        def naive(size, crop, photos=photos):
            for encoded, (x, y, w, h) in photos:
                image = Image.open(io.BytesIO(encoded)).convert("RGB")
                image = image.crop((x, y, x + w, y + h)) if crop else image
                np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
            return len(photos)

        def ours(size, crop, photos=photos):
            for encoded, bbox in photos:
                np.asarray(crop_image(Image.open(io.BytesIO(encoded)), bbox if crop else None, size=size)[0])
            return len(photos)

        for crop in (False, True):
            for size in (224, 64):
                work = dict(size=size, crop=crop)
                rates = alternate({"naive": lambda w=work: naive(**w), "ours": lambda w=work: ours(**w)}, args.rounds)
                rows.append(row(f"{kind}, {'crop' if crop else 'full image'} to {size} px", rates, "ours", "naive"))

        def cold(*groups, kind=kind):
            for group in groups:
                fresh = [
                    settings(args, kind, *more, "--limit", "64", "--cache", f"{args.folder}/fresh") for more in group
                ]
                n = sum(map(len, load_splits(fresh[0], fresh[1:])))
            shutil.rmtree(f"{args.folder}/fresh")
            return n

        rates = alternate(
            {"one by one": lambda: cold([()], [("--crop",)]), "together": lambda: cold([(), ("--crop",)])}, args.rounds
        )
        rows.append(row(f"{kind}, full and crop to 224 px, all cores", rates, "together", "one by one"))
    return rows


def batches(args) -> list[dict]:
    """Batches of 16 as the model takes them, 224 pixels: a DataLoader with two workers, against gather and augment."""
    keep_freed_memory()  # as every run does
    rows = []
    for kind in ("jpeg", "png"):
        for augmented in (False, True):
            options = settings(args, kind, "--crop", "--batch-size", "16", *["--augment"] * augmented)
            train = load_splits(options)[0]
            order = RowOrder(len(train), 16, 0, shuffle=True)

            def ours(train=train, order=order, options=options, steps=10 if args.quick else 60):
                for step in range(steps):
                    draws = draw(options, step)
                    make_batch(options, train, order[step], np.arange(16), draws, torch.device("cpu"))
                return 16 * steps

            ours()
            with naive_turns(args, kind, "load", "augmented" if augmented else "plain") as naive:
                rates = alternate({"naive": lambda: naive(1), "ours": ours}, args.rounds)  # noqa: B023
            rows.append(row(f"{kind}, {'augmented' if augmented else 'not augmented'}", rates, "ours", "naive"))
    return rows


def training(args) -> list[dict]:
    """Steps of 16 cropped and augmented images: the naive loop, this project's step, and the step on a fixed batch."""
    cases = [
        ("ResNet-18, 224 px", train_resnet, "--weights none", "resnet"),
        ("own CNN of the lab's layers, 224 px", train_custom_cnn, f"--image-size 224 {LAB_CNN}", "cnn"),
        ("own ViT of the lab's size, 224 px", train_custom_vit, f"--image-size 224 {LAB_VIT}", "own_vit"),
        ("own CNN as it comes, 64 px", train_custom_cnn, "", None),
        ("own ViT as it comes, 64 px", train_custom_vit, "", None),
    ]
    if args.device == "cuda":
        cases.insert(1, ("ViT-B/16, 224 px", train_vit, "--weights none", "vit"))
    return [training_case(args, *case) for case in cases]


def training_case(args, name: str, script, options: str, naive_model: str | None) -> dict:
    gpu = args.device == "cuda"
    batch_size = 64 if gpu else 16
    captured, train_model = [], script.train_model
    script.train_model = lambda *setup: captured.extend(setup)  # all that the script's main makes, without training
    script.main(data_options(args, "jpeg", "--crop", "--augment", "--batch-size", str(batch_size), *options.split()))
    script.train_model = train_model
    config, accelerator, model, optimizer, train, _ = captured
    model, optimizer = accelerator.prepare(model, optimizer)
    place_pixels(config, accelerator.device, train)
    set_train_mode(model)
    order, step = RowOrder(len(train), batch_size, 0, shuffle=True), 0
    places = np.arange(batch_size)
    fixed, labels = make_batch(config, train, order[0], places, draw(config, 0), accelerator.device)

    def synchronize():
        if gpu:
            torch.cuda.synchronize()

    def ours(steps):
        nonlocal step
        for _ in range(steps):
            train_step(config, accelerator, model, optimizer, train, order[step], step)
            step += 1
        synchronize()
        return steps * batch_size

    def ceiling(steps):
        for _ in range(steps):
            accelerator.backward(F.cross_entropy(model(fixed), labels))
            accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        synchronize()
        return steps * batch_size

    ours(1), ceiling(1)
    start = time.perf_counter()
    ceiling(2)
    steps = 2 if args.quick else max(4, math.ceil(args.seconds * 2 / (time.perf_counter() - start)))
    candidates = {"ceiling": lambda: ceiling(steps), "ours": lambda: ours(steps)}

    with contextlib.ExitStack() as stack:
        if naive_model:
            naive = stack.enter_context(naive_turns(args, "jpeg", "step", naive_model, args.device, str(batch_size)))
            candidates["naive"] = lambda: naive(steps)
        rates = alternate(candidates, args.rounds)
    line = row(name, rates, "ours", "ceiling")
    if naive_model:
        line["ours/naive"] = ratio(rates, "ours", "naive")
    if gpu:
        line["FLOP utilisation"] = utilisation(model, fixed, statistics.median(rates["ours"]))
    return line


def utilisation(model: torch.nn.Module, images: torch.Tensor, images_per_second: float) -> float:
    """FLOPs of forward and backward passes per second, over those of large bf16 matrix products on this device."""
    with FlopCounterMode(display=False) as counter, torch.autocast("cuda", torch.bfloat16):
        model(images).sum().backward()
    model.zero_grad()
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    for repeats in (3, 20):  # the first is a warm-up
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize()
    peak = repeats * 2 * 8192**3 / (time.perf_counter() - start)
    return counter.get_total_flops() / len(images) * images_per_second / peak


# torch._dynamo is what torch itself imports when the first optimizer is made.
FIRST_STEP = """
import json, os, sys, time, train_custom_cnn, common.train, torch._dynamo
imported, train_step = time.time(), common.train.train_step
def first(*args):
    train_step(*args)
    times = {"imports": imported - float(os.environ["BEGAN"]), "first step": time.time() - imported}
    print("\\n" + json.dumps(times), flush=True)
    sys.exit()
common.train.train_step = first
train_custom_cnn.main(sys.argv[1:])
"""


def start(args) -> list[dict]:
    """Seconds from a process's start to the end of its imports, and from there to the end of its first step."""
    rows, seconds = [], {"cold": [], "warm": []}
    for _ in range(args.rounds):
        shutil.rmtree(args.folder / "start", ignore_errors=True)
        for state in seconds:
            options = data_options(args, "jpeg", "--crop", "--augment", "--cache", f"{args.folder}/start/cache")
            seconds[state].append(child(["-c", FIRST_STEP, *options], HF_HOME=f"{args.folder}/start/hf")[0])
    for state, times in seconds.items():
        medians = {f"{key} s": statistics.median(t[key] for t in times) for key in times[0]}
        rows.append({"case": f"{state} cache, {args.rows} JPEGs of 1024 x 768", **medians})
    helps = []
    for _ in range(args.rounds):
        before = os.times()
        child(["train_custom_cnn.py", "--help"])
        after = os.times()
        helps.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return [*rows, {"case": "--help", "CPU s": statistics.median(helps)}]


def run(args) -> list[dict]:
    """Three epochs of the own CNN at 64 pixels on PNGs, from a cold start to its results, beside the naive loop."""
    seconds, memory = {"naive": [], "ours": []}, {"naive": [], "ours": []}
    for _ in range(args.rounds):
        folder = args.folder / "run"
        for name in seconds:
            shutil.rmtree(folder, ignore_errors=True)
            script = ["benchmarks/naive.py", str(args.folder / "png"), "train", "3"]
            if name == "ours":
                script = ["train_custom_cnn.py", "--data", str(args.folder / "png"), "--crop", "--augment"]
                script += ["--fit", "squash", "--margin", "0", *LAB_CNN.split(), "--batch-size", "16"]
                script += ["--epochs", "3", "--out", str(folder / "out"), "--cache", str(folder / "cache")]
            _, took, peak = child(script, HF_HOME=str(folder / "hf"))
            seconds[name].append(took)
            memory[name].append(peak)
    ratios = [a / b for a, b in zip(seconds["naive"], seconds["ours"], strict=True)]
    line = {"case": f"{args.rows} PNGs of 1024 x 1024, 3 epochs"}
    line |= {f"{name} s": statistics.median(values) for name, values in seconds.items()}
    line["naive/ours"] = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return [line | {f"{name} MB": statistics.median(values) for name, values in memory.items()}]


def predict(args) -> list[dict]:
    """predict.py on the train photos, beside its halves alone, and beside the cores doing both with no loss."""
    rows = []
    cases = [
        ("own CNN as it comes, 64 px", train_custom_cnn, ""),
        ("own ViT as it comes, 64 px", train_custom_vit, ""),
        ("ResNet-18, 224 px", train_resnet, "--weights none"),
    ]
    for name, script, options in cases:
        config = parse(script.Config, data_options(args, "jpeg", "--crop", *options.split()))
        model, device = script.build_model(config, 12).eval().to(args.device), torch.device(args.device)
        inputs = read_inputs(str(args.folder / "jpeg"), split="train")
        pixels = torch.zeros(EVAL_BATCH, 3, config.image_size, config.image_size, dtype=torch.uint8)

        @torch.no_grad()
        def model_alone(model=model, pixels=pixels, inputs=inputs, device=device):
            batches = math.ceil(len(inputs) / len(pixels))
            for _ in range(batches):
                model(normalize(pixels.to(device))).cpu()
            return batches * len(pixels)

        candidates = {
            "decode": lambda c=config, i=inputs: sum(len(batch[0]) for batch in decoded_batches(i, c)),
            "model": model_alone,
            "both": lambda c=config, i=inputs, m=model, d=device: len(classify(m, i, c, 12, d)[1]),
        }
        alternate(candidates, 1)  # not counted: the first batches are slow
        rates = alternate(candidates, args.rounds)
        rates["slower half"] = list(map(min, rates["decode"], rates["model"]))
        rates["bound"] = [1 / (1 / a + 1 / b) for a, b in zip(rates["decode"], rates["model"], strict=True)]
        line = row(name, rates, "both", "slower half")
        rows.append(line | {"both/bound": ratio(rates, "both", "bound")})
    return rows


GROWTH = """
import json, numpy, sys, time, torch, common.batches, common.train, train_custom_cnn as script
def measure(config, accelerator, model, optimizer, train, val):
    loaded = time.time()
    order = common.train.RowOrder(len(train), config.batch_size, 0, shuffle=True)
    steps = len(train) // config.batch_size
    for step in range(steps):
        places, draws = numpy.arange(config.batch_size), common.batches.draw(config, step)
        common.batches.make_batch(config, train, order[step], places, draws, accelerator.device)
    took = time.time() - loaded
    status = dict(line.split(":") for line in open("/proc/self/status") if line.count(":") == 1)
    memory = {name: int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}
    print("\\n" + json.dumps({"load": loaded - began, "batch": took / steps / config.batch_size, **memory}), flush=True)
script.train_model, began = measure, time.time()
script.main(sys.argv[1:])
"""


def growth(args) -> list[dict]:
    """Cost per row and memory at growing numbers of rows: small JPEGs, decoded to 32 pixels; batches of 64."""
    rows = []
    for n in args.sizes:
        folder = args.folder / f"growth-{n}"
        make_data(folder, "small", {"train": n, "val": 100})
        options = f"--data {folder} --crop --augment --image-size 32 --batch-size 64 --dry-run".split()
        cold, warm = (
            child(["-c", GROWTH, *options, "--cache", f"{folder}.cache"], HF_HOME=f"{folder}.hf")[0] for _ in range(2)
        )
        rows.append(
            {
                "case": f"{n:,} rows",
                "prepare us/row": 1e6 * cold["load"] / n,
                "warm load s": warm["load"],
                "batch us/image": 1e6 * warm["batch"],
                "private MB, cold": cold["RssAnon"],
                "private MB, warm": warm["RssAnon"],
                "mapped MB, warm": warm["RssFile"],
            }
        )
        shutil.rmtree(folder)
    return rows


def child(arguments: list[str], **env: str) -> tuple[dict | None, float, float]:
    """Runs Python with `arguments`: the JSON object of its last line if it prints one, seconds, peak private MB.

    The memory is that of the process and its children, sampled ten times a second.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "BEGAN": str(time.time()), **env}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak, done = 0.0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, private_memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{shlex.join(arguments[:2])} failed:\n{errors[-2000:]}")
    last = (output.splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else None, seconds, peak


def private_memory(pid: int) -> float:
    """MB of a process and its children that no file backs, what they share counted once; 0 where /proc lacks it."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1024
    return total


@contextlib.contextmanager
def naive_turns(args, kind: str, *arguments: str) -> Iterator[Callable[[int], tuple[int, float]]]:
    """A naive.py that waits for its turns: called with their length, it gives the images done and the seconds."""
    command = [sys.executable, str(ROOT / "benchmarks/naive.py"), str(args.folder / kind), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def turn(length: int) -> tuple[int, float]:
            print(length, file=process.stdin, flush=True)
            return tuple(json.loads(process.stdout.readline()))

        turn(1)
        yield turn
        process.stdin.close()


def data_options(args, kind: str, *more: str) -> list[str]:
    """The naive loop stretches the bare box, so this path does too."""
    folders = ["--data", str(args.folder / kind), "--cache", str(args.folder / "cache")]
    return [*folders, "--fit", "squash", "--margin", "0", "--dry-run", *more]


def settings(args, kind: str, *more: str):
    """The ResNet's configuration, at 224 pixels, for the photos of `kind`."""
    return parse(train_resnet.Config, data_options(args, kind, *more))


def shown(value) -> str:
    if isinstance(value, dict):
        return f"{value['ratio']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
    return value if isinstance(value, str) else f"{value:,.4g}" if abs(value) < 100 else f"{value:,.0f}"


def print_table(rows: list[dict]) -> None:
    names = list(dict.fromkeys(name for line in rows for name in line))
    cells = [names, *([shown(line[name]) if name in line else "" for name in names] for line in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]))


def machine(args) -> dict:
    """What ran this, and what else ran."""
    list(psutil.process_iter(["cpu_percent"]))  # begins the measurement
    time.sleep(1)
    others = [process.info for process in psutil.process_iter(["cpu_percent", "name", "pid"])]
    shares = {p["name"]: p["cpu_percent"] for p in others if p["pid"] != os.getpid() and (p["cpu_percent"] or 0) >= 5}
    return {
        "processor": f"{psutil.cpu_count(logical=False)} cores, {platform.machine()}",
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load average": os.getloadavg()[0],
        "other processes, % of a core": shares,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=300, help="photos of each kind")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn in training")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 200_000], help="rows of part growth")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="one round on few photos")
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.rows, args.sizes = 1, 32, [500]
    os.environ["ACCELERATE_USE_CPU" if args.device == "cpu" else "ACCELERATE_MIXED_PRECISION"] = (
        "1" if args.device == "cpu" else "bf16"
    )
    datasets.disable_progress_bars()
    results = {"command": shlex.join(sys.argv), "rounds": args.rounds, "machine": machine(args)}
    print(json.dumps(results["machine"], indent=2))
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        args.folder = Path(folder)
        for kind in {kind for part in args.parts for kind in PARTS[part]}:
            make_data(args.folder / kind, kind, {"train": args.rows, "val": max(12, args.rows // 5)})
        for part in args.parts:
            work = globals()[part]
            print(f"\n{part}: {work.__doc__.splitlines()[0]}")
            results[part] = work(args)
            print_table(results[part])
            args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
