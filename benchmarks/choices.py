"""Measures how much each choice in the training step gains over its alternatives.

python -m benchmarks.choices                            # all; about 20 minutes on two cores, no download
python -m benchmarks.choices --only memory layout

Prints Markdown tables like speed.py. Each candidate runs in a separate process; a step has 16 random images.
"""

import argparse
from contextlib import ExitStack
from functools import cache, partial

import torch
import torch.nn.functional as F

from benchmarks.speed import MODELS
from benchmarks.timing import alternate, machine, other_process, print_rows, row, throughput
from common.config import parse
from common.launch import keep_freed_memory
from common.step import parameter_groups

CHOICES = {  # candidates as options of `training_step`; the first is the one that the project uses
    "memory": {"kept": {}, "freed": {"kept": False}},
    "layout": {"channels_last": {"layout": torch.channels_last}, "contiguous": {"layout": torch.contiguous_format}},
    "optimizer": {
        "fused": {},
        "foreach": {"fused": False, "foreach": True},
        "loop": {"fused": False, "foreach": False},
    },
    "precision": {"fp32": {}, "bf16": {"bf16": True}},  # the launcher's --mixed_precision
    "compile": {"eager": {}, "compiled": {"compiled": True}},  # the launcher's --dynamo_backend
}


@cache  # a process keeps its model from turn to turn
def training_step(name, kept=True, layout=torch.preserve_format, fused=True, foreach=None, bf16=False, compiled=False):
    """A function that takes one training step of the model `name` and keeps freed memory for the next if `kept`."""
    if kept:
        keep_freed_memory()
    script, flags = MODELS[name]
    config = parse(script.Config, flags.split())
    model = script.build_model(config, 12).to(memory_format=layout)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=fused, foreach=foreach)
    images, labels = torch.randn(16, 3, config.image_size, config.image_size), torch.randint(0, 12, (16,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def images_per_second(name: str, options: dict, seconds: float) -> float:
    return throughput(training_step(name, **options), 16, seconds)()


def compare(name: str, candidates: dict[str, dict], rounds: int, seconds: float) -> dict:
    turns = {}
    with ExitStack() as stack:
        for candidate, options in candidates.items():
            call = stack.enter_context(other_process())
            turns[candidate] = partial(call, images_per_second, name, options, seconds)
        rates = alternate(turns, rounds)
    ours, *others = rates
    return row(name, rates, *((ours, other) for other in others))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:-1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="minimum length of a turn")
    args = parser.parse_args()
    print(machine())
    for choice in args.only:
        print_rows(choice, [compare(name, CHOICES[choice], args.rounds, args.seconds) for name in args.models])


if __name__ == "__main__":
    main()
