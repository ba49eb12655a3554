"""The plan of a run, random numbers, and the parameter groups of the optimizer."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from common.config import InputError, TrainConfig
from common.evaluate import set_train_mode
from common.schedule import LOG_EVERY, Plan, generator, permutation, seed_device, set_lr
from common.step import parameter_groups

SIZES = [(20, 5), (23, 5), (16, 16), (7, 4), (12, 1), (31, 30), (64, 3)]  # train rows and batch size


def plan(num_rows, batch_size, **options):
    return Plan(TrainConfig(batch_size=batch_size, **options), num_rows)


# Learning rate -------------------------------------------------------------------------------------------------------


def test_warm_up_and_cosine():
    twelve = plan(24, 4, epochs=2, lr=2.0, warmup=1 / 3)
    assert (twelve.total_steps, twelve.warmup_steps) == (12, 4)
    assert [twelve.lr(step) for step in (0, 1, 3, 4, 8, 12)] == pytest.approx([0.5, 1, 2, 2, 1, 0])


def test_no_warm_up():
    assert plan(24, 4, lr=2.0, warmup=0.0).lr(0) == 2.0


def test_the_labs_lr_is_constant():
    lab = plan(24, 4, epochs=2, lr=2.0, recipe="lab", warmup=0.5)
    assert {lab.lr(step) for step in range(lab.total_steps)} == {2.0}


def test_a_parameter_group_has_its_share_of_the_learning_rate():
    """All of it if the optimizer was made without shares."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [p], "lr_scale": scale} for p, scale in zip(parameters[:2], (1.0, 0.1), strict=True)]
    optimizer = torch.optim.SGD([*groups, {"params": parameters[2:]}], lr=1.0)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05, 0.5])


# Rows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["default", "lab"])
@pytest.mark.parametrize(("num_rows", "batch_size"), SIZES)
def test_every_row_once_an_epoch(num_rows, batch_size, recipe):
    epochs = 3 * batch_size
    run = plan(num_rows, batch_size, epochs=epochs, recipe=recipe)
    assert run.total_steps * batch_size == epochs * num_rows, "so many epochs are a whole number of steps"
    steps = [run.rows(step) for step in range(run.total_steps)]
    assert all(rows.dtype == np.int64 and len(rows) == batch_size and (np.diff(rows) >= 0).all() for rows in steps)
    for epoch in range(1, epochs + 1):
        full = -(-epoch * num_rows // batch_size)  # steps that finish the epoch, and begin the next
        counts = np.bincount(np.concatenate(steps[:full]), minlength=num_rows)
        assert counts.min() >= epoch and counts.sum() == full * batch_size < epoch * num_rows + batch_size
    assert (counts == epochs).all()


def test_a_batch_of_one_epoch_has_no_row_twice():
    run = plan(23, 5)
    assert all(len({*run.rows(step)}) == 5 for step in (0, 1, 2, 3, 5, 6, 7, 8))


def test_a_batch_over_a_boundary_has_rows_of_both_epochs():
    run = plan(7, 4, seed=2)
    first, second = permutation(7, 2, 0), permutation(7, 2, 1)
    np.testing.assert_array_equal(run.rows(0), np.sort(first[:4]))
    np.testing.assert_array_equal(run.rows(1), np.sort([*first[4:], second[0]]))
    np.testing.assert_array_equal(run.rows(2), np.sort(second[1:5]))


def test_a_step_needs_no_step_before_it():
    run = plan(23, 5, seed=3)
    in_turn = [run.rows(step) for step in range(30)]
    for step in (29, 4, 17):
        permutation.cache_clear()
        np.testing.assert_array_equal(plan(23, 5, seed=3).rows(step), in_turn[step])
    epochs = {tuple(plan(20, 10, seed=3).rows(2 * epoch)) for epoch in range(10)}
    assert len(epochs) == 10, "every epoch has its own order"
    assert any((plan(23, 5, seed=4).rows(step) != in_turn[step]).any() for step in range(4)), "and so has every seed"


def test_the_labs_rows_are_in_file_order():
    run = plan(7, 3, recipe="lab")
    assert [run.rows(step).tolist() for step in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 6]]


