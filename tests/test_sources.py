"""What is read of Parquet files, the Hub and image folders, what is not, and what is refused."""

import json
import os
import shutil
import socket
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin

import predict
from common.config import InputError, TrainConfig
from common.data.audit import audit, describe, findings
from common.data.masks import load_masks
from common.data.pixels import open_image
from common.data.sources import read_splits
from common.data.split_names import parquet_splits
from common.data.table import ParquetFiles, read_file
from common.deploy.inputs import read_inputs
from tests.helpers import encode, photo

BYTES_NAME = os.fsdecode(b"st\xfchl")  # not UTF-8


def write_photos(folder, *names):
    for i, name in enumerate(names):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photo(40 + i, 30)))
    return str(folder)


def ids(table):
    return sorted(table["image_id"])


# Parquet -------------------------------------------------------------------------------------------------------------

LAYOUTS = [
    ["train.parquet", "val.parquet"],
    ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "val-00000-of-00001.parquet", "notes.parquet"],
    ["data/train-00000-of-00001.parquet", "data/holdout-00000-of-00001.parquet", "val.parquet"],
    ["train/a.parquet", "train/deep/b.parquet", "valid/c.parquet", "test.parquet"],
    ["my-train/a.parquet", "dev set/c.parquet", "d.parquet"],
    ["photos_training.parquet", "photos_evaluation.parquet", "photos-dev-2.parquet", "trainer.parquet"],
    ["a.parquet", "b/c.parquet"],
    ["__MACOSX/train.parquet", "val.parquet"],
    ["Train.parquet", "2024 validation 1.parquet"],
]


@pytest.mark.parametrize("names", LAYOUTS, ids=" ".join)
def test_files_belong_to_the_splits_that_the_library_datasets_gives_them(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    patterns = datasets.data_files.get_data_patterns(str(tmp_path))
    theirs = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=str(tmp_path))
    expected = {
        str(split): sorted(os.path.relpath(file, tmp_path) for file in files) for split, files in theirs.items()
    }
    assert parquet_splits(sorted(names)) == {split: files for split, files in expected.items() if files}


def test_parquet_files_that_belong_to_no_split_are_named(load, rows, parquet):
    folder = parquet(rows)
    shutil.copy(f"{folder}/val-00000-of-00001.parquet", f"{folder}/more.parquet")
    train, val = load(folder)
    report = audit(train, val)
    assert report["not_read"] == {"files": 1, "names": ["more.parquet"]}
    assert "not read: 1 file (more.parquet)." in findings(report)
    assert "note   not read: 1 file (more.parquet)." in describe(train, val, report)


def test_a_file_that_fits_two_splits(load, rows, parquet):
    with pytest.raises(InputError, match="val-train.parquet would be part of train and of validation"):
        folder = parquet(rows)
        shutil.copy(f"{folder}/val-00000-of-00001.parquet", f"{folder}/val-train.parquet")
        load(folder)


def test_a_missing_file_of_several(load, rows, parquet):
    folder = parquet(rows)
    os.rename(f"{folder}/train-00000-of-00001.parquet", f"{folder}/train-00002-of-00003.parquet")
    with pytest.raises(InputError, match="has only 1 of the 3 files train-\\*-of-00003"):
        load(folder)
    assert len(read_splits(f"{folder}/train-00002-of-00003.parquet")["train"]) == 65, "named by the user"


def test_splits_that_are_not_used_are_named(load, image_folder):
    shutil.copytree(f"{image_folder}/val", f"{image_folder}/test")
    assert audit(*load(image_folder))["not_read"] == {"files": 1, "names": ["test: 24 rows"]}


def test_two_val_splits(load, image_folder):
    shutil.copytree(f"{image_folder}/val", f"{image_folder}/dev")
    with pytest.raises(InputError, match="several val splits, val and dev"):
        load(image_folder)


