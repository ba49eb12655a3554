"""The training loop, the same for every model.

Step s of a run depends on (config, s) only: the learning rate, the rows of the batch and every random draw are
computed from the step, the draws for the whole global batch, of which each process takes its part. So a checkpoint is
the weights, the optimizer and the step, and a resumed run is the run that was never stopped.
"""

import atexit
import math
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torchinfo import summary
from tqdm import tqdm

from common.audit import audit, describe
from common.config import InputError, Interrupted, TrainConfig
from common.data import ClassificationDataset, place_pixels
from common.evaluate import predict, set_train_mode
from common.files import write_json
from common.launch import StopRequest
from common.masks import load_masks
from common.metrics import epoch_line, scores
from common.runs import (
    Log,
    describe_run,
    load_checkpoint,
    run_folder,
    run_identity,
    save_checkpoint,
    unwrapped,
    write_start,
)
from common.schedule import RowOrder, get_lr
from common.step import train_step
from common.teacher import load_teacher

ADVICE = "the run has diverged. Lower --lr, raise --warmup or set --clip-norm 1."
LOG_EVERY = 10  # steps between log lines; only these wait for the device


def train_model(
    config: TrainConfig,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: ClassificationDataset,
    val: ClassificationDataset,
) -> Path:
    """Trains `model`, evaluates it after every epoch, and writes the run folder, whose path it returns.

    The headline numbers in metrics.json are those of the last epoch: the best of many epochs on a small val split is
    better by luck alone. Resumes from the folder's checkpoint with `--resume`.

    Raises:
        InputError: the batch does not fit the data or the processes, or the loss is no longer finite.
    """
    if config.batch_size > len(train):
        raise InputError(
            f"{len(train)} train rows are fewer than one batch of {config.batch_size}: lower --batch-size."
        )
    main = accelerator.is_main_process
    report = audit(train, val)
    accelerator.print(describe(train, val, report))
    if config.summary:
        accelerator.print(summary(model, (1, 3, config.image_size, config.image_size), verbose=0))
    out = run_folder(config)
    if config.dry_run and main:
        out = Path(tempfile.mkdtemp(prefix="dry-run-"))
        atexit.register(shutil.rmtree, out, ignore_errors=True)
    if config.background != "keep":
        train.masks = load_masks(config, "train", train)
    teacher = load_teacher(config, train, val, accelerator.device)
    run = describe_run(config, accelerator, model, train, val)
    identity = run_identity(config, accelerator, train, val)
    model, optimizer = accelerator.prepare(model, optimizer)
    place_pixels(config, accelerator.device, train, val)
    progress = {"step": 0, "seconds": 0.0, "train_seconds": 0.0, "best": {"accuracy": -1.0}}
    # Sums since the last log line and the last evaluation: a checkpoint may fall between them.
    progress |= {"window_loss": 0.0, "window_steps": 0, "epoch_loss": 0.0, "epoch_steps": 0}
    if config.resume and not config.dry_run:
        progress = load_checkpoint(out, identity, accelerator, model, optimizer) or progress

    n, batch_size = len(train), config.batch_size
    total_steps = math.ceil(config.epochs * n / batch_size)
    warmup_steps = round(config.warmup * total_steps)
    last_step = min(total_steps, 2) if config.dry_run else total_steps
    step = first_step = progress["step"]
    first_seconds = progress["seconds"], progress["train_seconds"]
    if main:
        log = Log(out, step)
        write_start(out, run, report)
    begins = "no checkpoint there, so from the start" if config.resume and not step else f"from step {step}"
    accelerator.print(f"{run['parameters']:,} parameters, {last_step} steps into {out}, {begins}")

    order = RowOrder(n, batch_size, config.seed, shuffle=config.recipe != "lab")
    window, logits = torch.tensor(progress["window_loss"], device=accelerator.device), None
    set_train_mode(model)
    bar = tqdm(total=last_step, initial=step, unit="step", dynamic_ncols=True, disable=None if main else True)
    start = clock = time.perf_counter()
    with StopRequest(accelerator) as stop:
        while step < last_step:
            lr = get_lr(step, total_steps, warmup_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            try:
                window += train_step(config, accelerator, model, optimizer, train, order[step], step, teacher)
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                    raise
                advice = f"{config.accumulate} pieces: --accumulate {2 * config.accumulate} makes smaller ones of it"
                raise InputError(f"out of memory with --batch-size {batch_size} in {advice}.") from error
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                advice = "raise --batch-size or --image-size, or lower --accumulate"
                raise InputError(f"batch norm is left with one value to take the mean of: {advice}.") from error
            step += 1
            bar.update()
            epoch = step * batch_size // n
            epoch_ends = epoch > (step - 1) * batch_size // n or step == last_step
            logs = epoch_ends or step % LOG_EVERY == 0
            stops = stop.agreed(together=logs)
            saves = epoch_ends or stops or (config.checkpoint_every and step % config.checkpoint_every == 0)
            if not logs and not saves:
                continue

            progress["window_loss"] = accelerator.reduce(window, "mean").item()  # waits for the device
            if not math.isfinite(progress["window_loss"]):
                raise InputError(f"the loss is {progress['window_loss']} at step {step}, lr {lr:.3g}: {ADVICE}")
            progress["window_steps"] += step - progress["step"]
            progress["step"] = step
            progress["train_seconds"] += time.perf_counter() - clock
            if logs:
                loss = progress["window_loss"] / progress["window_steps"]
                rate = (step - first_step) * batch_size / (progress["train_seconds"] - first_seconds[1])
                bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.2e}, {rate:.1f} images/s")
                if main:
                    log.write(step=step, epoch=step * batch_size / n, loss=loss, lr=lr, images_per_second=rate)
                progress["epoch_loss"] += progress["window_loss"]
                progress["epoch_steps"] += progress["window_steps"]
                progress |= {"window_loss": 0.0, "window_steps": 0}
                window.zero_()
            if epoch_ends:
                logits = predict(model, val, accelerator, config.fit)
                if not np.isfinite(logits).all():
                    raise InputError(f"the model's outputs are no numbers any more at step {step}: {ADVICE}")
                set_train_mode(model)
                result = scores(val.labels.numpy(), logits)
                train_loss = progress["epoch_loss"] / progress["epoch_steps"]
                progress |= {"epoch_loss": 0.0, "epoch_steps": 0}
                if result["accuracy"] > progress["best"]["accuracy"]:
                    progress["best"] = {"epoch": epoch, "accuracy": result["accuracy"]}
                if main:
                    val_scores = {f"val_{name}": value for name, value in result.items()}
                    log.write(step=step, epoch=epoch, train_loss=train_loss, **val_scores)
                    left = (time.perf_counter() - start) / (step - first_step) * (last_step - step)
                    bar.write(epoch_line(epoch, config.epochs, train_loss, result, left))
            progress["seconds"] = first_seconds[0] + time.perf_counter() - start
            if saves and main:
                save_checkpoint(out, identity, progress, accelerator, model, optimizer)
            if stops:
                raise Interrupted(f"stopped after step {step} of {last_step}; go on with the same command and --resume")
            clock = time.perf_counter()
    bar.close()

    if logits is None:  # resumed after the last step
        logits = predict(model, val, accelerator, config.fit)
    if main:
        run |= {
            "seconds": first_seconds[0] + time.perf_counter() - start,
            "train_seconds": progress["train_seconds"],
            "images_per_second": step * batch_size / progress["train_seconds"],
        }
        write_json(out / "run.json", run)
        from common.report import write_results  # matplotlib and scikit-learn take seconds

        trained = unwrapped(accelerator, model)
        write_results(out, trained, logits, val, run, report, progress["best"], log.read())
        accelerator.print(f"finished: {out}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out
