"""predict.py and export.py: a finished run that was moved gives the same predictions again."""

import csv
import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image, ImageOps

import audit
import compare
import export
import predict
from common import provenance
from common.config import DataConfig, InputError
from common.conformal import Calibration, calibrate
from common.data.dataset import load_splits
from common.deploy import formats, gallery
from common.deploy.classify import decode_crops
from common.deploy.inputs import read_inputs
from common.deploy.predictions import caption
from common.files import RUN_FILES
from common.finished_run import read_run
from common.metrics import METRICS
from tests.helpers import READABLE, SAMPLE, SCRIPTS, UNREADABLE, edit_json, encode, launch, main, photo, read_json
from tests.layouts import LAYOUTS, stem

VAL = str(SAMPLE / "val-00000-of-00001.parquet")
CNN = "train_custom_cnn"


@pytest.fixture
def whole(finished_run):
    """The folder of a run on whole images."""
    return str(finished_run(CNN, ""))


@pytest.fixture
def cropped(finished_run):
    """The folder of a run on crops."""
    return str(finished_run(CNN, "--crop"))


@pytest.fixture
def copy(cropped, tmp_path):
    """A copy of that run, which a test may modify."""
    return Path(shutil.copytree(cropped, tmp_path / "copy"))


@pytest.fixture
def boxes(rows):
    """The names of three photos and their boxes in the sample."""
    return {name: row["bbox"] for name, row in zip(("a.jpg", "b.jpg", "sub/c.jpg"), rows["val"], strict=False)}


