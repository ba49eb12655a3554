"""Tables from folders of photos with boxes: COCO JSON, YOLO, Pascal VOC, and metadata with categories.

The layout is recognised by the files in the folder. A row is one object; a photo may have many, which follow one
another. Annotations name photos; only photos that lie in the folder are read, whatever the names are. Sizes of photos
in annotations are not used: for rotated photos, tools disagree on them.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
import pyarrow as pa
import yaml

from common.config import ID_COLUMNS, InputError
from common.data.image_folder import METADATA, is_image, metadata_lines
from common.data.parquet import CATEGORY_COLUMNS, KEYWORDS, folder_splits, objects_of, parquet_splits
from common.data.table import ImageFiles, Table, as_text, file_state, parse_box, printable_name, read_file

POLYGONS = "polygons"  # the type of a column mask with the outline of each object: lists of x1, y1, x2, y2, ...
MAX_YAML = 10**6  # bytes; the parser takes a second for as many


def read_annotations(folder: Path, files: list[str], skipped: list[str]) -> dict[str, Table]:
    """A table for each split of a folder of photos with annotations, one row for each object; {} if it has none.

    Args:
        folder: the folder.
        files, skipped: its files, from `common.data.image_folder.list_files`.

    Raises:
        InputError: annotations cannot be read, contradict each other, or fit none of the photos.
    """
    for read in (_read_coco, _read_yolo, _read_voc, _read_metadata):
        source = _Source(folder, files)
        read(source)
        if source.splits:
            return source.tables(skipped)
    return {}


class _Source:
    """The photos of a folder, and the objects in them as they are found."""

    def __init__(self, folder: Path, files: list[str]):
        self.folder, self.files = folder, files
        self.images = {printable_name(name): name for name in files if is_image(name)}
        self.by_base: dict[str, list[str]] = {}
        for name in self.images:
            self.by_base.setdefault(name.rpartition("/")[2], []).append(name)
        self.layout = ""
        self.used: set[str] = set()  # files of annotations
        self.counts: Counter[str] = Counter()  # of what is skipped, in words
        self.splits: dict[str, list[tuple[str, dict]]] = {}  # photo and columns of each object

    def path(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str) -> bytes:
        """The content of a file of annotations."""
        content = read_file(str(self.path(name)), str(self.folder))
        if isinstance(content, str):
            raise InputError(f"{self.path(name)} cannot be read: {content}.")
        self.used.add(name)
        return content

    def find(self, name: str, near: Iterable[str]) -> str:
        """The photo that annotations call `name`, or `name` itself if there is none.

        It is sought in the folders `near`, then among all photos whose names end like `name`, then among those with the
        same name in any folder; in both cases there must be only one.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        for folder in near:
            for candidate in ("/".join([*filter(None, [folder]), *parts]), "/".join([*filter(None, [folder]), name])):
                if candidate in self.images:
                    return candidate
        same = self.by_base.get(parts[-1], []) if parts else []
        ending = [image for image in same if f"/{image}".endswith("/" + "/".join(parts))]
        return next((found[0] for found in (ending, same) if len(found) == 1), name)

    def add(self, split: str, photo: str, category: Any, bbox: Any, **columns: Any) -> None:
        columns |= {"category": as_text(category), "bbox": parse_box(bbox)}
        self.splits.setdefault(split, []).append((photo, columns))

    def tables(self, skipped: list[str]) -> dict[str, Table]:
        shown = {photo for rows in self.splits.values() for photo, _ in rows}
        others = [name for name in self.files if printable_name(name) not in shown and name not in self.used]
        unread = tuple(map(printable_name, [*skipped, *others]))
        remarks = tuple(f"{n:,} {words}" for words, n in self.counts.items())
        columns = {name for rows in self.splits.values() for _, row in rows for name in row}
        return {split: self._table(split, rows, columns, unread, remarks) for split, rows in self.splits.items()}

    def _table(self, split: str, rows: list[tuple[str, dict]], names: set[str], unread: tuple, remarks: tuple) -> Table:
        numbers: dict[str, int] = {}
        for photo, _ in rows:
            numbers.setdefault(photo, len(numbers))
        rows = sorted(rows, key=lambda row: numbers[row[0]])  # objects of a photo follow one another
        found = [photo in self.images for photo in numbers]
        if not any(found):
            example = next(iter(self.images), None)
            has = f"whose photos are called {example!r} or similar" if example else "which contains no photos"
            raise InputError(
                f"the {self.layout} name photos such as {rows[0][0]!r} for {split}, but none of them is in "
                f"{self.folder}, {has}."
            )
        paths = [str(self.path(self.images[photo])) if ok else "" for photo, ok in zip(numbers, found, strict=True)]
        states = [file_state(path) if path else [] for path in paths]
        columns: dict[str, list] = {}
        for name in (*ID_COLUMNS, "category", "bbox", "mask"):
            if name in names or name == "image_id":
                columns[name] = [row.get(name) for _, row in rows]
        photos = [photo for photo, _ in rows]
        columns["image_id"] = [given or photo for given, photo in zip(columns["image_id"], photos, strict=True)]
        kinds = {"bbox": pa.list_(pa.float64()), "mask": pa.list_(pa.list_(pa.float64()))}
        for name in columns.keys() - kinds:  # JSON may hold half characters
            columns[name] = [text and printable_name(text) for text in columns[name]]
        arrays = {name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()}
        words = {"bbox": "list of double", "mask": POLYGONS}
        return Table(
            columns={name: pa.chunked_array([array]) for name, array in arrays.items()},
            types={"image": "image"} | {name: words.get(name, "string") for name in columns},
            files=ImageFiles(paths, states, str(self.folder)),
            numbers=np.arange(len(rows)),
            photo_of=np.array([numbers[photo] for photo in photos]),
            box_format="cxcywh fractions" if self.layout == YOLO else "",
            layout=self.layout,
            remarks=remarks,
            unread=unread,
        )


