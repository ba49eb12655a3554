"""What each choice in the step and the data path gives, beside what it replaced; for LOG.md.

python benchmarks/choices.py                     # all, 12 minutes on two cores, no download
python benchmarks/choices.py --only layout decode

Candidates take turns. Rates are medians of --rounds turns; the ratio to the first candidate is the median of the
rounds' own ratios, with its smallest and largest. Images are random, 16 a batch; `decode` makes photos.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np
import torch
import torch.nn.functional as F
from photos import make_photo
from PIL import Image
from torch import nn

import train_custom_cnn
import train_custom_vit
import train_resnet
from common.launch import keep_freed_memory
from common.schedule import seed_device
from common.step import parameter_groups

MODELS = {
    "ResNet-18, 224 px": (train_resnet, dict(weights="none")),
    "own CNN, 224 px": (train_custom_cnn, dict(image_size=224)),
    "own CNN, 64 px": (train_custom_cnn, {}),
    "own ViT, 64 px": (train_custom_vit, {}),
}


def build(name: str, channels_last: bool | None = None) -> nn.Module:
    script, options = MODELS[name]
    torch.manual_seed(0)
    model = script.build_model(script.Config(**options), 12)
    if channels_last is None:  # as the script has it
        return model
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def stepper(model: nn.Module, size: int, *, bf16: bool = False, call: Callable | None = None, **adamw) -> Callable:
    """A function that takes one training step on a fixed batch; `call` stands for the model, such as a compiled one."""
    call = model if call is None else call
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, **(adamw or dict(fused=True)))
    images, labels = torch.randn(16, 3, size, size), torch.randint(0, 12, (16,))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(call(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def size_of(name: str) -> int:
    return int(name.split()[-2])


def alternate(title: str, candidates: dict[str, Callable], rounds: int, per_call: int = 16, seconds: float = 1.5):
    repeats, rates = {}, {name: [] for name in candidates}
    for name, work in candidates.items():
        work()
        start = time.perf_counter()
        work()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - start)))
    for _ in range(rounds):
        for name, work in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                work()
            rates[name].append(per_call * repeats[name] / (time.perf_counter() - start))
    first = next(iter(rates))
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[first], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if name != first else ""
        print(f"{title:28}  {name:38} {statistics.median(values):8,.1f} images/s  {ratio}", flush=True)


def layout(rounds: int) -> None:
    for name in ("ResNet-18, 224 px", "own CNN, 224 px", "own CNN, 64 px"):
        both = {"contiguous": False, "channels_last": True}
        alternate(name, {k: stepper(build(name, v), size_of(name)) for k, v in both.items()}, rounds)


def optimizer(rounds: int) -> None:
    kinds = {"loop": dict(foreach=False, fused=False), "foreach": dict(foreach=True), "fused": dict(fused=True)}
    for name in ("own CNN, 64 px", "own ViT, 64 px", "ResNet-18, 224 px"):
        alternate(name, {k: stepper(build(name), size_of(name), **v) for k, v in kinds.items()}, rounds)


def attention(rounds: int) -> None:
    kinds = {
        "post-norm, dropout 0.1, the lab's": dict(norm_first=False, dropout=0.1),
        "post-norm": dict(norm_first=False),
        "pre-norm": {},
    }
    candidates = {name: stepper(train_custom_vit.build_vit(224, 12, **kind), 224) for name, kind in kinds.items()}
    alternate("ViT of the lab's size, 224 px", candidates, rounds)


def precision(rounds: int) -> None:
    for name in ("ResNet-18, 224 px", "own ViT, 64 px"):
        both = {"fp32": False, "bf16": True}
        alternate(name, {k: stepper(build(name), size_of(name), bf16=v) for k, v in both.items()}, rounds)


def compiled(rounds: int) -> None:
    for name in ("own ViT, 64 px", "own CNN, 64 px", "ResNet-18, 224 px"):
        model = build(name)
        call = torch.compile(model)
        step, start = stepper(model, size_of(name), call=call), time.perf_counter()
        step()
        print(f"{name:28}  the first compiled step takes {time.perf_counter() - start:.0f} s")
        alternate(name, {"eager": stepper(build(name), size_of(name)), "compiled": step}, rounds)


def memory(rounds: int) -> None:
    """Whether glibc keeps freed memory holds for a whole process, so each candidate has its own."""
    rates = {}
    for _ in range(rounds):
        for kind in ("default", "kept"):
            command = [sys.executable, __file__, f"memory-{kind}"]
            for line in subprocess.check_output(command, text=True).splitlines():
                name, rate = line.split(":")
                rates.setdefault(name, {"default": [], "kept": []})[kind].append(float(rate))
    for name, kinds in rates.items():
        ratios = [a / b for a, b in zip(kinds["kept"], kinds["default"], strict=True)]
        medians = {kind: statistics.median(values) for kind, values in kinds.items()}
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"{name:28}  kept {medians['kept']:.1f} images/s, by default {medians['default']:.1f}  {ratio}", flush=True
        )


def memory_child(kept: bool) -> None:
    if kept:
        keep_freed_memory()
    for name in MODELS:
        step, start, steps = stepper(build(name), size_of(name)), time.perf_counter(), -1
        while time.perf_counter() - start < 3 or steps < 1:
            if steps == 0:
                start = time.perf_counter()
            step()
            steps += 1
        print(f"{name}: {16 * steps / (time.perf_counter() - start)}")


def seeding(rounds: int) -> None:
    step = stepper(build("own CNN, 64 px"), 64)
    alternate(
        "own CNN, 64 px",
        {
            "torch.manual_seed": lambda: (torch.manual_seed(1), step()),
            "one device's": lambda: (seed_device(1, torch.device("cpu")), step()),
        },
        rounds,
    )


def rows(rounds: int) -> None:
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        pixels = np.lib.format.open_memmap(file.name, "w+", np.uint8, (4000, 3, 224, 224))
        pixels[:] = 1
        pixels = np.load(file.name, mmap_mode="r")
        batches = [np.random.default_rng(i).permutation(4000)[:64] for i in range(50)]
        candidates = {
            "any order": lambda: [pixels[batch] for batch in batches],
            "sorted": lambda: [pixels[np.sort(batch)] for batch in batches],
        }
        alternate("64 rows of 4,000, 224 px", candidates, rounds, per_call=64 * 50)


def decode(rounds: int) -> None:
    """A photo at full size, at each scale that libjpeg has, and as YCbCr; the smallest scale still reads every code."""
    buffer = io.BytesIO()
    make_photo(1024, 768, np.random.default_rng(0)).save(buffer, "JPEG", quality=90)

    def load(mode, scale):
        image = Image.open(io.BytesIO(buffer.getvalue()))
        image.draft(mode, (1024 // scale, 768 // scale))
        image.load()

    candidates = {"full size": lambda: load(None, 1), "full size, YCbCr": lambda: load("YCbCr", 1)}
    candidates |= {f"1/{scale}": lambda scale=scale: load(None, scale) for scale in (2, 4, 8)}
    alternate("JPEG 1024 x 768, one core", candidates, rounds, per_call=1)


PARTS = (memory, layout, optimizer, attention, precision, seeding, rows, decode, compiled)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[part.__name__ for part in PARTS])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    for part in PARTS:
        if not args.only or part.__name__ in args.only:
            print(f"\n{part.__name__}")
            if part is not memory:
                keep_freed_memory()  # as every run does
            part(args.rounds)


if __name__ == "__main__":
    if sys.argv[-1].startswith("memory-"):
        memory_child(sys.argv[-1] == "memory-kept")
    else:
        main()
