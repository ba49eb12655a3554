"""predict.py and export.py: a finished run, moved elsewhere, gives the same answers again."""

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import export
import predict
from common import finished
from common.config import InputError
from common.finished import read_run
from tests.conftest import SAMPLE
from tests.test_hostile import BAD, GOOD
from tests.test_scripts import SMALL

ROOT = Path(__file__).parent.parent
VAL = str(SAMPLE / "val-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """A small finished run of each script, and of the CNN one on whole images; each moved after its training."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for script, variant in [*((script, "--crop") for script in SMALL), ("train_custom_cnn", "")]:
        out = folder / "before" / f"{script}{variant}"
        line = f"--data sample --epochs 1 --batch-size 64 --fit pad --margin 0.1 {variant} --cache {cache} --out {out}"
        importlib.import_module(script).main([*line.split(), *SMALL[script].split()])
        found[script, variant] = shutil.move(out, folder / out.name)
    return found


@pytest.fixture(scope="module")
def whole(runs):
    return str(runs["train_custom_cnn", ""])


@pytest.fixture(scope="module")
def cropped(runs):
    return str(runs["train_custom_cnn", "--crop"])


@pytest.fixture
def photos(tmp_path, rows):
    """Three photos of the sample in a folder, and the boxes of two of them."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    boxes = {}
    for name, row in zip(("a.jpg", "b.jpg", "sub/c.jpg"), rows["val"], strict=False):
        (folder / name).write_bytes(row["image"]["bytes"])
        boxes[name] = row["bbox"]
    lines = ["file,x,y,width,height", *(f"{name},{','.join(map(str, boxes[name]))}" for name in ("sub/c.jpg", "a.jpg"))]
    (tmp_path / "boxes.csv").write_text("\n".join([*lines, "a.jpg,0,0,20,20"]))
    return folder, boxes


@pytest.mark.parametrize("key", [(script, "--crop") for script in SMALL] + [("train_custom_cnn", "")])
def test_the_val_table_gives_the_runs_own_predictions_and_metrics(runs, key, capsys):
    folder = runs[key]
    answers = predict.main([str(folder), VAL])
    rows = read_run(folder).rows
    assert [answer["image"] for answer in answers] == rows["image_id"].tolist()
    assert [answer["category"] for answer in answers] == rows["prediction"].tolist()
    assert [answer["probability"] for answer in answers] == rows["probability"].tolist(), "to the last digit"
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if len(line.split()) == 2)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {name: float(printed[name]) for name in metrics if name != "best_epoch"} == {
        name: value for name, value in metrics.items() if name != "best_epoch"
    }


def test_files_as_the_terminal_has_them(cropped, photos, tmp_path):
    """Two boxes in one photo, one photo without a box; CSV, JSON lines and a gallery."""
    folder, boxes = photos
    outputs = [tmp_path / name for name in ("found.csv", "found.jsonl", "found.png")]
    for output in outputs[:2]:
        line = [cropped, str(folder), "--boxes", str(tmp_path / "boxes.csv"), "--output", str(output), "--top-k", "2"]
        done = subprocess.run(
            [sys.executable, "predict.py", *line, "--gallery", str(outputs[2])],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "3 images, 4 crops, 3 classified, 1 not" in done.stdout and "no box" in done.stdout
    answers = [json.loads(line) for line in outputs[1].read_text().splitlines()]
    assert [answer["image"] for answer in answers] == ["a.jpg", "a.jpg", "b.jpg", "sub/c.jpg"]
    assert answers[0]["box"] == boxes["a.jpg"] and answers[1]["box"] == [0, 0, 20, 20]
    assert answers[2]["error"] == "no box" and answers[2]["category"] is None
    assert all(len(answer["top"]) == 2 for answer in answers if not answer["error"])
    with open(outputs[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == [answer["category"] or "" for answer in answers]
    assert float(rows[0]["width"]) == boxes["a.jpg"][2]
    with Image.open(outputs[2]) as picture:
        assert picture.width > 600 and picture.convert("L").getextrema() != (255, 255)


def test_one_image_with_a_box_is_its_row_of_the_table(cropped, photos):
    folder, boxes = photos
    bbox = ",".join(map(str, boxes["b.jpg"]))
    (answer,) = predict.main([cropped, str(folder / "b.jpg"), "--bbox", bbox])
    row = read_run(Path(cropped)).rows.iloc[1]
    assert answer["category"] == row["prediction"]
    assert answer["probability"] == pytest.approx(row["probability"], rel=1e-4)


def test_sources(whole, cropped, photos, capsys):
    folder, _ = photos
    assert len(predict.main([whole, str(folder)])) == 3
    assert [a["image"] for a in predict.main([whole, f"{folder}/*.jpg"])] == [f"{folder}/a.jpg", f"{folder}/b.jpg"]
    assert len(predict.main([cropped, str(folder), "--no-box-ok"])) == 3
    assert len(predict.main([whole, str(SAMPLE), "--split", "train"])) == 508
    assert len(predict.main([whole, "sample", "--split", "val"])) == 130
    assert "trained on whole images: it did not look at the boxes" in capsys.readouterr().out


def test_an_image_folder_with_labels(cropped, image_folder):
    answers = predict.main([cropped, image_folder])
    assert len(answers) == 24 and all(answer["label"] and answer["box"] for answer in answers)


@pytest.mark.parametrize(
    ("which", "line", "words"),
    [
        ("cropped", "{photos}", "comes without boxes.*--no-box-ok"),
        ("cropped", "{photos} --bbox 1,2,3,4", "--bbox is for a single image"),
        ("cropped", "{photos}/a.jpg --bbox 1,2,3", "a box is four numbers"),
        ("cropped", "{photos}/a.jpg --bbox 1,2,3,9999", "none of 1 image could be used.*reaches outside"),
        ("cropped", "{photos} --boxes {photos}/nope.csv", "nope.csv cannot be read"),
        ("cropped", "{photos} --boxes {photos}/wrong.csv", "lacks x, y, width, height"),
        ("cropped", "{photos} --boxes {photos}/typo.csv", "line 2: A.jpg is not among the images, such as a.jpg"),
        ("cropped", "{photos} --boxes {photos}/letters.csv", "line 2: a box is four numbers"),
        ("whole", "{photos}/nothing*.png", "no image there"),
        ("whole", "{photos}/nothing.png", "no image there"),
        ("whole", "{photos} --split val", "--split val is for tables"),
        ("whole", "sample --split test", "no split test, but train, validation: choose one"),
        ("whole", "{photos}/../both", "both Parquet files and images"),
        ("cropped", "{photos}/../texts.parquet", "column bbox of .* holds no boxes, x, y, width, height"),
        ("whole", "sample --bbox 1,2,3,4", "boxes of its own"),
        ("whole", "nowhere/at-all", "Hub cannot be reached"),
    ],
)
def test_mistakes(whole, cropped, photos, which, line, words, monkeypatch):
    folder, _ = photos
    (folder / "wrong.csv").write_text("file,left\na.jpg,1\n")
    (folder / "typo.csv").write_text("file,x,y,width,height\nA.jpg,1,2,3,4\n")
    (folder / "letters.csv").write_text("file,x,y,width,height\na.jpg,1,2,three,4\n")
    shutil.copytree(folder, folder.parent / "both")
    pd.DataFrame({"image": [b""], "bbox": ["1,2,3,4"]}).to_parquet(folder.parent / "texts.parquet")
    shutil.copy(folder.parent / "texts.parquet", folder.parent / "both")
    monkeypatch.setattr("common.network.reachable", lambda url: False)
    with pytest.raises(InputError, match=words):
        predict.main([{"whole": whole, "cropped": cropped}[which], *line.format(photos=folder).split()])


def test_hostile_images_do_not_stop_it(whole, tmp_path, capsys):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name, make in {**GOOD, **BAD}.items():
        (folder / name).write_bytes(make())
    (folder / "a_folder.jpg").mkdir()
    os.symlink(folder / "gone", folder / "broken_link.jpg")
    answers = predict.main([whole, str(folder), "--gallery", str(tmp_path / "found.png")])
    failed = {answer["image"]: answer["error"] for answer in answers if answer["error"]}
    assert set(failed) == set(BAD) | {"a_folder.jpg", "broken_link.jpg"} and all(failed.values())
    assert {answer["image"] for answer in answers if answer["category"]} == set(GOOD)
    assert f"{len(GOOD)} classified, {len(failed)} not" in capsys.readouterr().out


def test_rows_that_share_an_id_or_have_none_stay_apart(cropped, parquet, rows, tmp_path):
    """Eight photos, not one with eight boxes; a box that is none has its reason, and no frame."""
    copies = [dict(row, image_id=None if i % 2 else "same") for i, row in enumerate(rows["val"][:8])]
    copies[0]["bbox"], copies[2]["category"] = [1, None, 3, 4], "Spaceship"
    answers = predict.main([cropped, parquet({"val": copies}), "--gallery", str(tmp_path / "found.png")])
    assert [answer["image"] for answer in answers] == [
        name for i in range(0, 8, 2) for name in ("same", f"row {i + 1}")
    ]
    assert "not a number" in answers[0]["error"] and answers[0]["box"] == [1, None, 3, 4]
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.height > 500, "two lines of photos"


def test_names_of_any_kind(whole, rows, tmp_path, capsys):
    folder = tmp_path / "a [b] ü"
    (folder / "train").mkdir(parents=True)
    photo = rows["val"][0]["image"]["bytes"]
    for name in ("x [1].jpg", "train/ü.jpg", ".hidden.jpg", b"st\xfchl.jpg".decode("utf-8", "surrogateescape")):
        (folder / name).write_bytes(photo)
    (tmp_path / "val[1].parquet").write_bytes((SAMPLE / "val-00000-of-00001.parquet").read_bytes())
    answers = predict.main([whole, str(folder), "--output", str(tmp_path / "found.csv")])
    assert len(answers) == 3 and "st\\udcfchl.jpg" in capsys.readouterr().out
    assert b"st\xfchl.jpg" in (tmp_path / "found.csv").read_bytes()
    assert len(predict.main([whole, str(tmp_path / "val[1].parquet")])) == 130


def test_failures_far_down_are_listed_and_outputs_are_tried_first(whole, rows, tmp_path, capsys):
    (tmp_path / "many").mkdir()
    for i in range(30):
        (tmp_path / "many" / f"{i:02}.jpg").write_bytes(rows["val"][0]["image"]["bytes"] if i != 25 else b"")
    predict.main([whole, str(tmp_path / "many")])
    printed = capsys.readouterr().out
    assert "25.jpg" in printed and "empty" in printed and "and 9 more" in printed
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OSError):
        predict.main([whole, str(tmp_path / "many"), "--output", str(tmp_path / "file" / "x.csv")])
    assert "classified" not in capsys.readouterr().out
    with pytest.raises(OSError):
        predict.main([whole, str(tmp_path / "many"), "--output", str(tmp_path / "folder.csv")])


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("script", SMALL)
def test_an_exported_model_predicts_the_same(runs, script, kind, tmp_path, capsys):
    if kind == "onnx":
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    folder = runs[script, "--crop"]
    path = export.main([str(folder), "--to", kind, "--output", str(tmp_path / f"model.{kind}")])
    assert "130 of 130 are those of predictions.csv" in capsys.readouterr().out
    run, val = read_run(folder), read_run(folder).splits()[1]
    images = val.pixels[val.index[:7]]
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        texts = session.get_modelmeta().custom_metadata_map
        logits = session.run(None, {"images": images})[0]
    else:
        import torch

        texts = {"labels.txt": ""}
        logits = torch.export.load(path, extra_files=texts).module()(torch.from_numpy(images)).detach().numpy()
        texts = {name.removesuffix(".txt"): text for name, text in texts.items()}
    labels, crop = json.loads(texts["labels"]), json.loads(texts["preprocessing"])
    assert labels == run.run["classes"] and crop["fit"] == "pad" and crop["pad_color"] == [124, 116, 104]
    assert [labels[i] for i in logits.argmax(1)] == run.rows["prediction"].tolist()[:7]


def test_a_wrong_export_is_not_kept(runs, tmp_path, monkeypatch):
    run, path = runs["train_custom_cnn", "--crop"], tmp_path / "model.pt2"
    write, _ = export.FORMATS["pt2"]
    monkeypatch.setitem(export.FORMATS, "pt2", (write, lambda path: lambda images: np.eye(12)[[3] * len(images)]))
    with pytest.raises(InputError, match="is not kept: it predicts .* of 130 val rows otherwise"):
        export.main([str(run), "--to", "pt2", "--output", str(path)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        export.main([str(run), "--to", "pt2", "--output", str(run / "model.safetensors")])


def test_a_run_whose_data_is_gone_is_exported_all_the_same(runs, tmp_path, capsys):
    folder = Path(shutil.copytree(runs["train_custom_cnn", "--crop"], tmp_path / "run"))
    run = json.loads((folder / "run.json").read_text())
    run["config"]["data"] = str(tmp_path / "gone")
    (folder / "run.json").write_text(json.dumps(run))
    assert export.main([str(folder), "--to", "pt2"]).exists()
    assert "not checked on the val split, but on noise" in capsys.readouterr().out


def test_missing_packages_are_named(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="pip install onnx onnxruntime onnxscript"):
        export.main([str(runs["train_custom_cnn", "--crop"]), "--output", str(tmp_path / "model.onnx")])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("labels.json", lambda text: text.replace("bed", "bath"), "labels.json and run.json name other classes"),
        ("run.json", lambda text: text.replace("8k3p2", "9k3p2"), "weights in .* do not fit its run.json"),
        (
            "run.json",
            lambda text: text.replace('"script": "train_custom_cnn"', '"script": "os"'),
            "no whole run folder: os is no training script",
        ),
        ("model.safetensors", lambda text: text[:200], "weights in .* do not fit"),
        ("metrics.json", None, "an unfinished run"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(cropped, tmp_path, name, change, words):
    folder = Path(shutil.copytree(cropped, tmp_path / "run"))
    if change is None:
        (folder / name).unlink()
    else:
        old = (folder / name).read_bytes().decode("latin-1")
        assert change(old) != old
        (folder / name).write_bytes(change(old).encode("latin-1"))
    with pytest.raises(InputError, match=words):
        predict.main([str(folder), VAL])


def test_a_script_of_ones_own(cropped, tmp_path, monkeypatch):
    """A copy of a script in the project's folder, under another name, is one more training script."""
    shutil.copy(finished.PROJECT / "train_custom_cnn.py", tmp_path / "train_mine.py")
    folder = Path(shutil.copytree(cropped, tmp_path / "run"))
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"script": "train_custom_cnn"', '"script": "train_mine"'))
    with pytest.raises(InputError, match="is of train_mine.py, which is not in"):
        read_run(folder).model()
    monkeypatch.setattr(finished, "PROJECT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert type(read_run(folder).config).__module__ == "train_mine"
    predict.main([str(folder), VAL, "--output", str(tmp_path / "answers.csv")])
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 131


def test_the_card_is_one_that_the_hub_reads(cropped):
    from huggingface_hub import ModelCard

    card, metrics = (
        ModelCard.load(Path(cropped) / "README.md"),
        json.loads((Path(cropped) / "metrics.json").read_text()),
    )
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: metrics[name] for name in ("accuracy", "precision", "recall", "f1")}
    assert card.data.pipeline_tag == "image-classification" and "95 % interval" in card.text
    assert "python train_custom_cnn.py" in card.text and "armchair, bed, bookcase" in card.text
