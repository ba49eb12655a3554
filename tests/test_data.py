"""The data path, from each kind of source to the arrays."""

import csv
import io
import json
import os
import re
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import common.data.dataset
import common.data.pixels
from common.config import ID_COLUMNS, IMAGENET, DataConfig, InputError, identity
from common.data.audit import audit, describe, findings
from common.data.dataset import ClassificationDataset, load_splits
from common.data.hub import reachable
from common.data.pixels import map_ahead, normalize
from common.data.sources import clean_categories, clean_category, read_splits
from common.data.table import Table
from tests.helpers import SAMPLE, encode, exit_code, fork_script, launch, photo, stored

CPU = torch.device("cpu")


def without(rows, *columns):
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


# Rows and batches ----------------------------------------------------------------------------------------------------


def test_the_splits_of_the_sample(load):
    train, val = load()
    assert (len(train), len(val), train.dropped) == (491, 130, 17)
    assert train.classes == val.classes == sorted(train.classes) and len(train.classes) == 12
    assert "vase" not in train.classes and "coffee_table" in train.classes


def test_an_item_is_an_image_and_a_label(load):
    train, val = load()
    image, label = train[3]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and isinstance(label, int)
    batch = next(iter(torch.utils.data.DataLoader(val, batch_size=4)))
    assert batch[0].shape == (4, 3, 32, 32) and batch[1].tolist() == val.labels[:4].tolist()


def test_a_batch_is_pixels_crop_sizes_and_labels(load):
    train, _ = load()
    images, crop_sizes, labels = train.batch(np.array([3, 5]), CPU)
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(normalize(images, IMAGENET)[0], train[3][0]) and labels[0] == train[3][1]
    assert crop_sizes[0].tolist() == [float(v) for v in train.rows["bbox"][3][2:]]


def test_the_sample_is_described_at_the_start_of_a_run(load):
    train, val = load()
    shown = describe(train, val, audit(train, val))
    assert "508 rows, 491 after dropping 17" in shown and re.search(r"armchair +45 +12", shown)
    widths, heights = train.crop_sizes.numpy().T
    smaller = (train.crop_sizes.amin(1) < 32).float().mean()
    for sides, word in ((widths, "wide"), (heights, "high")):
        assert f"{sides.min():.0f} to {sides.max():.0f} pixels {word} (median {np.median(sides):.0f})" in shown
    assert f"{100 * smaller:.0f} % are smaller than the model input" in shown


def test_sizes_of_crops_are_described_for_each_split(load):
    train, val = load(image_size=224)
    shown = describe(train, val, audit(train, val))
    assert len(re.findall("crops .* pixels wide", shown)) == 2 and re.search("[1-9][0-9] % are smaller", shown)
    train, val = load(crop=False)
    assert "pixels wide" not in describe(train, val, audit(train, val))