@pytest.mark.parametrize(
    ("column", "convert", "words"),
    [
        ("bbox", lambda box: [float(v) for v in box], "its column bbox is list of double, not list of int"),
        ("category", lambda name: 3, "its column category is int64, not string"),
        ("product_id", None, "its column product_id is missing, not string"),
    ],
)
def test_the_files_of_a_split_have_the_same_columns(load, rows, tmp_path, column, convert, words):
    changed = [{key: value for key, value in row.items() if key != column or convert} for row in rows["train"]]
    if convert:
        changed = [row | {column: convert(row[column])} for row in changed]
    for i, part in enumerate((rows["train"], changed)):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / f"train-0000{i}-of-00002.parquet")
    with pytest.raises(InputError, match=f"train-00001-of-00002.parquet differs from .*{words}"):
        read_splits(str(tmp_path))


def write_train(folder, *tables):
    for i, columns in enumerate(tables):
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, folder / f"train-{i:05}-of-{len(tables):05}.parquet")


def test_lists_of_any_arrow_type_are_boxes(tmp_path):
    boxes, other = [[1, 1, 20, 20], None], [[1, 2, 3], [4, 5, 6, 7]]
    kinds = (pa.list_(pa.int64(), 4), pa.list_(pa.int64()), pa.large_list(pa.int64()))
    columns = [pa.array(values, kind) for values, kind in zip((boxes, other, other), kinds, strict=True)]
    write_train(tmp_path, *({"category": ["a", "b"], "bbox": column} for column in columns))
    pq.write_table(pa.table({"category": ["a"], "bbox": pa.array([[5]])}), tmp_path / "val.parquet")
    splits = read_splits(str(tmp_path))
    assert splits["train"]["bbox"] == boxes + other + other
    assert splits["validation"].append(splits["train"])["bbox"] == [[5], *boxes, *other, *other]


@pytest.mark.parametrize("column", ["label", "labels", "class"])
def test_categories_in_a_column_of_another_name(tmp_path, column):
    names = {"info": {"features": {column: {"names": ["Lamp", "Bed"], "_type": "ClassLabel"}}}}
    plain = pa.table({column: [0, 1, -1]}, pa.schema([(column, pa.int64())], {"huggingface": json.dumps(names)}))
    write_train(tmp_path, plain)
    assert read_splits(str(tmp_path))["train"]["category"] == ["Lamp", "Bed", None]
    write_train(tmp_path, {column: ["Lamp", "Bed"], "category": ["a", "b"]})
    assert read_splits(str(tmp_path))["train"]["category"] == ["a", "b"], "category comes first"


def test_labels_that_are_lists_are_no_category(tmp_path):
    write_train(tmp_path, {"labels": [[1, 2], [3]]})
    assert "category" not in read_splits(str(tmp_path))["train"]


IDS = {  # what is stored, and what is read
    "nan": (pa.array([float("nan"), 1.5, None]), [None, "1.5", None]),
    "numbers": (pa.array([7, None, 2**63], pa.uint64()), ["7", None, str(2**63)]),
    "dictionary": (pa.array(["a", None, "b"]).dictionary_encode(), ["a", None, "b"]),
    "large strings": (pa.array(["a", None, "b"], pa.large_string()), ["a", None, "b"]),
    "dates": (pa.array([0, None, 10**9], pa.timestamp("s")), ["1970-01-01 00:00:00", None, "2001-09-09 01:46:40"]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_are_texts(tmp_path, kind):
    stored_ids, expected = IDS[kind]
    write_train(tmp_path, {name: stored_ids for name in ("product_id", "category")})
    table = read_splits(str(tmp_path))["train"]
    assert table["product_id"] == table["category"] == expected


NO_TEXT = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"\xe9\xe9")]
)
NO_IDS = {
    "not UTF-8": (NO_TEXT, "of type string cannot be read: .*UTF"),
    "lists": (pa.array([["a"], ["b"]]), "must contain texts or numbers; it contains list<"),
    "structs": (pa.array([{"id": 1}, None]), "must contain texts or numbers; it contains struct<"),
    "no dates": (pa.array([2**62, 2**61], pa.timestamp("us")), r"of type timestamp\[us\] cannot be read: "),
}


