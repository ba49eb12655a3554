"""Helpers shared by the tests: small runs, real processes, and the contents of run folders."""

import csv
import importlib
import io
import json
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models._api import register_model

import common.train
from common.config import TrainConfig, parse, run
from common.data.dataset import ClassificationDataset
from common.metrics import scores_of_predictions
from common.run_folder import IDS, PREDICTED

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "sample"
SCRIPTS = ["train_resnet", "train_vit", "train_custom_cnn", "train_custom_vit", "train_timm"]
SMALL = {
    "train_resnet": "--weights none --image-size 32",
    "train_vit": "--weights none --image-size 32 --model vit_t_16",
    "train_custom_cnn": "--image-size 32 --blocks 8k3p2,16k3p2 --hidden 32",
    "train_custom_vit": "--image-size 32 --dim 32 --depth 2 --num-heads 4 --patch-size 8 --stem patch",
    "train_timm": "--weights none --image-size 32 --model test_vit",
}


def vit_t_16(**options: Any) -> VisionTransformer:
    """A ViT-Ti/16 (Touvron et al., 2021): the smallest of torchvision has 86 million parameters."""
    return VisionTransformer(patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, **options)


vit_t_16.__module__ = VisionTransformer.__module__  # as for torchvision's own, which train_vit.py looks for
register_model()(vit_t_16)


# Runs in this process ------------------------------------------------------------------------------------------------


def options(script: str, out: Path, cache: str | Path, more: str = "") -> list[str]:
    """The command line of a run of `script` that takes a second: 48 images of 32 pixels, six steps."""
    line = f"--data sample --limit 48 --epochs 2 --batch-size 16 --cache {cache} --out {out}"
    return f"{line} {SMALL[script]} {more}".split()


def config_of(script: str, argv: list[str]) -> TrainConfig:
    return parse(importlib.import_module(script).Config, argv)


def main(script: str, argv: list[str]) -> Path:
    """Runs the main function of a script in this process and returns the run folder."""
    return importlib.import_module(script).main(argv)


def error_message(script: str, argv: list[str]) -> str:
    """The error message of a script that fails as expected, with exit code 1 and no traceback."""
    with pytest.raises(SystemExit) as stop:
        run(lambda: main(script, argv))
    assert isinstance(stop.value.code, str), "Python prints a string and exits with code 1"
    return stop.value.code


class Crash(Exception):
    pass


@contextmanager
def crash_at(step: int) -> Iterator[None]:
    """Expects the run in this process to reach `step`, where it crashes instead of saving a checkpoint."""
    save_checkpoint = common.train.save_checkpoint

    def save_or_crash(folder, accelerator, model, optimizer, at, losses):
        if at == step:
            raise Crash
        save_checkpoint(folder, accelerator, model, optimizer, at, losses)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(common.train, "save_checkpoint", save_or_crash)
        yield


# Run folders ---------------------------------------------------------------------------------------------------------


