"""The data path, from each kind of source to the arrays."""

import io
import json
import socket
import threading
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

import common.pixels
from common.audit import audit, describe
from common.config import DataConfig, InputError
from common.data import ClassificationDataset, load_splits
from common.network import reachable
from common.sources import clean_categories, clean_category


@pytest.fixture
def load(cache):
    """`load_splits` on small images in the cache of the test run."""

    def load(data, **options):
        return load_splits(DataConfig(**dict(data=data, cache=cache, image_size=32, crop=True) | options))

    return load


def test_the_sample(load):
    train, val = load("sample")
    assert (len(train), len(val), train.dropped) == (491, 130, 17)
    assert train.classes == val.classes == sorted(train.classes) and len(train.classes) == 12
    assert "vase" not in train.classes and "coffee_table" in train.classes
    image, label = train[3]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and isinstance(label, int)
    images, crop_sizes, labels = train.batch(np.array([3, 5]), torch.device("cpu"))
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8 and labels[0] == label
    assert crop_sizes[0].tolist() == [float(v) for v in train.rows[3]["bbox"][2:]]
    shown = describe(train, val, audit(train, val))
    assert "train  508 rows -> 491: 17" in shown and "armchair         45   12" in shown
    batch = next(iter(torch.utils.data.DataLoader(val, batch_size=4)))
    assert batch[0].shape == (4, 3, 32, 32) and batch[1].tolist() == val.labels[:4].tolist()


def test_only_the_columns_that_are_used_are_kept(load):
    names = {"image", "category", "bbox", "image_id", "product_id", "scene_id"}
    assert set(load("sample")[0].rows.column_names) == names


@pytest.mark.parametrize("crop", [True, False])
def test_every_source_gives_the_same_rows(load, rows, parquet, image_folder, crop):
    from_parquet, from_folder = (load(data, crop=crop) for data in (parquet(rows), image_folder))
    for a, b in zip(from_parquet, from_folder, strict=True):
        assert a.classes == b.classes
        order_a, order_b = (np.argsort(split.ids()["image_id"]) for split in (a, b))  # a folder is sorted by class
        np.testing.assert_array_equal(a.pixels[a.index[order_a]], b.pixels[b.index[order_b]])
        np.testing.assert_array_equal(a.labels[order_a], b.labels[order_b])
        assert sorted(a.ids()["product_id"]) == sorted(b.ids()["product_id"])


def test_crop_and_full_image_differ_and_pad_is_padded(load):
    crop, full, pad = load("sample")[1], load("sample", crop=False)[1], load("sample", fit="pad")[1]
    assert not np.array_equal(crop.pixels, full.pixels)
    wide = int((pad.crop_sizes[:, 0] / pad.crop_sizes[:, 1]).argmax())
    assert (pad.pixels[wide][:, 0, :].T == (124, 116, 104)).all()


def test_a_second_load_decodes_nothing_and_other_settings_do(load, tmp_path, monkeypatch):
    first = load("sample", cache=str(tmp_path))
    monkeypatch.setattr(common.pixels, "crop_image", None)  # decoding a row fails from here on
    monkeypatch.setattr(common.pixels, "encoded_bytes", None)  # and reading its image too
    again = load("sample", cache=str(tmp_path))
    np.testing.assert_array_equal(first[1].pixels, again[1].pixels)
    assert first[0].fingerprint == again[0].fingerprint
    monkeypatch.undo()
    monkeypatch.setattr(common.pixels, "crop_image", None)
    with pytest.raises(InputError, match="rows cannot be used"):
        load("sample", cache=str(tmp_path), margin=0.1)


def test_the_key_is_the_content_not_the_path(load, rows, parquet, tmp_path, monkeypatch):
    first = load(parquet(rows, "one"), cache=str(tmp_path / "cache"))
    monkeypatch.setattr(common.pixels, "crop_image", None)
    moved = load(parquet(rows, "two"), cache=str(tmp_path / "cache"))
    np.testing.assert_array_equal(first[1].pixels, moved[1].pixels)
    changed = dict(rows, val=[dict(rows["val"][0], bbox=[1, 1, 20, 20]), *rows["val"][1:]])
    with pytest.raises(InputError, match="rows cannot be used"):
        load(parquet(changed, "three"), cache=str(tmp_path / "cache"))


