"""Pascal VOC: an XML file for each photo. Corners count from 0 and are the edges of the box, see docs/data.md."""

import os
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from common.config import InputError
from common.data.annotations.photos import AnnotatedPhotos
from common.data.parquet import KEYWORDS, folder_splits
from common.data.table import parse_box


def read_voc(photos: AnnotatedPhotos) -> None:
    """XML files in Annotations/ or beside the photos, in the splits of ImageSets/Main/ or of the folders' names."""
    files = [name for name in photos.files if name.lower().endswith(".xml")]
    if not photos.images or not files:
        return
    in_annotations = [name for name in files if "Annotations" in name.split("/")[:-1]]
    files = in_annotations or files
    splits = _image_sets(photos, files)
    if not splits:
        for name in files:
            splits.setdefault(next(iter(folder_splits(name)), "train"), []).append(name)
    photos.layout = "Pascal VOC annotations"
    for split, names in splits.items():
        for name in names:
            _add_objects(photos, split, name, sure=bool(in_annotations))


def _image_sets(photos: AnnotatedPhotos, files: list[str]) -> dict[str, list[str]]:
    """The XML files of each split that ImageSets/Main/train.txt, val.txt and test.txt list."""
    by_stem = {os.path.splitext(name)[0].rpartition("/")[2]: name for name in files}
    splits: dict[str, list[str]] = {}
    for name in photos.files:
        base, _, file = name.rpartition("/")
        split = next((s for s, words in KEYWORDS.items() if file.removesuffix(".txt") in words), "")
        if f"/{base}".endswith("/ImageSets/Main") and file.endswith(".txt") and split:
            stems = [line.split()[0] for line in photos.read_lines(name) if line.strip()]
            missing = next((stem for stem in stems if stem not in by_stem), None)
            if missing is not None:
                raise InputError(f"{photos.path(name)} lists {missing[:60]!r}, but there is no {missing[:60]}.xml.")
            splits[split] = [by_stem[stem] for stem in stems]
    return splits


def _add_objects(photos: AnnotatedPhotos, split: str, name: str, *, sure: bool) -> None:
    path = photos.path(name)
    try:
        root = parse_xml(photos.read(name))
    except (expat.ExpatError, ValueError) as error:
        raise InputError(f"{path} cannot be read as XML: {error}.") from error
    if root.tag != "annotation":
        if sure:
            raise InputError(f"{path} is not a Pascal VOC annotation: it must start with <annotation>.")
        photos.used.remove(name)
        return
    folder, _, file = name.rpartition("/")
    stem, base = os.path.splitext(file)[0], folder.rpartition("/")[0]
    near = [folder, f"{base}/JPEGImages".strip("/"), f"{base}/images".strip("/"), base]
    photo = photos.find(_text(root, "filename") or stem, near)
    if photo not in photos.images:  # renamed after it was annotated
        same = [image for image in photos.images if os.path.splitext(image)[0].rpartition("/")[2] == stem]
        photo = same[0] if len(same) == 1 else photo
    for item in root.findall("object"):
        corners = [_text(item, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        bbox: Any = None
        if item.find("bndbox") is not None:
            left, top, right, bottom = parse_box(corners) or []
            bbox = [left, top, right - left, bottom - top]
        photos.add(split, photo, _text(item, "name"), bbox)


def _text(element: ElementTree.Element, path: str) -> str | None:
    found = element.find(path)
    return found.text.strip() if found is not None and found.text else None


def parse_xml(content: bytes) -> ElementTree.Element:
    """The root of an XML document without a document type: entities could be made to grow, or name other files.

    Raises:
        ValueError: it has a document type.
        xml.parsers.expat.ExpatError: it is not XML.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError("it has a document type, which is not read")

    parser.StartDoctypeDeclHandler = refuse
    handlers: dict[str, Callable] = {"start": builder.start, "end": builder.end, "data": builder.data}
    parser.StartElementHandler, parser.EndElementHandler = handlers["start"], handlers["end"]
    parser.CharacterDataHandler = handlers["data"]
    parser.Parse(content, True)
    return builder.close()