@pytest.fixture
def photos(tmp_path, rows, boxes):
    """A folder of three photos. Beside it, boxes.csv has two boxes of a.jpg, one of sub/c.jpg and none of b.jpg."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, row in zip(boxes, rows["val"], strict=False):
        (folder / name).write_bytes(row["image"]["bytes"])
    lines = [f"{name},{','.join(map(str, boxes[name]))}" for name in ("sub/c.jpg", "a.jpg")]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,x,y,width,height", *lines, "a.jpg,0,0,20,20"]))
    return folder


@pytest.fixture
def predict_boxes(cropped, photos):
    """A function that classifies the boxes in boxes.csv."""

    def predict_boxes(*options):
        return predict.main([cropped, str(photos), "--boxes", str(photos.parent / "boxes.csv"), *map(str, options)])

    return predict_boxes


# Predictions ---------------------------------------------------------------------------------------------------------

RUNS = [(script, "--crop") for script in SCRIPTS] + [(CNN, "")]


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_the_val_table_gives_the_runs_own_predictions_and_metrics(finished_run, run, capsys):
    folder = finished_run(*run)
    results = predict.main([str(folder), VAL])
    rows = read_run(folder).rows
    assert [result["image"] for result in results] == rows["image_id"].tolist()
    assert [result["category"] for result in results] == rows["prediction"].tolist()
    assert [result["probability"] for result in results] == rows["probability"].tolist(), "to the last digit"
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if len(line.split()) == 2)
    metrics = read_json(folder, "metrics.json")
    del metrics["best_epoch"]
    assert {name: float(printed[name]) for name in metrics} == metrics


def test_each_box_has_a_result_in_json_lines(predict_boxes, boxes, tmp_path, capsys):
    returned = predict_boxes("--output", tmp_path / "found.jsonl", "--top-k", 2)
    results = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert results == returned
    assert [result["image"] for result in results] == ["a.jpg", "a.jpg", "b.jpg", "sub/c.jpg"]
    assert results[0]["box"] == boxes["a.jpg"] and results[1]["box"] == [0, 0, 20, 20]
    assert results[2]["error"] == "no box" and results[2]["category"] is None
    assert [len(result["top"]) for result in results] == [2, 2, 0, 2]
    assert "3 images: 4 crops, 3 classified, 1 failed" in capsys.readouterr().out


def test_each_box_has_a_line_of_csv(predict_boxes, boxes, tmp_path):
    returned = predict_boxes("--output", tmp_path / "found.csv")
    with open(tmp_path / "found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == [result["category"] or "" for result in returned]
    assert [row["error"] for row in rows] == ["", "", "no box", ""]
    assert float(rows[0]["width"]) == boxes["a.jpg"][2] and rows[2]["width"] == ""
    assert rows[0]["top"].startswith(f"{rows[0]['category']} {float(rows[0]['probability']):.4f}; ")


def test_a_gallery_shows_the_photos(predict_boxes, tmp_path):
    predict_boxes("--gallery", tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.width > 600 and picture.convert("L").getextrema() != (255, 255)


def test_a_photo_of_many_crops_lists_their_captions(cropped, rows, tmp_path, monkeypatch):
    """The boxes are numbered, and the captions of mistakes come first."""
    drawn = []
    monkeypatch.setattr(gallery, "save_figure", lambda path, figure, **_: drawn.append(figure))
    objects = [dict(rows["val"][0], bbox=[5 * i, 4 * i, 60, 50]) for i in range(20)]
    LAYOUTS["metadata"](tmp_path / "first", {"val": objects})
    results = predict.main([cropped, str(tmp_path / "first")])
    for i, (row, result) in enumerate(zip(objects, results, strict=True)):
        row["category"] = result["category"] if i % 4 == 0 else "bed" if result["category"] != "bed" else "chair"
    LAYOUTS["metadata"](tmp_path / "data", {"val": objects})
    results = predict.main([cropped, str(tmp_path / "data"), "--gallery", str(tmp_path / "found.png")])
    (axis,) = drawn[0].axes
    numbers, lines = [text.get_text() for text in axis.texts[:20]], [text.get_text() for text in axis.texts[20:]]
    wrong = [(i, r) for i, r in enumerate(results, 1) if r["category"] != r["label"]]
    expected = [f"{i}: {r['category']} {r['probability']:.0%} label: {r['label']}" for i, r in wrong[:12]]
    assert numbers == [str(i) for i in range(1, 21)] and len(wrong) == 15
    assert lines == [*expected, "and 8 more"]


def test_one_image_with_a_box_is_its_row_of_the_table(cropped, photos, boxes):
    bbox = ",".join(map(str, boxes["b.jpg"]))
    (result,) = predict.main([cropped, str(photos / "b.jpg"), "--bbox", bbox])
    row = read_run(Path(cropped)).rows.iloc[1]
    assert result["category"] == row["prediction"]
    assert result["probability"] == pytest.approx(row["probability"], rel=1e-4)


def test_folders_and_globs(whole, photos):
    assert [r["image"] for r in predict.main([whole, str(photos)])] == ["a.jpg", "b.jpg", "sub/c.jpg"]
    assert [r["image"] for r in predict.main([whole, f"{photos}/*.jpg"])] == [f"{photos}/a.jpg", f"{photos}/b.jpg"]


def test_splits_of_tables(whole, capsys):
    assert len(predict.main([whole, str(SAMPLE), "--split", "train"])) == 508
    assert len(predict.main([whole, "sample", "--split", "val"])) == 130
    assert f"{whole} was trained on whole images" in capsys.readouterr().out, "boxes are there, and not used"


def test_val_and_boxes_of_a_table_are_those_of_training(rows, parquet, options, capsys):
    def corners(rows):
        return [row | {"bbox": [x, y, x + w, y + h]} for row in rows for x, y, w, h in [row["bbox"]]]

    data = parquet({"train": corners(rows["train"]), "val": rows["train"][:3], "test": corners(rows["val"])})
    main(CNN, options(CNN, more=f"--data {data} --crop --val-split test --box-format xyxy"))
    out = options(CNN)[options(CNN).index("--out") + 1]
    results = predict.main([out, data])
    expected = read_run(Path(out)).rows
    assert [(r["image"], r["probability"]) for r in results] == list(
        zip(expected["image_id"], expected["probability"], strict=True)
    )
    assert [result["box"] for result in results] == [row["bbox"] for row in rows["val"]]
    assert "24 rows of test, boxes read as xyxy in pixels: 24 crops" in capsys.readouterr().out


def test_crops_of_images_without_boxes_are_whole_images_if_asked_for(cropped, photos):
    results = predict.main([cropped, str(photos), "--no-box-ok"])
    assert all(result["category"] and result["box"] is None for result in results) and len(results) == 3


def test_an_image_folder_with_labels(cropped, image_folder):
    results = predict.main([cropped, image_folder])
    assert len(results) == 24 and all(result["label"] and result["box"] for result in results)


def test_rows_of_the_training_data_are_pointed_out(copy, capsys):
    config = read_json(copy, "run.json")["config"]
    edit_json(copy, "run.json", config=config | {"split_by": "product_id"})
    predict.main([str(copy), VAL])
    assert "some of these rows may be its training data" in capsys.readouterr().out


def test_folders_named_after_classes_are_labels(cropped, rows, tmp_path, capsys):
    first, second, *_ = read_run(Path(cropped)).info.classes
    names = [f"{first.title()}/1.jpg", f"new/{second}/2.jpg", "Lost & Found/3.jpg", "4.jpg"]
    for name, row in zip(names, rows["val"], strict=False):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(row["image"]["bytes"])
    results = predict.main([cropped, str(tmp_path), "--no-box-ok"])
    out = capsys.readouterr().out
    assert {result["image"]: result["label"] for result in results} == dict(
        zip(names, [first, second, "lost_&_found", None], strict=True)
    )
    assert "4 images, labelled by their folders" in out and "does not know these categories: lost_&_found" in out
    right = sum(result["category"] == result["label"] for result in results)
    assert re.search(rf"accuracy +{right / 2}", out)
    for name in names[:2]:
        (tmp_path / name).unlink()
    results = predict.main([cropped, str(tmp_path), "--no-box-ok"])
    assert not any(result["label"] for result in results) and "accuracy" not in capsys.readouterr().out


# Inputs --------------------------------------------------------------------------------------------------------------


def test_items_are_the_stored_images_and_their_boxes(photos, boxes):
    inputs = read_inputs(str(photos), boxes=str(photos.parent / "boxes.csv"))
    items = list(inputs.items())
    assert [encoded for encoded, _ in items] == [(photos / name).read_bytes() for name in inputs.names]
    assert [box for _, box in items] == [boxes["a.jpg"], [0, 0, 20, 20], None, boxes["sub/c.jpg"]]


def test_items_of_a_table_are_its_rows(parquet, rows):
    inputs = read_inputs(parquet({"val": rows["val"]}))
    items = list(inputs.items())
    assert len(items) == len(inputs) == 24
    assert [encoded for encoded, _ in items] == [row["image"]["bytes"] for row in rows["val"]]
    assert [list(box) for _, box in items] == [row["bbox"] for row in rows["val"]]


def test_items_are_read_as_they_are_needed(parquet, rows):
    inputs, read = read_inputs(parquet({"val": rows["val"]})), []
    counted = lambda chosen: inputs.encoded(read.append(i) or i for i in chosen)  # noqa: E731
    assert next(replace(inputs, encoded=counted).items())[0] == rows["val"][0]["image"]["bytes"] and read == [0]


# A detector before ---------------------------------------------------------------------------------------------------

DETECTIONS = {
    "file_name": lambda i, name: {"file_name": name},
    "file name as id": lambda i, name: {"image_id": os.path.basename(name)},
    "stem": lambda i, name: {"image_id": Path(name).stem},
}


@pytest.fixture
def detect(photos, boxes):
    """A function that writes the boxes of a.jpg and sub/c.jpg, and a second of a.jpg, as COCO results."""

    def detect(name_image, wrap=list, bbox=(0, 0, 20, 20)):
        found = [("sub/c.jpg", boxes["sub/c.jpg"]), ("a.jpg", boxes["a.jpg"]), ("sub/c.jpg", list(bbox))]
        objects = [
            name_image(i, name) | {"bbox": box, "score": 0.5 + i / 10, "category_id": 1}
            for i, (name, box) in enumerate(found)
        ]
        (photos.parent / "detections.json").write_text(json.dumps(wrap(objects)))
        return str(photos.parent / "detections.json")

    return detect


@pytest.mark.parametrize("kind", DETECTIONS)
def test_the_file_of_a_detector_gets_categories(cropped, photos, predict_boxes, detect, tmp_path, kind):
    file, out = detect(DETECTIONS[kind]), tmp_path / "found.json"
    before = json.loads(Path(file).read_text())
    results = predict.main([cropped, str(photos), "--boxes", file, "--output", str(out)])
    after = json.loads(out.read_text())
    assert [{k: v for k, v in item.items() if k not in ("category", "probability")} for item in after] == before
    assert [r["image"] for r in results] == ["sub/c.jpg", "sub/c.jpg", "a.jpg"], "b.jpg, which has no box, is left out"
    expected = {(r["image"], tuple(r["box"])): r for r in predict_boxes() if r["box"]}
    assert after[1]["category"] == expected["a.jpg", tuple(before[1]["bbox"])]["category"]
    assert after[0]["category"] == results[0]["category"] and after[2]["probability"] == results[1]["probability"]
    predict.main([cropped, str(photos), "--boxes", file, "--output", str(out)])  # replaces its own file
    with pytest.raises(InputError, match="not from an earlier call"):
        predict.main([cropped, str(photos), "--boxes", file, "--output", file])


def test_a_coco_file_names_its_images(cropped, photos, detect, tmp_path):
    names, out = ("sub/c.jpg", "a.jpg"), tmp_path / "found.json"

    def wrap(objects):
        images = [{"id": 70 + i, "file_name": f"/elsewhere/{Path(name).name}"} for i, name in enumerate(names)]
        return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "object"}]}

    file = detect(lambda i, name: {"image_id": 70 + names.index(name)}, wrap, bbox=(0, 0, 4000, 20))
    predict.main([cropped, str(photos), "--boxes", file, "--output", str(out)])
    content = read_json(tmp_path, "found.json")
    assert content["images"] == json.loads(Path(file).read_text())["images"]
    assert content["annotations"][1]["category"] and content["annotations"][2]["category"] is None
    assert "extends outside" in content["annotations"][2]["error"]


def test_numbers_of_coco_name_files_with_leading_zeros(cropped, photos, detect):
    for number, name in ((139, "a.jpg"), (285, "sub/c.jpg")):
        (photos / name).rename(photos / f"{number:012}.jpg")
    results = predict.main([cropped, str(photos), "--boxes", detect(lambda i, name: {"image_id": [285, 139, 285][i]})])
    assert [r["image"] for r in results] == ["000000000285.jpg"] * 2 + ["000000000139.jpg"]


def test_numbers_of_coco_are_those_of_the_coco_file_in_the_folder(cropped, photos, detect):
    """But not if two of its files have different images of this id."""
    images = [{"id": 7, "file_name": "sub/c.jpg"}, {"id": 8, "file_name": "a.jpg"}]
    (photos / "train.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    file = detect(lambda i, name: {"image_id": {"sub/c.jpg": 7, "a.jpg": 8}[name]})
    results = predict.main([cropped, str(photos), "--boxes", file])
    assert [r["image"] for r in results] == ["sub/c.jpg", "sub/c.jpg", "a.jpg"]
    (photos / "val.json").write_text(json.dumps({"images": images[::-1], "annotations": [], "categories": []}))
    assert predict.main([cropped, str(photos), "--boxes", file]) == results
    images[0]["file_name"] = "b.jpg"
    (photos / "val.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    with pytest.raises(InputError, match="object 0 has the image '7', which is none of the images.*into their folder"):
        predict.main([cropped, str(photos), "--boxes", file])


WRONG = {
    "no JSON": ("[{", "is not valid JSON"),
    "empty": ("[]", "has no objects: there is nothing to classify"),
    "text": ('"a"', "must be a list of objects with bbox and image_id or file_name"),
    "huge": (f'[{{"file_name": "a.jpg", "bbox": [1{"0" * 400}, 1, 2, 3]}}]', "object 0: 10+,1,2,3 is not a box"),
    "numbers": ("[1]", "must be a list of objects"),
    "unknown": ('[{"image_id": 17, "bbox": [1, 2, 3, 4]}]', "object 0 has the image '17', which is none of the images"),
    "no id": ('[{"bbox": [1, 2, 3, 4]}]', "object 0 has no image_id and no file_name"),
    "no box": ('[{"file_name": "a.jpg"}]', "object 0: None is not a box"),
    "texts": ('[{"file_name": "a.jpg", "bbox": ["a", 1, 2, 3]}]', "object 0: a,1,2,3 is not a box"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_file_of_a_detector(cropped, photos, name):
    text, words = WRONG[name]
    (photos.parent / "wrong.json").write_text(text)
    with pytest.raises(InputError, match=f"--boxes .*wrong.json.*{words}"):
        predict.main([cropped, str(photos), "--boxes", f"{photos.parent}/wrong.json"])


def test_json_output_is_for_the_file_of_a_detector(cropped, photos, capsys):
    with pytest.raises(SystemExit):
        predict.main([cropped, str(photos), "--output", "found.json"])
    assert "--boxes FILE.json" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["coco", "yolo", "objects, parquet"])
def test_annotations_are_classified_and_scored(cropped, rows, tmp_path, capsys, layout):
    """With many objects in a photo, as they were decoded for training."""
    many = {s: [r for row in rows[s] for r in (row, dict(row, bbox=[0, 0, 90, 80]))] for s in rows}
    LAYOUTS[layout](tmp_path / "data", many)
    results = predict.main([cropped, str(tmp_path / "data")])
    train, val = load_splits(replace(read_run(Path(cropped)).config, data=str(tmp_path / "data"), cache=str(tmp_path)))
    boxes = {(stem(r["image"]), tuple(r["box"])): r for r in results}
    assert len(results) == 48 == len(val) and "accuracy" in capsys.readouterr().out
    inputs = read_inputs(str(tmp_path / "data"))
    crops = [
        c
        for p in inputs.photos()
        for c in decode_crops(*p, read_run(Path(cropped)).config, box_format=inputs.box_format)
    ]
    np.testing.assert_array_equal(np.stack([crop for crop, _ in crops]), val.pixels[val.index])
    assert {box for _, box in boxes} == {tuple(row["bbox"]) for row in many["val"]}


@pytest.mark.parametrize("layout", ["coco", "csv, roboflow", "voc, beside"])
def test_a_data_set_below_the_folder_is_scored_like_itself(cropped, rows, tmp_path, layout):
    LAYOUTS[layout](tmp_path / "outer" / "data", rows)
    (tmp_path / "outer" / "preview.jpg").write_bytes(
        (tmp_path / "outer" / "data").rglob("*.jpg").__next__().read_bytes()
    )
    results = predict.main([cropped, str(tmp_path / "outer")])
    assert results == predict.main([cropped, str(tmp_path / "outer" / "data")]) and len(results) == 24
    assert all(result["label"] for result in results)


def test_an_image_folder_among_other_photos_is_scored(cropped, image_folder, tmp_path):
    """As training reads it: with a split test, icons and photos elsewhere."""
    expected = predict.main([cropped, image_folder])
    (tmp_path / "outer").mkdir()
    Path(image_folder).rename(tmp_path / "outer" / "dataset")
    for place in ("dataset/test/Chair", "dataset/icons/Chair", "samples"):
        (tmp_path / "outer" / place).mkdir(parents=True)
        shutil.copy(next((tmp_path / "outer" / "dataset" / "val").rglob("*.jpg")), tmp_path / "outer" / place / "1.jpg")
    assert predict.main([cropped, str(tmp_path / "outer")]) == expected and len(expected) == 24
    (one,) = predict.main([cropped, str(tmp_path / "outer"), "--split", "test", "--no-box-ok"])
    assert one["label"] == "chair"


# Runs on the Hub -----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_the_hub(cropped, tmp_path, monkeypatch):
    """A run uploaded to the Hub, of which `snapshot_download` is replaced: files in its cache are links."""
    repo = tmp_path / "cache" / "models--me--chairs"
    snapshot = repo / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for path in Path(cropped).iterdir():
        if path.is_file():
            shutil.copy(path, repo / "blobs" / path.name)
            (snapshot / path.name).symlink_to(repo / "blobs" / path.name)
    (snapshot / "extra").mkdir()
    asked = []

    def download(name, *, allow_patterns, **more):
        asked.append((name, more.get("revision"), allow_patterns))
        if name != "me/chairs":
            raise OSError("404 Client Error")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("common.data.hub.reachable", lambda url: True)
    return snapshot, asked


def test_a_run_on_the_hub(cropped, photos, on_the_hub, boxes):
    line = [str(photos / "a.jpg"), "--bbox", ",".join(map(str, boxes["a.jpg"]))]
    assert predict.main(["me/chairs@v1", *line]) == predict.main([cropped, *line])
    ((name, revision, patterns),) = on_the_hub[1]
    assert (name, revision) == ("me/chairs", "v1") and "model.safetensors" in patterns and "train_*.py" in patterns
    with pytest.raises(InputError, match="me/nothing is neither a run folder nor a run on the Hub: 404"):
        predict.main(["me/nothing", *line])


def test_a_run_on_the_hub_is_exported_and_compared(cropped, on_the_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export.main(["me/chairs", "--to", "pt2"]) == Path("model.pt2"), "beside the run, it would be deleted"
    assert Path("model.pt2").stat().st_size > 1000
    first, second = (compare.main([run, "--out", "out"])["experiments"][0] for run in (cropped, "me/chairs"))
    assert all(first[name] == second[name] for name in ("n", "accuracy", "f1", "model"))
    assert [run["runs"][0]["folder"] for run in (first, second)] == [cropped, "me/chairs"]


def test_a_run_on_the_hub_is_called_by_its_id(cropped, on_the_hub, tmp_path, monkeypatch):
    """Everywhere in what is written and printed, not by the folder of its copy."""
    monkeypatch.chdir(tmp_path)
    comparison = compare.main(["me/chairs@v1", cropped, "--out", "out"])
    assert comparison["notes"][0] == f"left out: {cropped} has the same weights as me/chairs@v1"
    assert comparison["mistakes"]["run"] == "me/chairs@v1"
    assert "/run-" not in "".join(Path("out", f"comparison.{kind}").read_text() for kind in ("json", "md", "html"))
    with pytest.raises(InputError, match="^me/chairs@v1 needs|^--risk .* and me/chairs@v1 has"):
        predict.main(["me/chairs@v1", str(tmp_path), "--risk", "0.000001"])


def test_a_run_on_the_hub_is_checked_like_any_other(photos, on_the_hub, tmp_path):
    snapshot, _ = on_the_hub
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="is not the file that the run wrote"):
        predict.main(["me/chairs", str(photos / "a.jpg"), "--no-box-ok"])
    (tmp_path / "secret").write_text("{}")
    (snapshot / "labels.json").unlink()
    (snapshot / "labels.json").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="me/chairs: labels.json cannot be read: a link to a file outside"):
        predict.main(["me/chairs", str(photos / "a.jpg"), "--no-box-ok"])


# Sets of categories --------------------------------------------------------------------------------------------------


@pytest.fixture
def new_products(finished_run):
    """A run whose val rows show 24 products that are not in train."""
    return str(finished_run(CNN, "--crop --split-by product_id"))


def test_a_set_has_the_categories_that_are_as_probable_as_those_of_new_products(new_products, capsys):
    run = read_run(Path(new_products))
    calibration = calibrate(run, 0.1)
    results = predict.main([new_products, "sample", "--split", "train", "--risk", "0.1", "--top-k", "13"])
    for result in results:
        assert result["set"] == [name for name, p in result["top"] if np.float32(p) >= np.float32(calibration.least)]
        assert result["unlike"] == (np.float32(result["probability"]) < np.float32(calibration.familiar))
        sure = len(result["set"]) == 1 and not result["unlike"]
        assert result["answer"] == (result["set"][0] if sure else "unsure")
        assert result["category"] == result["top"][0][0], "stays available"
    *_, promise, counts = capsys.readouterr().out.splitlines()
    assert promise == calibration.promise and "calibrated on " in promise and "of 24 products: " in promise
    assert "at least 90 %" in promise and "at most 10 %" in promise
    answered = sum(result["answer"] != "unsure" for result in results)
    assert counts.startswith(f"answered {answered} of {len(results)} crops")


def test_the_answer_is_in_the_table_and_the_files(new_products, photos, tmp_path, monkeypatch, capsys):
    """The sets of three photos have one, three and one categories; the last photo is unlike the others."""
    sets = np.zeros((4, 13), bool)
    sets[0, 2] = sets[1, :3] = sets[3, 1] = True
    monkeypatch.setattr(Calibration, "sets", lambda *_: sets)
    monkeypatch.setattr(Calibration, "unlike", lambda *_: np.arange(4) == 3)
    names = read_run(Path(new_products)).info.classes
    line = [new_products, str(photos), "--boxes", str(photos.parent / "boxes.csv"), "--risk", "0.2"]
    results = predict.main([*line, "--output", str(tmp_path / "a.csv"), "--gallery", str(tmp_path / "a.png")])
    assert [r["answer"] for r in results] == [names[2], "unsure", None, "unsure"]
    assert [sorted(r["set"]) for r in results] == [[names[2]], names[:3], [], [names[1]]]
    assert [r["unlike"] for r in results] == [False, False, None, True]
    printed = capsys.readouterr().out
    assert "| answer" in printed and "| unsure " in printed
    assert "answered 1 of 3 crops; unsure about 2, of which 1 may show something else" in printed
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["answer"] for row in rows] == [names[2], "unsure", "", "unsure"]
    assert [row["unlike"] for row in rows] == ["False", "False", "", "True"]
    assert [row["set"] for row in rows] == ["; ".join(result["set"]) for result in results]
    predict.main([*line, "--output", str(tmp_path / "a.csv")])  # replaces its own file
    for _ in range(2):
        predict.main([*line, "--output", str(tmp_path / "a.jsonl")])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(text) for text in lines] == results
    captions = [caption(result, None) for result in results]
    assert captions[0].startswith(results[0]["category"]) and captions[1].startswith(
        f"unsure: {results[1]['category']} "
    )


def test_answers_are_added_to_the_file_of_a_detector(new_products, photos, detect, tmp_path):
    line = [
        new_products,
        str(photos),
        "--boxes",
        detect(DETECTIONS["file_name"]),
        "--risk",
        "0.1",
        "--output",
        str(tmp_path / "a.json"),
    ]
    for _ in range(2):
        results = predict.main(line)
    objects = json.loads((tmp_path / "a.json").read_text())
    assert [item["answer"] for item in objects] == [r["answer"] for r in results] and all("set" in o for o in objects)


def test_right_answers_are_counted(new_products, monkeypatch, capsys):
    monkeypatch.setattr(Calibration, "sets", lambda _, p: p == p.max(1, keepdims=True))
    monkeypatch.setattr(Calibration, "unlike", lambda _, p: np.zeros(len(p), bool))
    results = predict.main([new_products, VAL, "--risk", "0.1"])
    right = sum(result["answer"] == result["label"] for result in results)
    assert f"answered 130 of 130 crops (right: {right} of the 130 with a label)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("which", "line", "words"),
    [
        (
            "new_products",
            "--risk 0.01",
            "--risk 0.01 needs at least 99 products .* has 24: train with fewer folds, or .*--risk 0.04 or more",
        ),
        (
            "cropped",
            "--risk 0.05",
            "needs at least 19 products .* has 12: train with --split-by product_id, or .* 0.077 ",
        ),
    ],
)
def test_a_risk_needs_enough_new_products(which, line, words, request, photos):
    with pytest.raises(InputError, match=words):
        predict.main([request.getfixturevalue(which), str(photos), "--boxes", "boxes.csv", *line.split()])


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "line", "words"),
    [
        ("cropped", "{photos}", "--no-box-ok"),
        ("cropped", "{photos} --bbox 1,2,3,4", "--bbox .*3 images"),
        ("cropped", "{photos}/a.jpg --bbox 1,2,3", "--bbox: 1,2,3 is not a box"),
        ("cropped", "{photos}/a.jpg --bbox 1,2,3,9999", "1 image: .*9999.*outside"),
        ("cropped", "{photos} --boxes {photos}/nope.csv", "nope.csv"),
        ("cropped", "{photos} --boxes {photos}/wrong.csv", "wrong.csv has no column x, y, width, height"),
        ("cropped", "{photos} --boxes {photos}/typo.csv", "typo.csv, line 2: A.jpg .*a.jpg"),
        ("cropped", "{photos} --boxes {photos}/letters.csv", "letters.csv, line 2: .*not a box"),
        ("cropped", "{photos} --boxes {photos}/header.csv", "header.csv has no column x, y, width, height"),
        ("cropped", "{photos} --boxes {photos}/commas.csv", "commas.csv cannot be read: line 3 has more values"),
        ("cropped", "{photos} --boxes {photos}/twice.csv", "twice.csv cannot be read: it has several columns x"),
        ("cropped", "{photos} --boxes {photos}/fifo", "fifo cannot be read: not a regular file"),
        ("cropped", "{photos} --boxes /dev/zero", "/dev/zero cannot be read: not a regular file"),
        ("cropped", "{photos}/a.jpg --bbox 1,2,3,4 --boxes {photos}/wrong.csv", "--bbox and --boxes"),
        ("whole", f"{300 * 'a'}", "aaa: no images found"),
        ("whole", f"{300 * 'a'}.parquet", "aaa.parquet: no such file"),
        ("whole", f"{300 * 'a'}/b", "Hub cannot be reached"),
        ("whole", "{photos}/nothing*.png", "nothing\\*.png: no image"),
        ("whole", "{photos}/nothing.png", "nothing.png: no image"),
        ("whole", "{photos} --split val", "--split val"),
        ("whole", "sample --split test", "test, .*train, validation.*--split"),
        ("whole", "{photos}/../both", "both Parquet files and images"),
        ("cropped", "{photos}/../texts.parquet", "column bbox of .*texts.parquet"),
        ("whole", "sample --bbox 1,2,3,4", "sample .*--bbox"),
        ("whole", "nowhere/at-all", "Hub cannot be reached"),
    ],
)
def test_mistakes(whole, cropped, photos, which, line, words, monkeypatch):
    (photos / "wrong.csv").write_text("file,left\na.jpg,1\n")
    (photos / "header.csv").write_text("file,left\n")
    (photos / "commas.csv").write_text("file,x,y,width,height\na.jpg,1,2,3,4\na.jpg,1,5,2,5,30,5,40,5\n")
    (photos / "twice.csv").write_text("file,x,y,width,height,x\na.jpg,1,2,3,4,5\n")
    (photos / "typo.csv").write_text("file,x,y,width,height\nA.jpg,1,2,3,4\n")
    (photos / "letters.csv").write_text("file,x,y,width,height\na.jpg,1,2,three,4\n")
    shutil.copytree(photos, photos.parent / "both")
    pd.DataFrame({"image": [b""], "bbox": ["1,2,3,4"]}).to_parquet(photos.parent / "texts.parquet")
    shutil.copy(photos.parent / "texts.parquet", photos.parent / "both")
    os.mkfifo(photos / "fifo")
    monkeypatch.setattr("common.data.hub.reachable", lambda url: False)
    with pytest.raises(InputError, match=words):
        predict.main([{"whole": whole, "cropped": cropped}[which], *line.format(photos=photos).split()])


INVALID = ["--output found.txt", "--gallery found.jpg", "--top-k 0", "--max-megapixels 0"]
INVALID += ["--risk 0", "--risk 1", "--risk nan", "--risk 0.1 --no-box-ok"]


@pytest.mark.parametrize("option", INVALID)
def test_invalid_options(whole, option, capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main([whole, "photo.csv", *option.split()])
    assert stop.value.code == 2 and option.split()[0] in capsys.readouterr().err


OUTPUTS = [  # each of them may be named as the file for a result
    (predict.main, ["RUN", "photos", "--output", "FILE.csv"]),
    (predict.main, ["RUN", "photos", "--output", "FILE.jsonl"]),
    (predict.main, ["RUN", "photos", "--gallery", "FILE.png"]),
    (export.main, ["RUN", "--output", "FILE.onnx"]),
    (export.main, ["RUN", "--to", "pt2", "--output", "FILE.pt2"]),
    (audit.main, ["--out", "FILE.json"]),
]


@pytest.mark.parametrize(("main", "argv"), OUTPUTS, ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_results_replace_nothing_but_files(main, argv, tmp_path, monkeypatch):
    """This is checked first of all: here there is neither a run nor data."""
    monkeypatch.chdir(tmp_path)
    suffix = Path(argv[-1]).suffix
    (tmp_path / "target").write_text("target")
    Path(f"link{suffix}").symlink_to("target")
    Path(f"dangling{suffix}").symlink_to("nowhere")
    Path(f"folder{suffix}").mkdir()
    os.mkfifo(f"fifo{suffix}")
    before = sorted(tmp_path.rglob("*"))
    for name, words in (
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("folder", "a folder"),
        ("fifo", "not a regular file"),
        ("target/x", "cannot be created"),
    ):
        with pytest.raises(InputError, match=words):
            main([word.replace("FILE", name) for word in argv])
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "target").read_text() == "target"


def test_files_of_a_run_are_not_replaced(copy, monkeypatch, tmp_path):
    before = {path: path.read_bytes() for path in copy.iterdir()}
    assert {path.name for path in copy.iterdir()} <= {*RUN_FILES, "train_custom_cnn.py"}
    (tmp_path / "link").symlink_to(copy)
    monkeypatch.chdir(copy)
    for tool, argv in (
        (predict.main, [str(copy), VAL, "--output", str(copy / "predictions.csv")]),
        (predict.main, [str(copy), VAL, "--output", str(tmp_path / "link" / "Predictions.csv")]),
        (predict.main, [str(copy), VAL, "--output", str(copy / "nothing" / ".." / "log.jsonl")]),
        (predict.main, [str(copy), VAL, "--gallery", "confusion.png"]),
        (audit.main, ["--data", "sample", "--out", "run.json"]),
        (audit.main, ["--data", "sample"]),  # data_report.json, which is the default
    ):
        with pytest.raises(InputError, match="belongs to the run"):
            tool(argv)
    assert before == {path: path.read_bytes() for path in copy.iterdir()}


def test_files_of_other_origin_are_not_replaced(whole, photos, tmp_path, monkeypatch):
    """Among them are the inputs, under any other name: relative, as a hard link, or in a folder or glob."""
    monkeypatch.chdir(photos)
    boxes = photos.parent / "boxes.csv"
    os.link(boxes, "hard.csv")
    Image.open("a.jpg").save("b.png")
    (photos / "metadata.jsonl").write_text('{"image": "a.jpg", "category": "bed", "probability": 1}\n')
    (photos / "own.csv").write_text("image,category,probability,label\na.jpg,bed,1,mine\n")
    (photos / "own.jsonl").write_text("[" * 100_000)
    (photos / "empty.csv").write_text("")
    Figure().savefig("own.png")
    for line in (
        f"a.jpg --boxes {boxes} --output ../boxes.csv",
        f". --boxes {boxes} --output hard.csv",
        f"{photos} --gallery ../photos/b.png",
        "./b.png --gallery b.png",
        "*.png --gallery ./b.png",
        f"{photos} --output metadata.jsonl",
        "a.jpg --output own.csv",
        "a.jpg --output own.jsonl",
        "a.jpg --output empty.csv",
        "a.jpg --gallery own.png",
    ):
        before = {path: path.read_bytes() for path in photos.parent.rglob("*") if path.is_file()}
        with pytest.raises(InputError, match="not from an earlier call"):
            predict.main([whole, *line.split()])
        assert before == {path: path.read_bytes() for path in before}
    for name in ("results.csv", "results.jsonl"):
        for source in (photos, "a.jpg"):
            results = predict.main([whole, str(source), "--output", name, "--gallery", "../found.png"])
        assert len(Path(name).read_text().splitlines()) == len(results) + name.endswith(".csv"), "replaced"


def test_only_exports_are_replaced_by_an_export(cropped, tmp_path):
    for path in (tmp_path / "model.pt2", tmp_path / "model.onnx"):
        path.write_bytes(b"mine")
        with pytest.raises(InputError, match=f"{path} is not from an earlier call"):
            export.main([cropped, "--to", path.suffix[1:], "--output", str(path)])
        assert path.read_bytes() == b"mine"
    path = tmp_path / "again.pt2"
    for _ in range(2):
        assert export.main([cropped, "--to", "pt2", "--output", str(path)]) == path


def test_nothing_is_written_beside_a_checkpoint(tmp_path):
    """It would be deleted with it."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="deleted together with the checkpoint"):
        audit.main(["--data", "sample", "--out", str(tmp_path / "checkpoint" / "report.json")])


