"""What a step uses: learning rate, rows, optimizer groups."""

import numpy as np
import pytest
import torch
from torch import nn

from common.config import TrainConfig
from common.evaluate import set_train_mode
from common.schedule import RowOrder, generator, get_lr
from common.step import parameter_groups


def test_warm_up_and_cosine():
    config = TrainConfig(lr=2.0)
    steps = [get_lr(step, 12, 4, config) for step in (0, 1, 3, 4, 8, 12)]
    assert steps == pytest.approx([0.5, 1, 2, 2, 1, 0])


def test_the_labs_lr_is_constant():
    config = TrainConfig(lr=2.0, recipe="lab")
    assert {get_lr(step, 12, 4, config) for step in range(12)} == {2.0}


@pytest.mark.parametrize(("n", "batch_size"), [(20, 5), (23, 5), (16, 16), (7, 4)])
def test_every_row_once_an_epoch(n, batch_size):
    order = RowOrder(n, batch_size, seed=0, shuffle=True)
    steps = [order[step] for step in range(3 * n)]  # 3 x batch_size epochs
    assert all(len(rows) == batch_size and (np.diff(rows) >= 0).all() for rows in steps)
    counts = np.bincount(np.concatenate(steps), minlength=n)
    assert (counts == 3 * batch_size).all()
    assert np.bincount(np.concatenate(steps[: -(-n // batch_size)]), minlength=n).min() >= 1, "the first epoch too"


def test_a_step_needs_no_step_before_it():
    order = RowOrder(23, 5, seed=3, shuffle=True)
    in_turn = [order[step] for step in range(30)]
    for step in (29, 4, 17):
        np.testing.assert_array_equal(RowOrder(23, 5, seed=3, shuffle=True)[step], in_turn[step])
    epochs = {tuple(RowOrder(20, 10, seed=3, shuffle=True)[2 * epoch]) for epoch in range(10)}
    assert len(epochs) == 10, "every epoch has an order of its own"
    assert any((RowOrder(23, 5, seed=4, shuffle=True)[step] != in_turn[step]).any() for step in range(4))


def test_file_order():
    order = RowOrder(7, 3, seed=0, shuffle=False)
    assert [order[step].tolist() for step in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 6]]


def test_random_streams_are_apart():
    draws = {generator(*key).random() for key in [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]}
    assert len(draws) == 4


def test_weight_decay_is_for_matrices_only():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model.positions = nn.Parameter(torch.zeros(1, 5, 4))
    decayed, rest = sorted(parameter_groups(model, 0.1), key=lambda group: -group["weight_decay"])
    assert [p.shape for p in decayed["params"]] == [model[0].weight.shape, model[2].weight.shape]
    assert rest["weight_decay"] == 0 and len(rest["params"]) == 5


def test_frozen_batch_norm_keeps_its_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    set_train_mode(model)
    assert model.training and model[3].training and not model[1].training