@pytest.mark.parametrize("column", ["product_id", "image_id", "category"])
@pytest.mark.parametrize("kind", NO_IDS)
def test_what_cannot_be_an_id(tmp_path, kind, column):
    values, words = NO_IDS[kind]
    write_train(tmp_path, {column: values})
    with pytest.raises(InputError, match=f"train-00000-of-00001.parquet.*{words}"):
        read_splits(str(tmp_path))


def test_text_that_is_not_utf8_beside_an_image(tmp_path):
    images = pa.StructArray.from_arrays([pa.array([b"1", b"2"]), NO_TEXT], ["bytes", "path"])
    write_train(tmp_path, {"image": images, "mask": NO_TEXT})
    table = read_splits(str(tmp_path))["train"]
    for column in ("image", "mask"):
        assert list(table.images(column)) == ["the row stores text that is not UTF-8"] * 2


def test_two_columns_of_one_name(tmp_path):
    write_train(tmp_path, pa.table([["a"], ["b"], ["c"]], names=["category", "note", "category"]))
    with pytest.raises(InputError, match="has several columns category: keep one of them"):
        read_splits(str(tmp_path))


def test_a_file_that_is_replaced_before_its_images_are_read(rows, tmp_path):
    """The ids and labels are those of the old file. predict.py reads images in this way."""
    write_train(tmp_path, pa.Table.from_pylist(rows["train"]))
    inputs = read_inputs(str(tmp_path))
    write_train(tmp_path, pa.Table.from_pylist(rows["train"][:9]))
    with pytest.raises(InputError, match="the data was changed while it was read"):
        list(inputs.items())


def test_other_columns_of_the_files_may_differ(rows, tmp_path):
    for i in range(2):
        part = [dict(row, note=[i, "a"][i]) for row in rows["train"]]
        pq.write_table(pa.Table.from_pylist(part), tmp_path / f"train-0000{i}-of-00002.parquet")
    assert read_splits(str(tmp_path))["train"]["image_id"] == 2 * [row["image_id"] for row in rows["train"]]