# COCO ----------------------------------------------------------------------------------------------------------------


def _coco_files(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """JSON files that may be COCO annotations, and those that must be, as their names say."""
    names = [name for name in files if name.lower().endswith(".json")]
    bases = {name: name.rpartition("/")[2] for name in names}
    sure = [name for name in names if bases[name].endswith(".coco.json") or bases[name].startswith("instances_")]
    instances = {name.rpartition("/")[0] for name in sure}
    possible = [name for name in names if name.count("/") < 2 and name.rpartition("/")[0] not in instances]
    return sure + possible, sure


def _read_coco(source: _Source) -> None:
    if not source.images:
        return
    possible, sure = _coco_files(source.files)
    contents: dict[str, dict] = {}
    doubtful = ""
    for name in possible:
        content = read_file(str(source.path(name)), str(source.folder))
        marked = isinstance(content, bytes) and b'"annotations"' in content and b'"images"' in content
        if name in sure or marked:
            contents[name] = _parse_coco(source, name)
        elif name.split("/")[-2:-1] == ["annotations"]:
            doubtful = name
    if not contents and doubtful:
        raise InputError(
            f"{source.path(doubtful)} is not COCO JSON: it must be an object with images, annotations and categories."
        )
    source.layout = "COCO annotations"
    for split, names in parquet_splits(contents).items():
        for name in names:
            _add_coco(source, split, name, contents[name])
            source.used.add(name)
    source.used -= {name for name in contents if name not in chain(*parquet_splits(contents).values())}


def _parse_coco(source: _Source, name: str) -> dict:
    path = source.path(name)
    try:
        content = json.loads(source.read(name))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(item, dict) for item in content[key]) for key in lists
    ):
        raise InputError(f"{path} is not COCO JSON: it must be an object with lists of {', '.join(lists)}.")
    return content


