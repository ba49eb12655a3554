"""Draws docs/sample.png: rows of the bundled sample with their boxes. Run from the project's folder:

PYTHONPATH=. python docs/draw_sample.py
"""

import io
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
from PIL import Image

from common.config import TrainConfig
from common.crop import crop_image
from common.sources import clean_category, load_tables

CLASSES = ("armchair", "lamp", "bookcase", "coffee_table", "plant", "bed")


def main():
    rows: datasets.Dataset = load_tables(TrainConfig(data="sample", crop=True))["val"]
    names = [clean_category(name) for name in rows["category"]]
    figure, axes = plt.subplots(2, len(CLASSES), figsize=(13, 4.6), layout="constrained")
    for (photo, crop), name in zip(axes.T, CLASSES, strict=True):
        row = rows[names.index(name)]
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        photo.imshow(image.convert("RGB"))
        x, y, width, height = row["bbox"]
        photo.add_patch(plt.Rectangle((x, y), width, height, fill=False, color="tab:red", linewidth=2))
        photo.set_title(f"{row['category']}\n{row['bbox']}", fontsize=9)
        crop.imshow(crop_image(image, row["bbox"], size=224)[0])
        crop.set_title(name, fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(Path(__file__).parent / "sample.png", dpi=100)


if __name__ == "__main__":
    main()