def test_a_second_start_reads_no_image_and_notices_a_changed_file(load, image_folder, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    first = load(image_folder, cache=cache)
    monkeypatch.setattr(common.pixels, "encoded_bytes", None)  # reading an image fails from here on
    assert load(image_folder, cache=cache)[0].fingerprint == first[0].fingerprint
    monkeypatch.undo()
    one, other = sorted(Path(image_folder, "val").glob("*/*.jpg"))[:2]
    one.write_bytes(other.read_bytes())
    second = load(image_folder, cache=cache)
    assert second[1].fingerprint != first[1].fingerprint
    metadata = Path(image_folder, "val", "metadata.jsonl")
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    metadata.write_text("\n".join(json.dumps(line | {"bbox": [1, 1, 20, 20]}) for line in lines))
    assert load(image_folder, cache=cache)[1].fingerprint != second[1].fingerprint


def test_variants_prepared_together_are_those_prepared_alone(rows, parquet, tmp_path, monkeypatch):
    """JPEGs are decoded at each variant's own scale, PNGs once."""

    def as_png(row):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(row["image"]["bytes"])).save(buffer, "PNG")
        return row | {"image": {"bytes": buffer.getvalue(), "path": None}}

    mixed = {split: [as_png(row) if i % 2 else row for i, row in enumerate(rows[split])] for split in rows}
    broken = bytearray(mixed["train"][1]["image"]["bytes"])
    broken[len(broken) // 2] ^= 255
    mixed["train"][1]["image"]["bytes"] = bytes(broken)
    data, opened, open_image = parquet(mixed), [], Image.open
    variants = [dict(), dict(crop=True), dict(crop=True, fit="pad", margin=0.1)]
    same = dict(data=data, image_size=32, bad_rows="skip")
    configs = {
        name: [DataConfig(**same, **more, cache=str(tmp_path / name)) for more in variants]
        for name in ("alone", "together")
    }
    alone = [load_splits(config) for config in configs["alone"]]
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(open_image(*args)) or opened[-1])
    load_splits(configs["together"][0], configs["together"][1:])
    pngs = sum(image["bytes"].startswith(b"\x89PNG") for split in alone[0] for image in split.rows["image"])
    assert len(opened) == pngs + 3 * (sum(map(len, alone[0])) - pngs) + 3, "the broken one is opened each time"
    assert all(len(split[0].problems) == 1 for split in alone)
    monkeypatch.setattr(common.pixels, "crop_image", None)  # all is there
    for config, expected in zip(configs["together"], alone, strict=True):
        for split, other in zip(load_splits(config), expected, strict=True):
            assert split.problems == other.problems
            np.testing.assert_array_equal(split.pixels, other.pixels)
            np.testing.assert_array_equal(split.crop_sizes, other.crop_sizes)


def test_a_batch_from_the_map_and_from_the_device_are_the_same(load, rows, parquet):
    broken = [dict(rows["train"][0], image={"bytes": b"no image", "path": None}), *rows["train"][1:]]
    train = load(parquet(dict(rows, train=broken)), bad_rows="skip")[0]
    rows = np.array([0, 3, 7, 40])
    mapped = train.batch(rows, torch.device("cpu"))
    assert isinstance(train.pixels, np.memmap), "processes share it"
    train.keep_on(torch.device("cpu"))
    train.pixels = None
    for ours, theirs in zip(train.batch(rows, torch.device("cpu")), mapped, strict=True):
        assert torch.equal(ours, theirs)


def test_two_loads_at_once_both_succeed(load, tmp_path):
    results = []

    def work():
        results.append(load("sample", cache=str(tmp_path), limit=40))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    np.testing.assert_array_equal(results[0][0].pixels, results[1][0].pixels)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (float("nan"), None),
        ("Coffee Table", "coffee_table"),
        ("coffee_table ", "coffee_table"),
        ("SOFA", "sofa"),
        ("  ", None),
        (None, None),
    ],
)
def test_clean_category(raw, clean):
    assert clean_category(raw) == clean


