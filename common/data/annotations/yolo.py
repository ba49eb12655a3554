"""YOLO: a text file for each photo, with a line for each object, and data.yaml with the names of the classes."""

import json
import os
import re
from functools import partial
from typing import Any

import yaml

from common.config import InputError, count
from common.data.annotations.photos import AnnotatedPhotos
from common.data.segmentation import bounds, segmentation_of

MAX_YAML = 10**6  # bytes; the parser takes a second for as many
CLASS_FILES = ("classes.txt", "obj.names")  # of LabelImg, and of CVAT's "YOLO 1.1"
NOTHING = ("", "null", "~")  # in YAML
KEYS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}  # of data.yaml


def read_yolo(photos: AnnotatedPhotos) -> None:
    """Labels of the splits that data.yaml names or, if it names none, of folders named after splits."""
    labels = {name for name in photos.files if name.endswith(".txt")}
    in_folder = [name for name in sorted(labels) if "labels" in name.split("/")[:-1]]
    if not photos.images or not labels:
        return
    yaml_files = [
        name
        for name in photos.files
        if name.lower().endswith((".yaml", ".yml")) and (name.count("/") < 2 or name.rpartition("/")[2] == "data.yaml")
    ]
    found = {name: _parse_yaml(photos, name) for name in yaml_files}
    named = {name: content for name, content in found.items() if "names" in content}
    pairs = {_label_of(image): image for image in photos.images}
    class_files = [name for name in photos.files if name.rpartition("/")[2] in CLASS_FILES]
    if not named and not in_folder and not (class_files and pairs.keys() & labels):
        return
    file = next((name for name in named if name.rpartition("/")[2] == "data.yaml"), next(iter(named), ""))
    classes = next(iter(class_files), "")
    if not file and len({photos.read(name) for name in class_files}) > 1:
        raise InputError(f"{photos.folder}: {' and '.join(class_files[:2])} differ: keep one list of the classes.")
    if not file and not classes:
        lacks = f"{next(iter(found))} has no names" if found else "there is no data.yaml with the names"
        raise InputError(
            f"{photos.folder} has YOLO labels such as {in_folder[0]}, but {lacks} of the classes. "
            "Add classes.txt, with one name on each line in the order of the classes."
        )
    photos.layout, photos.box_format = "YOLO labels", "cxcywh fractions"
    content = named.get(file, {})
    if file:
        photos.used.add(file)
    names_file = file or classes
    names = _class_names(photos, content["names"] if file else photos.read_lines(classes), names_file)
    add = partial(_add_objects, photos, names=names, names_file=names_file, pose="kpt_shape" in content)
    for split, words in KEYS.items():
        key = next((word for word in words if content.get(word) not in (None, *NOTHING)), None)
        if key:
            for photo, label in _listed(photos, file, key, content, labels).items():
                add(split, photo, label)
    if not any(word in content for words in KEYS.values() for word in words):
        found_labels = sorted({*pairs, *in_folder} & labels - {*class_files})
        of_labels = [pairs.get(label) or _image_of(label) for label in found_labels]
        for photo, label, split in zip(of_labels, found_labels, photos.splits_by_folder(of_labels), strict=True):
            add(split, photo, label)
    if not photos.splits:
        raise InputError(f"{photos.path(names_file)}: none of its photos has a label file.")


def _parse_yaml(photos: AnnotatedPhotos, name: str) -> dict:
    content = photos.peek(name)
    if isinstance(content, bytes) and len(content) > MAX_YAML:
        content = f"it has {len(content):,} bytes"
    try:
        value = yaml.load(content, yaml.BaseLoader) if isinstance(content, bytes) else content  # all scalars as text
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        value = " ".join(str(error).split())
    if not isinstance(value, dict) and name.rpartition("/")[2] == "data.yaml":
        reason = value[:200] if isinstance(value, str) else "it must have names and values"
        raise InputError(f"{photos.path(name)} cannot be read as YAML: {reason}.")
    return value if isinstance(value, dict) else {}


