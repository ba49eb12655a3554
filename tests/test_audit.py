"""Splits of one's own, and what the audit finds in data with planted faults."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from common.audit import NEAR, audit, findings
from common.config import DataConfig, InputError
from common.data import load_splits, place_pixels
from common.folds import parse_split
from common.pixels import look_hash

ROOT = Path(__file__).parent.parent


@pytest.fixture
def load(cache):
    def load(data="sample", **options):
        return load_splits(DataConfig(**dict(data=data, cache=cache, image_size=32, crop=True) | options))

    return load


def image_of(row):
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def encoded(image, quality=60):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return {"bytes": buffer.getvalue(), "path": None}


def test_every_row_is_validated_once_and_no_product_is_on_both_sides(load):
    seen, folders = [], set()
    for fold in (1, 2, 3):
        train, val = load(split_by=f"product_id:{fold}/3")
        products = [set(split.ids()["product_id"]) for split in (train, val)]
        assert not products[0] & products[1]
        assert len(train) + len(val) == 638 and train.classes == val.classes and len(val.classes) == 13
        assert train.pixels is val.pixels and train.fingerprint != val.fingerprint
        shares = val.labels.bincount(minlength=13) / (
            val.labels.bincount(minlength=13) + train.labels.bincount(minlength=13)
        )
        assert shares.min() > 0.05 and shares.max() < 0.75, "every class has its share in every fold"
        seen += val.ids()["image_id"]
        folders.add(train.pixels.filename)
    assert len(seen) == 638 == len(set(seen))
    assert len(folders) == 1, "the folds share one pixel array"
    images, _, labels = val.batch(np.arange(4), torch.device("cpu"))
    whole = dict(zip(seen, range(638), strict=True))
    assert images.shape == (4, 3, 32, 32) and set(whole) >= set(train.ids()["image_id"])


def test_a_fold_holds_the_pixels_and_labels_of_its_rows(load):
    """The same rows as in the given split, by their ids."""
    given = {i: (part, row) for part in load() for row, i in enumerate(part.ids()["image_id"])}
    for part in load(split_by="product_id:2/5"):
        for row, i in enumerate(part.ids()["image_id"]):
            if i in given:  # vase is in the split of one's own alone
                other, there = given[i]
                assert part.classes[part.labels[row]] == other.classes[other.labels[there]]
                np.testing.assert_array_equal(part.pixels[part.index[row]], other.pixels[other.index[there]])
                assert part.crop_sizes[row].tolist() == other.crop_sizes[there].tolist()


def test_a_split_is_the_same_for_every_variant_and_other_with_another_column(load):
    crop, full = load(split_by="product_id"), load(split_by="product_id:1/5", crop=False)
    assert crop[1].ids() == full[1].ids()
    scenes = load(split_by="scene_id:1/5")
    assert not set(scenes[0].ids()["scene_id"]) & set(scenes[1].ids()["scene_id"])
    assert scenes[1].ids() != crop[1].ids()


def test_data_without_a_val_split_can_be_split_and_single_groups_are_left_out(load, rows, parquet):
    lonely = [dict(row, product_id="one") for row in rows["train"] if row["category"].lower() == "bed"]
    assert lonely
    others = [row for row in rows["train"] if row["category"].lower() != "bed"]
    train, val = load(parquet({"train": others + lonely}), split_by="product_id:1/3", bad_rows="skip")
    assert "bed" not in train.classes and train.dropped == len(lonely)
    assert len(train) + len(val) == len(others)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("product id", "write a column"),
        ("product_id:0/5", "no fold 0 of 5"),
        ("product_id:6/5", "no fold 6 of 5"),
        ("product_id:1/1", "no fold 1 of 1"),
        ("colour", "no such id column, but image_id, product_id, scene_id"),
        ("product_id:1/500", "groups cannot be cut into 500 folds"),
    ],
)
def test_splits_that_cannot_be(load, text, words):
    with pytest.raises(InputError, match=words):
        load(split_by=text)


def test_how_a_split_is_written():
    assert parse_split("product_id") == parse_split("product_id:1/5")


def test_both_splits_share_one_copy_on_the_device(load, monkeypatch):
    train, val = load(split_by="product_id")
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    monkeypatch.setattr(type(train), "keep_on", lambda self, device: setattr(self, "device_pixels", torch.zeros(1)))
    place_pixels(type("Config", (), {"data_device": "auto"}), cuda, train, val)
    assert train.device_pixels is val.device_pixels is not None


def test_the_audit_of_the_sample(load):
    train, val = load(image_size=64)
    report = audit(train, val)
    assert report["products"]["val_rows"] == 115, "as the data card says"
    assert report["products"]["train"] == len(set(train.ids()["product_id"]))
    assert report["classes"]["chair"] == {"train": 71, "val": 22} and report["majority"] == "chair"
    assert report["imbalance"] == pytest.approx(71 / 24) and report["rare_in_val"] == []
    assert report["duplicates"] == {"within_a_split": 0, "across_splits": 0, "groups": []}
    assert report["near_duplicates"]["val_rows"] == 0
    widths = train.crop_sizes[:, 0].numpy()
    assert report["boxes"]["train"]["width_deciles"][5] == pytest.approx(np.median(widths), abs=0.1)
    assert json.loads(json.dumps(report)) == report
    assert any("115 of 130 val rows show a product" in sentence for sentence in findings(report))


def test_planted_duplicates_are_found(load, rows, parquet):
    """The same file in train and val, the same file twice in train, and a photo saved anew, smaller and brighter."""
    train, val = list(rows["train"]), list(rows["val"])
    names = {row["category"] for row in val}
    first, second, third = [row for row in train if row["category"] in names][:3]
    photo = image_of(third)
    changed = ImageEnhance.Brightness(photo.resize((photo.width // 2, photo.height // 2))).enhance(1.15)
    half = [v // 2 for v in third["bbox"]]
    val.append(dict(first, image_id="copy"))
    train.append(dict(second, image_id="twin"))
    val.append(dict(third, image_id="anew", image=encoded(changed), bbox=half))
    report = audit(*load(parquet({"train": train, "val": val}), image_size=64))
    assert report["duplicates"]["across_splits"] == 1 == report["duplicates"]["within_a_split"]
    groups = report["duplicates"]["groups"]
    assert sorted(groups) == sorted(
        [[f"train {first['image_id']}", "val copy"], [f"train {second['image_id']}", "train twin"]]
    )
    near = report["near_duplicates"]
    assert near["val_rows"] == 1 and near["pairs"][0]["rows"] == ["val anew", f"train {third['image_id']}"]
    assert 0 <= near["pairs"][0]["bits"] <= NEAR
    assert sum("byte for byte" in sentence for sentence in findings(report)) == 2


def test_the_look_of_a_crop_changes_little_when_it_is_saved_anew(rows):
    """And much from one photo to another."""
    crops = []
    for row in rows["val"]:
        x, y, w, h = row["bbox"]
        crops.append(image_of(row).crop((x, y, x + w, y + h)))
    looks = [look_hash(crop) for crop in crops]
    anew = [look_hash(Image.open(io.BytesIO(encoded(crop.resize((96, 96)))["bytes"]))) for crop in crops]
    same = [(a ^ b).bit_count() for a, b in zip(looks, anew, strict=True)]
    other = [(a ^ b).bit_count() for i, a in enumerate(looks) for b in looks[:i]]
    assert np.mean(np.array(same) <= NEAR) > 0.9 and np.mean(np.array(other) <= NEAR) < 0.001


def test_plain_surfaces_are_no_duplicates(load, rows, parquet):
    colors = iter(np.random.default_rng(0).integers(0, 256, (200, 3)).tolist())
    plain = {
        split: [dict(row, image=encoded(Image.new("RGB", (400, 400), tuple(next(colors))))) for row in rows[split]]
        for split in rows
    }
    report = audit(*load(parquet(plain), bad_rows="skip"))
    assert report["near_duplicates"]["val_rows"] == 0


def test_ids_that_both_splits_have_are_told_apart(load, image_folder):
    """An image folder without ids: train/bed/1.jpg and val/bed/1.jpg are two images."""
    for split in ("train", "val"):
        lines = [json.loads(line) for line in Path(image_folder, split, "metadata.jsonl").read_text().splitlines()]
        files = sorted(Path(image_folder, split).glob("*/*.jpg"))
        names = {file.name: f"{i:03}.jpg" for i, file in enumerate(files)}
        for file in files:
            file.rename(file.with_name(names[file.name]))
        for line in lines:
            folder, name = line.pop("file_name").split("/")
            line["file_name"] = f"{folder}/{names[name]}"
            del line["image_id"]
        Path(image_folder, split, "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    train, val = load(image_folder, split_by="image_id:1/4")
    ids = train.ids()["image_id"] + val.ids()["image_id"]
    assert len(ids) == len(set(ids)) > 60 and {name.split("/")[0] for name in ids} == {"train", "val"}


def test_rare_classes_and_data_without_ids(load, rows, parquet):
    val = rows["val"][:8]
    names = {row["category"].lower() for row in val}
    few = {split: [row for row in rows[split] if row["category"].lower() in names] for split in ("train", "val")}
    for row in (bare := [dict(row) for row in few["train"] + val]):
        del row["product_id"], row["scene_id"]
    report = audit(*load(parquet({"train": bare[: len(few["train"])], "val": bare[len(few["train"]) :]})))
    assert report["products"] is None is report["scenes"] and report["rare_in_val"]
    assert any("fewer than 5 val rows" in sentence for sentence in findings(report))


def test_the_script_writes_its_report_and_skips_bad_rows(rows, parquet, cache, tmp_path):
    broken = [dict(rows["train"][0], bbox=[0, 0, 0, 5], image_id="broken"), *rows["train"][1:]]
    data = parquet({"train": broken, "val": rows["val"]})
    line = f"--data {data} --crop --cache {cache} --out {tmp_path / 'report.json'}"
    done = subprocess.run(
        [sys.executable, "audit.py", *line.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["bad_rows"][0]["id"] == "broken" and report["rows"]["train"]["bad"] == 1
    assert "1 bad rows left out" in done.stdout and "note" in done.stdout


def test_padding_does_not_make_crops_look_alike(load):
    """The look of a padded crop is that of the crop alone."""
    stretched, padded = (load(fit=fit, image_size=64)[1].hashes[:, 1] for fit in ("squash", "pad"))
    assert (np.bitwise_count(stretched ^ padded) <= NEAR).mean() > 0.9