def test_a_batch_that_is_larger_than_the_split():
    with pytest.raises(InputError, match="--batch-size 64 .*48 train rows"):
        plan(48, 64)
    assert plan(48, 48, epochs=3).total_steps == 3


# Epochs, log lines and checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 2, 5])
@pytest.mark.parametrize(("num_rows", "batch_size"), SIZES)
def test_the_plan_by_brute_force(num_rows, batch_size, epochs):
    """Each step is compared with a count of the images used so far."""
    run = plan(num_rows, batch_size, epochs=epochs)
    ends = []  # steps after which one more epoch is complete
    seen = step = 0
    while len(ends) < epochs:
        step += 1
        before = seen // num_rows
        for _ in range(batch_size):
            seen += 1
        if seen // num_rows > before:
            ends += [step] * (seen // num_rows - before)
        assert run.epochs(step) == pytest.approx(seen / num_rows)
        assert run.full_epochs(step) == seen // num_rows
    assert run.total_steps == run.last_step == step, "the run ends when the last epoch is complete"

    steps = range(1, run.last_step + 1)
    assert [step for step in steps if run.ends_epoch(step)] == sorted({*ends})
    logged = [step for step in steps if step % LOG_EVERY == 0 or step in ends]
    assert [step for step in steps if run.logs(step)] == logged
    for step in steps:
        assert run.last_log(step) == max((earlier for earlier in logged if earlier < step), default=0)
        assert run.epoch_start(step) == max((end for end in ends if end < step), default=0)


def test_the_losses_of_log_lines_and_epochs_overlap_nowhere():
    """Log lines are means over all steps, each counted once; so are the epochs' train losses."""
    for (num_rows, batch_size), epochs in product(SIZES, (1, 4)):
        run = plan(num_rows, batch_size, epochs=epochs)
        steps = range(1, run.last_step + 1)
        by_log = [s for step in steps if run.logs(step) for s in range(run.last_log(step), step)]
        by_epoch = [s for step in steps if run.ends_epoch(step) for s in range(run.epoch_start(step), step)]
        assert by_log == by_epoch == [*range(run.last_step)]


def test_checkpoints_at_the_end_of_epochs_and_every_few_steps():
    steps = range(1, 11)
    assert [step for step in steps if plan(20, 4, epochs=2).saves(step)] == [5, 10]
    assert [step for step in steps if plan(20, 4, epochs=2, checkpoint_every=4).saves(step)] == [4, 5, 8, 10]


@pytest.mark.parametrize(("num_rows", "last"), [(20, 2), (4, 1)])
def test_a_dry_run_has_two_steps_of_the_same_schedule(num_rows, last):
    dry, full = plan(num_rows, 4, epochs=1, dry_run=True), plan(num_rows, 4, epochs=1)
    assert dry.last_step == last and dry.ends_epoch(last) and dry.logs(last) and dry.saves(last)
    assert [dry.lr(step) for step in range(last)] == [full.lr(step) for step in range(last)]


# Random numbers ------------------------------------------------------------------------------------------------------


def test_random_streams_are_independent():
    draws = {generator(*key).random() for key in [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]}
    assert len(draws) == 4 and generator(0, 0, 0).random() in draws


def test_torchs_random_numbers_are_seeded():
    seed_device(5, torch.device("cpu"))
    first = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), first)


# The optimizer and the model -----------------------------------------------------------------------------------------


def test_weight_decay_is_for_matrices_only():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model.positions = nn.Parameter(torch.zeros(1, 5, 4))
    decayed, rest = sorted(parameter_groups(model, 0.1), key=lambda group: -group["weight_decay"])
    assert [p.shape for p in decayed["params"]] == [model[0].weight.shape, model[2].weight.shape]
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0 and len(rest["params"]) == 5


def test_frozen_batch_norm_keeps_its_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    set_train_mode(model)
    assert model.training and model[3].training and not model[1].training