def test_boxes_of_smaller_images_are_pointed_out(load, rows, parquet):
    """Boxes of photos of a quarter of the size are valid boxes in one corner."""
    quarter = {split: [dict(r, bbox=[v // 4 for v in r["bbox"]]) for r in rows[split]] for split in rows}
    report = audit(*load(parquet(quarter)))
    for name, n in (("train", 60), ("val", 24)):
        assert any(f"{name}: {n} of {n} boxes lie in the upper left" in sentence for sentence in findings(report))
    assert report["boxes"]["val"]["note"] and json.dumps(report)


def test_workers_of_a_loader_read_the_mapped_file(load):
    train: ClassificationDataset = load()[0]
    loader = torch.utils.data.DataLoader(train, batch_size=2, sampler=[7, 1], num_workers=1)
    images, labels = next(iter(loader))
    assert torch.equal(images[0], train[7][0]) and labels.tolist() == train.labels[[7, 1]].tolist()
    assert Path(train.pixels.filename).suffix == ".npy", "mapped from the file, not in memory"


def test_only_the_columns_that_are_used_are_kept(load):
    names = {"image", "category", "bbox", "image_id", "product_id", "scene_id"}
    assert set(load()[0].rows.types) == names


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
    crop, full, pad = load()[1], load(crop=False)[1], load(fit="pad")[1]
    assert not np.array_equal(crop.pixels, full.pixels)
    wide = int((pad.crop_sizes[:, 0] / pad.crop_sizes[:, 1]).argmax())
    assert (pad.pixels[wide][:, 0, :].T == (124, 116, 104)).all()


def test_a_second_load_decodes_nothing_and_other_settings_do(load, tmp_path, monkeypatch):
    first = load(cache=str(tmp_path))
    monkeypatch.setattr(common.data.pixels, "crop_image", None)  # decoding a row fails from here on
    monkeypatch.setattr(Table, "images", None)  # and reading its image too
    again = load(cache=str(tmp_path))
    np.testing.assert_array_equal(first[1].pixels, again[1].pixels)
    assert first[0].fingerprint == again[0].fingerprint
    monkeypatch.undo()
    monkeypatch.setattr(common.data.pixels, "crop_image", None)
    with pytest.raises(InputError, match="rows cannot be used"):
        load(cache=str(tmp_path), margin=0.1)


def test_the_key_is_the_content_not_the_path(load, rows, parquet, tmp_path, monkeypatch):
    first = load(parquet(rows, "one"), cache=str(tmp_path / "cache"))
    monkeypatch.setattr(common.data.pixels, "crop_image", None)
    moved = load(parquet(rows, "two"), cache=str(tmp_path / "cache"))
    np.testing.assert_array_equal(first[1].pixels, moved[1].pixels)
    changed = dict(rows, val=[dict(rows["val"][0], bbox=[1, 1, 20, 20]), *rows["val"][1:]])
    with pytest.raises(InputError, match="rows cannot be used"):
        load(parquet(changed, "three"), cache=str(tmp_path / "cache"))


def test_a_second_start_reads_no_image_file(load, image_folder, monkeypatch):
    first = load(image_folder)
    monkeypatch.setattr(Table, "images", None)  # reading an image fails from here on
    assert load(image_folder)[0].fingerprint == first[0].fingerprint


def test_a_changed_image_file_or_box_is_noticed(load, image_folder):
    first = load(image_folder)
    one, other = sorted(Path(image_folder, "val").glob("*/*.jpg"))[:2]
    one.write_bytes(other.read_bytes())
    second = load(image_folder)
    assert second[1].fingerprint != first[1].fingerprint
    metadata, lines = read_metadata(image_folder)
    metadata.write_text("\n".join(json.dumps(line | {"bbox": [1, 1, 20, 20]}) for line in lines))
    assert load(image_folder)[1].fingerprint != second[1].fingerprint


# The cache -----------------------------------------------------------------------------------------------------------


def test_images_that_change_places_are_noticed(load, image_folder):
    """Two images of one size and modification time, swapped by mv: only inodes and change times tell."""
    first = load(image_folder)[1]
    one, other = sorted(Path(image_folder, "val").glob("*/*.jpg"))[:2]
    other.write_bytes(one.read_bytes()[:-1] + b"\0")
    for path in (one, other):
        os.utime(path, (1, 1))
    before = load(image_folder)[1]
    other.rename(other.with_suffix(".tmp"))
    one.rename(other)
    other.with_suffix(".tmp").rename(one)
    assert len({first.fingerprint, before.fingerprint, load(image_folder)[1].fingerprint}) == 3


@pytest.mark.parametrize("in_place", [True, False])
def test_a_parquet_file_replaced_by_one_of_its_size_and_time_is_noticed(load, rows, parquet, in_place):
    folder = parquet(rows)
    file = Path(folder, "val-00000-of-00001.parquet")

    def write(split_rows):
        pq.write_table(pa.Table.from_pylist(split_rows), file, compression="none", use_dictionary=False)

    write(rows["val"])
    first, status = load(folder)[1], file.stat()
    if not in_place:
        file.unlink()
    write([dict(row, bbox=[row["bbox"][0] ^ 1, *row["bbox"][1:]]) for row in rows["val"]])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (status.st_mtime_ns, status.st_size)
    assert load(folder)[1].fingerprint != first.fingerprint


@pytest.mark.parametrize("kind", ["parquet", "images"])
@pytest.mark.parametrize("moment", ["before", "while decoding", "while hashing", "between", "while decoding again"])
def test_data_that_changes_while_it_is_read(load, rows, parquet, image_folder, tmp_path, monkeypatch, kind, moment):
    """Its ids and boxes are read first, then its images: twice if there are pixels that might be reused."""
    folder, load_pixels = parquet(rows) if kind == "parquet" else image_folder, common.data.dataset.load_pixels
    batches, name = common.data.pixels._image_batches, "train-00000-of-00001.parquet"
    options, passes = dict(data=folder, cache=str(tmp_path / "cache")), []
    if moment in ("while hashing", "between", "while decoding again"):
        first = load(**options)[0]
        shutil.rmtree(tmp_path / "cache" / "content")
        Path(first.pixels.filename).unlink()

    def change():
        if kind == "parquet":
            new = parquet(dict(rows, train=rows["train"][::-1]), f"new-{len(list(tmp_path.iterdir()))}")
            os.replace(f"{new}/{name}", f"{folder}/{name}")
        else:
            one, *_, other = sorted(Path(folder, "train").glob("*/*.jpg"))
            one.write_bytes(other.read_bytes())

    def changed(*args):
        if moment == "before":
            change()
        return load_pixels(*args)

    def changed_within(*args):
        passes.append(args)
        if moment == "between" and len(passes) == 2:
            change()
        for i, batch in enumerate(batches(*args)):
            if i == 3 and moment.startswith("while") and len(passes) == 1 + moment.endswith("again"):
                change()
            yield batch

    monkeypatch.setattr(common.data.dataset, "load_pixels", changed)
    monkeypatch.setattr(common.data.pixels, "_image_batches", changed_within)
    with pytest.raises(InputError, match="the data was changed while it was read"):
        load(**options)
    assert len(passes) == 1 + (moment in ("between", "while decoding again"))
    if len(passes) == 1 and moment != "while hashing":
        assert not list((tmp_path / "cache").glob("*/pixels.npy")) and not (tmp_path / "cache" / "content").exists()
    assert not list((tmp_path / "cache").glob(".*"))


def test_pixels_of_another_content_than_the_stored_one(load, tmp_path):
    """As of a file system that does not tell that a file was changed."""
    load(cache=str(tmp_path), limit=12)
    for memo in (tmp_path / "content").iterdir():
        common.data.pixels._write_content(memo, "0" * 64)
    with pytest.raises(InputError, match="the data was changed while it was read"):
        load(cache=str(tmp_path), limit=12)


def test_data_that_was_copied_is_read_but_not_decoded_again(load, image_folder, tmp_path, monkeypatch):
    first = load(image_folder, cache=str(tmp_path / "cache"))
    shutil.copytree(image_folder, tmp_path / "copy")
    monkeypatch.setattr(common.data.pixels, "_fill_folders", lambda *_: pytest.fail("decoded again"))
    copy = load(str(tmp_path / "copy"), cache=str(tmp_path / "cache"))
    assert [split.fingerprint for split in copy] == [split.fingerprint for split in first]
    assert [split.pixels.filename for split in copy] == [split.pixels.filename for split in first]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped": lambda path: flip(path, -1),
    "in the header": lambda path: flip(path, 1),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "other numbers": lambda path: np.save(path, np.zeros(3)) if path.suffix == ".npy" else path.write_text("[]"),
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "pickled": lambda path: path.write_bytes(pickled()),
}


def pickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Unpickled()]), allow_pickle=True)
    return buffer.getvalue()


