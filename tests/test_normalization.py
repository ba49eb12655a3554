"""A run whose model has another normalisation than ImageNet's: every part of the project uses the run's own."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compare
import export
import predict
import train_custom_cnn
import train_custom_vit
from common.compare.shortcuts import VIEWS, load_val, masked_views
from common.config import IMAGENET, InputError, Normalization
from common.data.crop import PAD_COLOR
from common.data.dataset import load_splits
from common.data.pixels import normalize
from common.deploy.formats import metadata
from common.distillation import load_teacher
from common.finished_run import read_run
from common.provenance import REFERENCE, reference_problem
from common.step import draw, make_batch
from tests.helpers import edit_json, launch, read_json, read_predictions

OTHER = Normalization(mean=(0.5, 0.25, 0.75), std=(0.5, 0.25, 1.0))
COLOR = (128, 64, 191)


@pytest.fixture
def other(monkeypatch):
    """Gives the models of train_custom_cnn.py another normalisation."""
    monkeypatch.setattr(train_custom_cnn.Config, "normalization", OTHER)


@pytest.fixture
def run(other, train):
    """A run with the other normalisation, on padded crops."""
    return train("train_custom_cnn", more="--crop")


def by_hand(pixels):
    """Pixels (N, 3, S, S) uint8, normalised."""
    mean, std = (np.float32(v)[:, None, None] for v in (OTHER.mean, OTHER.std))
    return torch.from_numpy((pixels / np.float32(255) - mean) / std)


def test_the_padding_of_imagenet_models_is_the_imagenet_mean():
    assert IMAGENET.color == PAD_COLOR and OTHER.color == COLOR


def test_padding_of_another_colour_is_another_entry_of_the_cache(tmp_path, other):
    options = dict(data="sample", limit=24, image_size=16, crop=True, cache=str(tmp_path))

    def load(script, **more):
        """The train split, and the folders that are new in the cache."""
        before = {*tmp_path.glob("*/pixels.npy")}
        train, _ = load_splits(script.Config(**options | more))
        return train, {*tmp_path.glob("*/pixels.npy")} - before

    (usual, first), (padded, second) = load(train_custom_vit), load(train_custom_cnn)
    assert len(first) == len(second) == 2, "train and val"
    painted = (usual.pixels != padded.pixels).any(1)
    assert painted.any()
    for pixels, color in ((usual.pixels, PAD_COLOR), (padded.pixels, COLOR)):
        assert (pixels.transpose(0, 2, 3, 1)[painted] == color).all(), "only the padding differs"
    _, first = load(train_custom_vit, fit="squash")
    _, second = load(train_custom_cnn, fit="squash")
    assert len(first) == 2 and not second, "without padding, both read the same pixels"


def test_the_run_records_and_uses_its_own(run, cache):
    info = read_json(run, "run.json")
    assert info["normalization"] == {"mean": [0.5, 0.25, 0.75], "std": [0.5, 0.25, 1.0]}
    assert "the mean 0.5 / 0.25 / 0.75 and the standard deviation 0.5 / 0.25 / 1 " in (run / "README.md").read_text()
    finished = read_run(run)
    val = finished.splits(cache=cache)[1]
    images = by_hand(val.pixels[val.index])
    torch.testing.assert_close(val[3][0], images[3])
    with torch.no_grad():
        probabilities = finished.model()(images).softmax(1).max(1).values
    recorded = [float(row["probability"]) for row in read_predictions(run)]
    assert recorded == pytest.approx(probabilities.tolist(), abs=1e-5), "evaluation"
    predicted = {r["image"]: r["probability"] for r in predict.main([str(run), "sample"])}
    for row in read_predictions(run):
        assert predicted[row["image_id"]] == pytest.approx(float(row["probability"]), abs=1e-5), "predict.py"


def test_training_batches(other, cache):
    options = dict(data="sample", limit=24, image_size=16, crop=True, cache=cache, batch_size=12)
    config = train_custom_cnn.Config(**options)
    train, rows = load_splits(config)[0], np.arange(12)
    images, _ = make_batch(config, train, rows, rows, draw(config, 0), torch.device("cpu"))
    torch.testing.assert_close(images, by_hand(train.pixels[train.index[rows]]))
    config = train_custom_cnn.Config(**options, background="gray")
    train.masks = np.zeros((len(train), 1, 16, 16), np.uint8)
    draws = draw(config, 0)
    images, _ = make_batch(config, train, rows, rows, draws, torch.device("cpu"))
    assert 0 < draws.replaced.sum() and images[draws.replaced].abs().max() < 0.02, "gray is the mean colour"


def test_exports_have_it_built_in(run, cache, tmp_path, capsys):
    path = export.main([str(run), "--to", "pt2", "--cache", cache, "--output", str(tmp_path / "model.pt2")])
    assert "48 of 48 predictions match" in capsys.readouterr().out
    texts = metadata(read_run(run))
    settings = json.loads(texts["preprocessing"])
    assert (settings["mean"], settings["std"]) == ([0.5, 0.25, 0.75], [0.5, 0.25, 1.0])
    assert settings["pad_color"] == list(COLOR)
    assert f"colour {COLOR}" in texts["preprocessing_steps"] and f"mean {OTHER.mean}" in texts["preprocessing_steps"]
    assert path.exists()


def test_the_script_beside_an_onnx_file_pads_with_the_colour(run, cache, tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    export.main([str(run), "--cache", cache, "--output", str(tmp_path / "model.onnx")])
    noise = np.random.default_rng(0).integers(0, 256, (40, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    (expected,) = predict.main([str(run), str(tmp_path / "photo.png"), "--bbox", "0,0,160,40"])
    script = str(tmp_path / "model_onnx.py")
    done = launch([sys.executable, "-I", script, str(tmp_path / "photo.png"), "--bbox", "0,0,160,40"])
    label, probability = done.stdout.splitlines()[0].split()
    assert (label, float(probability)) == (expected["category"], pytest.approx(expected["probability"], abs=1e-4))


def test_shortcuts_paint_with_the_mean_colour(run, cache, tmp_path):
    views = masked_views(*load_val(read_run(run), cache=cache))
    outline = views[VIEWS[3]].transpose(0, 2, 3, 1).reshape(-1, 3)
    assert {tuple(color) for color in np.unique(outline, axis=0).tolist()} == {COLOR, (0, 0, 0)}
    compare.main(["--shortcuts", str(run), "--out", str(tmp_path / "shortcuts"), "--cache", cache])


def test_a_teacher_has_its_own(run, cache):
    options = dict(data="sample", limit=48, image_size=32, crop=True, cache=cache, teacher=str(run))
    student = train_custom_vit.Config(**options)
    splits = load_splits(student)
    pixels = torch.from_numpy(splits[0].pixels[:9].copy())
    teacher = load_teacher(student, *splits, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(
            teacher(normalize(pixels, IMAGENET)),
            read_run(run).model()(normalize(pixels, OTHER)),
            atol=1e-4,
            rtol=1e-4,
        )
    same = load_teacher(train_custom_cnn.Config(**options), *splits, torch.device("cpu"))
    assert type(same) is torch.nn.Sequential, "nothing to convert"


def test_a_run_is_refused_if_todays_script_normalises_otherwise(run, monkeypatch):
    monkeypatch.setattr(train_custom_cnn.Config, "normalization", IMAGENET)
    with pytest.raises(InputError, match=r"normalised with .*0.25.*normalises with .*0.485.*run folder was changed"):
        read_run(run).splits()


def test_the_stored_outputs_depend_on_it(run, monkeypatch):
    finished = read_run(run)
    model, config = finished.model(), finished.config
    assert reference_problem(run / REFERENCE, config, model) is None
    monkeypatch.setattr(train_custom_cnn.Config, "normalization", Normalization(OTHER.mean, IMAGENET.std))
    assert "logits" in reference_problem(run / REFERENCE, config, model)


def test_a_run_of_older_code_has_imagenets(finished_run, tmp_path):
    run = finished_run("train_custom_cnn")
    info = read_json(run, "run.json")
    assert info.pop("normalization") == {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in Path(run).iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "run.json").write_text(json.dumps(info))
    assert read_run(copy).config.normalization == IMAGENET
    edit_json(copy, "run.json", normalization={"mean": 3})
    with pytest.raises(InputError, match="normalization in run.json"):
        read_run(copy)