# Boxes of another convention -----------------------------------------------------------------------------------------


def to_corners(x, y, w, h):
    return [x, y, x + w, y + h]


def changed_boxes(rows, change):
    return {"val": [dict(row, bbox=change(*row["bbox"])) for row in rows["val"]]}


@pytest.mark.parametrize(
    ("change", "words"),
    [(to_corners, "of 24 boxes .*look like corners"), (lambda *box: [v / 448 for v in box], "24 of 24.*fractions")],
)
def test_a_table_of_boxes_of_another_convention_is_refused(cropped, parquet, rows, tmp_path, capsys, change, words):
    table = parquet(changed_boxes(rows, change))
    outputs = ["--output", str(tmp_path / "found.csv"), "--gallery", str(tmp_path / "found.png")]
    with pytest.raises(InputError, match=f"24 rows: .*{words}"):
        predict.main([cropped, table, *outputs])
    assert not capsys.readouterr().out and not list(tmp_path.glob("found*")), "nothing is printed or written"


def test_whole_images_need_no_valid_boxes(whole, parquet, rows):
    assert all(result["category"] for result in predict.main([whole, parquet(changed_boxes(rows, to_corners))]))


def test_a_file_of_boxes_of_another_convention_is_refused(cropped, tmp_path, rows):
    lines = ["file,x,y,width,height"]
    for i, row in enumerate(rows["val"]):
        (tmp_path / f"{i}.jpg").write_bytes(row["image"]["bytes"])
        lines.append(f"{i}.jpg,{','.join(map(str, to_corners(*row['bbox'])))}")
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="24 images: .* of 24 boxes .*look like corners"):
        predict.main([cropped, str(tmp_path), "--boxes", str(tmp_path / "boxes.csv")])