class Unpickled:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("file", ["pixels.npy", "crop_sizes.npy", "hashes.npy", "problems.json", "checksums.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(load, tmp_path, capsys, monkeypatch, file, damage):
    monkeypatch.chdir(tmp_path)
    first = load(cache="cache", limit=12)[1]
    pixels = first.pixels.copy()
    folder = Path(first.pixels.filename).parent
    assert capsys.readouterr().out == ""
    DAMAGE[damage](folder / file)
    second = load(cache="cache", limit=12)[1]
    np.testing.assert_array_equal(second.pixels, pixels)
    np.testing.assert_array_equal(second.hashes, first.hashes)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: ") and folder.name in line and "damaged" in line
    load(cache="cache", limit=12)
    assert capsys.readouterr().out == "" and not Path("unpickled").exists()


def test_a_folder_of_the_cache_under_another_name(load, tmp_path):
    """The checksums are right, the shape is not."""
    small, large = (load(cache=str(tmp_path), limit=n)[1] for n in (12, 20))
    expected, folder = large.pixels.copy(), Path(large.pixels.filename).parent
    shutil.rmtree(folder)
    shutil.copytree(Path(small.pixels.filename).parent, folder)
    np.testing.assert_array_equal(load(cache=str(tmp_path), limit=20)[1].pixels, expected)


def test_folders_of_the_cache_that_change_names(load, tmp_path):
    """Their shapes are the same."""
    crops, photos = (load(cache=str(tmp_path), limit=12, crop=crop)[1].pixels for crop in (True, False))
    expected, (one, other) = crops.copy(), (Path(pixels.filename).parent for pixels in (crops, photos))
    one.rename(tmp_path / "moved")
    other.rename(one)
    (tmp_path / "moved").rename(other)
    np.testing.assert_array_equal(load(cache=str(tmp_path), limit=12)[1].pixels, expected)


@pytest.mark.parametrize("place", [0, 40, 63, 64, -1])
def test_a_damaged_hash_of_the_content_is_made_again(load, tmp_path, capsys, place):
    first = load(cache=str(tmp_path), limit=12)
    memos = sorted((tmp_path / "content").iterdir())
    assert len(memos) == 2
    for path in memos:
        flip(path, place)
    second = load(cache=str(tmp_path), limit=12)
    assert [split.fingerprint for split in first] == [split.fingerprint for split in second]
    assert capsys.readouterr().out.count("is damaged") == 2
    memos[0].write_bytes(memos[1].read_bytes())
    third = load(cache=str(tmp_path), limit=12)
    assert [split.fingerprint for split in first] == [split.fingerprint for split in third], "of other rows"


def test_a_cache_that_cannot_be_written(load, rows, with_bad_row, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache .*file/cache cannot be written \(Not a directory\): .*--cache"):
        load(cache=str(tmp_path / "file" / "cache"))


@pytest.mark.slow
def test_a_cache_that_may_only_be_read(cache, rows, parquet, tmp_path):
    """Pixels that are there are used, others are one sentence, and so are bad rows."""
    broken = [*rows["val"][:5], dict(rows["val"][5], image=stored(b"no image")), *rows["val"][6:]]
    data, bad = parquet(rows), parquet(dict(rows, val=broken), "bad")
    line = f"--cache {tmp_path}/cache --image-size 16"
    audit_script = [sys.executable, "audit.py", *line.split()]
    for folder in (data, bad):
        assert launch([*audit_script, "--data", folder, "--out", f"{tmp_path}/report.json"]).returncode == 0
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        path.chmod(0o555)
    as_others = ["setpriv", "--bounding-set", "-dac_override"] * (os.geteuid() == 0)  # root may write anyway
    for more, words in (
        (f"--data {data}", "written:"),
        (f"--data {data} --image-size 24", "error: the cache"),
        (f"--data {bad} --bad-rows error", "error: 1 of 24 val rows cannot be used. Fix"),
    ):
        done = launch([*as_others, *audit_script, *more.split(), "--out", f"{tmp_path}/report.json"])
        assert words in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("home", ["", "/proc/nowhere"])
def test_no_home(cache, tmp_path, home):
    command = [sys.executable, "audit.py", "--data", "sample", "--cache", cache, "--out", f"{tmp_path}/report.json"]
    done = launch(["env", "-u", "HOME", *[f"HOME={home}"] * bool(home), *command])
    assert done.returncode == 0 and "written:" in done.stdout
    done = launch(["env", "-u", "HOME", *[f"HOME={home}"] * bool(home), *command, "--data", "a/b"], HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: the Hub cannot be reached")
    assert "Traceback" not in done.stderr


def as_png(row):
    image = Image.open(io.BytesIO(row["image"]["bytes"])).resize((160, 160))
    return row | {"image": stored(encode(image, "PNG")), "bbox": [10, 20, 100, 120]}


VARIANTS = {"full": {}, "crop": dict(crop=True), "padded": dict(crop=True, fit="pad", margin=0.1)}


@pytest.fixture
def mixed(rows, parquet):
    """Rows of three classes; every other image is a PNG, and one PNG is broken."""
    names = ("bed", "chair", "desk")
    few = {split: [row for row in rows[split] if row["category"].lower() in names] for split in rows}
    mixed = {split: [as_png(row) if i % 2 else row for i, row in enumerate(few[split])] for split in few}
    broken = bytearray(mixed["train"][1]["image"]["bytes"])
    broken[len(broken) // 2] ^= 255
    mixed["train"][1]["image"] = stored(bytes(broken))
    return parquet(mixed)


def variants(data, cache):
    return [DataConfig(data=data, image_size=32, bad_rows="skip", cache=str(cache), **v) for v in VARIANTS.values()]


def test_variants_prepared_together_are_those_prepared_alone(mixed, tmp_path, monkeypatch):
    alone = [load_splits(config) for config in variants(mixed, tmp_path / "alone")]
    assert all(len(train.problems) == 1 for train, _ in alone), "the broken one"
    together = variants(mixed, tmp_path / "together")
    load_splits(together[0], together[1:])
    monkeypatch.setattr(common.data.pixels, "crop_image", None)  # all is there
    for config, expected in zip(together, alone, strict=True):
        for split, other in zip(load_splits(config), expected, strict=True):
            assert split.problems == other.problems
            np.testing.assert_array_equal(split.pixels, other.pixels)
            np.testing.assert_array_equal(split.crop_sizes, other.crop_sizes)


def test_jpegs_are_opened_for_each_variant_and_pngs_once(mixed, tmp_path, monkeypatch):
    """JPEGs are decoded at a different scale for each variant."""
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **more: opened.append(open_image(*args, **more)) or opened[-1])
    first, *others = variants(mixed, tmp_path / "cache")
    splits = load_splits(first, others)
    pngs = sum(image.startswith(b"\x89PNG") for split in splits for image in split.rows.images())
    jpegs = sum(map(len, splits)) - pngs
    assert pngs > 5 and len(opened) == pngs + 3 * jpegs + 3, "the broken one is opened each time"


def test_a_batch_from_the_map_and_from_the_device_are_the_same(load, rows, parquet):
    broken = [dict(rows["train"][0], image=stored(b"no image")), *rows["train"][1:]]
    train = load(parquet(dict(rows, train=broken)), bad_rows="skip")[0]
    rows = np.array([0, 3, 7, 40])
    mapped = train.batch(rows, CPU)
    assert isinstance(train.pixels, np.memmap), "processes share it"
    train.copy_pixels_to(CPU)
    train.pixels = None
    for ours, theirs in zip(train.batch(rows, CPU), mapped, strict=True):
        assert torch.equal(ours, theirs)


def test_two_loads_at_once_both_succeed(load, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda limit: load(cache=str(tmp_path), limit=limit), (40, 40))
    np.testing.assert_array_equal(one[0].pixels, other[0].pixels)
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
    train, val = load(limit=20)
    assert (len(train), len(val)) == (20, 20) and len(train.classes) == 12
    everything = load()[0].ids()["image_id"]
    places = [everything.index(i) for i in train.ids()["image_id"]]
    assert places[0] == 0 and places[-1] == 490 and set(np.diff(places)) <= {25, 26}


def test_a_missing_val_split_is_created_by_class(load, rows, parquet):
    data = parquet({"train": rows["train"]})
    with pytest.raises(InputError, match="no val split.*--split-by product_id"):
        load(data)
    train, val = load(data, split_by="image_id")
    assert len(val) == 13 and len(train) == 52, "13 classes of 5 rows"
    assert val.labels.bincount().tolist() == [1] * 13
    assert load(data, split_by="image_id")[1].ids() == val.ids(), "the same cut again"


BAD = {
    "outside": (dict(bbox=[100, 100, 4000, 10]), "extends outside"),
    "negative": (dict(bbox=[-5, 0, 50, 50]), "extends outside"),
    "no area": (dict(bbox=[0, 0, 0, 50]), "no area"),
    "length": (dict(bbox=[1, 2, 3]), "3 numbers"),
    "no box": (dict(bbox=None), "no box"),
    "no image": (dict(image=None), "no image"),
    "a path": (dict(image={"bytes": None, "path": f"{SAMPLE}/README.md"}), "stores a path instead of an image"),
    "not an image": (dict(image=stored(b"hello")), "unreadable image"),
    "no category": (dict(category=None), "no category"),
    "blank category": (dict(category="  "), "no category"),
}


@pytest.fixture
def with_bad_row(rows, parquet):
    """A function that writes data in which row 7 of train is changed."""

    def with_bad_row(change):
        return parquet(dict(rows, train=[*rows["train"][:7], dict(rows["train"][7], **change), *rows["train"][8:]]))

    return with_bad_row


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_a_bad_row_is_an_error(load, with_bad_row, change, words):
    with pytest.raises(InputError, match=rf"(?s)1 of \d+ train rows.*--bad-rows skip.*row 7 .*{words}"):
        load(with_bad_row(change))


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_a_bad_row_can_be_left_out(load, rows, with_bad_row, parquet, change, words):
    """The other rows keep their pixels and labels."""
    train, val = load(with_bad_row(change), bad_rows="skip")
    good_train, good_val = load(parquet(rows, "good"))
    (problem,) = train.problems
    bad = rows["train"][7]["image_id"]
    assert (problem["split"], problem["row"], problem["id"]) == ("train", 7, bad) and words in problem["reason"]
    kept = np.delete(np.arange(len(good_train)), good_train.ids()["image_id"].index(bad))
    assert len(train) == len(kept) and len(val) == len(good_val)
    images, _, labels = train.batch(np.arange(len(train)), CPU)
    np.testing.assert_array_equal(images, good_train.batch(kept, CPU)[0])
    np.testing.assert_array_equal(labels, good_train.labels[kept])
    assert torch.equal(train[20][0], good_train[int(kept[20])][0])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the filter of the project
def test_the_fingerprint_says_which_rows_were_left_out(load, rows, parquet):
    """One row is too large a photo, another of its class has an invalid box."""
    large = dict(rows["val"][0], image=stored(encode(Image.new("L", (1200, 1000)))))
    data = parquet(dict(rows, val=[large, dict(rows["val"][0], bbox=[0, 0, 0, 5]), *rows["val"]]))
    whole, crops = (load(data, crop=crop, max_megapixels=1 + crop, bad_rows="skip")[1] for crop in (False, True))
    assert [split.problems[0]["row"] for split in (whole, crops)] == [0, 1]
    assert torch.equal(whole.labels, crops.labels) and whole.fingerprint != crops.fingerprint
    assert load()[1].fingerprint[:8] == "661396f4", "as ever: runs are compared by it"


def to_corners(x, y, w, h):
    return [x, y, x + w, y + h]


def changed_boxes(rows, change):
    """The rows with the boxes that `change(x, y, w, h)` returns."""
    return {split: [dict(row, bbox=change(*row["bbox"])) for row in rows[split]] for split in rows}


OTHER_BOXES = {
    "corners": (to_corners, r"of 60 boxes .*corners.*convert them to \[x1, y1, x2 - x1, y2 - y1\]"),
    "fractions": (lambda *box: [v / 448 for v in box], "60 of 60.*fractions.*multiply"),
    "another size": (lambda *box: [v * 3 for v in box], "of 60 boxes .*images of another size"),
}


@pytest.mark.parametrize("name", OTHER_BOXES)
def test_boxes_of_another_convention_are_refused(load, rows, parquet, name):
    """Also with `--bad-rows skip`, and when the images were decoded by an earlier run."""
    change, words = OTHER_BOXES[name]
    data = parquet(changed_boxes(rows, change))
    for options in ({}, dict(bad_rows="skip"), dict(bad_rows="skip", limit=30), dict(split_by="image_id")):
        expected = words if not options.get("limit") and not options.get("split_by") else "look like|another size"
        with pytest.raises(InputError, match=f"--data {data}, (train )?rows: .*({expected})"):
            load(data, **options)
    assert len(load(data, crop=False)[0]) == 60, "boxes are not used without --crop"


def test_boxes_of_another_convention_in_val_alone(load, rows, parquet):
    data = parquet(dict(rows, val=changed_boxes(rows, to_corners)["val"]))
    with pytest.raises(InputError, match="val rows: .*corners"):
        load(data, bad_rows="skip")


COLUMNS = {
    "text": (lambda *box: ",".join(map(str, box)), "is not a list of x, y, width, height"),
    "texts": (lambda *box: [str(v) for v in box], "contains a value that is not a number"),
    "names": (lambda x, y, w, h: dict(x=x, y=y, w=w, h=h), "is not a list of x, y, width, height"),
    "lists": (lambda *box: [list(box)], "is a list of lists"),
    "empty": (lambda *box: [], "has 0 numbers"),
    "nan": (lambda *box: [*box[:3], float("nan")], "contains a value that is not a number"),
    "huge": (lambda *box: [*box[:3], 2**62], "extends outside"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_something_else_than_boxes(load, rows, parquet, name):
    change, words = COLUMNS[name]
    with pytest.raises(InputError, match=f"(?s)60 of 65 train rows cannot be used.*{words}"):
        load(parquet(changed_boxes(rows, change)))


NO_BOXES = [{"x": 1, "y": 2}, [[1, 2, 30, 40]], "1,2,30,40", "[1, 2, 3, 1e999]", f"[1, 2, 3, 1{'0' * 400}]", ["a"] * 4]


@pytest.mark.parametrize("box", NO_BOXES, ids=range(len(NO_BOXES)))
def test_metadata_with_something_else_than_boxes(load, image_folder, box):
    path, lines = read_metadata(image_folder)
    path.write_text("\n".join(json.dumps(line | {"bbox": box}) for line in lines))
    with pytest.raises(InputError, match="(?s)24 of 24 val rows.*contains a value that is not a number"):
        load(image_folder)


# Large photos --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_large_photo(rows, with_bad_row):
    """Data in which row 7 of train is a photo of 1.2 megapixels."""
    large = Image.new("L", (1200, 1000))
    return with_bad_row(dict(image=stored(encode(large)), mask=stored(encode(large))))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the filter of the project
def test_photos_above_the_limit_are_bad_rows(load, with_large_photo, tmp_path):
    """Runs with another limit do not use each other's pixels."""
    cache = str(tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(InputError, match=r"row 7 .*1200000 pixels.* limit of 1000000 .*--max-megapixels"):
            load(with_large_photo, cache=cache, max_megapixels=1)
        assert len(load(with_large_photo, cache=cache, max_megapixels=2)[0]) == 60
    skipped = load(with_large_photo, cache=cache, max_megapixels=1, bad_rows="skip")
    larger = load(with_large_photo, cache=cache, max_megapixels=3)
    assert len(skipped[0]) == 59 and skipped[0].fingerprint != larger[0].fingerprint


def test_the_limit_is_not_part_of_a_runs_identity():
    assert "max_megapixels" not in identity({"max_megapixels": 500, "lr": 1})


@pytest.mark.parametrize(("limit", "words"), [(99, "limit of 99000000"), (179, ""), (200, "")])
def test_a_photo_of_100_megapixels_is_read_without_a_warning(tmp_path, cache, limit, words):
    """PIL warns above 89 megapixels."""
    large = encode(Image.new("L", (10_000, 10_000)))
    for split in ("train", "val"):
        (tmp_path / "data" / split / "thing").mkdir(parents=True)
        (tmp_path / "data" / split / "thing" / "small.jpg").write_bytes(encode(photo()))
        (tmp_path / "data" / split / "thing" / "large.jpg").write_bytes(large)
    argv = f"--data {tmp_path}/data --cache {cache} --out {tmp_path}/report.json --max-megapixels {limit}".split()
    assert exit_code(fork_script("audit", argv, output=tmp_path / "output")) == 0
    output, report = (tmp_path / "output").read_text(), json.loads((tmp_path / "report.json").read_text())
    assert "Warning" not in output and "bomb" not in output and words in output
    assert report["rows"]["val"]["bad"] == (limit < 100)


def test_bad_rows_are_listed_in_a_file(load, rows, with_bad_row, tmp_path):
    data = with_bad_row(dict(bbox=[0, 0, 0, 50]))
    with pytest.raises(InputError, match="bad_rows.csv"):
        load(data, cache=str(tmp_path / "cache"))
    (listed,) = csv.DictReader((tmp_path / "cache" / "bad_rows.csv").read_text().splitlines())
    assert (listed["split"], listed["row"], listed["id"]) == ("train", "7", rows["train"][7]["image_id"])
    assert "no area" in listed["reason"]


def test_a_truncated_photo_is_a_bad_row(load, rows, parquet):
    half = rows["val"][2]["image"]["bytes"][:3000]
    val = [*rows["val"][:2], dict(rows["val"][2], image=stored(half)), *rows["val"][3:]]
    with pytest.raises(InputError, match="row 2 .*unreadable image"):
        load(parquet(dict(rows, val=val)))


def test_a_missing_folder(load, tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no such file or folder"):
        load(300 * "a")
    with pytest.raises(InputError, match="neither Parquet files, nor images"):
        load(str(tmp_path))


def test_the_error_for_a_missing_column_lists_the_columns(load, rows, parquet):
    with pytest.raises(InputError, match="category.*image_id, image, mask, bbox"):
        load(parquet({split: without(rows[split], "category") for split in rows}))


def test_data_without_boxes_is_for_whole_images(load, rows, parquet):
    data = parquet({split: without(rows[split], "bbox") for split in rows})
    with pytest.raises(InputError, match="bbox.*leave out --crop"):
        load(data)
    assert len(load(data, crop=False)[0]) == 60


def test_rows_without_ids_are_known_by_their_number(load, rows, parquet):
    train, val = load(parquet({split: without(rows[split], *ID_COLUMNS) for split in rows}))
    dropped = [i for i, row in enumerate(rows["train"]) if row["category"].lower() == "vase"]
    assert train.ids()["image_id"] == [str(i) for i in range(len(rows["train"])) if i not in dropped]
    assert val.ids()["product_id"] == [""] * len(val)


def test_full_and_crop_never_share_an_array(load, rows, parquet, tmp_path):
    """Rows without boxes are otherwise the same for both."""
    data = parquet(dict(rows, val=[dict(row, bbox=None) for row in rows["val"]]))
    load(data, crop=False, cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match="no box"):
        load(data, cache=str(tmp_path / "cache"))
    load(data, crop=False, cache=str(tmp_path / "cache"))


def test_val_may_lack_a_column_that_is_not_needed(load, rows, parquet):
    _, val = load(parquet(dict(rows, val=without(rows["val"], *ID_COLUMNS))))
    assert val.ids()["product_id"] == [""] * len(rows["val"])


def test_val_without_the_column_of_boxes(load, rows, parquet):
    with pytest.raises(InputError, match="the val split has no column bbox"):
        load(parquet(dict(rows, val=without(rows["val"], "bbox"))))


def test_a_column_that_holds_no_images(load, rows, parquet):
    with pytest.raises(InputError, match="column image of train must contain images"):
        load(parquet({split: [dict(row, image=7) for row in split_rows] for split, split_rows in rows.items()}))


def test_numbers_as_categories(tmp_path):
    """A ClassLabel column, as on the Hub; -1 means no label."""
    features = datasets.Features({"category": datasets.ClassLabel(names=["Big Sofa", "Lamp"])})
    table = datasets.Dataset.from_dict({"category": [1, 0, -1, None]}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    assert clean_categories(read_splits(str(tmp_path))["train"]) == ["lamp", "big_sofa", None, None]
    names = {"info": {"features": {"category": {"names": ["Lamp"], "_type": "ClassLabel"}}}}
    plain = pa.table({"category": [0, 1]}, pa.schema([("category", pa.int64())], {"huggingface": json.dumps(names)}))
    pq.write_table(plain, tmp_path / "train.parquet")
    with pytest.raises(InputError, match="category 1 has no name; the file names 1 categories"):
        read_splits(str(tmp_path))


def read_metadata(image_folder):
    path = Path(image_folder, "val", "metadata.jsonl")
    return path, [json.loads(line) for line in path.read_text().splitlines()]


METADATA = {
    "broken": ('{"file_name": ', "cannot be read"),
    "no file_name": ('{"name": "a.jpg"}', "no column file_name; its columns are name"),
    "another folder": ('{"file_name": "elsewhere/a.jpg"}', "lists none of the images"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_does_not_fit(load, image_folder, name):
    text, words = METADATA[name]
    Path(image_folder, "train", "metadata.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        load(image_folder)


def test_numeric_ids_stay_strings(load, image_folder):
    path, lines = read_metadata(image_folder)
    numbered = [line | {"product_id": f"{i:06}"} for i, line in enumerate(lines)]
    path.write_text("\n".join(map(json.dumps, numbered)))
    assert sorted(load(image_folder)[1].ids()["product_id"]) == [f"{i:06}" for i in range(len(lines))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('["chair/1.jpg"]', "is not an object with file_name"),
        ('{"file_name": 7, "bbox": [0, 0, 9, 9]}', ": file_name must be a text, not 7"),
        ('{"name": "chair/1.jpg", "bbox": [0, 0, 9, 9]}', "has no column file_name; its columns are name, bbox"),
    ],
)
def test_a_line_of_metadata_without_a_file_name_is_named(load, image_folder, line, words):
    read_metadata(image_folder)[0].write_text(line)
    with pytest.raises(InputError, match=f"metadata.jsonl, line 1 ?{words}"):
        load(image_folder)


def test_metadata_names_a_file_once(load, image_folder):
    path, lines = read_metadata(image_folder)
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    with pytest.raises(InputError, match=f"{re.escape(lines[0]['file_name'])} more than once"):
        load(image_folder)


def test_a_class_without_train_rows(load, rows, parquet):
    with pytest.raises(InputError, match="val has classes without train rows: ottoman"):
        load(parquet(dict(rows, val=[dict(rows["val"][0], category="Ottoman"), *rows["val"][1:]])))


def test_an_invalid_parquet_file(load, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"hello")
    with pytest.raises(InputError, match="cannot be read"):
        load(str(tmp_path))


@pytest.fixture
def silent_server():
    """A server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_does_not_answer_is_out_of_reach(silent_server):
    assert not reachable(silent_server, seconds=0.2)


def assert_an_unknown_hub_id_is_refused(load):
    with pytest.raises(InputError, match="Hub cannot be reached.*--data sample"):
        load("Nfiniteai/product-masks-sample-that-no-cache-has")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "the setting is restored"


def test_an_unreachable_hub(load, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert_an_unknown_hub_id_is_refused(load)


@pytest.mark.slow
def test_a_hub_that_never_responds(load, monkeypatch, silent_server):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", silent_server)
    assert_an_unknown_hub_id_is_refused(load)


# Decoding in advance -------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_items():
    """Even if later items are ready earlier."""

    def wait(seconds):
        time.sleep(seconds)
        return seconds

    seconds = [0.05, 0.0, 0.02, 0.0, 0.01]
    for ahead in (0, 1, 3, 100):
        assert list(map_ahead(wait, seconds, ahead=ahead)) == seconds
    assert list(map_ahead(wait, [], ahead=3)) == []


@pytest.mark.parametrize("ahead", [1, 4, 16])
def test_items_are_taken_as_they_are_needed(ahead):
    """So the encoded images of a large data set are never all in memory."""
    taken = []

    def items():
        for i in range(200):
            taken.append(i)
            yield i

    for i, result in enumerate(map_ahead(str, items(), ahead=ahead)):
        assert result == str(i)
        assert len(taken) <= i + 1 + ahead + 1
    assert len(taken) == 200


def test_results_are_computed_in_advance():
    started = []
    results = map_ahead(started.append, range(100), ahead=10)
    assert started == [], "nothing is computed before the first result is asked for"
    next(results)
    assert len(started) <= 11
    results.close()
    assert len(started) == 11, "those in progress are finished, and no more are started"


def test_an_exception_is_raised_where_its_result_would_be():
    results = map_ahead(lambda x: 1 / x, [1, 2, 0, 4], ahead=8)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_exception_of_the_items_is_raised():
    def items():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(map_ahead(str, items(), ahead=8))
