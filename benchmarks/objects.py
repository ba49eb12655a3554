"""Measures what preparing photos with ten boxes each costs, against decoding the photos once and once for each box.

python -m benchmarks.objects                # 64 photos of 2000 x 1500 pixels, ten boxes each
python -m benchmarks.objects --width 1000   # smaller ones

"prepare" is everything that a run does before it trains: reading COCO annotations, hashing the photos and boxes,
decoding, cropping and resizing to `--image-size`, and writing the cache. "decode" only decodes each photo once, and
"decode a box" decodes it for each of its boxes and crops it. All three use the same threads and run in turns. Rates are
those per second of CPU time, of all threads together, on which other load of the machine has little influence.
"""

import json
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from itertools import count
from pathlib import Path
from time import process_time

import numpy as np

from benchmarks.photos import make_photo
from benchmarks.timing import alternate, machine, print_rows, row
from common.config import DataConfig
from common.data.dataset import load_splits
from common.data.pixels import WORKERS, crop_with, map_ahead, open_image
from common.launch import keep_freed_memory

BOXES = 10  # of a photo


def write_coco(folder: Path, photos: int, width: int, split: str, rng: np.random.Generator) -> None:
    """Photos of `width` x 3/4 `width` pixels, windows of a larger one, with boxes of 5 to 25 % of their sides."""
    height = width * 3 // 4
    base = make_photo(width + 64, height + 64, rng)
    content: dict = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"class {i}"} for i in range(5)]}
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for i in range(photos):
        left, top = rng.integers(0, 64, 2).tolist()
        base.crop((left, top, left + width, top + height)).save(folder / split / f"{i}.jpg", quality=90)
        content["images"].append({"id": i, "file_name": f"{i}.jpg"})
        sides = rng.uniform(0.05, 0.25, (BOXES, 2)) * (width, height)
        starts = rng.uniform(0, 1, (BOXES, 2)) * ((width, height) - sides)
        for bbox in np.hstack([starts, sides]).round(1).tolist():
            number = len(content["annotations"])
            content["annotations"].append({"id": number, "image_id": i, "category_id": number % 5, "bbox": bbox})
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def main(photos: int, width: int, size: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name, "data"), np.random.default_rng(0)
        for split, n in (("train", photos), ("val", 2)):
            write_coco(folder, n, width, split, rng)
        encoded = [path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))]
        boxes = (rng.uniform(0.05, 0.2, (BOXES, 4)) * width).tolist()
        numbers = count()

        def config() -> DataConfig:
            """Of a cache that is empty."""
            return DataConfig(data=str(folder), crop=True, image_size=size, cache=f"{name}/cache{next(numbers)}")

        settings = config()
        keep_freed_memory()  # as a run on a CPU does before it reads its data

        def decode(photo: bytes, repeats: int = 1) -> None:
            for bbox in boxes[:repeats]:
                image = open_image(photo)
                image.load()
                if repeats > 1:
                    crop_with(settings, image, bbox)

        def rate(work) -> float:
            start = process_time()
            work()
            return len(encoded) / (process_time() - start)

        turns = {
            "decode": lambda: rate(lambda: list(map_ahead(decode, encoded, ahead=2 * WORKERS))),
            "prepare": lambda: rate(lambda: load_splits(config())),
            "decode a box": lambda: rate(
                lambda: list(map_ahead(lambda p: decode(p, BOXES), encoded, ahead=2 * WORKERS))
            ),
        }
        print(machine())
        rates = alternate(turns, rounds)
        case = f"{len(encoded)} photos of {width} x {width * 3 // 4}, {BOXES} boxes each, crops of {size} px"
        pairs = ("decode", "prepare"), ("decode a box", "prepare")
        print_rows("Photos per second of CPU time: medians of the rounds, and their ratios", [row(case, rates, *pairs)])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=64, help="number of train photos (default: 64)")
    parser.add_argument("--width", type=int, default=2000, help="of the photos in pixels (default: 2000)")
    parser.add_argument("--image-size", type=int, default=64, help="of the crops in pixels (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="of alternating measurements (default: 5)")
    options = parser.parse_args()
    main(options.photos, options.width, options.image_size, options.rounds)