def test_a_single_box_of_fractions_is_refused(cropped, whole, photos, capsys):
    line = [str(photos / "a.jpg"), "--bbox", "0.1,0.2,0.5,0.6"]
    with pytest.raises(InputError, match="1 image: .*0.1, 0.2, 0.5, 0.6.* look like fractions of the image"):
        predict.main([cropped, *line])
    assert not capsys.readouterr().out
    assert predict.main([whole, *line])[0]["category"], "a model of whole images does not use the box"


def test_boxes_in_one_corner_are_pointed_out(cropped, parquet, rows, capsys):
    predict.main([cropped, parquet(changed_boxes(rows, lambda *box: [v / 4 for v in box]))])
    assert "24 of 24 boxes lie in the upper left quarter" in capsys.readouterr().out


# Images and names of any kind ----------------------------------------------------------------------------------------


def test_a_crop_has_the_memory_layout_of_the_pixel_array():
    """A transposed array makes a channels-last batch: other kernels, and logits that differ in the last digits."""
    ((crop, _),) = decode_crops(encode(photo()), False, [None], DataConfig(image_size=32))
    assert crop.shape == (3, 32, 32) and crop.flags.c_contiguous


def test_unreadable_images_do_not_stop_it(whole, tmp_path, capsys):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name, make in {**READABLE, **UNREADABLE}.items():
        (folder / name).write_bytes(make())
    (folder / "a_folder.jpg").mkdir()
    os.symlink(folder / "gone", folder / "broken_link.jpg")
    results = predict.main([whole, str(folder), "--gallery", str(tmp_path / "found.png")])
    failed = {result["image"]: result["error"] for result in results if result["error"]}
    assert set(failed) == set(UNREADABLE) | {"broken_link.jpg"} and all(failed.values())
    assert {result["image"] for result in results if result["category"]} == set(READABLE)
    assert f"{len(READABLE)} classified, {len(failed)} failed" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the filter of the project
