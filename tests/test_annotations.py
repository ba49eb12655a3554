"""Detection data sets in every layout: the same crops and labels in each, and one sentence for damaged files."""

import io
import json
import re
import shutil
import unicodedata
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import common.data.pixels
import common.data.table
from common.config import DataConfig, InputError, TrainConfig, differences, identity
from common.data.audit import audit, describe, findings
from common.data.crop import crop_image
from common.data.dataset import load_splits
from common.data.masks import load_masks
from common.data.pixels import crop_with, open_image
from common.data.segmentation import decode_runs, draw_mask
from tests.helpers import encode, main, photo, results, stored
from tests.layouts import LAYOUTS, category_names, coco, size_of, stem, write_photos, write_text

CNN = "train_custom_cnn"


@pytest.fixture
def many(rows):
    """The rows with two more boxes in each photo; the second has the category of the next row."""
    result = {}
    for split, split_rows in rows.items():
        result[split] = []
        for i, row in enumerate(split_rows):
            if split == "train" and row["category"] not in {r["category"] for r in rows["val"]}:
                continue
            x, y, w, h = row["bbox"]
            other = split_rows[(i + 1) % len(split_rows)]["category"]
            other = other if other in {r["category"] for r in rows["val"]} else row["category"]
            half, corner = [x, y, (w + 1) // 2, h], [0, 0, x + w, y + h]
            result[split] += [row, dict(row, bbox=half, category=other), dict(row, bbox=corner)]
    return result


@pytest.fixture
def write(tmp_path):
    """A function that writes rows in a layout and returns the folder."""

    def write(layout, rows, name="data"):
        LAYOUTS[layout](tmp_path / name, rows)
        return str(tmp_path / name)

    return write


def contents(split):
    """Pixels, crop sizes and labels of a split by photo and order in the photo, which is the same in each layout."""
    keys, counts = [], {}
    for image_id in split.ids()["image_id"]:
        counts[stem(image_id)] = counts.get(stem(image_id), 0) + 1
        keys.append((stem(image_id), counts[stem(image_id)]))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    labels = [split.classes[split.labels[i]] for i in order]
    return [keys[i] for i in order], split.pixels[split.index[order]], split.crop_sizes[order], labels


def assert_same(ours, theirs):
    for split, other in zip(ours, theirs, strict=True):
        (keys, pixels, sizes, labels), (other_keys, other_pixels, other_sizes, other_labels) = (
            contents(s) for s in (split, other)
        )
        assert keys == other_keys and labels == other_labels
        np.testing.assert_array_equal(pixels, other_pixels)
        torch.testing.assert_close(sizes, other_sizes, rtol=0, atol=1e-3)


# One row is one object -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_crops_and_labels_of_the_parquet_form(load, rows, parquet, write, layout):
    """One object in each photo, as in the sample."""
    assert_same(load(write(layout, rows)), load(parquet(rows)))


@pytest.fixture
def numbered(rows):
    """The rows with names of photos that sort in their order."""
    return {s: [dict(row, image_id=f"{i:03}-{row['image_id']}") for i, row in enumerate(rows[s])] for s in rows}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_scores_the_same_in_every_layout(numbered, parquet, write, cache, tmp_path, empty_figures, layout):
    """To the last digit: what is trained on is the same in the same order."""
    line = f"--limit 40 --epochs 1 --crop --image-size 32 --blocks 8k3p2 --cache {cache} --data".split()
    runs = [
        main(CNN, [*line, data, "--out", f"{tmp_path}/{i}"])
        for i, data in enumerate((write(layout, numbered), parquet(numbered)))
    ]
    assert results(runs[0]) == results(runs[1]) | {"predictions.csv": (runs[0] / "predictions.csv").read_bytes()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_photos_with_many_objects(load, many, write, layout):
    """As decoded one by one: a photo of several boxes is decoded at full scale."""
    train, val = load(write(layout, many), image_size=24)
    expected = load(write("objects, parquet", many, "expected"), image_size=24)
    if layout != "label, parquet":  # where a photo is stored once for each box
        assert_same((train, val), expected)
    assert len(val) == 72 and len(set(val.ids()["image_id"])) == 24


def test_the_pixels_of_a_crop_do_not_depend_on_the_other_boxes(load, many, write):
    """Each crop is that of the photo decoded at full scale, whichever rows are used, and close to one decoded alone."""
    folder = write("coco", many)
    for options in ({}, {"limit": 20}, {"split_by": "image_id:1/4"}):
        split = load(folder, image_size=24, **options)[1]
        for i, (encoded, bbox) in enumerate(zip(split.rows.images(), split.rows["bbox"], strict=True)):
            image = open_image(encoded)
            image.load()
            expected = np.asarray(crop_image(image, bbox, size=24, reduce=True)[0]).transpose(2, 0, 1)
            np.testing.assert_array_equal(split.pixels[split.index[i]], expected)
            alone = np.asarray(crop_image(open_image(encoded), bbox, size=24)[0]).transpose(2, 0, 1)
            assert abs(expected.astype(int) - alone).mean() < 3


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_the_boxes_of_a_crowd_are_cropped_in_parts(load, many, write, tmp_path, monkeypatch, fit):
    folder = write("coco", many)
    expected = load(folder, image_size=24, fit=fit)
    monkeypatch.setattr(common.data.pixels, "MAX_CROPS", 2)  # of the three boxes of a photo
    in_parts = load(folder, image_size=24, fit=fit, cache=str(tmp_path / "parts"))
    for split, other in zip(in_parts, expected, strict=True):
        np.testing.assert_array_equal(split.pixels, other.pixels)
        np.testing.assert_array_equal(split.hashes, other.hashes)


def test_a_photo_is_read_and_decoded_once(load, many, write, tmp_path, monkeypatch):
    opened, read = [], []
    open_image, read_file = Image.open, common.data.table.read_file
    monkeypatch.setattr(Image, "open", lambda *args, **more: opened.append(1) or open_image(*args, **more))
    monkeypatch.setattr(common.data.table, "read_file", lambda *args: read.append(1) or read_file(*args))
    folder = write("coco", many)
    configs = [DataConfig(data=folder, image_size=16, crop=True, margin=m, cache=str(tmp_path)) for m in (0, 0.1)]
    opened.clear(), read.clear()
    splits = load_splits(configs[0], configs[1:])
    photos = sum(len(set(split.ids()["image_id"])) for split in splits)
    assert len(opened) == len(read) == photos


def test_names_with_half_characters_become_text(load, rows, write):
    """JSON may hold them, but no encoding does."""
    folder = write("coco", rows)

    def rename(content):
        content["categories"][0]["name"] = "\ud800 lamp"

    for name in (TRAIN, TRAIN.replace("train", "val")):
        edit(folder, name, rename)
    assert r"\ud800_lamp" in load(folder)[0].classes


def test_another_box_of_a_photo_is_noticed(load, many, write):
    """Also its second one, whose row shares the image with the first."""
    folder = write("coco", many)
    first = load(folder)

    def move(content):
        second = [a for a in content["annotations"] if a["image_id"] == 1][1]
        second["bbox"] = [1, 2, 30, 40]

    edit(folder, TRAIN, move)
    again = load(folder)
    assert again[0].fingerprint != first[0].fingerprint and again[1].fingerprint == first[1].fingerprint
    assert again[0].crop_sizes[1].tolist() == [30, 40]


def test_a_photo_that_no_longer_has_a_second_object(load, many, write):
    """Of a category that val does not have: the rows that are used are the same, but the photo is decoded otherwise."""
    folder = write("coco", many)

    def drop(content):
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 1 or a["id"] == 0]

    def rename(content):
        content["categories"].append({"id": 99, "name": "unknown"})
        for annotation in content["annotations"]:
            if annotation["image_id"] == 1 and annotation["id"]:
                annotation["category_id"] = 99

    edit(folder, TRAIN, rename)
    before = load(folder)[0]
    edit(folder, TRAIN, drop)
    after = load(folder)[0]
    assert before.ids() == after.ids() and before.fingerprint != after.fingerprint


def test_rotated_photos(load, rows, write, parquet):
    """Boxes are those of the upright image, whatever size the annotations state."""
    few = {
        split: [dict(row, image=stored(turned(row, 6)), bbox=[10, 20, 100, 300]) for row in rows[split]]
        for split in rows
    }
    both = {split: [r for row in few[split] for r in (row, dict(row, bbox=[30, 40, 60, 90]))] for split in rows}
    expected = load(parquet(both))
    for layout in ("coco", "yolo", "voc"):
        assert_same(load(write(layout, both, layout)), expected)


def turned(row, orientation):
    """The photo of a row, of 448 x 400 pixels as stored, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((448, 400))
    return encode(image, "PNG", exif=exif)  # a PNG is decoded at full scale for one crop and for many


# The line at the start -----------------------------------------------------------------------------------------------

LINES = {
    "coco": "COCO annotations: 79 photos, 237 objects, 12 categories",
    "yolo": "YOLO labels: 79 photos, 237 objects, 12 categories",
    "voc": "Pascal VOC annotations: 79 photos, 237 objects, 12 categories",
    "objects, folder": "Hugging Face objects: 79 photos, 237 objects, 12 categories",
    "objects, parquet": "Hugging Face objects: 79 photos, 237 objects, 12 categories",
    "metadata": "metadata.jsonl: 79 photos, 237 objects, 12 categories",
}


@pytest.mark.parametrize("layout", LINES)
def test_the_layout_is_said_in_one_line(load, many, write, capsys, layout):
    load(write(layout, many))
    assert capsys.readouterr().out == f"{LINES[layout]}\n"


def test_a_second_layout_is_said_and_not_read(load, rows, write, capsys):
    alone = load(write("coco", rows, "alone"))
    capsys.readouterr()
    write("voc", rows)
    number = sum(map(len, rows.values()))
    assert_same(load(write("coco", rows)), alone)
    assert f"categories, {number} objects of the Pascal VOC annotations not read\n" in capsys.readouterr().out


@pytest.mark.parametrize(("layout", "words"), [("yolo", "YOLO labels"), ("voc", "Pascal VOC annotations")])
def test_a_layout_with_a_box_format_of_its_own_has_no_other(load, rows, write, layout, words):
    with pytest.raises(InputError, match=f"^{words} define .* leave out --box-format xyxy"):
        load(write(layout, rows), box_format="xyxy")


def test_tables_and_folders_of_classes_are_read_without_a_word(load, rows, parquet, image_folder, capsys):
    for data in (parquet(rows), image_folder, "sample"):
        load(data)
    assert capsys.readouterr().out == ""


def test_what_is_not_read_is_counted(load, rows, write):
    folder = write("coco", rows)
    for name in ("notes.txt", "train2017/background.jpg"):
        Path(folder, name).write_bytes(encode(photo()))
    train, val = load(folder)
    names = {"notes.txt", "train2017/background.jpg", "annotations/captions_train2017.json"}
    assert set(audit(train, val)["not_read"]["names"]) == names | {"annotations/captions_val2017.json"}


# Variants of the layouts ---------------------------------------------------------------------------------------------


def edit(folder, file, change):
    """Changes the content of a JSON file by `change(content)`."""
    path = Path(folder, file)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


TRAIN = "annotations/instances_train2017.json"


def test_crowds_are_skipped_and_counted(load, rows, write, capsys):
    folder = write("coco", rows)

    def add_crowds(content):
        content["annotations"] += [dict(a, iscrowd=1, segmentation={"counts": []}) for a in content["annotations"][:3]]

    edit(folder, TRAIN, add_crowds)
    assert len(load(folder)[0]) == 60 and ", 3 crowd boxes skipped\n" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["result.json", "annotations/instances_default.json", "labels.json"])
def test_one_file_for_all_photos(load, rows, write, tmp_path, file):
    """As Label Studio and CVAT export it, with a split by photo."""
    folder = tmp_path / "export"
    names = sorted({row["category"] for row in rows["train"]})
    content = coco(rows["train"], names, prefix="..\\..\\media/upload/1/" if file == "result.json" else "")
    write_text(folder / file, json.dumps(content))
    write_photos(folder / "images", rows["train"])
    with pytest.raises(InputError, match="no val split.*--split-by image_id"):
        load(str(folder))
    train, val = load(str(folder), split_by="image_id:1/4")
    assert len(train) + len(val) == 65 and train.ids()["image_id"][0].startswith("images/")


def test_classes_of_yolo_in_a_text_file(load, rows, write):
    folder = write("yolo", rows)
    expected = load(folder)
    names = [line.split(": ")[1] for line in Path(folder, "data.yaml").read_text().splitlines()[4:]]
    Path(folder, "data.yaml").unlink()
    Path(folder, "classes.txt").write_text("\n".join(names))
    assert_same(load(folder), expected)


def test_classes_of_yolo_numbered_by_texts(load, rows, write):
    folder = write("yolo", rows)
    expected = load(folder)
    path = Path(folder, "data.yaml")
    path.write_text(re.sub(r"  (\d+):", r'  "\1":', path.read_text()))
    assert_same(load(folder), expected)


def test_outlines_of_yolo_are_masks_within_their_boxes(load, rows, write, cache):
    """A diamond in each box."""
    folder = write("yolo", rows)
    expected = load(folder)
    for path in Path(folder).glob("labels/*/*.txt"):
        number, cx, cy, w, h = map(float, path.read_text().split())
        x, y, right, bottom = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        points = (cx, y, right, cy, cx, bottom, x, cy)
        path.write_text(" ".join([f"{number:.0f}", *(f"{value:.9f}" for value in points)]))
    assert_same(load(folder), expected)
    config = TrainConfig(data=folder, image_size=32, cache=cache, crop=True, fit="squash")
    masks = load_masks(config, "val", load_splits(config)[1])[:, 0] / 255
    y, x = np.mgrid[:32, :32] - 15.5
    diamond = np.clip(16.5 - abs(x) - abs(y), 0, 1)
    assert abs(masks - diamond).mean((1, 2)).max() < 0.02 and abs(masks.mean() - 0.5) < 0.01


def test_photos_without_objects(load, many, write):
    """Empty and missing label files."""
    folder = write("yolo", many)
    train = load(folder)[0]
    first, second = sorted(Path(folder, "labels", "train").iterdir())[:2]
    first.write_text("\n")
    second.unlink()
    fewer, val = load(folder)
    assert len(fewer) == len(train) - 6
    assert f"images/train/{second.stem}.jpg" in audit(fewer, val)["not_read"]["names"]


def test_one_photo_in_both_splits_stays_together(load, rows, write):
    """With --split-by image_id, whose ids are those of the whole folder."""
    folder = write("yolo, lists", rows)
    names = Path(folder, "val.txt").read_text()
    Path(folder, "train.txt").write_text(Path(folder, "train.txt").read_text() + "\n" + names)
    train, val = load(folder)
    assert audit(train, val)["duplicates"]["across_splits"] == 24
    train, val = load(folder, split_by="image_id:1/4")
    photos = [{stem(name) for name in split.ids()["image_id"]} for split in (train, val)]
    assert photos[0].isdisjoint(photos[1]) and len(train) + len(val) == 60 + 5 + 48


# Masks ---------------------------------------------------------------------------------------------------------------


def test_polygons_are_masks(load, rows, write, cache):
    folder = write("coco", rows)
    config = TrainConfig(data=folder, image_size=32, cache=cache, crop=True, fit="squash", margin=0.5)
    val = load_splits(config)[1]
    masks = load_masks(config, "val", val)
    for mask, (x, y, w, h), image in zip(masks, val.rows["bbox"], val.rows.images(), strict=True):
        size = open_image(image).size
        expected = Image.new("L", size)
        expected.paste(255, (int(x), int(y), int(x + w), int(y + h)))
        expected, _ = crop_with(config, expected, [x, y, w, h], fill=(0, 0, 0))
        assert abs(mask[0].astype(int) - np.asarray(expected)[:, :, 0]).max() < 60, "a quarter of a pixel at most"


def runs_of(mask):
    """COCO's run-length encoding of a mask (height, width) of 0 and 1."""
    values = np.concatenate([[0], mask.T.ravel(), [2]])  # it starts with zeros
    edges = np.flatnonzero(np.diff(values))
    return np.diff(np.concatenate([[0], edges])).tolist()


def test_run_length_encodings_are_masks(load, rows, write, cache):
    """As the polygons of the same boxes, and a damaged one is one sentence."""
    polygons, runs = write("coco", rows), write("coco", rows, "runs")
    sizes = {split: [size_of(row) for row in rows[split]] for split in rows}

    def encode_boxes(content):
        for annotation in content["annotations"]:
            (width, height), (x, y, w, h) = sizes["train"][annotation["image_id"] - 1], annotation["bbox"]
            mask = np.zeros((height, width), np.uint8)
            mask[y : y + h, x : x + w] = 1
            annotation["segmentation"] = {"counts": runs_of(mask), "size": [height, width]}

    edit(runs, TRAIN, encode_boxes)
    config = TrainConfig(data=polygons, image_size=32, cache=cache, crop=True, fit="squash", margin=0.5)
    expected = load_masks(config, "train", load_splits(config)[0])
    config = replace(config, data=runs)
    np.testing.assert_array_equal(load_masks(config, "train", load_splits(config)[0]), expected)
    for damaged, words in (
        ({"counts": [3, 4], "size": [20, 20]}, r"its size .* is \[20, 20\], but that of the image is"),
        ({"counts": [3, 4], "size": list(sizes["train"][3][::-1])}, "its run-length encoding has 7 pixels"),
        ("", "it has no outline"),
    ):
        edit(runs, TRAIN, lambda content, value=damaged: content["annotations"][3].update(segmentation=value))
        with pytest.raises(InputError, match=f"the mask of train row 3 cannot be used: {words}"):
            load_masks(config, "train", load(runs)[0])


RING = "m7?f06K4L4M2N2O]ON011O0000000001OO02c01N2N3L4L5J^8"


@pytest.mark.parametrize(
    ("counts", "mask"),
    [
        ([2, 1, 3], [[0, 1, 0], [0, 0, 0]]),  # down the columns
        ([0, 6], [[1, 1, 1], [1, 1, 1]]),
        ("06", [[1, 1, 1], [1, 1, 1]]),
        ("6", [[0, 0, 0], [0, 0, 0]]),
        ("=3305", np.pad(np.ones((3, 2)), ((1, 2), (2, 1)))),  # by pycocotools 2.0, as is the next
        (RING, [[0 < (y - 20) ** 2 / 300 + (x - 14) ** 2 / 80 < 1 and (y - 20) ** 2 + (x - 14) ** 2 >= 9
                 for x in range(30)] for y in range(40)]),
    ],
)  # fmt: skip
def test_run_length_encoding(counts, mask):
    mask = np.asarray(mask, np.uint8)
    np.testing.assert_array_equal(decode_runs(counts, *mask.shape), mask)
    if isinstance(counts, list):
        assert runs_of(mask) == counts


@pytest.mark.parametrize("counts", [[3, 4], [-1, 7], [1.5, 4.5], [10**30], None, "a b", "o" * 10**6, "=", [[6]], "é"])
def test_damaged_run_lengths_are_refused(counts):
    with pytest.raises(ValueError, match="its run-length encoding"):
        decode_runs(counts, 2, 3)


def test_a_mask_of_absurd_points():
    assert not np.asarray(draw_mask("[[1e300, 5, 1e200, 9, 1e300, 40]]", (8, 8))).any()
    assert np.asarray(draw_mask("[[-1e300, -1e300, 1e300, -1e300, 0, 1e300]]", (8, 8))).all()
    assert (
        np.asarray(draw_mask("[[2, 3, 6, 3, 6, 5, 2, 5]]", (8, 8))).nonzero()[0].tolist() == [3] * 4 + [4] * 4
    )  # rows 3 and 4


# Parquet without ids -------------------------------------------------------------------------------------------------


def test_parquet_files_of_images_and_objects_alone(load, rows, write):
    """As the library `datasets` makes them of an image folder."""
    folder = write("objects, parquet", rows)
    expected = load(folder)
    for path in Path(folder).iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["image_id"]), path)
    for split, other in zip(load(folder), expected, strict=True):
        np.testing.assert_array_equal(split.pixels, other.pixels)


