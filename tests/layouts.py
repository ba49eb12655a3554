"""Writes rows of the sample in every layout that is read: one folder for each, with the same photos and boxes."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

Rows = dict[str, list[dict]]  # by split; rows of one photo have the same image_id and follow one another


def photos_of(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each photo, by its file name."""
    photos: dict[str, list[dict]] = {}
    for row in rows:
        photos.setdefault(f"{row['image_id']}.jpg", []).append(row)
    return photos


def write_photos(folder: Path, rows: list[dict]) -> dict[str, list[dict]]:
    folder.mkdir(parents=True, exist_ok=True)
    photos = photos_of(rows)
    for name, (first, *_) in photos.items():
        (folder / name).write_bytes(first["image"]["bytes"])
    return photos


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def category_names(rows: Rows) -> list[str]:
    return sorted({row["category"] for split in rows.values() for row in split})


def size_of(row: dict) -> tuple[int, int]:
    """Width and height of the upright photo."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(row["image"]["bytes"]))).size


def outline(bbox: list[float]) -> list[float]:
    """The box as a polygon, clockwise."""
    x, y, w, h = bbox
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def coco(rows: list[dict], names: list[str], prefix: str = "") -> dict:
    """The content of a COCO file, with annotations in another order than the images."""
    images, annotations = [], []
    for number, (name, objects) in enumerate(photos_of(rows).items(), 1):
        height, width = size_of(objects[0])  # swapped: not to be used
        images.append({"id": number, "file_name": prefix + name, "width": width, "height": height})
        for row in objects:
            annotation = {"id": len(annotations), "image_id": number, "category_id": 10 + names.index(row["category"])}
            annotations.append(annotation | {"bbox": row["bbox"], "iscrowd": 0, "segmentation": [outline(row["bbox"])]})
    categories = [{"id": 10 + i, "name": name, "supercategory": "none"} for i, name in enumerate(names)]
    first_of_each = sorted(
        annotations, key=lambda a: sum(a["image_id"] == b["image_id"] for b in annotations[: a["id"]])
    )
    return {"images": images, "annotations": first_of_each, "categories": categories}


def write_coco(folder: Path, rows: Rows) -> None:
    for split, year in (("train", "train2017"), ("val", "val2017")):
        write_photos(folder / year, rows[split])
        content = coco(rows[split], category_names(rows))
        write_text(folder / "annotations" / f"instances_{year}.json", json.dumps(content))
        write_text(folder / "annotations" / f"captions_{year}.json", json.dumps({"images": [], "annotations": []}))


def write_coco_images(folder: Path, rows: Rows) -> None:
    """Folders below images/."""
    for split in rows:
        write_photos(folder / "images" / split, rows[split])
        content = coco(rows[split], category_names(rows))
        write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(content))


def write_roboflow(folder: Path, rows: Rows) -> None:
    for split, name in (("train", "train"), ("val", "valid")):
        write_photos(folder / name, rows[split])
        content = coco(rows[split], category_names(rows))
        write_text(folder / name / "_annotations.coco.json", json.dumps(content))
    write_text(folder / "README.roboflow.txt", "exported")


def yolo_line(row: dict, names: list[str]) -> str:
    (width, height), (x, y, w, h) = size_of(row), row["bbox"]
    values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    return " ".join([str(names.index(row["category"])), *(f"{value:.9f}" for value in values)])


def write_yolo_labels(images: Path, labels: Path, rows: list[dict], names: list[str]) -> None:
    for name, objects in write_photos(images, rows).items():
        write_text(labels / name.replace(".jpg", ".txt"), "".join(f"{yolo_line(row, names)}\n" for row in objects))


def write_yolo(folder: Path, rows: Rows) -> None:
    names = category_names(rows)
    for split in rows:
        write_yolo_labels(folder / "images" / split, folder / "labels" / split, rows[split], names)
    lines = [f"  {i}: {name}" for i, name in enumerate(names)]
    text = "path: /home/someone/data\ntrain: images/train\nval: images/val\nnames:\n" + "\n".join(lines)
    write_text(folder / "data.yaml", text)


def write_yolo_roboflow(folder: Path, rows: Rows) -> None:
    names = category_names(rows)
    for split, name in (("train", "train"), ("val", "valid")):
        write_yolo_labels(folder / name / "images", folder / name / "labels", rows[split], names)
    text = f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: {len(names)}\nnames: {names}\n"
    write_text(folder / "data.yaml", text)


def write_yolo_lists(folder: Path, rows: Rows) -> None:
    """All photos in one folder, and a list of them for each split."""
    names = category_names(rows)
    for split in rows:
        write_yolo_labels(folder / "images", folder / "labels", rows[split], names)
        lines = [f"./images/{name}" for name in photos_of(rows[split])]
        write_text(folder / f"{split}.txt", "\n".join(lines))
    write_text(folder / "data.yaml", f"train: train.txt\nval: val.txt\nnames: {names}\n")


def voc(name: str, objects: list[dict]) -> str:
    width, height = size_of(objects[0])
    lines = [f"<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>"]
    for row in objects:
        x, y, w, h = row["bbox"]
        corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        lines.append(f"<object><name>{row['category']}</name><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>"])


def write_voc(folder: Path, rows: Rows) -> None:
    for split in rows:
        photos = write_photos(folder / "JPEGImages", rows[split])
        for name, objects in photos.items():
            write_text(folder / "Annotations" / name.replace(".jpg", ".xml"), voc(name, objects))
        stems = [name.removesuffix(".jpg") for name in photos]
        write_text(folder / "ImageSets" / "Main" / f"{split}.txt", "\n".join(stems))
        write_text(folder / "ImageSets" / "Main" / f"chair_{split}.txt", "\n".join(f"{stem} -1" for stem in stems))


def write_voc_beside(folder: Path, rows: Rows) -> None:
    """As Roboflow exports it: each file beside its photo."""
    for split, place in (("train", "train"), ("val", "valid")):
        for name, objects in write_photos(folder / place, rows[split]).items():
            write_text(folder / place / name.replace(".jpg", ".xml"), voc(name, objects))


def write_objects_folder(folder: Path, rows: Rows) -> None:
    """metadata.jsonl with `objects`, a dict of lists."""
    for split in rows:
        lines = []
        for name, objects in write_photos(folder / split, rows[split]).items():
            lists = {"bbox": [row["bbox"] for row in objects], "categories": [row["category"] for row in objects]}
            lines.append(json.dumps({"file_name": name, "objects": lists}))
        write_text(folder / split / "metadata.jsonl", "\n".join(lines))


def write_metadata(folder: Path, rows: Rows) -> None:
    """A line for each box, with its category."""
    for split in rows:
        lines = []
        for name, objects in write_photos(folder / split, rows[split]).items():
            lines += [json.dumps({"file_name": name, "label": row["category"], "bbox": row["bbox"]}) for row in objects]
        write_text(folder / split / "metadata.jsonl", "\n".join(lines))


def write_metadata_csv(folder: Path, rows: Rows) -> None:
    """One metadata.csv for all splits."""
    lines = ["file_name,category,bbox"]
    for split in rows:
        for name, objects in write_photos(folder / split / "photos", rows[split]).items():
            lines += [f'{split}/photos/{name},{row["category"]},"{row["bbox"]}"' for row in objects]
    write_text(folder / "metadata.csv", "\n".join(lines))


def csv_corners(rows: list[dict]) -> str:
    """As Roboflow and TensorFlow's tutorials write it, with the size of the photo."""
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for name, objects in photos_of(rows).items():
        for row in objects:
            x, y, w, h = row["bbox"]
            lines.append(",".join(map(str, (name, *size_of(row), row["category"], x, y, x + w, y + h))))
    return "\n".join(lines)


