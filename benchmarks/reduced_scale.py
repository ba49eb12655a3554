"""Measures how much decoding JPEG photos at a reduced scale, as for training, changes a run's predictions.

python -m benchmarks.reduced_scale RUN               # the val photos of the run's data
python -m benchmarks.reduced_scale RUN --side 3000   # enlarged until their longer side has 3000 pixels

Prints how many predictions differ from those on photos that are decoded in full and then cropped and resized in the
same way, how far the probabilities differ (largest difference of each row), and both accuracies.
"""

import io
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.special import softmax

from common.data.pixels import crop_with, normalize, open_image
from common.deploy.inputs import read_inputs
from common.files import markdown_table
from common.finished_run import read_run


def enlarge(image: Image.Image, side: int) -> bytes:
    """`image` as a JPEG file whose longer side has `side` pixels."""
    scale = side / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    buffer = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def scaled_box(box: list[float] | None, before: tuple[int, int], after: tuple[int, int]) -> list[float] | None:
    """The box in an image that was resized from the size `before` to the size `after`."""
    if box is None:
        return None
    x, y, width, height = (value * after[i % 2] / before[i % 2] for i, value in enumerate(box))
    return [x, y, min(width, after[0] - x), min(height, after[1] - y)]


@torch.no_grad()
def main(folder: Path, side: int) -> None:
    run = read_run(folder)
    model, config, classes = run.model(), run.config, run.info.classes
    inputs = read_inputs(config.data)
    rows = [row for row in zip(inputs.items(), inputs.labels, strict=True) if row[1] in classes]
    labels = np.array([classes.index(label) for _, label in rows])
    probabilities: dict[str, list[np.ndarray]] = {"reduced": [], "full": []}
    factors = []
    for (encoded, box), _ in rows:
        if side:
            original = ImageOps.exif_transpose(open_image(encoded))
            encoded = enlarge(original, side)
            box = scaled_box(box, original.size, open_image(encoded).size)
        for decoding, results in probabilities.items():
            image = open_image(encoded)
            width = image.width
            if decoding == "full":
                image.load()  # a loaded image is not decoded again at a reduced scale
            crop, _ = crop_with(config, image, box)
            factors += [round(width / image.width)] if decoding == "reduced" else []
            pixels = torch.from_numpy(np.asarray(crop).transpose(2, 0, 1)[None].copy())
            results.append(softmax(model(normalize(pixels, run.config.normalization)).double().numpy()[0]))
    reduced, full = (np.stack(results) for results in probabilities.values())
    change = abs(reduced - full).max(1)
    accuracies = [(p.argmax(1) == labels).mean() for p in (reduced, full)]
    scales = [f"1/{factor}: {factors.count(factor)}" for factor in sorted(set(factors))]
    cells = [
        f"{side or 'original'}",
        ", ".join(scales),
        f"{(reduced.argmax(1) != full.argmax(1)).sum()} of {len(labels)}",
        f"{np.median(change):.3f}, {change.max():.3f}",
        *(f"{accuracy:.3f}" for accuracy in accuracies),
    ]
    header = ["longer side", "scale: photos", "predictions that differ", "probability, median and maximum"]
    print(*markdown_table([*header, "accuracy, reduced", "accuracy, full"], [cells]), sep="\n")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--side", type=int, default=0, help="longer side of the photos in pixels; 0 means as they are")
    options = parser.parse_args()
    main(options.run, options.side)