def test_the_largest_photo_is_up_to_the_user(whole, tmp_path):
    """Not to the run folder, which may come from elsewhere."""
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    edit_json(copy, "run.json", config=read_json(copy, "run.json")["config"] | {"max_megapixels": 10**6})
    (tmp_path / "large.jpg").write_bytes(encode(photo(2000, 1000)))
    (tmp_path / "bomb.png").write_bytes(UNREADABLE["bomb.png"]())
    (tmp_path / "small.jpg").write_bytes(encode(photo()))
    for limit, failed in (("1", ["bomb.png", "large.jpg"]), ("2", ["bomb.png"]), (None, ["bomb.png"])):
        options = ["--max-megapixels", limit] * bool(limit) + ["--gallery", str(tmp_path / "found" / "found.png")]
        results = [r for r in predict.main([str(copy), f"{tmp_path}/*.*g", *options]) if r["error"]]
        assert [Path(result["image"]).name for result in results] == failed
        assert all("--max-megapixels" in result["error"] for result in results)
    assert "3600000000 pixels" in results[0]["error"] and "179000000" in results[0]["error"]


def test_failures_far_down_are_listed(whole, rows, tmp_path, capsys):
    for i in range(30):
        (tmp_path / f"{i:02}.jpg").write_bytes(rows["val"][0]["image"]["bytes"] if i != 25 else b"")
    predict.main([whole, str(tmp_path)])
    printed = capsys.readouterr().out
    assert "25.jpg" in printed and "empty" in printed and "and 9 more" in printed


