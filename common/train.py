"""The training loop, the same for every model.

Step s of a run is a function of (config, s): `Plan` gives its learning rate, its rows, and whether it is followed by a
log line, an evaluation or a checkpoint; every random draw is seeded by the step. So a checkpoint needs only the
weights, the optimizer state and the step, and a resumed run gives the same results as an uninterrupted one, bit for bit
on the same machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from common.checkpoint import load_checkpoint, save_checkpoint, unwrapped
from common.config import InputError, Interrupted, TrainConfig
from common.data.dataset import ClassificationDataset, place_pixels
from common.data.masks import load_masks
from common.distillation import load_teacher
from common.evaluate import evaluate, set_train_mode
from common.launch import OtherLoad, StopRequest
from common.processes import failing_together, lost_process_explained
from common.run_folder import RunFolder, releases_folder
from common.schedule import Plan, set_lr
from common.step import train_step

DIVERGED = "the run has diverged: lower --lr, raise --warmup or set --clip-norm 1."


@releases_folder
@lost_process_explained()
def train_model(
    config: TrainConfig,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: ClassificationDataset,
    val: ClassificationDataset,
) -> Path:
    """Trains `model`, evaluates it after every epoch, writes the run folder and returns its path.

    The scores in metrics.json are those of the last epoch, not the best one: on a small val split, the best of many
    epochs is better by chance alone.

    Raises:
        InputError: the batch is larger than the train split or does not fit into memory, or the run has diverged.
        Interrupted: SIGTERM or Ctrl-C was received; a checkpoint has been saved.
    """
    plan = Plan(config, num_rows=len(train))
    with failing_together():
        if config.background != "keep":
            train.masks = load_masks(config, "train", train)
        teacher = load_teacher(config, train, val, accelerator.device)
        folder = RunFolder(config, accelerator, model, train, val)
    folder.compare_processes()
    model, optimizer = accelerator.prepare(model, optimizer)
    place_pixels(config, accelerator.device, train, val)

    losses = torch.zeros(plan.last_step, device=accelerator.device)  # of each step; log lines and checkpoints read them
    step = 0
    if config.resume and not config.dry_run:
        step = load_checkpoint(folder, accelerator, model, optimizer, losses)
    averaged = step  # earlier losses are already means over all processes
    logits = None
    set_train_mode(model)
    other_load = OtherLoad(accelerator)
    with StopRequest(accelerator) as stop, folder.start(step, plan.last_step) as bar:
        while step < plan.last_step:
            # One optimizer step
            set_lr(optimizer, plan.lr(step))
            with advice(config):
                losses[step] = train_step(config, accelerator, model, optimizer, train, plan.rows(step), step, teacher)
            step += 1
            bar.update()

            logs, ends_epoch = plan.logs(step), plan.ends_epoch(step)
            stops = stop.agreed(together=logs)
            saves = stops or plan.saves(step)
            if not (logs or saves):
                continue

            # Read the losses (this synchronises with the device) and check them, so that checkpoints have finite losses
            losses[averaged:step] = finite_means(losses[averaged:step], averaged, accelerator)
            averaged = step
            folder.clock.lap(training=True)

            # Log
            if logs:
                loss = losses[plan.last_log(step) : step].mean().item()
                folder.log(step=step, epoch=plan.epochs(step), loss=loss, lr=plan.lr(step - 1))
                if note := other_load.note():
                    bar.write(note)

            # Evaluate
            if ends_epoch:
                logits = evaluate(model, val, accelerator, config.fit)
                if not np.isfinite(logits).all():
                    raise InputError(f"the model's outputs are NaN or infinite at step {step}; {DIVERGED}")
                set_train_mode(model)
                train_loss = losses[plan.epoch_start(step) : step].mean().item()
                folder.log_epoch(step=step, epoch=plan.full_epochs(step), train_loss=train_loss, logits=logits)

            # Save and stop
            if saves:
                save_checkpoint(folder, accelerator, model, optimizer, step, losses)
            if stops:
                accelerator.wait_for_everyone()  # until the checkpoint is written: launchers end all when one exits
                accelerator.end_training()
                raise Interrupted(
                    f"stopped after step {step} of {plan.last_step}; continue with the same command and --resume"
                )
            folder.clock.lap(training=False)

    if logits is None:  # resumed after the last step
        logits = evaluate(model, val, accelerator, config.fit)
    folder.finish(unwrapped(accelerator, model, keep_precision=False), logits)
    accelerator.wait_for_everyone()  # until the results are written
    accelerator.end_training()
    return folder.path


def finite_means(losses: torch.Tensor, first_step: int, accelerator: Accelerator) -> torch.Tensor:
    """The mean over all processes of the losses (n,) of n steps from `first_step`.

    Each mean is computed from the processes' values in order of rank, so it does not depend on when it is computed.

    Raises:
        InputError: a loss is NaN or infinite.
    """
    means = accelerator.gather(losses).view(accelerator.num_processes, -1).mean(0)
    bad = (~means.isfinite()).nonzero()
    if len(bad):
        raise InputError(f"the loss is {means[bad[0, 0]]:.3g} at step {first_step + int(bad[0, 0]) + 1}; {DIVERGED}")
    return means


@contextmanager
def advice(config: TrainConfig) -> Iterator[None]:
    """Converts torch errors that a different batch size would avoid into an InputError that says so."""
    try:
        yield
    except RuntimeError as error:  # torch has no exception class for running out of memory on a CPU
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            f"out of memory with --batch-size {config.batch_size} and --accumulate {config.accumulate}: "
            "raise --accumulate, or lower --batch-size or --image-size."
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "batch norm needs more than one value per channel: raise --batch-size or --image-size, "
            "or lower --accumulate."
        ) from error
