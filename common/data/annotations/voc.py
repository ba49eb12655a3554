"""Pascal VOC: an XML file for each photo. Corners count from 0 and are the edges of the box, see docs/data.md."""

import os
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from common.config import InputError
from common.data.annotations.photos import AnnotatedPhotos
from common.data.split_names import KEYWORDS
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
        for name, split in zip(files, photos.splits_by_folder(files), strict=True):
            splits.setdefault(split, []).append(name)
    photos.layout = "Pascal VOC annotations"
    for split, names in splits.items():
        for name in names:
            _add_objects(photos, split, name, sure=bool(in_annotations))


def _image_sets(photos: AnnotatedPhotos, files: list[str]) -> dict[str, list[str]]:
    """The XML files of each split that ImageSets/Main/train.txt, val.txt and test.txt list.

    trainval.txt, as in VOC2007, counts if there is no train.txt. Each of several such data sets has lists of its own.
    """
    by_stem = {f"{_root(name, 'Annotations')}{os.path.splitext(name)[0].rpartition('/')[2]}": name for name in files}
    in_main = [name for name in photos.files if f"/{name}".rpartition("/")[0].endswith("/ImageSets/Main")]
    lists = {
        split: [name for name in in_main if name.rpartition("/")[2].lower() in [f"{word}.txt" for word in words]]
        for split, words in (*KEYWORDS.items(), ("trainval", ("trainval",)))
    }
    trainval = lists.pop("trainval")
    lists["train"] = lists["train"] or trainval
    splits: dict[str, list[str]] = {}
    for split, names in lists.items():
        for name in names:
            stems = [line.split()[0] for line in photos.read_lines(name) if line.strip()]
            root = _root(name, "ImageSets")
            missing = next((stem for stem in stems if root + stem not in by_stem), None)
            if missing is not None:
                raise InputError(f"{photos.path(name)} lists {missing[:60]!r}, but there is no {missing[:60]}.xml.")
            splits.setdefault(split, []).extend(by_stem[root + stem] for stem in stems)
    return splits


def _root(name: str, folder: str) -> str:
    """What stands before the last folder of this name in the name of a file."""
    before, found, _ = f"/{name}".rpartition(f"/{folder}/")
    return f"{before}/" if found else "/"


def _add_objects(photos: AnnotatedPhotos, split: str, name: str, *, sure: bool) -> None:
    path = photos.path(name)
    content = photos.read(name)
    try:
        root = parse_xml(content)
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise InputError(f"{path} cannot be read as XML: {error}.") from error
    if root.tag != "annotation":
        if sure:
            raise InputError(f"{path} is not a Pascal VOC annotation: it must start with <annotation>.")
        photos.used.remove(name)
        return
    folder, _, file = name.rpartition("/")
    stem, base = os.path.splitext(file)[0], folder.rpartition("/")[0]
    near = [folder, f"{base}/JPEGImages".strip("/"), f"{base}/images".strip("/"), base]
    same = photos.by_stem.get(stem, [])
    beside = [image for image in same if image.rpartition("/")[0] in near]
    photo = beside[0] if beside else photos.find(_text(root, "filename") or stem, near)
    if photo not in photos.images and len(same) == 1:  # renamed, or copied, after it was annotated
        photo = same[0]
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
        raise ValueError("it has a DOCTYPE, which is not allowed")

    parser.StartDoctypeDeclHandler = refuse
    handlers: dict[str, Callable] = {"start": builder.start, "end": builder.end, "data": builder.data}
    parser.StartElementHandler, parser.EndElementHandler = handlers["start"], handlers["end"]
    parser.CharacterDataHandler = handlers["data"]
    parser.Parse(content, True)
    return builder.close()
