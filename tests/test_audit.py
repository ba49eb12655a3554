"""Group-aware splits, and the audit of data with planted problems."""

import io
import json
import tracemalloc
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from sklearn.model_selection import StratifiedGroupKFold

import common.data.audit
from common.config import InputError
from common.data.audit import NEAR_DUPLICATE_BITS, audit, describe, findings
from common.data.dataset import place_pixels
from common.data.pixels import difference_hashes
from common.data.splits import Split, assign_folds, parse_split
from tests import helpers
from tests.helpers import encode, stored


def image_of(row):
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def bits_apart(looks, others):
    return [(a ^ b).bit_count() for a, b in zip(looks, others, strict=True)]


# Splits by group -----------------------------------------------------------------------------------------------------


FOLDS = [f"product_id:{fold}/3" for fold in (1, 2, 3)]


@pytest.mark.parametrize("partition", ["", ":1"])
def test_every_row_is_validated_once(load, partition):
    validated = []
    for fold in FOLDS:
        train, val = load(split_by=fold + partition)
        ids = val.ids()["image_id"]
        assert len(train) + len(val) == 638 and set(ids).isdisjoint(train.ids()["image_id"])
        validated += ids
    assert len(validated) == 638 == len(set(validated))


@pytest.mark.parametrize("fold", [*FOLDS, "product_id:2/3:1"])
def test_splits_share_all_classes_and_no_product(load, fold):
    train, val = load(split_by=fold)
    assert set(train.ids()["product_id"]).isdisjoint(val.ids()["product_id"])
    assert train.classes == val.classes and len(val.classes) == 13
    in_train, in_val = (split.labels.bincount(minlength=13) for split in (train, val))
    shares = in_val / (in_train + in_val)
    assert shares.min() > 0.05 and shares.max() < 0.75


def test_folds_share_one_pixel_array(load):
    splits = [split for fold in FOLDS for split in load(split_by=fold)]
    assert len({split.pixels.filename for split in splits}) == 1 and splits[0].pixels is splits[1].pixels
    assert len({split.fingerprint for split in splits}) == 6
    assert splits[1].batch(np.arange(4), torch.device("cpu"))[0].shape == (4, 3, 32, 32)


def test_a_fold_holds_the_pixels_and_labels_of_its_rows(load):
    """Compared with the same rows in the given split, matched by id."""
    given = {i: (part, row) for part in load() for row, i in enumerate(part.ids()["image_id"])}
    for part in load(split_by="product_id:2/5"):
        for row, i in enumerate(part.ids()["image_id"]):
            if i in given:  # vase is not in the given val split
                other, other_row = given[i]
                assert part.classes[part.labels[row]] == other.classes[other.labels[other_row]]
                np.testing.assert_array_equal(part.pixels[part.index[row]], other.pixels[other.index[other_row]])
                assert part.crop_sizes[row].tolist() == other.crop_sizes[other_row].tolist()


def test_a_split_is_the_same_for_every_variant(load):
    crop, full = load(split_by="product_id"), load(split_by="product_id:1/5", crop=False)
    assert crop[1].ids() == full[1].ids()


def test_another_column_makes_another_split(load):
    train, val = load(split_by="scene_id:1/5")
    assert set(train.ids()["scene_id"]).isdisjoint(val.ids()["scene_id"])
    assert val.ids() != load(split_by="product_id:1/5")[1].ids()


def test_partitions_divide_the_products_differently(load):
    first, second = (set(load(split_by=f"product_id:1/5:{number}")[1].ids()["product_id"]) for number in (0, 1))
    assert len(first & second) < len(first) / 2, "about a fifth, by chance"


@pytest.mark.parametrize("partition", [0, 1])
def test_a_partition_is_scikit_learns_with_its_number_as_the_random_state(load, partition):
    train, val = load(split_by="product_id")
    products = np.array(train.ids()["product_id"] + val.ids()["product_id"])
    labels = torch.cat([train.labels, val.labels]).numpy()
    expected = StratifiedGroupKFold(3, shuffle=True, random_state=partition).split(products, labels, products)
    names = [train.classes[label] for label in labels]
    _, folds = assign_folds({"product_id": products.tolist()}, names, Split("product_id", 1, 3, partition))
    assert [np.flatnonzero(folds == fold).tolist() for fold in (1, 2, 3)] == [rows.tolist() for _, rows in expected]


