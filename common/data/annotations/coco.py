"""COCO: JSON files with lists of images, annotations and categories, one file for each split."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from common.config import InputError
from common.data.annotations.others import ADVICE, layout_not_read
from common.data.annotations.photos import AnnotatedPhotos
from common.data.segmentation import bounds, segmentation_of
from common.data.split_names import file_splits, parquet_splits

LISTS = ("images", "annotations", "categories")
MUST_BE = "it must be an object with lists of images, annotations, categories."


def read_coco(photos: AnnotatedPhotos) -> None:
    """annotations/instances_train.json beside folders of photos, train/_annotations.coco.json, or any JSON file."""
    if not photos.images:
        return
    possible, sure = _json_files(photos.files)
    contents: dict[str, dict] = {}
    doubtful = ""
    for name in possible:
        content = photos.peek(name)
        if name in sure or _may_be_coco(content, split=bool(file_splits(name.lower()))):
            contents[name] = _parse(photos, name)
        elif name.split("/")[-2:-1] == ["annotations"]:
            doubtful = name
    if not contents and doubtful:
        kind = layout_not_read(doubtful, photos.peek(doubtful))
        problem = f"{kind}, which is not read: {ADVICE}" if kind else f"not COCO JSON: {MUST_BE}"
        raise InputError(f"{photos.path(doubtful)} is {problem}")
    photos.layout = "COCO annotations"
    by_lower = {name.lower(): name for name in contents}  # Train, of CVAT
    splits = {split: [by_lower[name] for name in names] for split, names in parquet_splits(by_lower).items()}
    for split, names in splits.items():
        for name in names:
            _add_objects(photos, split, name, contents[name])
    photos.used -= contents.keys() - set(chain(*splits.values()))


def read_image_names(folder: Path, files: list[str]) -> dict[str, str]:
    """The file names of the images in the COCO files of a folder by their ids, as text.

    Ids that stand for several images, such as one of train and one of val, are left out.
    """
    photos = AnnotatedPhotos(folder, files)
    names: dict[str, set[str]] = {}
    for file in _json_files(files)[0]:
        if _may_be_coco(photos.peek(file), split=False):
            for image in _parse(photos, file)["images"]:
                names.setdefault(str(image.get("id")), set()).add(str(image.get("file_name")))
    return {key: next(iter(values)) for key, values in names.items() if len(values) == 1}


def _may_be_coco(content: bytes | str, *, split: bool) -> bool:
    """Whether a JSON file has COCO's lists; also if it cannot be read and is named after a split."""
    if isinstance(content, bytes) and all(
        word in content.replace(b"\0", b"") for word in (b'"annotations"', b'"images"')
    ):
        return True
    try:
        return split and not json.loads(content)
    except (ValueError, RecursionError):
        return split


def _json_files(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """JSON files that may be COCO annotations, and those that must be, as their names say."""
    names = [name for name in files if name.lower().endswith(".json")]
    bases = {name: name.rpartition("/")[2] for name in names}
    sure = [name for name in names if bases[name].endswith(".coco.json") or bases[name].startswith("instances_")]
    instances = {name.rpartition("/")[0] for name in sure}
    possible = [name for name in names if name.count("/") < 2 and name.rpartition("/")[0] not in instances]
    return sure + possible, sure


def _parse(photos: AnnotatedPhotos, name: str) -> dict:
    path = photos.path(name)
    try:
        content = json.loads(photos.read(name))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(item, dict) for item in content[key]) for key in LISTS
    ):
        raise InputError(f"{path} is not COCO JSON: {MUST_BE}")
    return content


def _add_objects(photos: AnnotatedPhotos, split: str, name: str, content: dict) -> None:
    path = photos.path(name)
    categories = _by_id(path, content["categories"], "category", "name")
    images = _by_id(path, content["images"], "image", "file_name")
    for key, file_name in images.items():
        if not isinstance(file_name, str):
            raise InputError(f"{path}: image {_short(key)} has no file_name, or one that is not a text.")
    objects: dict[Any, list[dict]] = {key: [] for key in images}
    for number, annotation in enumerate(content["annotations"]):
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if annotation.get("iscrowd") == 1:
            photos.counts["crowd box", "skipped"] += 1
            continue
        if _key(category_id) not in categories:
            known = ", ".join(map(_short, list(categories)[:5]))
            raise InputError(
                f"{path}: annotation {_short(annotation.get('id', number))} has category_id {_short(category_id)}, "
                f"which is not one of its categories ({known}{', ...' * (len(categories) > 5)})."
            )
        if not isinstance(categories[_key(category_id)], str | int | float) or categories[_key(category_id)] == "":
            raise InputError(f"{path}: category {_short(category_id)} has no name, or one that is not a text.")
        if _key(image_id) not in objects:
            known = ", ".join(map(_short, list(objects)[:3]))
            raise InputError(
                f"{path}: annotation {_short(annotation.get('id', number))} has image_id {_short(image_id)}, which is "
                f"not one of its images ({known}{', ...' * (len(objects) > 3)})."
            )
        objects[_key(image_id)].append(annotation)
    near = photos.folders_near(split, name)
    before = {photo for photo, _ in photos.splits.get(split, [])}
    for image_id, file_name in images.items():
        photo = photos.find(file_name, near)
        if objects[image_id] and photo in before:
            raise InputError(
                f"{path} and another file of {split} both annotate {photo}: keep one of them in {photos.folder}."
            )
        for annotation in objects[image_id]:
            mask, bbox = segmentation_of(annotation.get("segmentation")), annotation.get("bbox")
            columns = {"mask": json.dumps(mask)} if mask else {}
            if not bbox and isinstance(mask, list):
                bbox = bounds([value for polygon in mask for value in polygon])
            photos.add(split, photo, categories[_key(annotation["category_id"])], bbox, **columns)


def _by_id(path: Path, items: list[dict], kind: str, field: str) -> dict[Any, Any]:
    """The value of `field` of images or categories by their ids, which must be unique."""
    values: dict[Any, Any] = {}
    for item in items:
        key, value = _key(item.get("id")), item.get(field)
        if values.setdefault(key, value) != value:
            raise InputError(
                f"{path}: the {kind} id {_short(key)} is used twice, for {_short(values[key])} and {_short(value)}."
            )
    return values


def _key(value: Any) -> Any:
    """An id that can be the key of a dict."""
    return value if isinstance(value, int | float | str) else None


def _short(value: Any) -> str:
    return repr(value)[:60]