KINDS = {
    "struct": lambda image: image,
    "path first": lambda image: {"path": "x.jpg", "bytes": image["bytes"]},
    "bytes": lambda image: image["bytes"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_read_in_any_order_and_from_their_row_groups_alone(rows, tmp_path, kind, monkeypatch):
    chosen = [dict(row, image=KINDS[kind](row["image"])) for row in rows["train"]]
    for i, part in enumerate((chosen[:30], chosen[30:])):
        table = pa.Table.from_pylist(part)
        pq.write_table(table, tmp_path / f"train-0000{i}-of-00002.parquet", row_group_size=7)
    table, files = read_splits(str(tmp_path))["train"], [row["image"]["bytes"] for row in rows["train"]]
    assert list(table.images()) == files
    groups, scan = [], ParquetFiles._scan
    monkeypatch.setattr(ParquetFiles, "_scan", lambda self, group, *a: groups.append(group) or scan(self, group, *a))
    order = [64, 3, 3, 5, 2, 31, 40, 29]
    assert list(table.select(order).images()) == [files[i] for i in order]
    assert groups == [9, 0, 0, 5, 6, 4], (
        "3 is read once; 31 and 40 are in groups 5 and 6; each step back begins a group again"
    )
    assert table.select(order).select([0, 5])["image_id"] == [rows["train"][i]["image_id"] for i in (64, 31)]


def test_a_row_group_is_read_in_small_parts(tmp_path):
    """Its images are never all in memory, which may be hundreds of megabytes."""
    table = pa.table({"image": [os.urandom(200_000) for _ in range(100)]})
    pq.write_table(table, tmp_path / "train.parquet", write_batch_size=1, use_dictionary=False)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_splits(str(tmp_path))["train"].images()]
    assert len(held) == 100 and max(held) < 8e6, "of 20 MB"


def test_a_damaged_parquet_file_is_named(load, rows, parquet):
    folder = parquet(rows)
    file = Path(folder, "train-00000-of-00001.parquet")
    content = bytearray(file.read_bytes())
    content[200:4000] = bytes(3800)
    file.write_bytes(content)
    with pytest.raises(InputError, match="train-00000-of-00001.parquet cannot be read"):
        load(folder)


def test_reading_parquet_writes_nothing_elsewhere(load, rows, parquet, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    load(parquet(rows))
    assert not (tmp_path / "datasets").exists()


# Only bytes count in rows --------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path):
    """A picture of this machine that a data set must not read."""
    path = tmp_path / "secret.jpg"
    path.write_bytes(encode(photo()))
    return str(path)


@pytest.mark.parametrize("path", ["secret", "/dev/zero", "fifo"])
@pytest.mark.parametrize("as_text", [False, True])
def test_paths_in_rows_are_not_read(load, rows, parquet, secret, tmp_path, path, as_text):
    os.mkfifo(tmp_path / "fifo")
    path = {"secret": secret, "fifo": str(tmp_path / "fifo")}.get(path, path)
    image = path if as_text else {"bytes": None, "path": path}
    changed = [dict(row, image=image) for row in rows["val"]]
    folder = parquet({"train": rows["train"], "val": changed})
    with pytest.raises(InputError, match="(?s)24 of 24 val rows.*stores a path instead of an image"):
        load(folder, crop=False)
    items = list(read_inputs(folder).items())
    assert {encoded for encoded, _ in items} == {"the row stores a path instead of an image"}


def test_paths_of_masks_are_not_read(load, rows, parquet, secret, cache):
    changed = [dict(row, mask={"bytes": None, "path": secret}) for row in rows["train"]]
    data = parquet({"train": changed, "val": rows["val"]})
    config = TrainConfig(data=data, image_size=32, cache=cache, crop=True, fit="squash")
    with pytest.raises(InputError, match="the mask of train row 0 cannot be used: the row stores a path"):
        load_masks(config, "train", load(data)[0])


def test_a_parquet_file_that_links_elsewhere(load, rows, parquet, tmp_path):
    folder = parquet(rows)
    file = Path(folder, "train-00000-of-00001.parquet")
    file.rename(tmp_path / "elsewhere.parquet")
    file.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(InputError, match="train-00000-of-00001.parquet cannot be read: a link to a file outside"):
        load(folder)
    assert len(read_splits(str(file))["train"]) == 65, "a single file was named by the user"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="train-00000-of-00001.parquet cannot be read: not a regular file"):
        load(folder)


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    """Pillow gives EPS files to Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # searched anew
    for kind in ("EPS", "PDF", "PPM", "ICO", "TGA"):
        with pytest.raises(OSError, match="cannot identify"):
            open_image(encode(photo(), kind)).load()
    assert not (tmp_path / "started").exists()
    for kind in ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        open_image(encode(photo(), kind)).load()


# Image folders -------------------------------------------------------------------------------------------------------

NESTED = ("Fruit/Red Apple/1.jpg", "Fruit/Red Apple/2.JPG", "Fruit/Pear/1.jpg", "Bread/1.jpg")


@pytest.fixture
def nested(tmp_path):
    """A folder of five images for each split, some of them in nested folders, and files of other kinds."""
    for split in ("train", "val"):
        write_photos(tmp_path / "nested" / split, *NESTED)
    return tmp_path / "nested"


def test_nested_folders(load, nested):
    train, val = load(str(nested), crop=False)
    assert train.classes == ["bread", "pear", "red_apple"] and train.labels.bincount().tolist() == [1, 1, 2]
    assert val.ids()["image_id"] == [
        "Bread/1.jpg",
        "Fruit/Pear/1.jpg",
        "Fruit/Red Apple/1.jpg",
        "Fruit/Red Apple/2.JPG",
    ]
    assert audit(train, val)["not_read"] == {"files": 0, "names": []}
    results = read_inputs(str(nested))
    assert results.labels == ["bread", "pear", "red_apple", "red_apple"], "predict.py reads the val split"


def test_whatever_is_not_read_is_counted_and_named(load, nested, tmp_path):
    write_photos(nested, "0.jpg", "train/loose.jpg", "train/Bread/.hidden.jpg", "train/.git/Pear/3.jpg")
    outside = write_photos(tmp_path / "outside", "5.jpg")
    (nested / "train" / "Linked").symlink_to(outside)
    for name in ("notes.txt", "train/Bread/4.heic"):
        (nested / name).write_text("")
    (nested / "train" / "metadata.jsonl").write_text(
        '{"file_name": "Bread/1.jpg", "product_id": "a"}\n{"file_name": "Bread/9.jpg"}'
    )
    (nested / "train" / "metadata.csv").write_text("file_name\n")
    train, val = load(str(nested), crop=False)
    report = audit(train, val)
    names = ["0.jpg", "notes.txt", "train/.git/", "train/Bread/.hidden.jpg", "train/Bread/4.heic", "train/Linked/"]
    names += ["train/loose.jpg", "train/metadata.csv", "train/metadata.jsonl: Bread/9.jpg"]
    assert len(train) == 4 and sorted(report["not_read"]["names"]) == names and report["not_read"]["files"] == 9
    assert any(sentence.startswith("not read: 9 files (") and "..." in sentence for sentence in findings(report))


def test_a_category_in_two_folders_may_mean_two_things(load, nested):
    write_photos(nested, "train/Colour/red_apple/7.jpg")
    with pytest.raises(InputError, match="train/Colour/red_apple and train/Fruit/Red Apple are the same category"):
        load(str(nested), crop=False)


def test_the_splits_nest_their_categories_alike(load, nested):
    (nested / "val" / "Fruit" / "Pear").rename(nested / "val" / "pear")
    with pytest.raises(InputError, match="train/Fruit/Pear and val/pear are the same category, pear,"):
        load(str(nested), crop=False)


def test_images_beside_folders_of_images(load, nested):
    write_photos(nested, "train/Bread/old/7.jpg")
    with pytest.raises(InputError, match="train/Bread contains both images and a folder with images, train/Bread/old"):
        load(str(nested), crop=False)


UNUSABLE = {
    "fifo": (lambda path, _: os.mkfifo(path), "not a regular file"),
    "device": (lambda path, _: os.symlink("/dev/zero", path), "not a regular file"),
    "outside": (lambda path, secret: os.symlink(secret, path), "a link to a file outside of the folder"),
    "gone": (lambda path, _: os.symlink("nowhere", path), "cannot be read: No such file"),
    "socket": (lambda path, _: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)), "not a regular file"),
    "empty": (lambda path, _: path.write_bytes(b""), "the file is empty"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_only_regular_files_of_the_folder_are_opened(load, nested, secret, kind):
    make, words = UNUSABLE[kind]
    make(nested / "train" / "Bread" / "9.jpg", secret)
    with pytest.raises(InputError, match=f"(?s)1 of 5 train rows.*Bread/9.jpg.*{words}"):
        load(str(nested), crop=False)
    train, _ = load(str(nested), crop=False, bad_rows="skip")
    assert len(train) == 4 and words in train.problems[0]["reason"]


def test_a_huge_file_is_not_read(load, nested):
    os.truncate(nested / "train" / "Bread" / "1.jpg", 2**40)
    with pytest.raises(InputError, match="(?s)1 of 4 train rows.*Bread/1.jpg.*the file is larger than 2 GB"):
        load(str(nested), crop=False)


def test_a_file_that_does_not_fit_into_memory(load, nested, monkeypatch):
    def no_memory(*args):
        raise MemoryError

    monkeypatch.setattr("common.data.table.open", no_memory, raising=False)
    with pytest.raises(InputError, match="(?s)4 of 4 train rows.*the file does not fit into memory"):
        load(str(nested), crop=False)


def test_links_within_the_folder_are_read(load, nested):
    (nested / "train" / "Bread" / "9.jpg").symlink_to("../Fruit/Pear/1.jpg")
    assert len(load(str(nested), crop=False)[0]) == 5


@pytest.mark.parametrize("kind", ["fifo", "outside"])
def test_metadata_is_a_regular_file_of_the_folder(load, nested, tmp_path, kind):
    (tmp_path / "secret.jsonl").write_text('{"file_name": "Bread/1.jpg", "product_id": "a"}')
    make, words = UNUSABLE[kind]
    make(nested / "train" / "metadata.jsonl", tmp_path / "secret.jsonl")
    with pytest.raises(InputError, match=f"metadata.jsonl cannot be read: {words}"):
        load(str(nested), crop=False)


def test_images_without_a_line_of_metadata_have_no_ids(load, nested):
    """They do not share the product "nan"."""
    line = {"file_name": "Bread/1.jpg", "product_id": "a", "image_id": "bread-1"}
    (nested / "train" / "metadata.jsonl").write_text(json.dumps(line))
    found = load(str(nested), crop=False)[0].ids()
    assert found["product_id"] == ["a", "", "", ""]
    assert found["image_id"] == ["bread-1", "Fruit/Pear/1.jpg", "Fruit/Red Apple/1.jpg", "Fruit/Red Apple/2.JPG"]
    (nested / "train" / "metadata.jsonl").write_text(json.dumps(line | dict(product_id=float("nan"), image_id=None)))
    found = load(str(nested), crop=False)[0].ids()
    assert found["product_id"] == [""] * 4 and found["image_id"][0] == "Bread/1.jpg"


CSV = {
    "decimal commas": ("file_name,bbox,note\nBread/1.jpg,1,5,2,9,9\n", "line 2 has more values than .* double quotes"),
    "after two lines": ('file_name,note\nBread/1.jpg,"a\nb"\n\nBread/2.jpg,1,5\n', "line 5 has more values"),
    "twice": ("file_name,bbox,bbox\nBread/1.jpg,,\n", "it has several columns bbox"),
    "open quote": ('file_name,bbox\nBread/1.jpg,"[1, 2, 9, 9]\nBread/2.jpg,\n', "unexpected end of data"),
}


@pytest.mark.parametrize("kind", CSV)
def test_csv_that_could_be_read_wrongly(load, nested, kind):
    text, words = CSV[kind]
    (nested / "train" / "metadata.csv").write_text(text)
    with pytest.raises(InputError, match=f"metadata.csv cannot be read: {words}"):
        load(str(nested), crop=False)


def test_csv_with_empty_columns_at_the_end(load, nested):
    (nested / "train" / "metadata.csv").write_text("file_name,product_id,,\nBread/1.jpg,a,,\nFruit/Pear/1.jpg\n")
    assert load(str(nested), crop=False)[0].ids()["product_id"] == ["a", "", "", ""]


@pytest.mark.parametrize("text", ['["file_name"]', '{"file_name": 3}', "[" * 100_000, '{"file_name": "a", "bbox": '])
def test_metadata_of_any_kind(load, nested, text):
    (nested / "train" / "metadata.jsonl").write_text(text)
    with pytest.raises(InputError, match="metadata.jsonl"):
        load(str(nested), crop=False)


def test_names_that_are_not_utf8(load, nested, tmp_path):
    """Folders, files, and lines of metadata.csv about them."""
    for split in ("train", "val"):
        write_photos(nested / split, f"{BYTES_NAME}/{BYTES_NAME}.jpg")
        box = f'{BYTES_NAME}/{BYTES_NAME}.jpg,"[1, 2, 9, 9]"\nBread/1.jpg,"[1, 2, 8, 8]"\n'
        (nested / split / "metadata.csv").write_bytes(os.fsencode("file_name,bbox\n" + box))
    moved = nested.rename(tmp_path / BYTES_NAME)
    train, val = load(str(moved), bad_rows="skip")
    assert "st\\xfchl" in train.classes and val.ids()["image_id"] == [
        "Bread/1.jpg",
        "st\\xfchl/st\\xfchl.jpg",
    ]
    assert train.crop_sizes.tolist() == [[8, 8], [9, 9]]
    json.dumps(audit(train, val)).encode("ascii")
    describe(train, val, audit(train, val)).encode()


def test_parquet_files_whose_names_are_not_utf8(rows, tmp_path):
    pq.write_table(pa.Table.from_pylist(rows["val"]), tmp_path / "val.parquet")
    folder = tmp_path / BYTES_NAME
    folder.mkdir()
    (tmp_path / "val.parquet").rename(folder / f"val-{BYTES_NAME}.parquet")
    assert list(read_splits(str(folder))["validation"].images()) == [row["image"]["bytes"] for row in rows["val"]]


def test_a_single_file_that_blocks(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert read_file(str(tmp_path / "a.jpg")) == "not a regular file"


# predict.py ----------------------------------------------------------------------------------------------------------


def test_predicting_reads_regular_files_of_the_folder(finished_run, tmp_path, secret, capsys):
    folder = tmp_path / "photos"
    write_photos(folder, "a.jpg", "deep/b.jpg")
    for i, kind in enumerate(("fifo", "device", "outside")):
        UNUSABLE[kind][0](folder / f"z{i}.jpg", secret)
    (folder / "notes.txt").write_text("")
    (folder / "linked").symlink_to(tmp_path)
    whole = str(finished_run("train_custom_cnn", ""))
    errors = {result["image"]: result["error"] for result in predict.main([whole, str(folder)])}
    assert errors == {"a.jpg": None, "deep/b.jpg": None, **{f"z{i}.jpg": errors[f"z{i}.jpg"] for i in range(3)}}
    assert [errors[f"z{i}.jpg"] for i in range(3)] == [UNUSABLE[kind][1] for kind in ("fifo", "device", "outside")]
    assert "not read: 2 files (linked/, notes.txt)" in capsys.readouterr().out
    results = predict.main([whole, f"{folder}/z*.jpg"])
    assert [result["error"] for result in results] == ["not a regular file", "not a regular file", None], (
        "named by hand"
    )


# The Hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch, rows):
    """A function that puts a data set "me/photos" into an otherwise empty Hub cache, as a download does."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("common.data.hub.reachable", lambda url: False)
    repo = tmp_path / "hub" / "datasets--me--photos"

    def put(files, readme=None):
        snapshot = repo / "snapshots" / ("0" * 40)
        for folder in (repo / "blobs", repo / "refs", snapshot):
            folder.mkdir(parents=True)
        (repo / "refs" / "main").write_text("0" * 40)
        for i, (name, split_rows) in enumerate(files.items()):
            pq.write_table(pa.Table.from_pylist(split_rows), repo / "blobs" / f"{i}")
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(os.path.relpath(repo / "blobs" / f"{i}", (snapshot / name).parent))
        if readme is not None:
            (snapshot / "README.md").write_text(f"---\n{readme}\n---\n# Photos\n")
        return snapshot

    return put


def test_a_data_set_of_the_hub_is_read_where_it_was_downloaded(load, rows, parquet, hub, tmp_path, monkeypatch):
    hub({f"data/{split}-00000-of-00001.parquet": rows[split] for split in rows})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    for ours, expected in zip(load("me/photos"), load(parquet(rows)), strict=True):
        assert ours.fingerprint == expected.fingerprint and ours.ids() == expected.ids()
    assert not (tmp_path / "datasets").exists(), "nothing is written a second time"


CARDS = {
    "list": "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: a/*}\n"
    "  - {split: val, path: b.parquet}",
    "lists": "configs:\n- config_name: x\n  data_files:\n  - {split: train, path: ['a/?.parquet']}\n"
    "  - {split: val, path: ['**/b.parquet', b*]}",
    "default": "configs:\n- {config_name: y, data_files: b.parquet}\n"
    "- {config_name: x, default: true, data_files: [{split: train, path: a/**}, {split: val, path: '[b].parquet'}]}",
}


@pytest.mark.parametrize("card", CARDS)
def test_the_card_says_which_file_belongs_to_which_split(rows, hub, card, tmp_path):
    snapshot = hub({"a/0.parquet": rows["train"], "b.parquet": rows["val"]}, CARDS[card])
    splits = read_splits("me/photos")
    assert {name: ids(table) for name, table in splits.items()} == {
        name: sorted(row["image_id"] for row in rows[name]) for name in ("train", "val")
    }
    theirs = datasets.load_dataset_builder(str(snapshot), "x" if card == "default" else None, cache_dir=tmp_path)
    found = {str(split): {Path(file).name for file in files} for split, files in theirs.config.data_files.items()}
    assert found == {"train": {"0.parquet"}, "val": {"b.parquet"}}, "as in the library datasets"


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("configs:\n- {config_name: x, data_files: a/*}\n- {config_name: y, data_files: b*}", "no default, only x, y"),
        ("configs:\n- {config_name: x, data_files: /etc/*}", "names no Parquet files"),
        ("configs:\n- {config_name: x, data_files: '../../blobs/*'}", "names no Parquet files"),
        ("configs:\n- {config_name: x, data_files: 'https://example.com/a.parquet'}", "names no Parquet files"),
        ("configs: 3", "README.md cannot be used"),
        ("configs: [", "README.md cannot be used"),
        (
            "configs:\n- {config_name: x, data_files: [{split: train, path: a/*}, {split: val, path: a/*}]}",
            "part of train and of val",
        ),
        ("dataset_info:\n  splits:\n  - {name: train, num_examples: 66}", "train has 89 of the 66 rows"),
    ],
)
def test_a_card_that_does_not_fit(rows, hub, card, words):
    hub({"a/0.parquet": rows["train"], "b.parquet": rows["val"]}, card)
    with pytest.raises(InputError, match=f"(?s){words}"):
        read_splits("me/photos")