def test_rows_that_share_an_id_or_have_none_stay_apart(cropped, parquet, rows, tmp_path):
    """Eight photos, not one with eight boxes."""
    copies = [dict(row, image_id=None if i % 2 else "same") for i, row in enumerate(rows["val"][:8])]
    results = predict.main([cropped, parquet({"val": copies}), "--gallery", str(tmp_path / "found.png")])
    names = [name for i in range(0, 8, 2) for name in ("same", f"row {i + 1}")]
    assert [result["image"] for result in results] == names
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.height > 500, "two lines of photos"


def test_an_invalid_box_has_a_reason_and_no_frame(cropped, parquet, rows, tmp_path):
    table = parquet({"val": [dict(rows["val"][0], bbox=[1, None, 3, 4]), *rows["val"][1:3]]})
    first, *others = predict.main([cropped, table, "--gallery", str(tmp_path / "found.png")])
    assert "None" in first["error"] and first["box"] == [1, None, 3, 4]
    assert all(result["category"] for result in others)


def test_labels_that_the_run_does_not_know_are_not_scored(cropped, parquet, rows, capsys):
    table = parquet({"val": [dict(rows["val"][0], category="Spaceship"), *rows["val"][1:5]]})
    predict.main([cropped, table])
    printed = capsys.readouterr().out
    assert "spaceship" in printed and re.search(r"^n +4$", printed, re.MULTILINE)