# Splits and files as tools name them ---------------------------------------------------------------------------------


def rename(folder, *pairs):
    for old, new in pairs:
        Path(folder, old).rename(Path(folder, new))


@pytest.mark.parametrize("layout", ["coco, images/", "voc", "voc, beside", "yolo, lists"])
def test_splits_with_capitals(load, rows, parquet, write, layout):
    """As CVAT calls its subsets."""
    folder = write(layout, rows)
    if layout == "coco, images/":
        rename(folder, ("images/train", "images/Train"), ("images/val", "images/Validation"))
        rename(folder, *((f"annotations/instances_{a}.json", f"annotations/instances_{b}.json") for a, b in CAPITALS))
    elif layout == "voc":
        rename(folder, *((f"ImageSets/Main/{a}.txt", f"ImageSets/Main/{b}.txt") for a, b in CAPITALS))
    elif layout == "voc, beside":
        rename(folder, ("train", "Train"), ("valid", "Validation"))
    else:  # one folder for each split, and data.yaml without them
        shutil.rmtree(folder)
        folder = write("yolo, roboflow", rows)
        rename(folder, ("train", "Train"), ("valid", "Validation"))
        Path(folder, "data.yaml").write_text(f"names: {category_names(rows)}")
    assert_same(load(folder), load(parquet(rows)))