def _add_coco(source: _Source, split: str, name: str, content: dict) -> None:
    path, folder = source.path(name), name.rpartition("/")[0]
    stem = name.rpartition("/")[2].removesuffix(".json").removeprefix("instances_")
    tails = ["", stem, f"images/{stem}", *(f"{p}{word}" for word in KEYWORDS.get(split, ()) for p in ("", "images/"))]
    near = [f"{base}/{tail}".strip("/") for base in (folder, folder.rpartition("/")[0]) for tail in [*tails, "images"]]
    categories = {_key(category.get("id")): category.get("name") for category in content["categories"]}
    objects: dict[Any, list[dict]] = {}
    for image in content["images"]:
        if not isinstance(image.get("file_name"), str):
            raise InputError(f"{path}: image {_short(image.get('id'))} has no file_name.")
        objects[_key(image.get("id"))] = []
    for number, annotation in enumerate(content["annotations"]):
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if annotation.get("iscrowd") == 1:
            source.counts["crowd boxes skipped"] += 1
            continue
        if _key(category_id) not in categories:
            known = ", ".join(map(_short, list(categories)[:5]))
            raise InputError(
                f"{path}: annotation {_short(annotation.get('id', number))} has category_id {_short(category_id)}, "
                f"which is not one of its categories ({known}{', ...' * (len(categories) > 5)})."
            )
        if _key(image_id) not in objects:
            raise InputError(
                f"{path}: annotation {_short(annotation.get('id', number))} has image_id {_short(image_id)}, which is "
                "not one of its images."
            )
        objects[_key(image_id)].append(annotation)
    for image in content["images"]:
        photo = source.find(image["file_name"], near)
        for annotation in objects.pop(_key(image.get("id")), []):
            mask = _polygons(annotation.get("segmentation"))
            columns = {"mask": mask} if mask else {}
            if not mask and annotation.get("segmentation"):
                source.counts["masks that are no polygons not read"] += 1
            bbox = annotation.get("bbox")
            if not bbox and mask:
                bbox = _bounds([v for outline in mask for v in outline])
            source.add(split, photo, categories[_key(annotation["category_id"])], bbox, **columns)


def _key(value: Any) -> Any:
    """An id that can be the key of a dict."""
    return value if isinstance(value, int | float | str) else None


def _short(value: Any) -> str:
    return repr(value)[:60]


def _polygons(value: Any) -> list[list[float]] | None:
    """The outlines of an object, each with at least three points; None if it has none, as with RLE."""
    if not isinstance(value, list) or not all(isinstance(outline, list) for outline in value):
        return None
    outlines = [parse_box(outline) or [] for outline in value]
    kept = [outline for outline in outlines if len(outline) >= 6 and len(outline) % 2 == 0]
    return kept if kept and np.isfinite(np.concatenate(kept)).all() else None