def test_file_names_of_any_kind(whole, rows, tmp_path, capsys):
    folder = tmp_path / "a [b] ü"
    (folder / "train").mkdir(parents=True)
    photo = rows["val"][0]["image"]["bytes"]
    for name in ("x [1].jpg", "train/ü.jpg", ".hidden.jpg", b"st\xfchl.jpg".decode("utf-8", "surrogateescape")):
        (folder / name).write_bytes(photo)
    results = predict.main([whole, str(folder), "--output", str(tmp_path / "found.csv")])
    assert len(results) == 3 and "st\\udcfchl.jpg" in capsys.readouterr().out
    assert b"st\xfchl.jpg" in (tmp_path / "found.csv").read_bytes()


def test_a_table_whose_name_looks_like_a_glob(whole, tmp_path):
    shutil.copy(VAL, tmp_path / "val[1].parquet")
    assert len(predict.main([whole, str(tmp_path / "val[1].parquet")])) == 130


# Export --------------------------------------------------------------------------------------------------------------


def run_pt2(path, images):
    texts = {"labels.txt": "", "preprocessing.txt": "", "preprocessing_steps.txt": ""}
    logits = torch.export.load(path, extra_files=texts).module()(torch.from_numpy(images)).detach().numpy()
    return logits, {name.removesuffix(".txt"): text for name, text in texts.items()}


def run_onnx(path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {"images": images})[0], session.get_modelmeta().custom_metadata_map


SLOW_EXPORTS = [("train_resnet", "onnx"), ("train_vit", "onnx"), ("train_custom_vit", "onnx")]
SLOW_EXPORTS += [("train_resnet", "pt2"), ("train_vit", "pt2")]
EXPORTS = [
    pytest.param(script, kind, marks=[pytest.mark.slow] * ((script, kind) in SLOW_EXPORTS))
    for script in SCRIPTS
    for kind in ("pt2", "onnx")
]


@pytest.mark.parametrize(("script", "kind"), EXPORTS)
def test_an_exported_model_predicts_the_same(finished_run, script, kind, tmp_path, capsys):
    if kind == "onnx":
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    folder = finished_run(script)
    path = export.main([str(folder), "--to", kind, "--output", str(tmp_path / f"model.{kind}")])
    assert re.search("130 of 130 .*predictions.csv", capsys.readouterr().out)
    assert torch.backends.mha.get_fastpath_enabled(), "export.py restores the setting, which changes the last digits"
    run = read_run(folder)
    val = run.splits()[1]
    assert formats.is_export(path), "which a later export may replace"
    logits, texts = {"onnx": run_onnx, "pt2": run_pt2}[kind](path, val.pixels[val.index[:7]])
    labels, crop = json.loads(texts["labels"]), json.loads(texts["preprocessing"])
    assert labels == run.info.classes
    assert crop.pop("formats") == ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "pad_color": [124, 116, 104]}
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_color": [128, 128, 128]}
    normalization = half if script == "train_timm" else imagenet  # of the small models of the tests
    assert crop == {"crop": True, "margin": 0.1, "fit": "pad", "image_size": 32} | normalization
    for words in (
        "extended by 0.1 x its width",
        "BILINEAR",
        "image.draft",
        "32 x 32 pixels of the RGB",
        f"mean {tuple(normalization['mean'])}",
    ):
        assert words in texts["preprocessing_steps"]
    assert [labels[i] for i in logits.argmax(1)] == run.rows["prediction"].tolist()[:7]


WITHOUT_PROJECT = """
import json, runpy, sys
for name in ("torch", "torchvision", "datasets", "accelerate", "scipy", "common"):
    sys.modules[name] = None  # importing it fails
script, model, files = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
functions = runpy.run_path(script)
session = functions["onnxruntime"].InferenceSession(model)
results = {}
for path, box in files.items():
    try:
        results[path] = functions["classify"](session, path, box)
    except (OSError, ValueError) as error:
        results[path] = str(error)
print(json.dumps(results))
"""


@pytest.fixture
def photos_of_any_kind(tmp_path, rows):
    """Paths of image files and a box in each: all kinds of files, and photos that are decoded at a reduced scale."""
    large = Image.open(io.BytesIO(rows["val"][0]["image"]["bytes"])).convert("RGB").resize((1500, 2000))
    tags = Image.Exif()
    tags[0x0112] = 6
    files = {name: make() for name, make in READABLE.items()} | {
        "large.jpg": encode(large),
        "large_turned.jpg": encode(large, exif=tags),
        "large_cmyk.jpg": encode(large.convert("CMYK")),
        "large_grey.jpg": encode(large.convert("L")),
        "large.png": encode(large, "PNG"),
        "odd.jpg": encode(large.crop((0, 0, 1237, 1003)), exif=tags),
        "wide.jpg": encode(large.crop((0, 0, 1500, 90))),
        "turned.tiff": encode(photo(), "TIFF", exif=tags),
    }
    boxes = {}
    for name, content in files.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with Image.open(path) as image:
            width, height = ImageOps.exif_transpose(image).size
        boxes[str(path)] = [0.125 * width, 0.26 * height, 0.61 * width, 0.7 * height]
    return boxes


