"""Annotations of tools whose layout is not read: what they are, for a sentence that says what to do."""

from collections.abc import Sequence
from pathlib import Path

from common.config import InputError
from common.data.table import read_file

MAX_FILES = 50  # that are looked at
ADVICE = "export or convert these annotations to COCO, YOLO or Pascal VOC."
# What a tool calls its files, and texts that are in each of them
JSON_FILES = (
    ("labelme", b'"shapes"', b'"imagePath"'),
    ("VGG Image Annotator", b'"regions"', b'"shape_attributes"'),
    ("Label Studio", b'"original_width"', b'"from_name"'),
    ("Label Studio", b'"original_width"', b'"rectanglelabels"'),
    ("Datumaro", b'"items"', b'"categories"', b'"infos"'),
    ("CreateML", b'"annotations"', b'"coordinates"'),
)
CSV_FILES = (
    ("VGG Image Annotator", b"region_shape_attributes"),
    ("Label Studio", b"annotation_id", b"lead_time"),
    ("Open Images", b"ImageID", b"LabelName"),
)


def layout_not_read(name: str, content: bytes | str) -> str:
    """What the file `name` is, such as "labelme's JSON"; empty if it is not known."""
    suffix, tools = (".json", JSON_FILES) if name.lower().endswith(".json") else (".csv", CSV_FILES)
    if isinstance(content, str) or not name.lower().endswith(suffix):
        return ""
    content = content.partition(b"\n")[0] if suffix == ".csv" else content
    tool = next((tool for tool, *words in tools if all(word in content for word in words)), "")
    return f"{tool} {suffix[1:].upper()}" if tool else ""


def refuse_other_layouts(folder: Path, files: Sequence[str]) -> None:
    """Raises an InputError if one of the `files` in a folder holds annotations of a layout that is not read."""
    for name in [name for name in files if name.lower().endswith((".json", ".csv"))][:MAX_FILES]:
        content = read_file(str(folder / name), str(folder))
        if kind := layout_not_read(name, content):
            raise InputError(f"{folder / name} is {kind}, which is not read: {ADVICE}")