CAPITALS = (("train", "Train"), ("val", "Validation"))


def test_an_image_folder_with_capitals(load, image_folder):
    expected = load(image_folder)
    rename(image_folder, ("train", "Train"), ("val", "Val"))
    assert [len(split) for split in load(image_folder)] == [len(split) for split in expected]


def test_trainval_is_train_if_there_is_no_other(load, rows, write):
    folder = write("voc", rows)
    expected = load(folder)
    rename(folder, ("ImageSets/Main/train.txt", "ImageSets/Main/trainval.txt"))
    assert_same(load(folder), expected)


def test_two_pascal_voc_data_sets_in_one_folder(load, rows, write, tmp_path):
    """As VOC2007 and VOC2012 in VOCdevkit; both have lists of the same names, and photos of their own."""
    (tmp_path / "devkit").mkdir()
    for i in range(2):
        parts = {
            split: [dict(row, image_id=f"{split}{n}") for n, row in enumerate(rows[split][i::2])] for split in rows
        }
        write("voc", parts, f"devkit/VOC{2007 + 5 * i}")
    train, val = load(str(tmp_path / "devkit"))
    assert len(set(val.ids()["image_id"])) == len(val) == len(rows["val"])


def test_a_product_called_like_a_split(load, rows, write):
    """A folder "toy train" must not make the photos in other folders disappear."""
    folder = write("metadata, csv", rows)
    rename(folder, ("train/photos", "train/toy train"), ("train", "things"), ("val", "others"))
    path = Path(folder, "metadata.csv")
    text = path.read_text().replace("train/photos/", "things/toy train/").replace("val/photos/", "others/photos/")
    path.write_text(text)
    with pytest.raises(InputError, match="things/toy train/.* is in a folder named after a split, but others/photos/"):
        load(folder)


