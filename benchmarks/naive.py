"""A notebook's training loop (baseline of speed.py): a DataLoader decodes every photo at full size for every batch."""

import importlib
from functools import cache, partial
from itertools import chain, repeat
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.timing import throughput
from common.config import parse


class NaiveDataset(torch.utils.data.Dataset):
    """Item i is (float image (3, S, S), int label) of row i of train.parquet in `folder`."""

    def __init__(self, folder: Path, *, size: int, augment: bool):
        rows = datasets.load_dataset("parquet", data_files=f"{folder}/train.parquet", split="train")
        self.rows, self.classes = rows.cast_column("image", datasets.Image()), sorted(set(rows["category"]))
        normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        steps = [transforms.RandomHorizontalFlip(), transforms.RandomRotation(15)] if augment else []
        self.transform = transforms.Compose([*steps, transforms.Resize((size, size)), transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        row = self.rows[i]
        x, y, w, h = row["bbox"]
        crop = row["image"].convert("RGB").crop((x, y, x + w, y + h))
        return self.transform(crop), self.classes.index(row["category"])


@cache  # a process keeps its data and its model from turn to turn
def data_and_step(folder: Path, script: str, options: tuple, device: str) -> tuple:
    module = importlib.import_module(script)
    config = parse(module.Config, options)
    data = NaiveDataset(folder, size=config.image_size, augment=config.augment != "none")
    model = module.build_model(config, len(data.classes)).to(device, memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        loss.item()

    return data, config.batch_size, step


def images_per_second(folder: Path, script: str, options: tuple, device: str, seconds: float, trains: bool) -> float:
    """The rate of loading batches with two workers or, if `trains`, of also training the model of `script`."""
    data, batch_size, step = data_and_step(folder, script, options, device)
    workers = dict(num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    batches = chain.from_iterable(repeat(DataLoader(data, batch_size, shuffle=True, drop_last=True, **workers)))
    next(batches)  # the start of the workers is not timed; they stop when this function returns
    work = (lambda: step(*next(batches))) if trains else partial(next, batches)
    return throughput(work, batch_size, seconds)()