def write_csv_roboflow(folder: Path, rows: Rows) -> None:
    """A file in the folder of each split."""
    for split, name in (("train", "train"), ("val", "valid")):
        write_photos(folder / name, rows[split])
        write_text(folder / name / "_annotations.csv", csv_corners(rows[split]))


def write_csv_labels(folder: Path, rows: Rows) -> None:
    """A file for each split beside one folder with all photos."""
    for split in rows:
        write_photos(folder / "images", rows[split])
        write_text(folder / f"{split}_labels.csv", csv_corners(rows[split]))


def write_objects_parquet(folder: Path, rows: Rows) -> None:
    """As the library `datasets` writes a Sequence of dicts, with a ClassLabel."""
    folder.mkdir()
    names = category_names(rows)
    label = {"names": names, "_type": "ClassLabel"}
    features = {"objects": {"feature": {"bbox": {"_type": "Sequence"}, "category": label}, "_type": "Sequence"}}
    for split in rows:
        table = []
        for objects in photos_of(rows[split]).values():
            numbers = [names.index(row["category"]) for row in objects]
            lists = {"bbox": [row["bbox"] for row in objects], "category": numbers}
            table.append({"image_id": objects[0]["image_id"], "image": objects[0]["image"], "objects": lists})
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(pa.Table.from_pylist(table).replace_schema_metadata(metadata), folder / f"{split}.parquet")


def write_objects_list(folder: Path, rows: Rows) -> None:
    """A list of dicts with texts, in several row groups."""
    folder.mkdir()
    for split in rows:
        table = []
        for objects in photos_of(rows[split]).values():
            dicts = [{"bbox": row["bbox"], "label": row["category"]} for row in objects]
            table.append({"image_id": objects[0]["image_id"], "image": objects[0]["image"], "objects": dicts})
        pq.write_table(pa.Table.from_pylist(table), folder / f"{split}.parquet", row_group_size=7)


def write_label_parquet(folder: Path, rows: Rows) -> None:
    """A column label with a ClassLabel instead of category; one row for each box."""
    folder.mkdir()
    names = category_names(rows)
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    for split in rows:
        table = [
            {
                "image_id": row["image_id"],
                "image": row["image"],
                "bbox": row["bbox"],
                "label": names.index(row["category"]),
            }
            for row in rows[split]
        ]
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(pa.Table.from_pylist(table).replace_schema_metadata(metadata), folder / f"{split}.parquet")


LAYOUTS: dict[str, Callable[[Path, Rows], None]] = {
    "coco": write_coco,
    "coco, images/": write_coco_images,
    "coco, roboflow": write_roboflow,
    "yolo": write_yolo,
    "yolo, roboflow": write_yolo_roboflow,
    "yolo, lists": write_yolo_lists,
    "voc": write_voc,
    "voc, beside": write_voc_beside,
    "objects, folder": write_objects_folder,
    "objects, parquet": write_objects_parquet,
    "objects, list": write_objects_list,
    "metadata": write_metadata,
    "metadata, csv": write_metadata_csv,
    "csv, roboflow": write_csv_roboflow,
    "csv, labels": write_csv_labels,
    "label, parquet": write_label_parquet,
}


def stem(image_id: str) -> str:
    """The name of a photo without folders and suffix, which is the same in every layout."""
    return os.path.splitext(image_id.rpartition("/")[2])[0]
