"""The loop of a notebook, to compare with: every photo decoded at full size for every batch, in a DataLoader.

python benchmarks/naive.py DATA train EPOCHS    trains the own CNN's layers on 64 pixels, and evaluates every epoch
python benchmarks/naive.py DATA load KIND       speed.py's turns: one pass over the plain or augmented batches each
python benchmarks/naive.py DATA step MODEL DEVICE BATCH_SIZE    speed.py's turns: some steps of MODEL

It runs in a process of its own, because this project's settings of threads and memory hold for a whole process.
"""

import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parent.parent))
from train_custom_cnn import build_cnn, parse_blocks  # noqa: E402

BLOCKS = "32k3p2,64k3p2,128k3p2"  # the lab's; at 224 pixels the linear layer after them has 25.7 million weights


class NaiveDataset(torch.utils.data.Dataset):
    """Item i is (float image (3, S, S), int label), from row i of a table with the Hub's columns."""

    def __init__(self, rows: datasets.Dataset, classes: list[str], *, size: int, augment: bool):
        self.rows, self.classes, self.size, self.augment = rows, classes, size, augment
        self.to_tensor = transforms.ToTensor()
        self.normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        row = self.rows[i]
        x, y, w, h = row["bbox"]
        image = row["image"].convert("RGB").crop((x, y, x + w, y + h))
        if self.augment:
            if random.random() < 0.5:
                image = transforms.functional.hflip(image)
            image = transforms.functional.rotate(image, random.uniform(-15, 15))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return self.normalize(self.to_tensor(image)), self.classes.index(row["category"])


def naive_loader(folder: str, split: str, *, size: int, augment: bool, batch_size: int = 16):
    """A DataLoader with two workers over SPLIT.parquet in `folder`."""
    rows = datasets.load_dataset("parquet", data_files=f"{folder}/{split}.parquet", split="train")
    rows = rows.cast_column("image", datasets.Image())
    dataset = NaiveDataset(rows, sorted(set(rows["category"])), size=size, augment=augment)
    return torch.utils.data.DataLoader(dataset, batch_size, shuffle=split == "train", num_workers=2)


class NaiveViT(nn.Module):
    """The lab's ViT of torch's own layers: post-norm encoder with dropout 0.1, patches of 16, width 128, depth 6."""

    def __init__(self, num_classes: int, image_size: int = 224):
        super().__init__()
        self.patches = nn.Conv2d(3, 128, 16, stride=16)
        self.class_token = nn.Parameter(torch.randn(1, 1, 128))
        self.positions = nn.Parameter(torch.randn(1, 1 + (image_size // 16) ** 2, 128))
        layer = nn.TransformerEncoderLayer(128, 8, dim_feedforward=512, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6)
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.encoder(x)[:, 0])


def naive_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def train(folder: str, epochs: int) -> None:
    train, val = (naive_loader(folder, split, size=64, augment=split == "train") for split in ("train", "val"))
    model = build_cnn(parse_blocks(BLOCKS), len(train.dataset.classes), image_size=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    for epoch in range(epochs):
        model.train()
        for images, labels in train:
            naive_step(model, optimizer, images, labels)
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in val:
                right += (model(images).argmax(1) == labels).sum().item()
        print(f"epoch {epoch + 1}: accuracy {right / len(val.dataset):.3f}")


def load(folder: str, kind: str) -> Callable[[int], tuple[int, float]]:
    loader = naive_loader(folder, "train", size=224, augment=kind == "augmented")

    def turn(passes: int) -> tuple[int, float]:
        start = time.perf_counter()
        images = sum(len(labels) for _ in range(passes) for _, labels in loader)
        return images, time.perf_counter() - start

    return turn


def step(folder: str, name: str, device: str, batch_size: int) -> Callable[[int], tuple[int, float]]:
    loader = naive_loader(folder, "train", size=224, augment=True, batch_size=batch_size)
    model = {
        "resnet": torchvision.models.resnet18,
        "vit": torchvision.models.vit_b_16,
        "cnn": lambda num_classes: build_cnn(parse_blocks(BLOCKS), num_classes),
        "own_vit": NaiveViT,
    }[name](num_classes=len(loader.dataset.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def turn(steps: int) -> tuple[int, float]:
        feed = itertools.chain.from_iterable(itertools.repeat(loader))
        next(feed)  # the start of the workers and the first batch are not counted
        start = time.perf_counter()
        for images, labels in itertools.islice(feed, steps):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                naive_step(model, optimizer, images.to(device), labels.to(device))
        return steps * batch_size, time.perf_counter() - start

    return turn


if __name__ == "__main__":
    folder, part, *rest = sys.argv[1:]
    if part == "train":
        train(folder, int(rest[0]))
    else:
        turn = load(folder, *rest) if part == "load" else step(folder, rest[0], rest[1], int(rest[2]))
        turn(1)
        for line in sys.stdin:
            print(json.dumps(turn(int(line))), flush=True)