def _class_names(photos: AnnotatedPhotos, names: Any, file: str) -> dict[Any, Any]:
    """The names of the classes by number, from a list or a dict."""
    names = names if isinstance(names, dict) else dict(enumerate(names if isinstance(names, list) else []))
    names = {int(key) if re.fullmatch("[0-9]{1,9}", str(key)) else key: name for key, name in names.items()}
    if not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{photos.path(file)}: names must be a list of the classes, or a dict by number.")
    return names


def _listed(photos: AnnotatedPhotos, file: str, key: str, content: dict, labels: set[str]) -> dict[str, str]:
    """The photos of a split and their labels, from the folders or lists of photos that data.yaml names."""
    result: dict[str, str] = {}
    root = content.get("path")
    for place in content[key] if isinstance(content[key], list) else [content[key]]:
        if not isinstance(place, str):
            raise InputError(f"{photos.path(file)}: {key} must be a folder, a list of photos, or several of these.")
        path = f"{root if isinstance(root, str) else ''}/{place}"[-1000:].replace("\\", "/")
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        bases = dict.fromkeys([file.rpartition("/")[0], ""])
        ends = ["/".join(filter(None, [base, *parts[i:]])) for i in range(len(parts)) for base in bases]
        images: list[str] = []
        for end in ends or [""]:  # an absolute path of another machine ends in one of this folder
            images = [image for image in photos.images if not end or image.startswith(f"{end}/")]
            if end in labels:
                lines = photos.read_lines(end)
                near = [end.rpartition("/")[0]]
                images = [photos.find(line.strip(), near).removeprefix("./") for line in lines if line.strip()]
            if images:
                prefix = f"{_label_of(f'{end}/x.jpg').rpartition('/')[0]}/"
                orphans = [label for label in sorted(labels) if label.startswith(prefix) and end not in labels]
                known = {_label_of(image) for image in images}
                images += [_image_of(label) for label in orphans if label not in known and "labels" in label.split("/")]
                break
        if not images and key != "test":
            raise InputError(
                f"{photos.path(file)}: {key} is {place[:60]!r}, but {photos.folder} has no such folder of photos."
            )
        result |= {image: _label_of(image) for image in images if _label_of(image) in labels}
    return result


def _label_of(image: str) -> str:
    """The label file of a photo: in the folder `labels` instead of `images`, the last one of that name."""
    return os.path.splitext(_exchange(image, "images", "labels"))[0] + ".txt"


def _image_of(label: str) -> str:
    """A name for the photo of a label file that has none."""
    return os.path.splitext(_exchange(label, "labels", "images"))[0]


def _exchange(name: str, old: str, new: str) -> str:
    """The name of a file with the last folder `old` in it called `new`."""
    *folders, base = name.split("/")
    if old in folders:
        folders[len(folders) - 1 - folders[::-1].index(old)] = new
    return "/".join([*folders, base])


def _add_objects(
    photos: AnnotatedPhotos, split: str, photo: str, label: str, *, names: dict, names_file: str, pose: bool
) -> None:
    """Adds the objects of a label file. With `pose`, key points follow the box."""
    photos.used.add(label)
    lines = photos.read_lines(label) if os.path.getsize(photos.path(label)) else []  # none for a photo without objects
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            class_number, *values = int(words[0]), *map(float, words[1:])
        except ValueError:
            raise InputError(
                f"{photos.path(label)}, line {number}: {line[:60]!r} is not a class number followed by numbers."
            ) from None
        values = values[:4] if pose else values
        polygon = len(values) >= 6 and len(values) % 2 == 0
        if len(values) != 4 and not polygon:
            raise InputError(
                f"{photos.path(label)}, line {number} has {count(len(words), 'value')}: a box is class, cx, cy, w, h, "
                "and a polygon has at least three points."
            )
        if class_number not in names:
            raise InputError(
                f"{photos.path(label)}, line {number}: class {class_number} has no name; "
                f"{names_file} names {count(len(names), 'class')}."
            )
        columns = {}
        if polygon:
            if segmentation_of([values]):
                columns["mask"] = json.dumps({"fractions": values})
            x, y, w, h = bounds(values)
            values = [x + w / 2, y + h / 2, w, h]
        photos.add(split, photo, names[class_number], values, **columns)