def test_split_of_data_without_val_drops_single_group_classes(load, rows, parquet):
    lonely = [dict(row, product_id="one") for row in rows["train"] if row["category"].lower() == "bed"]
    assert lonely
    others = [row for row in rows["train"] if row["category"].lower() != "bed"]
    train, val = load(parquet({"train": others + lonely}), split_by="product_id:1/3", bad_rows="skip")
    assert "bed" not in train.classes and train.dropped == len(lonely)
    assert len(train) + len(val) == len(others)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("product id", "product_id:2/5"),
        ("product_id:0/5", "0 of 5"),
        ("product_id:6/5", "6 of 5"),
        ("product_id:1/1", "1 of 1"),
        ("colour", "image_id, product_id, scene_id"),
        ("product_id:1/500", "groups .*500 folds"),
        ("product_id:1", "product_id:2/5:1"),
        ("product_id:1/5:", "product_id:2/5:1"),
        ("product_id:1/5:-1", "product_id:2/5:1"),
        ("product_id:1/5:9999999999", "product_id:2/5:1"),
    ],
)
def test_impossible_splits(load, text, words):
    with pytest.raises(InputError, match=f"--split-by .*{words}"):
        load(split_by=text)


def test_how_a_split_is_written():
    assert parse_split("product_id") == parse_split("product_id:1/5") == parse_split("product_id:1/5:0")
    assert str(parse_split("product_id:2/5:0")) == "product_id:2/5"
    assert str(parse_split("product_id:2/5:1")) == "product_id:2/5:1"


def test_both_splits_share_one_copy_on_the_device(load, monkeypatch):
    train, val = load(split_by="product_id")
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    monkeypatch.setattr(
        type(train), "copy_pixels_to", lambda self, device: setattr(self, "device_pixels", torch.zeros(1))
    )
    place_pixels(type("Config", (), {"data_device": "auto"}), cuda, train, val)
    assert train.device_pixels is val.device_pixels is not None


# The audit -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sample_report(load):
    return audit(*load(image_size=64))


def test_products_of_the_sample_are_in_both_splits(load, sample_report):
    train, _ = load(image_size=64)
    assert sample_report["products"]["val_rows"] == 115, "as the data card says"
    assert sample_report["products"]["train"] == len(set(train.ids()["product_id"]))
    assert any("115 of 130 val rows" in sentence for sentence in findings(sample_report))


def test_classes_of_the_sample_are_balanced(sample_report):
    assert sample_report["classes"]["chair"] == {"train": 71, "val": 22} and sample_report["majority"] == "chair"
    assert sample_report["imbalance"] == pytest.approx(71 / 24) and sample_report["rare_in_val"] == []


def test_the_sample_has_no_duplicates(sample_report):
    assert sample_report["duplicates"] == {"within_a_split": 0, "across_splits": 0, "groups": []}
    assert sample_report["near_duplicates"]["val_rows"] == 0


def test_box_sizes_of_the_sample(load, sample_report):
    widths = load(image_size=64)[0].crop_sizes[:, 0].numpy()
    assert sample_report["boxes"]["train"]["width_deciles"][5] == pytest.approx(np.median(widths), abs=0.1)


def test_a_report_is_json(sample_report):
    assert json.loads(json.dumps(sample_report)) == sample_report


def test_the_same_file_in_both_splits_and_twice_in_one(load, rows, parquet):
    train, val = list(rows["train"]), list(rows["val"])
    first, second = train[:2]
    val.append(dict(first, image_id="copy", category=val[0]["category"]))
    train.append(dict(second, image_id="twin"))
    report = audit(*load(parquet({"train": train, "val": val}), image_size=64))
    assert report["duplicates"]["across_splits"] == 1 == report["duplicates"]["within_a_split"]
    assert sorted(report["duplicates"]["groups"]) == sorted(
        [[f"train {first['image_id']}", "val copy"], [f"train {second['image_id']}", "train twin"]]
    )
    assert sum("identical" in sentence for sentence in findings(report)) == 2