def test_limit_takes_rows_evenly_and_keeps_the_label_map(load):
    train, val = load("sample", limit=20)
    assert (len(train), len(val)) == (20, 20) and len(train.classes) == 12
    everything = load("sample")[0].ids()["image_id"]
    places = [everything.index(i) for i in train.ids()["image_id"]]
    assert places[0] == 0 and places[-1] == 490 and set(np.diff(places)) <= {25, 26}


def test_val_is_cut_off_by_class_where_there_is_none(load, rows, parquet):
    data = parquet({"train": rows["train"]})
    with pytest.raises(InputError, match="no val split.*--split-by product_id"):
        load(data)
    train, val = load(data, split_by="image_id")
    assert len(val) == 13 and len(train) == 52, "13 classes of 5 rows"
    assert val.labels.bincount().tolist() == [1] * 13
    assert load(data, split_by="image_id")[1].ids() == val.ids(), "the same cut again"


BAD = {
    "outside": (dict(bbox=[100, 100, 4000, 10]), "reaches outside"),
    "negative": (dict(bbox=[-5, 0, 50, 50]), "reaches outside"),
    "no area": (dict(bbox=[0, 0, 0, 50]), "no area"),
    "length": (dict(bbox=[1, 2, 3]), "3 numbers"),
    "no box": (dict(bbox=None), "no box"),
    "no image": (dict(image=None), "unreadable image"),
    "not an image": (dict(image={"bytes": b"hello", "path": None}), "unreadable image"),
    "no category": (dict(category=None), "no category"),
    "blank category": (dict(category="  "), "no category"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_or_is_left_out(load, rows, parquet, cache, name):
    change, words = BAD[name]
    data = parquet(dict(rows, train=[*rows["train"][:7], dict(rows["train"][7], **change), *rows["train"][8:]]))
    with pytest.raises(InputError, match=rf"(?s)1 of \d+ train rows.*--bad-rows skip.*row 7 .*{words}"):
        load(data)
    train, val = load(data, bad_rows="skip")
    good_train, good_val = load(parquet(rows, "good"))
    assert len(train) == len(good_train) - 1 and len(val) == len(good_val)
    (problem,) = train.problems
    assert (problem["split"], problem["row"], problem["id"]) == ("train", 7, rows["train"][7]["image_id"])
    assert words in problem["reason"] and words in Path(cache, "bad_rows.csv").read_text()
    gone = good_train.ids()["image_id"].index(rows["train"][7]["image_id"])
    kept = np.delete(np.arange(len(good_train)), gone)
    images = train.batch(np.arange(len(train)), torch.device("cpu"))[0]
    np.testing.assert_array_equal(images, good_train.batch(kept, torch.device("cpu"))[0])
    assert torch.equal(train[20][0], good_train[int(kept[20])][0])
    np.testing.assert_array_equal(train.labels, good_train.labels[kept])


def test_a_truncated_photo_is_a_bad_row(load, rows, parquet):
    half = rows["val"][2]["image"]["bytes"][:3000]
    val = [*rows["val"][:2], dict(rows["val"][2], image={"bytes": half, "path": None}), *rows["val"][3:]]
    with pytest.raises(InputError, match="row 2 .*unreadable image"):
        load(parquet(dict(rows, val=val)))


def test_a_folder_that_is_not_there(load, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="neither Parquet files nor images"):
        load(str(tmp_path))


def test_a_missing_column_is_named_beside_those_that_are_there(load, rows, parquet):
    data = parquet({k: [{n: v for n, v in row.items() if n != "category"} for row in r] for k, r in rows.items()})
    with pytest.raises(InputError, match="lacks category; its columns are image_id, image, mask, bbox"):
        load(data)
    without_box = parquet({k: [{n: v for n, v in r.items() if n != "bbox"} for r in rs] for k, rs in rows.items()}, "b")
    with pytest.raises(InputError, match="lacks bbox.*without --crop"):
        load(without_box)
    assert len(load(without_box, crop=False)[0]) == 60


def test_rows_without_ids_are_known_by_their_number(load, rows, parquet):
    bare = {k: [{n: row[n] for n in ("image", "category", "bbox")} for row in r] for k, r in rows.items()}
    train, val = load(parquet(bare))
    dropped = [i for i, row in enumerate(rows["train"]) if row["category"].lower() == "vase"]
    assert train.ids()["image_id"] == [str(i) for i in range(len(rows["train"])) if i not in dropped]
    assert val.ids()["product_id"] == [""] * len(val)


def test_full_and_crop_never_share_an_array(load, rows, parquet, tmp_path):
    """Rows without any box look alike to both."""
    data = parquet(dict(rows, val=[dict(row, bbox=None) for row in rows["val"]]))
    load(data, crop=False, cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match="no box"):
        load(data, cache=str(tmp_path / "cache"))
    load(data, crop=False, cache=str(tmp_path / "cache"))


def test_val_may_lack_a_column_that_is_not_needed(load, rows, parquet):
    bare = {"train": rows["train"], "val": [{n: r[n] for n in ("image", "category", "bbox")} for r in rows["val"]]}
    assert load(parquet(bare))[1].ids()["product_id"] == [""] * len(rows["val"])
    nobox = {"train": rows["train"], "val": [{n: r[n] for n in ("image", "category")} for r in rows["val"]]}
    with pytest.raises(InputError, match="(?s)24 of 24 val rows cannot be used.*no box"):
        load(parquet(nobox, "nobox"))


def test_a_column_that_holds_no_images(load, rows, parquet):
    with pytest.raises(InputError, match="column image of train holds no images"):
        load(parquet({split: [dict(row, image=7) for row in split_rows] for split, split_rows in rows.items()}))


def test_numbers_as_categories():
    """A ClassLabel column as the Hub has them; -1 is its word for no label."""
    features = datasets.Features({"category": datasets.ClassLabel(names=["Big Sofa", "Lamp"])})
    table = datasets.Dataset.from_dict({"category": [1, 0, -1, None]}, features=features)
    assert clean_categories(table) == ["lamp", "big_sofa", None, None]


METADATA = {
    "broken": ('{"file_name": ', "cannot be read"),
    "no file_name": ('{"name": "a.jpg"}', "lacks the column file_name; it has name"),
    "another folder": ('{"file_name": "elsewhere/a.jpg"}', "names none of the images"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_does_not_fit(load, image_folder, name):
    text, words = METADATA[name]
    Path(image_folder, "train", "metadata.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        load(image_folder)


def test_metadata_twice_for_a_file_and_ids_that_look_like_numbers(load, image_folder):
    path = Path(image_folder, "val", "metadata.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for i, line in enumerate(lines):
        line["product_id"] = f"{i:06}"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert sorted(load(image_folder)[1].ids()["product_id"]) == [f"{i:06}" for i in range(len(lines))]
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    with pytest.raises(InputError, match="twice"):
        load(image_folder)


def test_a_class_without_train_rows(load, rows, parquet):
    with pytest.raises(InputError, match="val has rows of ottoman, a class without train rows"):
        load(parquet(dict(rows, val=[dict(rows["val"][0], category="Ottoman"), *rows["val"][1:]])))


def test_a_parquet_file_that_is_none(load, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"hello")
    with pytest.raises(InputError, match="cannot be read"):
        load(str(tmp_path))


@pytest.fixture
def silent_server():
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_the_hub_out_of_reach(load, monkeypatch, silent_server):
    hub_id = "Nfiniteai/product-masks-sample-that-no-cache-has"
    assert not reachable(silent_server, seconds=0.5)
    for endpoint in ("http://127.0.0.1:9", silent_server):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        with pytest.raises(InputError, match="Hub cannot be reached.*--data sample"):
            load(hub_id)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "the setting is put back"


def test_item_and_batch_agree(load):
    train: ClassificationDataset = load("sample")[0]
    loader = torch.utils.data.DataLoader(train, batch_size=2, sampler=[7, 1], num_workers=1)
    images, labels = next(iter(loader))
    assert torch.equal(images[0], train[7][0]) and labels.tolist() == train.labels[[7, 1]].tolist()
    assert Path(train.pixels.filename).suffix == ".npy", "mapped from the file, not in memory"
