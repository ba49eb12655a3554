"""Distillation from a finished run."""

import pytest
import torch
import torch.nn.functional as F

import train_custom_cnn
import train_custom_vit
from common.config import InputError
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
        line = f"{SMALL} {VIT} --epochs 25 --augment strong --cache {cache} --out {tmp_path / name} {more}"
        folders[name] = train_custom_vit.main(line.split())
    same = {
        name: (read_run(f).rows.prediction == read_run(teacher).rows.prediction).mean() for name, f in folders.items()
    }
    assert same["taught"] > same["alone"]
    assert read_run(folders["taught"]).run["config"]["teacher"] == str(teacher)


def test_the_teacher_stays_as_it_is(teacher):
    config = train_custom_vit.Config(crop=True, image_size=32, teacher=str(teacher))
    model = load_teacher(config, read_run(teacher).run["classes"], torch.device("cpu"))
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(crop=False), "trained with other --crop"),
        (dict(image_size=64, fit="squash"), "other --fit, --image-size"),
        (dict(classes=["a"]), "trained with other classes"),
        (dict(teacher="/nowhere"), "holds no run"),
    ],
)
def test_a_teacher_that_does_not_fit(teacher, more, words):
    classes = more.pop("classes", read_run(teacher).run["classes"])
    config = train_custom_vit.Config(**dict(crop=True, image_size=32, teacher=str(teacher)) | more)
    with pytest.raises(InputError, match=words):
        load_teacher(config, classes, torch.device("cpu"))