def test_a_resized_brighter_copy_is_a_near_duplicate(load, rows, parquet):
    original = rows["train"][0]
    photo = image_of(original)
    photo = ImageEnhance.Brightness(photo.resize((photo.width // 2, photo.height // 2))).enhance(1.15)
    half = [v // 2 for v in original["bbox"]]
    changed = dict(original, image_id="anew", image=stored(encode(photo, quality=60)), bbox=half)
    changed["category"] = rows["val"][0]["category"]
    report = audit(*load(parquet(dict(rows, val=[*rows["val"], changed])), image_size=64))
    near = report["near_duplicates"]
    assert near["val_rows"] == 1 and near["pairs"][0]["rows"] == ["val anew", f"train {original['image_id']}"]
    assert 0 <= near["pairs"][0]["bits"] <= NEAR_DUPLICATE_BITS
    assert report["duplicates"]["groups"] == []


def near_duplicates(hashes):
    """Of splits {"train": hashes (N, 2), "val": hashes (M, 2)}."""
    ids = {name: {"image_id": list(range(len(split)))} for name, split in hashes.items()}
    return common.data.audit._near_duplicates({name: SimpleNamespace(hashes=h) for name, h in hashes.items()}, ids)


@pytest.mark.parametrize("seed", range(20))
def test_near_duplicates_are_those_of_a_comparison_one_by_one(seed, monkeypatch):
    """Also if they are compared in many blocks, and if more pairs are found than are listed."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(common.data.audit, "BLOCK", int(rng.choice([1, 7, 50, 1000])))
    monkeypatch.setattr(common.data.audit, "MAX_LISTED", int(rng.choice([1, 5, 30, 1000])))

    def split(n):
        looks = rng.choice([0, 0x0F0F_0F0F_0F0F_0F0F, 0x0123_4567_89AB_CDEF], n).astype(np.uint64)
        for _ in range(4):
            looks ^= rng.integers(0, 2, n).astype(np.uint64) << rng.integers(0, 64, n).astype(np.uint64)
        return np.stack([rng.integers(1, 30, n).astype(np.uint64), looks], axis=1)

    hashes = {"train": split(int(rng.integers(1, 40))), "val": split(int(rng.integers(1, 40)))}
    pairs = [
        {"rows": [f"val {i}", f"{name} {j}"], "bits": (int(look) ^ int(other_look)).bit_count()}
        for name in ("train", "val")
        for i, (file, look) in enumerate(hashes["val"])
        for j, (other_file, other_look) in enumerate(hashes[name])
        if look != 0 and file != other_file and (name == "train" or j < i)
    ]
    pairs = [pair for pair in pairs if pair["bits"] <= NEAR_DUPLICATE_BITS]
    in_train = [pair for pair in pairs if pair["rows"][1].startswith("train")]
    assert near_duplicates(hashes) == {
        "across_splits": len(in_train),
        "within_val": len(pairs) - len(in_train),
        "val_rows": len({pair["rows"][0] for pair in in_train}),
        "pairs": sorted(pairs, key=lambda pair: pair["bits"])[: common.data.audit.MAX_LISTED],
    }


def test_near_duplicates_of_one_photo_take_little_memory():
    """1,000 rows in each split make 1.5 million pairs."""
    files = np.arange(2000, dtype=np.uint64)
    looks = np.full(2000, 12345, np.uint64)
    hashes = dict(zip(("train", "val"), np.split(np.stack([files, looks], axis=1), 2), strict=True))
    tracemalloc.start()
    near = near_duplicates(hashes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (near["across_splits"], near["within_val"], near["val_rows"]) == (1_000_000, 499_500, 1000)
    assert len(near["pairs"]) == 1000 and peak < 100e6


def test_hash_distances_of_saved_copies_and_of_other_crops(rows):
    crops = []
    for row in rows["val"]:
        x, y, w, h = row["bbox"]
        crops.append(image_of(row).crop((x, y, x + w, y + h)))
    squares = [crop.resize((192, 192)) for crop in crops]
    looks = [int(difference_hashes(crop)[0]) for crop in squares]
    saved = [Image.open(io.BytesIO(encode(crop.resize((96, 96)), quality=60))) for crop in squares]
    anew = [int(difference_hashes(crop)[0]) for crop in saved]
    pairs = list(combinations(looks, 2))
    assert np.mean(np.array(bits_apart(looks, anew)) <= NEAR_DUPLICATE_BITS) > 0.9
    assert np.mean(np.array(bits_apart(*zip(*pairs, strict=True))) <= NEAR_DUPLICATE_BITS) < 0.001


@pytest.mark.parametrize("size", [28, 50, 64, 225])
def test_hashes_do_not_depend_on_the_other_images_of_a_strip(size):
    images = np.random.default_rng(size).integers(0, 256, (5, size, size, 3), np.uint8)
    strip, pads = Image.fromarray(images.reshape(-1, size, 3)), [(0, 0), (9, 0), (0, 5), (13, 0), (0, 0)]
    alone = [Image.fromarray(image) for image in images]
    expected = np.concatenate([difference_hashes(image) for image in alone])
    np.testing.assert_array_equal(difference_hashes(strip), expected)
    expected = np.concatenate([difference_hashes(image, [pad]) for image, pad in zip(alone, pads, strict=True)])
    np.testing.assert_array_equal(difference_hashes(strip, pads), expected)
    assert expected[1] != difference_hashes(alone[1])[0] and expected[0] == difference_hashes(alone[0])[0]


def test_uniform_crops_are_not_near_duplicates(load, rows, parquet):
    colors = iter(np.random.default_rng(0).integers(0, 256, (200, 3)).tolist())

    def plain_image():
        return stored(encode(Image.new("RGB", (400, 400), tuple(next(colors)))))

    plain = {split: [dict(row, image=plain_image()) for row in rows[split]] for split in rows}
    report = audit(*load(parquet(plain), bad_rows="skip"))
    assert report["near_duplicates"]["val_rows"] == 0


def test_equal_ids_in_both_splits_are_distinguished(load, image_folder):
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


def test_rows_without_an_image_id_are_not_one_group(load, rows, parquet):
    bare = {
        split: [dict(row, image_id=[None, "", f"{split} {i}"][i % 3]) for i, row in enumerate(rows[split])]
        for split in rows
    }
    train, val = load(parquet(bare), split_by="image_id:1/5")
    ids = train.ids()["image_id"] + val.ids()["image_id"]
    assert sorted(ids) == sorted(row["image_id"] or "" for split in rows for row in bare[split]), "none is renamed"
    assert 0.1 < len(val) / len(ids) < 0.3
    some = dict(bare, val=[dict(row, image_id=row["image_id"] and "train 2") for row in bare["val"]])
    train, val = load(parquet(some, "some"), split_by="image_id:1/5")
    ids = train.ids()["image_id"] + val.ids()["image_id"]
    assert {"train/train 2", "val/train 2", ""} < set(ids) and not {"train/None", "val/None", "train/", "val/"} & set(
        ids
    )


def test_rows_that_all_have_one_image_id_cannot_be_split(load, rows, parquet):
    """Fewer folds would not help."""
    same = {split: [dict(row, image_id="same") for row in rows[split]] for split in rows}
    with pytest.raises(InputError, match="image_id: each category occurs with only one image_id, so none can be in"):
        load(parquet({"train": same["train"]}), split_by="image_id")


def test_rows_whose_product_is_nan_have_none(load, rows, parquet):
    lines = {
        split: [
            dict(row, product_id=[float("nan"), i + 1000.0 * (split == "val")][i % 2])
            for i, row in enumerate(rows[split])
        ]
        for split in rows
    }
    data = parquet(lines)
    report = audit(*load(data))
    assert report["products"]["both"] == 0 and report["products"]["val"] == len(rows["val"]) // 2
    train, val = load(data, split_by="product_id:1/5")
    assert 0.1 < len(val) / (len(train) + len(val)) < 0.3, "each of these rows is a group of its own"


@pytest.mark.parametrize("limit", [0, 20])
def test_the_numbers_of_rows_of_a_split_add_up(load, rows, parquet, limit):
    lonely = [dict(rows["train"][0], category="lonely", product_id="one")] * 3
    bad = [dict(rows["train"][1], category=None)] * 4
    data = parquet({"train": [*lonely, *rows["train"], *bad], "val": rows["val"]})
    train, val = load(data, split_by="product_id:1/3", bad_rows="skip", limit=limit)
    report = audit(train, val)["rows"]
    assert report["train"]["source"] + report["val"]["source"] == 7 + len(rows["train"]) + len(rows["val"])
    assert report["train"]["dropped"] == 3 and report["val"]["source"] > 20
    if limit:
        assert report["train"]["used"] + report["val"]["used"] + report["train"]["bad"] + report["val"]["bad"] == 40
    else:
        assert all(n["used"] + n["bad"] + n["dropped"] == n["source"] for n in report.values())
    shown = describe(train, val, audit(train, val))
    assert f"{report['train']['source']} rows, {report['train']['source'] - 3} after dropping 3" in shown


def test_classes_with_few_val_rows_are_named(load, rows, parquet):
    report = audit(*load(parquet(rows)))
    assert "bed" in report["rare_in_val"]
    assert any("fewer than 5 val rows" in sentence and "bed" in sentence for sentence in findings(report))
    many = findings(report | {"rare_in_val": list("abcdefghijklm")})
    assert "classes with fewer than 5 val rows: a, b, c, d, e, f, g, h, i, j and 3 more." in many


def test_data_without_ids_has_no_shared_products(load, rows, parquet):
    bare = {
        split: [{k: v for k, v in row.items() if k not in ("product_id", "scene_id")} for row in rows[split]]
        for split in rows
    }
    report = audit(*load(parquet(bare)))
    assert report["products"] is None is report["scenes"]
    assert not any("show a" in sentence for sentence in findings(report))


def test_the_script_writes_its_report_and_skips_bad_rows(rows, parquet, cache, tmp_path, capsys):
    broken = [dict(rows["train"][0], bbox=[0, 0, 0, 5], image_id="broken"), *rows["train"][1:]]
    data = parquet({"train": broken, "val": rows["val"]})
    returned = helpers.main("audit", f"--data {data} --crop --cache {cache} --out {tmp_path}/report.json".split())
    report = helpers.read_json(tmp_path, "report.json")
    assert report == returned
    assert report["bad_rows"][0]["id"] == "broken" and report["rows"]["train"]["bad"] == 1
    shown = capsys.readouterr().out
    assert "  1 bad row skipped:" in shown and "broken" in shown and f"{tmp_path}/report.json" in shown
    assert all(sentence in shown for sentence in findings(report))


def test_a_report_replaces_only_a_report(rows, parquet, cache, tmp_path, image_folder):
    data = parquet(rows)
    line = f"--data {data} --cache {cache}".split()
    report = tmp_path / "report.json"
    for options in ([], ["--crop"]):
        returned = helpers.main("audit", [*line, *options, "--out", str(report)])
        assert helpers.read_json(tmp_path, "report.json") == returned
    (tmp_path / "own.json").write_text('{"rows": 5, "classes": ["a"], "duplicates": 1, "near_duplicates": 0}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {".json", ".jsonl", ".jpg", ".parquet"} <= {path.suffix for path in before}
    for path in before.keys() - {report}:
        with pytest.raises(InputError, match="must end in .json|not from an earlier call"):
            helpers.main("audit", [*line, "--out", str(path)])
    with pytest.raises(InputError, match="must end in .json"):
        helpers.main("audit", [*line, "--out", str(tmp_path / "new.parquet")])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_padding_does_not_make_crops_look_alike(load):
    """The perceptual hash of a padded crop is that of the crop without padding."""
    stretched, padded = (load(fit=fit, image_size=64)[1].hashes[:, 1] for fit in ("squash", "pad"))
    assert (np.bitwise_count(stretched ^ padded) <= NEAR_DUPLICATE_BITS).mean() > 0.9