def test_a_column_split(load, rows, write):
    folder = write("metadata, csv", rows)
    expected = load(folder)
    path = Path(folder, "metadata.csv")
    header, *lines = path.read_text().splitlines()
    lines = [line + (",Train" if line.startswith("train") else ",val") for line in lines]
    lines = [line.replace("train/photos", "a").replace("val/photos", "b") for line in lines]
    rename(folder, ("train/photos", "a"), ("val/photos", "b"))
    path.write_text("\n".join([f"{header},split", *lines]))
    assert_same(load(folder), expected)
    path.write_text("\n".join([f"{header},split", *lines, lines[0].replace(",Train", ",3")]))
    with pytest.raises(InputError, match="split is '3'; write train, val or test"):
        load(folder)


def test_boxes_in_columns(load, rows, write):
    """As in a CSV file of predict.py --boxes."""
    folder = write("metadata, csv", rows)
    expected = load(folder)
    path = Path(folder, "metadata.csv")
    lines = re.sub(r'"\[(.*)\]"', lambda match: match[1].replace(" ", ""), path.read_text()).splitlines()
    path.write_text("\n".join(["file_name,category,x,y,width,height", *lines[1:]]))
    assert_same(load(folder), expected)
    path.write_text("\n".join(["file_name,category,a,b,c,d", *lines[1:]]))
    with pytest.raises(InputError, match="train split has no column bbox; its columns are image, "):
        load(folder)


def test_metadata_of_a_photo_in_two_files(load, rows, write):
    folder = write("metadata", rows)
    first = Path(folder, "train", "metadata.jsonl").read_text().splitlines()[0]
    name = json.loads(first)["file_name"]
    Path(folder, "metadata.jsonl").write_text(first.replace(name, f"train/{name}"))
    with pytest.raises(InputError, match=f"both list train/{name}: keep one"):
        load(folder)


@pytest.mark.parametrize("path", ["data", "../somewhere/data", "/home/someone/data"])
def test_the_path_in_data_yaml(load, rows, write, path):
    folder = write("yolo", rows)
    expected = load(folder)
    Path(folder, "data").mkdir()
    rename(folder, ("images", "data/images"), ("labels", "data/labels"))
    text = Path(folder, "data.yaml").read_text().replace("/home/someone/data", path)
    Path(folder, "data.yaml").write_text(text)
    assert_same(load(folder), expected)


@pytest.mark.parametrize("names", ["classes.txt", "obj.names"])
def test_labels_beside_the_photos(load, rows, write, names):
    """As LabelImg writes them, and CVAT as YOLO 1.1."""
    folder = write("yolo", rows)
    expected = load(folder)
    Path(folder, "data.yaml").unlink()
    for split in rows:
        rename(folder, (f"images/{split}", f"obj_{split}_data"))
        for label in Path(folder, "labels", split).iterdir():
            label.rename(Path(folder, f"obj_{split}_data", label.name))
    Path(folder, names).write_text("\n".join(category_names(rows)))
    assert_same(load(folder), expected)
    if names == "classes.txt":
        Path(folder, "obj_val_data", names).write_text("other")
        with pytest.raises(InputError, match="classes.txt differ: keep one list of the classes"):
            load(folder)


def test_words_of_yaml_are_class_names(load, rows, write):
    """no is not false."""
    folder = write("yolo", rows)
    path = Path(folder, "data.yaml")
    names = category_names(rows)
    path.write_text(path.read_text().replace(f": {names[0]}\n", ": no\n").replace(f": {names[1]}\n", ": 1:30\n"))
    assert {"no", "1:30"} & set(load(folder)[0].classes)


def test_key_points_are_no_outline(load, rows, write):
    folder = write("yolo", rows)
    expected = load(folder)
    for path in Path(folder).glob("labels/*/*.txt"):
        path.write_text(path.read_text().replace("\n", " 0.1 0.1 0.9 0.9\n"))
    with Path(folder, "data.yaml").open("a") as file:
        file.write("\nkpt_shape: [2, 2]\n")
    assert_same(load(folder), expected)


def test_a_photo_of_a_list_that_is_missing_is_a_bad_row(load, rows, write):
    folder = write("yolo, lists", rows)
    sorted(Path(folder, "images").iterdir())[0].unlink()
    with pytest.raises(InputError, match="(?s)1 of .* rows cannot be used.*the image file is not in the folder"):
        load(folder)


def test_the_photo_of_the_same_name_comes_before_the_file_name_inside(load, rows, write):
    """Annotations are copied, and photos renamed."""
    folder = write("voc", rows)
    expected = load(folder)
    first, second = sorted(Path(folder, "Annotations").iterdir())[:2]
    first.write_text(first.read_text().replace(first.stem, second.stem))
    assert_same(load(folder), expected)


def test_annotations_without_photos(load, rows, write):
    folder = write("voc", rows)
    shutil.rmtree(Path(folder, "JPEGImages"))
    with pytest.raises(InputError, match="nor images: if it has annotations, put their photos into the same folder"):
        load(folder)


def test_why_no_row_is_usable(load, rows, write):
    folder = write("metadata, csv", rows)
    path = Path(folder, "metadata.csv")
    path.write_text(re.sub(r'"\[(.*)\]"', '"here"', path.read_text()))
    with pytest.raises(InputError, match="has no usable rows. The first of 89 reasons: box .* not a number"):
        load(folder, bad_rows="skip", split_by="image_id", limit=0)


# Damaged files -------------------------------------------------------------------------------------------------------


def change_annotation(**changes):
    return lambda folder: edit(folder, TRAIN, lambda content: content["annotations"][4].update(changes))


def repeat(kind, **changes):
    return lambda folder: edit(folder, TRAIN, lambda content: content[kind].append(content[kind][0] | changes))


def rename_category(name):
    return lambda folder: edit(folder, TRAIN, lambda content: [c.update(name=name) for c in content["categories"]])


def as_split_file(content):
    """train.json and val.json in the folder itself, the first of which is damaged."""

    def change(folder):
        Path(folder, TRAIN.replace("train", "val")).rename(Path(folder, "val.json"))
        shutil.rmtree(Path(folder, "annotations"))
        Path(folder, "train.json").write_bytes(content)

    return change


def name_photo(name):
    return lambda folder: edit(folder, TRAIN, lambda content: content["images"][0].update(file_name=name))


