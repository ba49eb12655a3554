"""Exports a finished run's model as one file that needs neither this project nor, as ONNX, PyTorch.

python export.py RUN                       # RUN/model.onnx; needs: pip install onnx onnxruntime onnxscript
python export.py RUN --to pt2              # RUN/model.pt2, for torch.export.load

The model takes raw crops, uint8 (N, 3, S, S) in RGB and of any number N, and gives logits, float32 (N, C). The class
names, the image size and how crops are made are in the file's metadata. The file is checked on the run's val split.
"""

import argparse
from pathlib import Path

from common.config import run

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}


def read_options(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--to", choices=SUFFIXES, default="onnx", help="format (default: onnx)")
    parser.add_argument("--output", type=Path, help="file (default: model.onnx or model.pt2 in the run folder)")
    options = parser.parse_args(argv)
    if options.output and options.output.suffix != SUFFIXES[options.to]:
        parser.error(f"--output {options.output}: choose a name that ends in {SUFFIXES[options.to]}")
    return options


if __name__ == "__main__":
    run(read_options)  # --help and mistyped options are answered here, before the imports below take their seconds

import numpy as np
import torch

from common.config import InputError
from common.evaluate import EVAL_BATCH
from common.exporting import FORMATS, RawModel, metadata
from common.files import whole
from common.finished import FinishedRun, read_run


def check_images(finished: FinishedRun) -> tuple[list[np.ndarray], str]:
    """The run's val images in batches, uint8 (B, 3, S, S), or noise where its data is gone; and what they are."""
    try:
        val = finished.splits()[1]
    except InputError as error:
        print(f"not checked on the val split, but on noise: {error}")
        size = finished.config.image_size
        return [np.random.default_rng(0).integers(0, 256, (100, 3, size, size), dtype=np.uint8)], "100 images of noise"
    images = [val.pixels[val.index[i : i + EVAL_BATCH]] for i in range(0, len(val), EVAL_BATCH)]
    return images, f"{len(val)} val rows"


def main(argv=None):
    options = read_options(argv)
    finished = read_run(options.run)
    write, read = FORMATS[options.to]
    path = options.output or options.run / f"model{SUFFIXES[options.to]}"
    pixels, checked = check_images(finished)
    model = RawModel(finished.model()).eval()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation that no other runtime knows
    with whole(path) as partial:
        example = torch.zeros(2, *pixels[0].shape[1:], dtype=torch.uint8)  # of one image, the number would be fixed
        write(model, example, metadata(finished), partial)
        exported = read(partial)
        found = np.concatenate([exported(batch) for batch in pixels])
        with torch.no_grad():
            expected = np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in pixels])
        differ = int((found.argmax(1) != expected.argmax(1)).sum())
        if differ:
            raise InputError(f"{path} is not kept: it predicts {differ} of {checked} otherwise than PyTorch.")
    print(f"{checked}: the same predictions as PyTorch, logits at most {abs(found - expected).max():.1e} apart")
    if len(found) == len(finished.rows):
        names = np.array(finished.run["classes"])[found.argmax(1)]
        same = int((names == finished.rows["prediction"].to_numpy()).sum())
        print(f"{same} of {len(found)} are those of predictions.csv")
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


if __name__ == "__main__":
    run(main)
