"""Annotations of tools whose layout is not read: what they are, for a sentence that says what to do."""

import csv
from collections.abc import Sequence
from pathlib import Path

from common.config import InputError
from common.data.table import read_file

MAX_FILES = 50  # that are looked at
ADVICE = "export or convert these annotations to COCO, YOLO, Pascal VOC or folders of classes."
# The name of a layout, the end of its files' names, and texts that are in each of them; of CSV files, in the first line
OTHERS = (
    ("labelme JSON", ".json", b'"shapes"', b'"imagePath"'),
    ("VGG Image Annotator JSON", ".json", b'"regions"', b'"shape_attributes"'),
    ("Label Studio JSON", ".json", b'"original_width"', b'"from_name"'),
    ("Label Studio JSON", ".json", b'"original_width"', b'"rectanglelabels"'),
    ("Datumaro JSON", ".json", b'"items"', b'"categories"', b'"labels"'),
    ("CreateML JSON", ".json", b'"annotations"', b'"coordinates"'),
    ("CVAT XML", ".xml", b"<annotations>", b"<image "),
    ("VGG Image Annotator CSV", ".csv", b"region_shape_attributes"),
    ("Label Studio CSV", ".csv", b"annotation_id", b"lead_time"),
    ("Open Images CSV", ".csv", b"ImageID", b"LabelName"),
    ("Roboflow multi-class CSV", "_classes.csv", b"filename"),
)


def layout_not_read(name: str, content: bytes | str) -> str:
    """What the file `name` is, such as "labelme JSON"; empty if it is not known."""
    text = b"" if isinstance(content, str) else content.split(b"\n")[0] if name.lower().endswith(".csv") else content
    fitting = (kind for kind, end, *words in OTHERS if name.lower().endswith(end) and all(w in text for w in words))
    return next(fitting, "")


def refuse_other_layouts(folder: Path, files: Sequence[str]) -> None:
    """Raises an InputError if one of the `files` in a folder holds annotations of a layout that is not read."""
    for name in [name for name in files if name.lower().endswith((".json", ".csv", ".xml"))][:MAX_FILES]:
        if kind := layout_not_read(name, read_file(str(folder / name), str(folder))):
            raise InputError(f"{folder / name} is {kind}, which is not read: {ADVICE}")


def refuse_other_columns(folder: Path, files: Sequence[str]) -> None:
    """Raises an InputError if one of the `files` in a folder without annotations or classes is a CSV file."""
    for name in [name for name in files if name.lower().endswith(".csv") and name.count("/") < 2]:
        content = read_file(str(folder / name), str(folder))
        if isinstance(content, bytes):
            columns = next(csv.reader([content.split(b"\n")[0].decode("utf-8-sig", "replace")]), [])
            raise InputError(
                f"{folder / name} is not read. A CSV file of boxes needs the columns filename (such as 1.jpg), class, "
                "xmin, ymin, xmax and ymax. One of categories alone needs file_name and category, and its name must "
                f"be metadata.csv. This one starts with {', '.join(columns)[:200]}."
            )