def _bounds(points: Sequence[float]) -> list[float]:
    """x, y, width, height of the points x1, y1, x2, y2, ..."""
    xs, ys = points[::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


# YOLO ----------------------------------------------------------------------------------------------------------------

YOLO = "YOLO labels"


def _yaml_files(files: Iterable[str]) -> list[str]:
    return [name for name in files if name.lower().endswith((".yaml", ".yml")) and name.count("/") < 2]


def _read_yolo(source: _Source) -> None:
    labels = {name for name in source.files if name.endswith(".txt")}
    in_folder = [name for name in sorted(labels) if "labels" in name.split("/")[:-1]]
    if not source.images or not labels:
        return
    found = {name: _parse_yaml(source, name) for name in _yaml_files(source.files)}
    named = {name: content for name, content in found.items() if "names" in content}
    if not named and not in_folder:
        return
    file = next((name for name in named if name.rpartition("/")[2] == "data.yaml"), next(iter(named), ""))
    classes = next((name for name in ("classes.txt", "labels/classes.txt") if name in labels), "")
    if not file and not classes:
        raise InputError(
            f"{source.folder} has YOLO labels such as {in_folder[0]}, but no data.yaml with the names of the classes."
        )
    source.layout = YOLO
    content = named.get(file, {})
    names = content["names"] if file else source.read(classes).decode("utf-8-sig", "backslashreplace").splitlines()
    if file:
        source.used.add(file)
    names = names if isinstance(names, dict) else dict(enumerate(names if isinstance(names, list) else []))
    names = {
        int(key) if isinstance(key, str) and re.fullmatch("[0-9]{1,9}", key) else key: name
        for key, name in names.items()
    }
    if not names or not all(isinstance(name, str | int | float) for name in names.values()):
        raise InputError(f"{source.path(file or classes)}: names must be a list of the classes, or a dict by number.")
    keys = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
    for split, words in keys.items():
        key = next((word for word in words if content.get(word)), None)
        if key:
            for photo, label in _listed(source, file, key, content[key], labels).items():
                _add_labels(source, split, photo, label, names, file or classes)
    if not any(word in content for words in keys.values() for word in words):
        pairs = {_label_of(image): image for image in source.images}
        for label in sorted({*pairs, *in_folder} & labels - {classes}):
            photo = pairs.get(label) or _image_of(label)
            _add_labels(source, next(iter(folder_splits(photo)), "train"), photo, label, names, file or classes)
    if not source.splits:
        raise InputError(f"{source.path(file or classes)}: the photos that it names have no labels.")


def _parse_yaml(source: _Source, name: str) -> dict:
    content = read_file(str(source.path(name)), str(source.folder))
    if isinstance(content, bytes) and len(content) > MAX_YAML:
        content = f"it has {len(content):,} bytes"
    try:
        value = yaml.safe_load(content) if isinstance(content, bytes) else content
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        value = " ".join(str(error).split())
    if isinstance(value, str) and name.rpartition("/")[2] == "data.yaml":
        raise InputError(f"{source.path(name)} cannot be read as YAML: {value[:200]}.")
    return value if isinstance(value, dict) else {}


def _listed(source: _Source, file: str, key: str, value: Any, labels: set[str]) -> dict[str, str]:
    """The photos of a split and their labels, from the folders or lists of photos that data.yaml names."""
    result: dict[str, str] = {}
    for place in value if isinstance(value, list) else [value]:
        parts = [part for part in str(place)[:1000].replace("\\", "/").split("/") if part not in ("", ".", "..")]
        bases = dict.fromkeys([file.rpartition("/")[0], ""])
        ends = ["/".join(filter(None, [base, *parts[i:]])) for i in range(len(parts)) for base in bases]
        photos: list[str] = []
        for end in ends or [""]:  # an absolute path of another machine ends in one of this folder
            photos = [image for image in source.images if not end or image.startswith(f"{end}/")]
            if end in labels:
                lines = source.read(end).decode("utf-8-sig", "backslashreplace").splitlines()
                photos = [source.find(line.strip(), [end.rpartition("/")[0]]) for line in lines if line.strip()]
            if photos:
                prefix = f"{_label_of(f'{end}/x.jpg').rpartition('/')[0]}/"
                orphans = [label for label in sorted(labels) if label.startswith(prefix) and end not in labels]
                known = {_label_of(photo) for photo in photos}
                photos += [_image_of(label) for label in orphans if label not in known and "labels" in label.split("/")]
                break
        if not photos and key != "test":
            raise InputError(
                f"{source.path(file)}: {key} is {str(place)[:60]!r}, which is no folder of photos in {source.folder}."
            )
        result |= {photo: _label_of(photo) for photo in photos if _label_of(photo) in labels}
    return result


def _label_of(image: str) -> str:
    """The label file of a photo: in the folder `labels` instead of `images`, the last one of that name."""
    parts = image.split("/")
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return os.path.splitext("/".join(parts))[0] + ".txt"


def _image_of(label: str) -> str:
    """A name for the photo of a label file that has none."""
    parts = label.split("/")
    places = [i for i, part in enumerate(parts[:-1]) if part == "labels"]
    if places:
        parts[places[-1]] = "images"
    return os.path.splitext("/".join(parts))[0]


def _add_labels(source: _Source, split: str, photo: str, label: str, names: dict, names_file: str) -> None:
    text = source.read(label) if os.path.getsize(source.path(label)) else b""  # a photo without objects
    source.used.add(label)
    for number, line in enumerate(text.decode("utf-8-sig", "backslashreplace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            class_number, *values = int(words[0]), *map(float, words[1:])
        except ValueError:
            raise InputError(
                f"{source.path(label)}, line {number}: {line[:60]!r} is not a class number followed by numbers."
            ) from None
        polygon = len(values) >= 6 and len(values) % 2 == 0
        if len(values) != 4 and not polygon:
            raise InputError(
                f"{source.path(label)}, line {number} has {len(words)} values: a box is class, cx, cy, w, h, and an "
                "outline has at least three points."
            )
        if class_number not in names:
            raise InputError(
                f"{source.path(label)}, line {number}: class {class_number} has no name; "
                f"{names_file} names {len(names)} classes."
            )
        if polygon:
            x, y, w, h = _bounds(values)
            values = [x + w / 2, y + h / 2, w, h]
            source.counts["outlines read as their boxes"] += 1
        source.add(split, photo, names[class_number], values)


# Pascal VOC ----------------------------------------------------------------------------------------------------------


def _xml_files(files: Iterable[str]) -> list[str]:
    return [name for name in files if name.lower().endswith(".xml")]


def _read_voc(source: _Source) -> None:
    """Corners count from 0 and are the edges of the box, as annotation tools write them: see docs/data.md."""
    files = _xml_files(source.files)
    if not source.images or not files:
        return
    in_annotations = [name for name in files if "Annotations" in name.split("/")[:-1]]
    files = in_annotations or files
    by_stem = {os.path.splitext(name)[0].rpartition("/")[2]: name for name in files}
    splits: dict[str, list[str]] = {}
    for name in source.files:
        base, _, file = name.rpartition("/")
        split = next((s for s, words in KEYWORDS.items() if file.removesuffix(".txt") in words), "")
        if f"/{base}".endswith("/ImageSets/Main") and file.endswith(".txt") and split:
            lines = source.read(name).decode("utf-8-sig", "backslashreplace").splitlines()
            stems = [line.split()[0] for line in lines if line.strip()]
            missing = next((stem for stem in stems if stem not in by_stem), None)
            if missing is not None:
                raise InputError(f"{source.path(name)} lists {missing[:60]!r}, but there is no {missing[:60]}.xml.")
            splits[split] = [by_stem[stem] for stem in stems]
    if not splits:
        for name in files:
            splits.setdefault(next(iter(folder_splits(name)), "train"), []).append(name)
    source.layout = "Pascal VOC annotations"
    for split, names in splits.items():
        for name in names:
            _add_voc(source, split, name, sure=bool(in_annotations))


def _add_voc(source: _Source, split: str, name: str, *, sure: bool) -> None:
    path = source.path(name)
    try:
        root = parse_xml(source.read(name))
    except (expat.ExpatError, ValueError) as error:
        raise InputError(f"{path} cannot be read as XML: {error}.") from error
    if root.tag != "annotation":
        if sure:
            raise InputError(f"{path} is not a Pascal VOC annotation: it must start with <annotation>.")
        source.used.remove(name)
        return
    folder, _, file = name.rpartition("/")
    stem, base = os.path.splitext(file)[0], folder.rpartition("/")[0]
    near = [folder, f"{base}/JPEGImages".strip("/"), f"{base}/images".strip("/"), base]
    photo = source.find(_text(root, "filename") or stem, near)
    if photo not in source.images:  # renamed after it was annotated
        same = [image for image in source.images if os.path.splitext(image)[0].rpartition("/")[2] == stem]
        photo = same[0] if len(same) == 1 else photo
    for item in root.findall("object"):
        corners = [_text(item, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        bbox: Any = None
        if item.find("bndbox") is not None:
            left, top, right, bottom = parse_box(corners) or []
            bbox = [left, top, right - left, bottom - top]
        source.add(split, photo, _text(item, "name"), bbox)


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


# Metadata ------------------------------------------------------------------------------------------------------------


def _read_metadata(source: _Source) -> None:
    """metadata.jsonl or metadata.csv, in the folder or in those of its splits, with a category or objects."""
    names = [name for name in source.files if name.rpartition("/")[2] in METADATA and name.count("/") < 2]
    folders = {name.rpartition("/")[0]: name for name in sorted(names)}  # .jsonl rather than .csv
    layouts = set()
    for folder, name in sorted(folders.items()):
        content = read_file(str(source.path(name)), str(source.folder))
        if not folder and isinstance(content, bytes) and b"file_name" not in content:
            continue  # a file of another kind, beside photos
        lines = metadata_lines(source.folder, name)
        keys = {key for line in lines for key in line}
        kind = next((key for key in ("objects", *CATEGORY_COLUMNS) if key in keys), None)
        if kind is None:
            continue
        source.used.add(name)
        layouts.add("Hugging Face objects" if kind == "objects" else "metadata")
        photos = [source.find(printable_name(line["file_name"]), [folder]) for line in lines]
        photos = [photo if photo in source.images else f"{folder}/{photo}".strip("/") for photo in photos]
        in_splits = any(map(folder_splits, photos))
        for number, (line, photo) in enumerate(zip(lines, photos, strict=True), 1):
            split = next(iter(folder_splits(photo)), "" if in_splits else "train")
            ids = {key: as_text(line.get(key)) for key in ID_COLUMNS if line.get(key) is not None}
            try:
                objects = objects_of(line.get(kind)) if kind == "objects" else [(line.get("bbox"), line.get(kind))]
            except ValueError as error:
                raise InputError(f"{source.path(name)}, line {number}: {error}") from error
            for bbox, category in objects:
                if split:
                    source.add(split, photo, category, bbox, **ids)
    source.layout = " and ".join(sorted(layouts))