@pytest.mark.parametrize(
    "options",
    ["--crop", pytest.param("--crop --fit squash", marks=pytest.mark.slow), pytest.param("", marks=pytest.mark.slow)],
)
def test_the_script_beside_an_onnx_file_predicts_the_same(finished_run, options, photos_of_any_kind, tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    run, model, csv_file = finished_run(CNN, options), tmp_path / "a model.onnx", tmp_path / "boxes.csv"
    export.main([str(run), "--output", str(model)])
    with open(csv_file, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "x", "y", "width", "height"])
        writer.writerows([Path(path).name, *box] for path, box in photos_of_any_kind.items())
    expected = predict.main([str(run), str(tmp_path / "files"), "--boxes", str(csv_file), "--top-k", "12"])
    (tmp_path / "boxes.json").write_text(json.dumps(photos_of_any_kind))
    script = tmp_path / "a model_onnx.py"
    arguments = [script, model, tmp_path / "boxes.json"]
    done = launch([sys.executable, "-I", "-c", WITHOUT_PROJECT, *map(str, arguments)])
    actual = {Path(path).name: result for path, result in json.loads(done.stdout).items()}
    assert len(expected) == len(actual) and sum(not result["error"] for result in expected) > 22
    for result in expected:
        found = actual[result["image"]]
        if result["error"]:
            assert isinstance(found, str), result
            continue
        assert found[0][0] == result["category"], result
        assert dict(found) == pytest.approx(dict(result["top"]), abs=1e-5), result

    # the command line
    (result,) = [result for result in expected if result["image"] == "odd.jpg"]
    odd, eps = str(tmp_path / "files" / "odd.jpg"), tmp_path / "eps.jpg"
    eps.write_bytes(encode(photo(), "EPS"))
    box = ",".join(map(str, photos_of_any_kind[odd]))
    done = launch([sys.executable, "-I", str(script), odd, "--bbox", box])
    label, probability = done.stdout.splitlines()[0].split()
    assert (label, float(probability)) == (result["category"], pytest.approx(result["probability"], abs=1e-4))
    wrong = {"missing.jpg --bbox 1,2,3,4": "missing.jpg", f"{odd} --bbox 1,2,3,x": "'x'"}
    wrong |= {f"{eps} --bbox 1,2,3,4": "cannot identify"} | ({odd: "give the box"} if "--crop" in options else {})
    for line, words in wrong.items():
        done = launch([sys.executable, "-I", str(script), *line.split()])
        assert done.returncode == 1 and done.stderr.startswith("error: ") and words in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_script_of_another_origin_is_not_replaced(cropped, tmp_path):
    script = tmp_path / "model_onnx.py"
    script.write_text("my own work")
    with pytest.raises(InputError, match=f"{script}, .* file of yours"):
        export.main([cropped, "--output", str(tmp_path / "model.onnx")])
    assert script.read_text() == "my own work" and not (tmp_path / "model.onnx").exists()
    formats.write_script(script)
    assert formats.script_path(tmp_path / "model.onnx") == script, "the script of an earlier export is replaced"


def test_the_script_is_for_onnx_alone(cropped, tmp_path):
    export.main([cropped, "--to", "pt2", "--output", str(tmp_path / "model.pt2")])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_an_export_that_disagrees_with_pytorch_is_not_kept(cropped, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    write, _ = formats.FORMATS["pt2"]
    monkeypatch.setitem(formats.FORMATS, "pt2", (write, lambda path: lambda images: np.eye(12)[[3] * len(images)]))
    with pytest.raises(InputError, match=rf"{path} .* \d+ of 130 val rows"):
        export.main([cropped, "--to", "pt2", "--output", str(path)])
    assert not list(tmp_path.iterdir())


def test_an_export_does_not_overwrite_the_runs_weights(cropped, capsys):
    with pytest.raises(SystemExit):
        export.main([cropped, "--to", "pt2", "--output", f"{cropped}/model.safetensors"])
    assert ".pt2" in capsys.readouterr().err


def test_a_run_whose_data_is_gone_is_checked_on_noise(copy, tmp_path, capsys):
    config = read_json(copy, "run.json")["config"]
    edit_json(copy, "run.json", config=config | {"data": str(tmp_path / "gone")})
    assert export.main([str(copy), "--to", "pt2"]) == copy / "model.pt2"
    assert (copy / "model.pt2").exists() and "noise" in capsys.readouterr().out


def test_missing_packages_are_named(cropped, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="pip install -e"):
        export.main([cropped, "--output", str(tmp_path / "model.onnx")])


# Run folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("labels.json", "bed", "bath", "labels.json and run.json"),
        ("run.json", "8k3p2", "9k3p2", "builds another model"),
        ("run.json", '"script": "train_custom_cnn"', '"script": "os"', "os is not a training script"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(copy, name, old, new, words):
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=words):
        predict.main([str(copy), VAL])


def test_half_a_file_of_weights_is_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match="copy/model.safetensors is not the file"):
        predict.main([str(copy), VAL])


def test_an_unfinished_run_is_refused(copy):
    (copy / "metrics.json").unlink()
    with pytest.raises(InputError, match="copy holds an unfinished run"):
        predict.main([str(copy), VAL])


@pytest.fixture
def own_script(copy, tmp_path, monkeypatch):
    """A run of train_mine.py, a copy of a script in another project folder."""
    shutil.copy(provenance.PROJECT / "train_custom_cnn.py", tmp_path / "train_mine.py")
    (copy / "train_custom_cnn.py").rename(copy / "train_mine.py")
    code = read_json(copy, "run.json")["code"]
    edit_json(copy, "run.json", script="train_mine", code=code | {"train_mine.py": code["train_custom_cnn.py"]})
    monkeypatch.syspath_prepend(tmp_path)
    return copy


def test_a_run_of_a_script_that_is_not_in_the_project(own_script):
    with pytest.raises(InputError, match="train_mine.py"):
        read_run(own_script).model()


def test_a_run_of_another_script_in_the_project(own_script, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    assert type(read_run(own_script).config).__module__ == "train_mine"
    predict.main([str(own_script), VAL, "--output", str(tmp_path / "found.csv")])
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 131


def test_the_model_card_is_one_that_the_hub_reads(cropped):
    card, metrics = ModelCard.load(Path(cropped) / "README.md"), read_json(Path(cropped), "metrics.json")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: metrics[name] for name in ("accuracy", "precision", "recall", "f1")}
    assert card.data.pipeline_tag == "image-classification"


def test_the_model_card_has_scores_with_intervals_and_the_command(cropped):
    text = (Path(cropped) / "README.md").read_text()
    metrics = read_json(Path(cropped), "metrics.json")
    for name, title in METRICS.items():
        assert re.search(rf"\| {title} +\| {metrics[name]:.3f} \[0\.\d+, 0\.\d+\]", text)
    assert (
        "95 % confidence interval" in text
        and "python train_custom_cnn.py" in text
        and "armchair, bed, bookcase" in text
    )
