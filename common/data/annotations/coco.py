"""COCO: JSON files with lists of images, annotations and categories, one file for each split."""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

from common.config import InputError
from common.data.annotations.photos import AnnotatedPhotos
from common.data.parquet import KEYWORDS, parquet_splits
from common.data.segmentation import bounds, segmentation_of

LISTS = ("images", "annotations", "categories")


def read_coco(photos: AnnotatedPhotos) -> None:
    """annotations/instances_train.json beside folders of photos, train/_annotations.coco.json, or any JSON file."""
    if not photos.images:
        return
    possible, sure = _json_files(photos.files)
    contents: dict[str, dict] = {}
    doubtful = ""
    for name in possible:
        content = photos.peek(name)
        marked = isinstance(content, bytes) and b'"annotations"' in content and b'"images"' in content
        if name in sure or marked:
            contents[name] = _parse(photos, name)
        elif name.split("/")[-2:-1] == ["annotations"]:
            doubtful = name
    if not contents and doubtful:
        raise InputError(
            f"{photos.path(doubtful)} is not COCO JSON: it must be an object with images, annotations and categories."
        )
    photos.layout = "COCO annotations"
    splits = parquet_splits(contents)
    for split, names in splits.items():
        for name in names:
            _add_objects(photos, split, name, contents[name])
    photos.used -= contents.keys() - set(chain(*splits.values()))


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
        raise InputError(f"{path} is not COCO JSON: it must be an object with lists of {', '.join(LISTS)}.")
    return content


def _add_objects(photos: AnnotatedPhotos, split: str, name: str, content: dict) -> None:
    path = photos.path(name)
    categories = {_key(category.get("id")): category.get("name") for category in content["categories"]}
    objects: dict[Any, list[dict]] = {}
    for image in content["images"]:
        if not isinstance(image.get("file_name"), str):
            raise InputError(f"{path}: image {_short(image.get('id'))} has no file_name.")
        objects[_key(image.get("id"))] = []
    for number, annotation in enumerate(content["annotations"]):
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if annotation.get("iscrowd") == 1:
            photos.counts["crowd boxes skipped"] += 1
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
    near = _folders_of_photos(split, name)
    for image in content["images"]:
        photo = photos.find(image["file_name"], near)
        for annotation in objects.pop(_key(image.get("id")), []):
            mask, bbox = segmentation_of(annotation.get("segmentation")), annotation.get("bbox")
            columns = {"mask": json.dumps(mask)} if mask else {}
            if not bbox and isinstance(mask, list):
                bbox = bounds([value for polygon in mask for value in polygon])
            photos.add(split, photo, categories[_key(annotation["category_id"])], bbox, **columns)


def _folders_of_photos(split: str, name: str) -> list[str]:
    """Where the photos of the JSON file `name` may be: in folders named like it or its split, beside or above it."""
    folder = name.rpartition("/")[0]
    stem = name.rpartition("/")[2].removesuffix(".json").removeprefix("instances_")
    tails = ["", stem, f"images/{stem}", *(f"{p}{word}" for word in KEYWORDS.get(split, ()) for p in ("", "images/"))]
    return [f"{base}/{tail}".strip("/") for base in (folder, folder.rpartition("/")[0]) for tail in [*tails, "images"]]


def _key(value: Any) -> Any:
    """An id that can be the key of a dict."""
    return value if isinstance(value, int | float | str) else None


def _short(value: Any) -> str:
    return repr(value)[:60]