def test_a_configuration_and_a_revision_of_the_hub(rows, hub, monkeypatch):
    cards = "configs:\n- {config_name: x, data_files: a/*}\n- {config_name: y, data_files: b*}"
    hub({"a/0.parquet": rows["train"], "b.parquet": rows["val"]}, cards)
    with pytest.raises(InputError, match="no default, only x, y. Choose one with --data owner/name:CONFIG"):
        read_splits("me/photos")
    for name, split in (("x", "train"), ("y", "val")):
        assert read_splits(f"me/photos:{name}")["train"]["image_id"] == [row["image_id"] for row in rows[split]]
    with pytest.raises(InputError, match="no configuration z, only x, y"):
        read_splits("me/photos:z")
    asked, download = [], huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **m: asked.append(m.pop("revision")) or download(*a, **m)
    )
    read_splits("me/photos:x@refs/convert/parquet")
    assert asked == ["refs/convert/parquet"]


def test_a_configuration_that_is_a_folder(rows, hub):
    """As in the branch refs/convert/parquet of the Hub."""
    hub({f"{name}/{split}/0000.parquet": rows[split] for name in ("one", "two") for split in rows})
    splits = read_splits("me/photos:two")
    assert {name: len(table) for name, table in splits.items()} == {"train": 65, "validation": 24}


def test_an_interrupted_download(rows, hub):
    hub({"train-00000-of-00002.parquet": rows["train"], "val.parquet": rows["val"]})
    with pytest.raises(InputError, match="has only 1 of the 2 files train-"):
        read_splits("me/photos")


def test_a_data_set_of_the_hub_without_parquet_files(hub):
    hub({}, "license: mit")
    with pytest.raises(InputError, match="--data me/photos has no Parquet files"):
        read_splits("me/photos")


def test_a_snapshot_does_not_link_out_of_the_cache(rows, hub, tmp_path):
    pq.write_table(pa.Table.from_pylist(rows["train"]), tmp_path / "private.parquet")
    snapshot = hub({"train.parquet": rows["train"]})
    (snapshot / "val.parquet").symlink_to(tmp_path / "private.parquet")
    with pytest.raises(InputError, match="val.parquet cannot be read: a link to a file outside"):
        read_splits("me/photos")
