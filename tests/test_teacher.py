"""Distillation from a finished run."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import train_custom_cnn
import train_custom_vit
from common.config import InputError, Interrupted
from common.data import load_splits
from common.finished import read_run
from common.teacher import SHARE, TEMPERATURE, distilled, load_teacher

SMALL = "--data sample --limit 48 --image-size 32 --epochs 2 --crop"
CNN, VIT = "--blocks 8k3p2 --hidden 16", "--dim 16 --depth 1 --num-heads 2 --patch-size 8"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("teacher") / "run"
    return train_custom_cnn.main([*f"{SMALL} {CNN} --cache {cache} --out {out}".split()])


def test_the_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    logits, images, loss = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7), torch.tensor(2.0)
    found = distilled(loss, logits, images, torch.nn.Identity())
    p, q = (F.softmax(x / TEMPERATURE, dim=1) for x in (images, logits))
    divergence = (p * (p / q).log()).sum(1).mean() * TEMPERATURE**2
    torch.testing.assert_close(found, (1 - SHARE) * loss + SHARE * divergence)
    assert distilled(torch.tensor(0.0), images, images, torch.nn.Identity()).abs() < 1e-6, "nothing left to learn"


def test_a_student_comes_nearer_to_its_teacher(teacher, tmp_path, cache):
    folders = {}
    for name, more in (("alone", ""), ("taught", f"--teacher {teacher}")):
        line = f"{SMALL} {VIT} --epochs 25 --lr 1e-3 --augment strong --cache {cache} --out {tmp_path / name} {more}"
        folders[name] = train_custom_vit.main(line.split())
    same = {
        name: (read_run(f).rows.prediction == read_run(teacher).rows.prediction).mean() for name, f in folders.items()
    }
    assert same["taught"] > same["alone"]
    assert read_run(folders["taught"]).run["config"]["teacher"] == str(teacher)


def test_the_teacher_stays_as_it_is(teacher, cache):
    config = train_custom_vit.Config(
        data="sample", limit=48, crop=True, image_size=32, teacher=str(teacher), cache=cache
    )
    model = load_teacher(config, *load_splits(config), torch.device("cpu"))
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(crop=False), "trained with other --crop"),
        (dict(image_size=64, fit="squash"), "other --fit, --image-size"),
        (dict(limit=40), "trained with other data or split"),
        (dict(split_by="product_id"), "trained with other data or split"),
        (dict(teacher="/nowhere"), "holds no run"),
    ],
)
def test_a_teacher_that_does_not_fit(teacher, cache, more, words):
    """One of another split may have learned what is validated here."""
    same = dict(data="sample", limit=48, crop=True, image_size=32, teacher=str(teacher), cache=cache)
    config = train_custom_vit.Config(**same | more)
    with pytest.raises(InputError, match=words):
        load_teacher(config, *load_splits(config), torch.device("cpu"))


def test_another_teacher_in_the_same_place_is_another_run(teacher, tmp_path, cache, monkeypatch):
    place = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    line = f"{SMALL} {CNN} --cache {cache} --out {tmp_path / 'run'} --teacher {place}"
    monkeypatch.setattr("common.train.get_lr", lambda *_: signal.raise_signal(signal.SIGTERM) or 0.0)
    with pytest.raises(Interrupted):
        train_custom_cnn.main(line.split())
    monkeypatch.undo()
    shutil.rmtree(place)
    train_custom_cnn.main([*f"{SMALL} {CNN} --cache {cache} --out {place} --seed 1".split()])
    with pytest.raises(InputError, match="holds another run: teacher was"):
        train_custom_cnn.main([*line.split(), "--resume"])
