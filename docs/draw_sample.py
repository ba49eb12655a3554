"""Draws docs/sample.png: photos of the bundled sample with their boxes, and the crops used in training.

python -m docs.draw_sample
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.config import TrainConfig
from common.data.crop import crop_image
from common.data.pixels import open_image
from common.data.sources import clean_category, load_tables
from common.figures import save_figure

CLASSES = ("armchair", "lamp", "bookcase", "coffee_table", "plant", "bed")


def main():
    rows = load_tables(TrainConfig(data="sample", crop=True))["val"]
    names = [clean_category(name) for name in rows["category"]]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(2, len(CLASSES))
    for (photo, crop), name in zip(axes.T, CLASSES, strict=True):
        row = rows.select([names.index(name)])
        image, bbox = open_image(next(row.images())), row["bbox"][0]
        photo.imshow(image.convert("RGB"))
        x, y, width, height = bbox
        photo.add_patch(Rectangle((x, y), width, height, fill=False, color="tab:red", linewidth=2))
        photo.set_title(f"{row['category'][0]}\n{bbox}", fontsize=9)
        crop.imshow(crop_image(image, bbox, size=224, fit="pad")[0])
        crop.set_title(name, fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    save_figure(Path(__file__).parent / "sample.png", figure)


if __name__ == "__main__":
    main()