def read_json(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    """Changes some values of the object in a JSON file."""
    (folder / name).write_text(json.dumps(read_json(folder, name) | changes))


def read_predictions(folder: Path) -> list[dict]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def read_log(folder: Path) -> list[dict]:
    """The lines of log.jsonl without the speed, which varies between runs."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def log_length(folder: Path) -> int:
    """The number of lines that a run has logged so far."""
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def epoch_lines(folder: Path) -> list[dict]:
    return [line for line in read_log(folder) if "val_loss" in line]


def results(folder: Path) -> dict:
    """Everything that must be identical, bit for bit, in two equal runs."""
    files = ("model.safetensors", "predictions.csv", "probabilities.safetensors", "metrics.json")
    return {"log.jsonl": read_log(folder)} | {name: (folder / name).read_bytes() for name in files}


@torch.no_grad()
def logits_of(model: nn.Module, split: ClassificationDataset) -> torch.Tensor:
    return model.eval()(torch.stack([split[i][0] for i in range(len(split))]))


def assert_same_run(one: Path, two: Path) -> None:
    """Asserts that logs, the 48 rows and their losses are the same, except for rounding errors."""
    for a, b in zip(read_log(one), read_log(two), strict=True):
        assert a.keys() == b.keys() and (a["step"], a["epoch"]) == (b["step"], b["epoch"])
        for name in ("loss", "train_loss", "val_loss"):
            assert a.get(name) == pytest.approx(b.get(name), abs=1e-4)
    rows = read_predictions(two)
    assert len(rows) == 48 == len({row["image_id"] for row in rows})
    for a, b in zip(read_predictions(one), rows, strict=True):
        assert (a["image_id"], a["label"]) == (b["image_id"], b["label"])
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-4)


def assert_usage_error(main: Callable, line: str, words: str, capsys: pytest.CaptureFixture) -> None:
    """Asserts that a command line is refused with exit code 2 and a message that contains `words`."""
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err


def signal_at(step: int, number: int, train_step: Callable = common.train.train_step) -> Callable:
    """A `train_step` that sends this process a signal in the middle of step `step`, counted from 1."""

    def step_with_signal(*args):
        *_, steps_done, _ = args
        if steps_done + 1 == step:
            signal.raise_signal(number)
        return train_step(*args)

    return step_with_signal


def write_run(
    folder: Path,
    script: str,
    options: str,
    predictions: Sequence[str],
    labels: Sequence[str],
    products: Sequence[str],
    *,
    classes: Sequence[str],
    shared: Collection[str] = (),
    photos: Iterable[int] | None = None,
) -> None:
    """Writes a run folder with the given predictions, in the format of a training script; its data is missing.

    `shared` are products that are also in train, and `photos` the numbers of the photos.
    """
    folder.mkdir(parents=True)
    config = config_of(script, ["--data", "missing", *options.split()])
    run = {"script": script, "config": asdict(config), "classes": classes, "data_fingerprint": "x"}
    run |= {"parameters": 1000, "seconds": 12.0, "images_per_second": 100.0, "rows": {"val": len(labels)}}
    both = {"train": 90, "val": 60, "both": len(shared), "val_rows": 0, "shared": sorted(shared)}
    report = {"majority": classes[:2][-1], "products": both}
    metrics = scores_of_predictions(np.array(labels), np.array(predictions)) | {"n": len(labels), "loss": 0.5}
    contents = {"run": run, "data_report": report, "metrics": metrics, "labels": classes}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    with open(folder / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*IDS, *PREDICTED])
        photos = photos or range(len(labels))
        for photo, label, product, prediction in zip(photos, labels, products, predictions, strict=True):
            writer.writerow([f"{photo:04}", product, "", label, prediction, 0.9, 0.5])


# Other processes -----------------------------------------------------------------------------------------------------


def launch(command: list[str], **env: str) -> subprocess.CompletedProcess:
    """Runs a real process in the project folder, with the launchers of this Python environment on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    full_env = {**os.environ, "PATH": path, **env}
    return subprocess.run(command, cwd=ROOT, env=full_env, capture_output=True, text=True, timeout=300, check=False)


_server = multiprocessing.get_context("forkserver")  # imports torch once, which saves each process some seconds
_server.set_forkserver_preload(["tests.helpers", *SCRIPTS])  # first, as it registers a model


def fork(function: Callable, *args: object, output: Path | None = None, world: int = 1) -> list[BaseProcess]:
    """Calls a module-level `function` in `world` new processes, which can train together as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        _server.Process(target=_forked, args=(function, args, output, rank, world, port)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def fork_script(script: str, argv: list[str], *, output: Path | None = None, world: int = 1) -> list[BaseProcess]:
    """Starts a script as `python script.py argv` would, or as torchrun with `world` processes; `output` is a file."""
    return fork(_run_script, script, argv, output=output, world=world)


def exit_code(processes: list[BaseProcess], seconds: float = 120) -> int:
    """The exit code of processes from `fork`, which must be the same for all; the negative signal number if killed."""
    for process in processes:
        process.join(seconds)
    codes = {process.exitcode for process in processes}
    for process in processes:
        process.kill()
    assert len(codes) == 1 and None not in codes, f"exit codes {codes}; None is a process that did not end"
    return codes.pop()


def _run_script(script: str, argv: list[str]) -> None:
    run(lambda: main(script, argv))


def _forked(function: Callable, args: tuple, output: Path | None, rank: int, world: int, port: int) -> None:
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "1"}
    if output:
        with open(output, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    function(*args)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits until `condition()` is true; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"timed out after {seconds} seconds")


# Images --------------------------------------------------------------------------------------------------------------


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(encoded: bytes) -> dict:
    """An image file in the form in which a table stores it."""
    return {"bytes": encoded, "path": None}


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """An image of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def _turned(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encode(photo(), "JPEG", exif=tags)


READABLE = {  # file names and functions that return the file
    "cmyk.jpg": lambda: encode(photo().convert("CMYK"), "JPEG"),
    "grey.jpg": lambda: encode(photo().convert("L"), "JPEG"),
    "16bit.png": lambda: encode(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "palette.png": lambda: encode(photo().convert("P"), "PNG", transparency=3),
    "alpha.png": lambda: encode(photo().convert("RGBA"), "PNG"),
    "animated.gif": lambda: encode(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)]),
    "photo.webp": lambda: encode(photo(), "WEBP"),
    "a_png_named.jpg": lambda: encode(photo(), "PNG"),
    "1x1.png": lambda: encode(photo(1, 1), "PNG"),
    "1x5000.png": lambda: encode(photo(1, 5000), "PNG"),
    "5000x1.jpg": lambda: encode(photo(5000, 1), "JPEG"),
    **{f"exif{i}.jpg": lambda i=i: _turned(i) for i in range(1, 9)},
}
UNREADABLE = {
    "truncated.jpg": lambda: encode(photo(), "JPEG")[:700],
    "truncated.png": lambda: encode(photo(), "PNG")[:1000],
    "empty.jpg": lambda: b"",
    "text.jpg": lambda: b"not an image\n",
    "bomb.png": _bomb,
}
