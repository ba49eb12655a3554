"""Knowledge distillation from a finished run."""

import hashlib
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import common.train
import train_custom_cnn
import train_custom_vit
from common.config import InputError, Interrupted
from common.data.dataset import load_splits
from common.distillation import TEACHER_WEIGHT, TEMPERATURE, distilled, load_teacher
from common.finished_run import read_run
from tests.helpers import edit_json, logits_of, read_json

SMALL = "--data sample --limit 48 --image-size 32 --epochs 2 --crop"
CNN, VIT = "--blocks 8k3p2 --hidden 16", "--dim 16 --depth 1 --num-heads 2 --patch-size 8"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("teacher") / "run"
    return train_custom_cnn.main(f"{SMALL} {CNN} --cache {cache} --out {out}".split())


@pytest.fixture
def config(teacher, cache):
    """A function that returns the options of a student, by default with the same data as the teacher."""

    def config(**options):
        same = dict(data="sample", limit=48, crop=True, image_size=32, teacher=str(teacher), cache=cache)
        return train_custom_vit.Config(**same | options)

    return config


def test_the_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    logits, images, loss = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7), torch.tensor(2.0)
    found = distilled(loss, logits, images, torch.nn.Identity())
    p, q = (F.softmax(x / TEMPERATURE, dim=1) for x in (images, logits))
    divergence = (p * (p / q).log()).sum(1).mean() * TEMPERATURE**2
    torch.testing.assert_close(found, (1 - TEACHER_WEIGHT) * loss + TEACHER_WEIGHT * divergence)
    assert distilled(torch.tensor(0.0), images, images, torch.nn.Identity()).abs() < 1e-6, "nothing left to learn"


def test_a_student_comes_nearer_to_its_teacher(teacher, config, tmp_path, cache, empty_figures):
    val = load_splits(config())[1]

    def log_probabilities(folder):
        return F.log_softmax(logits_of(read_run(folder).model(), val), dim=1)

    def distance(name, more=""):
        """The mean Kullback-Leibler divergence of the student's outputs from the teacher's, in nats."""
        line = f"{SMALL} {VIT} --epochs 12 --lr 3e-3 --cache {cache} --out {tmp_path / name} {more}"
        student = train_custom_vit.main(line.split())
        assert read_run(student).info.config["teacher"] == (str(teacher) if more else "")
        outputs = log_probabilities(student), log_probabilities(teacher)
        return F.kl_div(*outputs, reduction="batchmean", log_target=True).item()

    assert distance("taught", f"--teacher {teacher}") < 0.8 * distance("alone")


def test_the_teacher_stays_as_it_is(config):
    model = load_teacher(config(), *load_splits(config()), torch.device("cpu"))
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_no_teacher(config):
    assert load_teacher(config(teacher=""), *load_splits(config()), torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(crop=False), "--crop"),
        (dict(margin=0.1), "--margin"),
        (dict(image_size=64, fit="squash"), "--fit, --image-size"),
        (dict(limit=40), "data or split"),
        (dict(split_by="product_id"), "data or split"),
        (dict(teacher="/nowhere"), "/nowhere .*no run"),
    ],
)
def test_a_teacher_that_does_not_fit(config, options, words):
    """A teacher from another split may have been trained on rows that are val rows here."""
    with pytest.raises(InputError, match=words):
        load_teacher(config(**options), *load_splits(config(**options)), torch.device("cpu"))


def changed(weights):
    """The content of a .safetensors file with the last digit of the last weight changed."""
    return weights[:-4] + bytes([weights[-4] ^ 1]) + weights[-3:]


def test_another_teacher_in_the_same_place_is_another_run(teacher, tmp_path, cache, monkeypatch):
    place = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    line = f"{SMALL} {CNN} --cache {cache} --out {tmp_path / 'run'} --teacher {place}"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(common.train, "set_lr", lambda *_: signal.raise_signal(signal.SIGTERM))
        train_custom_cnn.main(line.split())
    weights = changed((place / "model.safetensors").read_bytes())
    (place / "model.safetensors").write_bytes(weights)
    files = read_json(place, "run.json")["files"] | {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    edit_json(place, "run.json", files=files)
    with pytest.raises(InputError, match="another run: teacher was"):
        train_custom_cnn.main([*line.split(), "--resume"])