def replace_text(file, old, new):
    def change(folder):
        path = next(Path(folder).glob(file))
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def write_bytes(file, content):
    return lambda folder: next(Path(folder).glob(file)).write_bytes(content)


XML, LABEL = "Annotations/*.xml", "labels/train/*.txt"
BOMB = b'<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation><object>&c;</object></annotation>'
DAMAGED = {
    "no JSON": ("coco", write_bytes(TRAIN, b'{"images": [{"id": 1}'), "instances_train2017.json is not valid JSON"),
    "a list": ("coco", write_bytes(TRAIN, b"[1, 2]"), "is not COCO JSON: it must be an object with lists"),
    "deep JSON": ("coco", write_bytes(TRAIN, b"[" * 10**5), "instances_train2017.json is not valid JSON"),
    "roboflow": ("coco, roboflow", write_bytes("train/*.json", b"<html>"), "_annotations.coco.json is not valid JSON"),
    "category": ("coco", change_annotation(category_id=99), r"category_id 99, which is not one of its categories"),
    "no category": ("coco", change_annotation(category_id=[1]), r"category_id \[1\], which is not one"),
    "image": ("coco", change_annotation(image_id=999), r"not one of its images \(1, 2, 3, ...\)"),
    "image twice": ("coco", repeat("images", file_name="b.jpg"), "image id 1 is used twice, for .* and 'b.jpg'"),
    "category twice": ("coco", repeat("categories", name="b"), "category id 10 is used twice, for .* and 'b'"),
    "category, list": ("coco", rename_category(["RBC"]), "category 1. has no name, or"),
    "category, none": ("coco", rename_category(None), "category 1. has no name, or"),
    "empty": ("coco", as_split_file(b""), "train.json cannot be read: the file is empty"),
    "broken": ("coco", as_split_file(b'{"images": [1'), "train.json is not valid JSON"),
    "no file": ("coco", name_photo(None), "image 1 has no file_name"),
    "no photos": ("coco", lambda f: [p.unlink() for p in Path(f, "train2017").iterdir()], "none of the photos of"),
    "no YAML": ("yolo", write_bytes("data.yaml", b"names: [a, b"), "data.yaml cannot be read as YAML: while parsing"),
    "objects in YAML": ("yolo", write_bytes("data.yaml", b"!!python/object/apply:os.system [id]"), "read as YAML"),
    "no names": ("yolo", write_bytes("data.yaml", b"train: images/train"), "but data.yaml has no names of the classes"),
    "names": ("yolo", write_bytes("data.yaml", b"names: 3"), "data.yaml: names must be a list of the classes"),
    "class": ("yolo", write_bytes(LABEL, b"77 0.5 0.5 0.1 0.1"), "line 1: class 77 has no name; data.yaml names .. cl"),
    "text": ("yolo", write_bytes(LABEL, b"chair 0.5 0.5 0.1 0.1"), "is not a class number followed by numbers"),
    "values": ("yolo", write_bytes(LABEL, b"0 0.5 0.5 0.1 0.1 0.9"), "line 1 has 6 values: a box is class, cx, cy"),
    "folder": ("yolo", replace_text("data.yaml", "images/val", "elsewhere"), "is 'elsewhere', but .* has no such"),
    "no XML": ("voc", write_bytes(XML, b"<annotation><object>"), "xml cannot be read as XML: no element found"),
    "other XML": ("voc", write_bytes(XML, b"<html></html>"), "is not a Pascal VOC annotation"),
    "entities": ("voc", write_bytes(XML, BOMB), "cannot be read as XML: it has a DOCTYPE"),
    "encoding": ("voc", write_bytes(XML, b'<?xml version="1.0" encoding="foo"?><annotation/>'), "unknown encoding"),
    "empty XML": ("voc", write_bytes(XML, b""), "xml cannot be read: the file is empty.$"),
    "aliases": ("yolo", replace_text("data.yaml", "train: images/train", "train: [[a]]"), "train must be a folder"),
    "no annotation": ("voc", lambda f: next(Path(f).glob(XML)).unlink(), r"lists '\w+', but there is no \w+.xml"),
    "metadata": ("objects, folder", write_bytes("train/metadata.jsonl", b'{"a"'), "metadata.jsonl cannot be read"),
    "lengths": (
        "objects, folder",
        write_bytes("train/metadata.jsonl", b'{"file_name": "a", "objects": {"bbox": [], "categories": [1]}}'),
        "metadata.jsonl, line 1: objects has 0 boxes, but 1 category",
    ),
    "keys": (
        "objects, folder",
        write_bytes("train/metadata.jsonl", b'{"file_name": "a", "objects": {"boxes": []}}'),
        "objects must have lists bbox and category; it has boxes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence(load, rows, write, name):
    layout, damage, words = DAMAGED[name]
    folder = write(layout, rows)
    damage(folder)
    with pytest.raises(InputError, match=words) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def remove_photo(folder):
    next(path for path in sorted(Path(folder).rglob("*.jpg")) if "val" not in str(path.relative_to(folder))).unlink()


BAD = {
    "coco, no photo": ("coco", remove_photo, "the image file is not in the folder"),
    "yolo, no photo": ("yolo", remove_photo, "the image file is not in the folder"),
    "voc, no photo": ("voc, beside", remove_photo, "the image file is not in the folder"),
    "objects, no photo": ("objects, folder", remove_photo, "the image file is not in the folder"),
    "coco, no area": ("coco", change_annotation(bbox=[10, 10, 0, 5]), "has no area"),
    "coco, three numbers": ("coco", change_annotation(bbox=[10, 10, 5]), "has 3 numbers"),
    "coco, texts": ("coco", change_annotation(bbox={"x": 1}), "contains a value that is not a number"),
    "yolo, no area": ("yolo", write_bytes(LABEL, b"0 0.5 0.5 0 0.1"), "has no area"),
    "yolo, NaN": ("yolo", write_bytes(LABEL, b"0 0.5 0.5 nan 0.1"), "contains a value that is not a number"),
    "voc, no area": ("voc", replace_text(XML, "<xmax>", "<xmax>-"), "has no area"),
    "voc, no numbers": ("voc", replace_text(XML, "<xmax>", "<xmax>a"), "contains a value that is not a number"),
    "voc, no box": ("voc", replace_text(XML, "bndbox>", "polygon>"), "no box|cannot be read as XML"),
    "outside": ("coco", name_photo("../../../etc/passwd"), "not in"),
    "absolute": ("coco", name_photo("/etc/passwd"), "not in"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_a_bad_row(load, rows, write, name):
    layout, damage, words = BAD[name]
    rows = {s: [r for r in rows[s] if r["category"].lower() in ("chair", "bed", "desk")] for s in rows}
    folder = write(layout, rows)
    damage(folder)
    with pytest.raises(InputError, match=f"(?s)1 of .* rows cannot be used.*({words})"):
        load(folder)
    train, val = load(folder, bad_rows="skip")
    assert len(train.problems + val.problems) == 1 and len(train) + len(val) == 20


def test_only_files_of_the_folder_are_opened(load, rows, write, tmp_path):
    """A link to a photo elsewhere is a bad row, and one to annotations an error."""
    folder = write("coco", rows)
    image = sorted(Path(folder, "train2017").iterdir())[0]
    image.rename(tmp_path / "secret.jpg")
    image.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(InputError, match="(?s)1 of 65 train rows.*a link to a file outside of the folder"):
        load(folder)
    Path(folder, TRAIN).rename(tmp_path / "secret.json")
    Path(folder, TRAIN).symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match="instances_train2017.json cannot be read: a link to a file outside"):
        load(folder)


def test_names_of_nested_aliases_are_refused_at_once(load, rows, write):
    """Written out, this list would have a billion elements."""
    folder = write("yolo", rows)
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
    Path(folder, "data.yaml").write_text("\n".join([*lines, "names: *a9", "train: images/train", "val: images/val"]))
    with pytest.raises(InputError, match="names must be a list of the classes"):
        load(folder)


# Formats of boxes ----------------------------------------------------------------------------------------------------


def fractions_of(row, box):
    return [value / size_of(row)[i % 2] for i, value in enumerate(box)]


FORMATS = {
    "xywh": lambda x, y, w, h: [x, y, w, h],
    "xyxy": lambda x, y, w, h: [x, y, x + w, y + h],
    "cxcywh": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
}


@pytest.mark.parametrize("kind", ["pixels", "fractions"])
@pytest.mark.parametrize("name", FORMATS)
def test_boxes_of_another_format(load, rows, parquet, capsys, name, kind):
    convert = {"pixels": lambda row, box: [float(v) for v in box], "fractions": fractions_of}[kind]
    changed = {
        split: [dict(row, bbox=convert(row, FORMATS[name](*row["bbox"]))) for row in rows[split]] for split in rows
    }
    data = parquet(changed)
    assert_same(load(data, box_format=name), load(parquet(rows, "expected")))
    expected = {
        "pixels": f"boxes read as {name} in pixels",
        "fractions": f"boxes read as {name} in fractions of the image",
    }
    assert f", {expected[kind]}\n" in capsys.readouterr().out
    if (name, kind) != ("xywh", "pixels"):
        with pytest.raises(InputError, match=f"let --box-format .*{name}.* convert them"):
            load(data)


def test_two_formats_of_the_same_numbers_have_pixels_of_their_own(load, rows, parquet):
    """The cache tells them apart."""
    small = {split: [dict(row, bbox=[100, 100, 150, 140]) for row in rows[split]] for split in rows}
    data = parquet(small)
    sizes = [load(data, box_format=name)[1].crop_sizes[0].tolist() for name in ("xywh", "xyxy", "cxcywh", "xyxy")]
    assert sizes == [[150, 140], [50, 40], [150, 140], [50, 40]]
    corner, centre = (load(data, box_format=name)[1] for name in ("xywh", "cxcywh"))
    assert not np.array_equal(corner.pixels, centre.pixels)


def test_boxes_that_reach_over_the_edge_a_little_are_clipped(load, rows, parquet):
    few = {split: [dict(row) for row in rows[split]] for split in rows}
    width, height = size_of(few["val"][0])
    few["val"][0]["bbox"] = [-1, 10, 50, height - 10 + 0.009 * height]
    few["val"][1]["bbox"] = [0, 0, size_of(few["val"][1])[0], size_of(few["val"][1])[1]]
    train, val = load(parquet(few))
    assert val.crop_sizes[0].tolist() == [49, height - 10]
    report = audit(train, val)
    assert report["boxes"]["val"]["clipped"] == 1 and report["boxes"]["train"]["clipped"] == 0
    assert (
        "val: 1 of 24 boxes clipped, because they extend past the edge of their images by at most 1 pixel or 1 %."
        in findings(report)
    )
    few["val"][0]["bbox"] = [-0.02 * width, 10, 50, 50]
    with pytest.raises(InputError, match="(?s)1 of 24 val rows.*extends outside"):
        load(parquet(few, "more"))


# Splits --------------------------------------------------------------------------------------------------------------


def test_a_test_split_can_be_val(load, rows, parquet):
    data = parquet({"train": rows["train"], "test": rows["val"]})
    with pytest.raises(InputError, match="no val split, only train, test: .*or use test for it with --val-split test"):
        load(data)
    assert_same(load(data, val_split="test"), load(parquet(rows, "expected")))
    for wrong in ("tset", "train"):
        with pytest.raises(InputError, match=f"--val-split {wrong}: .* no split of this name .* it has train, test"):
            load(data, val_split=wrong)


def test_new_options_are_part_of_a_runs_identity_only_if_they_are_used():
    before = {"lr": 1}
    assert identity(before | {"val_split": "", "box_format": "auto"}) == identity(before)
    assert identity(before | {"val_split": "test"}) != identity(before)
    old = {name: value for name, value in asdict(TrainConfig()).items() if name not in ("val_split", "box_format")}
    assert differences(old, TrainConfig()) == []
    assert differences(old, TrainConfig(val_split="test")) == ["no --val-split"]
    assert differences(old | {"box_format": "xyxy"}, TrainConfig()) == ["--box-format xyxy"]


# The audit -----------------------------------------------------------------------------------------------------------


def test_a_photo_of_many_objects_is_no_duplicate_of_itself(load, many, write):
    train, val = load(write("coco", many))
    report = audit(train, val)
    assert report["duplicates"] == {"within_a_split": 0, "across_splits": 0, "groups": []}
    assert report["objects"] == {
        "train": {"photos": 55, "median": 3.0, "maximum": 3},
        "val": {"photos": 24, "median": 3.0, "maximum": 3},
        "in_both": 0,
    }
    assert "24 photos; objects per photo: median 3, maximum 3" in describe(train, val, report)
    assert not any("identical" in sentence for sentence in findings(report))


def test_a_photo_in_train_and_val_is_pointed_out(load, many, write):
    folder = write("coco", many)
    train, val = (Path(folder, "annotations", f"instances_{year}.json") for year in ("train2017", "val2017"))
    one, other = json.loads(train.read_text()), json.loads(val.read_text())
    image, (first, *_) = other["images"][0], [a for a in other["annotations"] if a["image_id"] == 1]
    one["images"].append(image | {"id": 1000})
    one["annotations"].append(first | {"image_id": 1000})
    other["annotations"].remove(first)
    train.write_text(json.dumps(one))
    val.write_text(json.dumps(other))
    report = audit(*load(folder))
    assert report["objects"]["in_both"] == 1 == report["duplicates"]["across_splits"]
    sentence = "1 photo with objects in both train and val: use --split-by image_id to separate them."
    assert sentence in findings(report) and not any("identical" in s for s in findings(report))


# Below the given folder ----------------------------------------------------------------------------------------------

NESTED = ["coco", "coco, roboflow", "yolo", "yolo, roboflow", "voc", "voc, beside", "csv, roboflow", "metadata, csv",
          "objects, folder"]  # fmt: skip


@pytest.mark.parametrize("layout", NESTED)
def test_a_data_set_below_the_given_folder(load, rows, write, tmp_path, capsys, layout):
    """As an archive unpacks it; photos elsewhere are counted."""
    expected = load(write(layout, rows, "outer/download/chairs.v1"))
    capsys.readouterr()
    write_text(tmp_path / "outer" / "notes.txt", "")
    (tmp_path / "outer" / "preview.jpg").write_bytes(encode(photo()))
    train, val = load(str(tmp_path / "outer"))
    assert_same((train, val), expected)
    assert train.ids() == expected[0].ids(), "names are those in the data set"
    assert ", in the folder download/chairs.v1\n" in capsys.readouterr().out
    inside = [f"download/chairs.v1/{name}" for name in audit(*expected)["not_read"]["names"]]
    assert sorted(audit(train, val)["not_read"]["names"]) == sorted(["notes.txt", "preview.jpg", *inside])


@pytest.mark.parametrize("layout", NESTED)
def test_several_data_sets_below_the_given_folder(load, rows, write, tmp_path, layout):
    for name in ("a", "b"):
        write(layout, rows, f"outer/{name}")
    with pytest.raises(InputError, match=r"outer holds several data sets, a, b: choose one, such as \S*outer/a\.$"):
        load(str(tmp_path / "outer"))


def test_the_given_folder_comes_before_those_below(load, rows, write, capsys):
    folder = write("yolo", rows)
    expected = load(folder)
    write("coco", rows, "data/old/export")
    assert_same(load(folder), expected)
    assert "in the folder" not in capsys.readouterr().out


def test_annotations_beside_photos_in_folders_of_classes(load, rows, write, capsys):
    """These folders are not data sets of their own."""
    folder = write("voc, beside", rows)
    for i, path in enumerate(sorted(Path(folder).rglob("*.jpg"))):
        target = Path(folder, "ab"[i % 2])
        target.mkdir(exist_ok=True)
        for file in (path, path.with_suffix(".xml")):
            file.rename(target / file.name)
    load(folder, split_by="image_id")
    assert capsys.readouterr().out == "Pascal VOC annotations: 89 photos, 89 objects, 13 categories\n"


def test_folders_far_below_are_not_searched(load, rows, write, tmp_path):
    write("metadata", rows, "outer/1/2/3/4/5")
    with pytest.raises(InputError, match="has no train split, only 1"):
        load(str(tmp_path / "outer"))


def test_photos_outside_of_the_folder_of_annotations(load, rows, write):
    """Only a folder with photos is a data set."""
    folder = write("coco", rows)
    expected = load(folder)
    Path(folder, "export").mkdir()
    rename(folder, ("annotations", "export/annotations"))
    assert_same(load(folder), expected)


def test_an_image_folder_below_the_given_one(load, image_folder, tmp_path, capsys):
    """Without metadata, beside other photos, as in the Grocery Store data set, which also has a folder of icons."""
    for split in ("train", "val"):
        Path(image_folder, split, "metadata.jsonl").unlink()
    expected = load(image_folder, crop=False)
    (tmp_path / "outer" / "samples" / "shelves").mkdir(parents=True)
    (tmp_path / "outer" / "samples" / "shelves" / "1.jpg").write_bytes(encode(photo()))
    Path(image_folder).rename(tmp_path / "outer" / "dataset")
    icon = tmp_path / "outer" / "dataset" / "icons" / "seats" / "Chair" / "1.jpg"
    icon.parent.mkdir(parents=True)
    icon.write_bytes(encode(photo()))
    train, val = load(str(tmp_path / "outer"), crop=False)
    assert_same((train, val), expected)
    assert capsys.readouterr().out.endswith("image folder: 89 photos, 13 categories, in the folder dataset\n")
    assert {"samples/shelves/1.jpg", "icons: 1 rows"} <= set(audit(train, val)["not_read"]["names"])


def test_a_folder_that_one_split_leaves_out(load, image_folder):
    """Vegetables/Mushroom/Brown-Cap and Vegetables/Brown-Cap of the Grocery Store data set."""
    expected = load(image_folder, crop=False)
    for split, place in (("train", "Seats/Soft"), ("val", "Seats")):
        Path(image_folder, split, place).mkdir(parents=True)
        rename(image_folder, (f"{split}/Chair", f"{split}/{place}/Chair"))
        Path(image_folder, split, "metadata.jsonl").unlink()
    for split, other in zip(load(image_folder, crop=False), expected, strict=True):
        assert split.labels.bincount().tolist() == other.labels.bincount().tolist()
    rename(image_folder, ("val/Seats", "val/Places"))
    with pytest.raises(InputError, match="train/Seats/Soft/Chair and val/Places/Chair are the same category"):
        load(image_folder, crop=False)


def test_folders_of_classes_without_splits(load, image_folder, capsys):
    expected = sum(map(len, load(image_folder, crop=False, split_by="image_id")))
    for split in ("train", "val"):
        for path in [p for p in Path(image_folder, split).rglob("*") if p.suffix == ".jpg"]:
            target = Path(image_folder, "images", path.parent.name, path.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        shutil.rmtree(Path(image_folder, split))
    capsys.readouterr()
    with pytest.raises(InputError, match="has no val split, only train: create one with --split-by image_id"):
        load(image_folder, crop=False)
    train, val = load(image_folder, crop=False, split_by="image_id")
    assert len(train) + len(val) == expected and train.ids()["image_id"][0].startswith("images/")
    assert ", without folders of splits\n" in capsys.readouterr().out


def test_splits_called_training_and_test(load, image_folder, tmp_path):
    """As in Fruits-360, below two folders."""
    expected = load(image_folder)
    rename(image_folder, ("train", "Training"), ("val", "Test"))
    (tmp_path / "outer" / "fruits").mkdir(parents=True)
    Path(image_folder).rename(tmp_path / "outer" / "fruits" / "100x100")
    assert_same(load(str(tmp_path / "outer"), val_split="test"), expected)


def test_two_coco_files_of_the_same_photos(load, rows, write):
    """As in D2S, which has parts of its splits in files of their own."""
    folder = write("coco", rows)
    shutil.copy(Path(folder, TRAIN), Path(folder, TRAIN.replace(".json", "_part.json")))
    with pytest.raises(InputError, match="instances_train2017_part.json and another file of train both annotate train"):
        load(folder)


def test_an_archive_is_to_be_unpacked(load, tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="contains neither Parquet files nor images: unpack photos.zip. It contains"):
        load(str(tmp_path))


# Names of photos and columns -----------------------------------------------------------------------------------------


@pytest.fixture
def accented(rows):
    return {split: [dict(row, image_id=f"Stühle é {row['image_id']}") for row in rows[split]] for split in rows}


@pytest.mark.parametrize("layout", ["coco", "yolo, lists", "voc, beside", "metadata", "csv, labels", "objects, folder"])
def test_names_in_another_unicode_form(load, accented, write, capsys, layout):
    """As macOS writes those of files; annotations have the composed form."""
    folder = write(layout, accented)
    expected = load(folder)
    for path in [path for path in Path(folder).rglob("*") if path.suffix in (".jpg", ".txt")]:
        if path.suffix == ".jpg" or path.parent.name == "labels":
            path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    capsys.readouterr()
    for split, other in zip(load(folder), expected, strict=True):
        np.testing.assert_array_equal(split.pixels[split.index], other.pixels[other.index])
    assert ", 89 file names matched after Unicode normalisation\n" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["coco", "metadata", "csv, roboflow"])
def test_names_in_upper_and_lower_case(load, rows, write, capsys, layout):
    folder = write(layout, rows)
    expected = load(folder)
    for path in list(Path(folder).rglob("*.jpg"))[:7]:
        path.rename(path.with_suffix(".JPG"))
    capsys.readouterr()
    for split, other in zip(load(folder), expected, strict=True):
        np.testing.assert_array_equal(split.pixels[split.index], other.pixels[other.index])
    assert ", 7 file names matched ignoring case\n" in capsys.readouterr().out


def test_several_photos_of_a_similar_name(load, rows, write):
    folder = write("coco", rows)
    first = sorted(Path(folder, "train2017").iterdir())[0]
    shutil.copy(first, first.with_suffix(".Jpg"))
    first.rename(first.with_suffix(".JPG"))
    with pytest.raises(InputError, match="(?s)1 of 65 train rows cannot be used.*the image file is not in the folder"):
        load(folder)


def test_a_photo_that_stands_for_two(load, rows, write):
    """Unpacked where case makes no difference, one has replaced the other."""
    folder = write("coco", rows)

    def add(content):
        image = content["images"][0]
        content["images"].append(dict(image, id=1000, file_name=image["file_name"].upper()))

    edit(folder, TRAIN, add)
    with pytest.raises(InputError, match=r"annotations name (\w+.JPG) and (\w+.jpg), but only train2017/\2 is there"):
        load(folder)


@pytest.mark.parametrize(
    "column", ["filename", "File Name", "image", "image_path", "path", "file", "image_file_name", "filepath"]
)
@pytest.mark.parametrize("layout", ["metadata, csv", "objects, folder"])
def test_a_column_of_file_names_by_another_name(load, rows, write, layout, column):
    folder = write(layout, rows)
    expected = load(folder)
    for path in Path(folder).rglob("metadata.*"):
        path.write_text(path.read_text().replace("file_name", column))
    assert_same(load(folder), expected)


def test_columns_of_file_names_that_are_not_clear(load, rows, write):
    folder = write("metadata, csv", rows)
    path = Path(folder, "metadata.csv")
    header, *lines = path.read_text().splitlines()
    lines = [f"{line},{line.split(',')[0]}" for line in lines]
    path.write_text("\n".join(["path,category,bbox,image", *lines]))
    with pytest.raises(InputError, match="has no column file_name, but path and image, each of which could be it: ren"):
        load(folder)
    numbered = [f"{line.rpartition(',')[0]},{i}" for i, line in enumerate(lines)]
    path.write_text("\n".join(["path,category,bbox,image", *numbered]))
    assert len(load(folder)[0]) == 60, "numbers are no names"
    path.write_text("\n".join(["photo,category,bbox,image", *numbered]))
    with pytest.raises(InputError, match="line 1 has no column file_name; its columns are photo, category, bbox, i"):
        load(folder)


# CSV files of corners ------------------------------------------------------------------------------------------------


def test_one_csv_file_for_photos_in_folders_of_splits(load, rows, write):
    """As Kaggle has it, with other names of columns, and lines of photos without objects."""
    folder = write("csv, roboflow", rows)
    expected = load(folder)
    lines = []
    for split in ("train", "valid"):
        path = Path(folder, split, "_annotations.csv")
        lines += [f"{split}/{line}" for line in path.read_text().splitlines()[1:]]
        path.unlink()
    lines.append("valid/none.jpg,100,100,,,,,")
    Path(folder, "labels.csv").write_text("\n".join(["image_path,w,h,label,x_min,y_min,X_max,y max", *lines]))
    assert_same(load(folder), expected)


def test_a_csv_file_of_fractions(load, rows, write, capsys):
    folder = write("csv, labels", rows)
    expected = load(folder)
    for path in Path(folder).glob("*_labels.csv"):
        header, *lines = path.read_text().splitlines()
        fields = [line.split(",") for line in lines]
        for line in fields:
            line[4:] = [f"{float(value) / float(line[1 + i % 2]):.9f}" for i, value in enumerate(line[4:])]
        path.write_text("\n".join([header, *map(",".join, fields)]))
    capsys.readouterr()
    assert_same(load(folder), expected)
    assert capsys.readouterr().out == "CSV annotations: 89 photos, 89 objects, 13 categories\n"


def test_metadata_with_corners_is_read_once(load, rows, write, capsys):
    folder = write("csv, roboflow", rows)
    expected = load(folder)
    capsys.readouterr()
    for path in Path(folder).rglob("*.csv"):
        path.rename(path.with_name("metadata.csv"))
    assert_same(load(folder), expected)
    assert capsys.readouterr().out == "CSV annotations: 89 photos, 89 objects, 13 categories\n"


def test_a_name_that_two_photos_have(load, rows, write):
    """Without a folder, a line of one file for all splits could mean either."""
    folder = write("csv, roboflow", rows)
    lines = [line for name in ("train", "valid") for line in Path(folder, name, "_annotations.csv").open()][1:]
    for name in ("train", "valid"):
        Path(folder, name, "_annotations.csv").unlink()
    lines = [line for line in lines if not line.startswith("filename")]
    Path(folder, "all.csv").write_text("filename,width,height,class,xmin,ymin,xmax,ymax\n" + "\n".join(lines))
    first = lines[0].split(",")[0]
    shutil.copy(Path(folder, "train", first), Path(folder, "valid", first))
    with pytest.raises(InputError, match=f"is in a folder named after a split, but {first} is not"):
        load(folder)


def test_other_csv_files_are_not_read(load, rows, write, capsys):
    """Without a category, of another kind, or empty."""
    folder = write("coco", rows)
    texts = {
        "a.csv": "filename,xmin,ymin,xmax,ymax\n1.jpg,1,2,3,4",
        "b.csv": "class,x\na,1",
        "c.csv": "",
        "d.csv": "\n",
    }
    for name, text in texts.items():
        Path(folder, name).write_text(text)
    assert texts.keys() <= set(audit(*load(folder))["not_read"]["names"])
    assert capsys.readouterr().out == "COCO annotations: 89 photos, 89 objects, 13 categories\n"


# Annotations of other tools ------------------------------------------------------------------------------------------

OTHERS = {
    "labelme": ("1.json", '{"shapes": [{"label": "a", "points": []}], "imagePath": "1.jpg"}', "labelme JSON"),
    "VIA": ("via.json", '{"1.jpg9": {"regions": [{"shape_attributes": {"x": 1}}]}}', "VGG Image Annotator JSON"),
    "VIA, CSV": ("via.csv", "filename,region_shape_attributes\n1.jpg,{}", "VGG Image Annotator CSV"),
    "Label Studio": ("out.json", '[{"from_name": "label", "original_width": 9}]', "Label Studio JSON"),
    "Label Studio, MIN": ("out.json", '[{"l": [{"rectanglelabels": [], "original_width": 9}]}]', "Label Studio JSON"),
    "Label Studio, CSV": ("out.csv", "annotation_id,annotator,image,label,lead_time\n", "Label Studio CSV"),
    "Datumaro": (
        "annotations/default.json",
        '{"info": {}, "categories": {"label": {"labels": []}}, "items": []}',
        "Datumaro JSON",
    ),
    "CreateML": ("a.json", '[{"image": "1.jpg", "annotations": [{"coordinates": {"x": 1}}]}]', "CreateML JSON"),
    "CVAT": ("annotations.xml", '<annotations><image id="0" name="1.jpg"></image></annotations>', "CVAT XML"),
    "Roboflow": ("train/_classes.csv", "filename, chair, lamp\n1.jpg, 0, 1\n", "Roboflow multi-class CSV"),
    "Open Images": ("boxes.csv", "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n", "Open Images CSV"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_annotations_of_another_tool_are_named(load, tmp_path, name):
    file, content, kind = OTHERS[name]
    write_text(tmp_path / file, content)
    (tmp_path / "1.jpg").write_bytes(encode(photo()))
    with pytest.raises(InputError, match=f"{file} is {kind}, which is not read: export or convert .* to COCO, YOLO, P"):
        load(str(tmp_path))


def test_a_csv_file_that_lacks_a_column(load, rows, write):
    folder = write("csv, labels", rows)
    for path in Path(folder).glob("*.csv"):
        path.write_text(path.read_text().replace("class", "id"))
    with pytest.raises(
        InputError, match="_labels.csv is not read. .* needs the columns .*with filename, width, height, i"
    ):
        load(folder)
