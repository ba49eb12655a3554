"""Saves and loads checkpoints: weights, optimizer state, step, losses so far, and elapsed time.

Everything else that a step uses is a function of its number (see `common.schedule`), so a resumed run gives the same
results as an uninterrupted one.
"""

import torch
from accelerate import Accelerator
from torch import nn

from common.config import InputError
from common.processes import from_main_process
from common.provenance import code_key
from common.run_folder import RunFolder


def unwrapped(accelerator: Accelerator, model: nn.Module, *, keep_precision: bool = True) -> nn.Module:
    """The model without the wrappers of Accelerate and torch.compile, which rename its weights.

    Without `keep_precision`, its forward pass no longer uses mixed precision.
    """
    return accelerator.unwrap_model(model, keep_torch_compile=False, keep_fp32_wrapper=keep_precision)


def save_checkpoint(
    folder: RunFolder,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    losses: torch.Tensor,
) -> None:
    """Writes the state after `step` steps that a resumed run needs. `losses` (steps,) are means over all processes."""
    folder.clock.lap(training=False)
    folder.write_checkpoint(
        {
            "identity": folder.identity,
            "step": step,
            "losses": losses[:step].cpu(),
            "seconds": {"total": folder.clock.total, "training": folder.clock.training},
            "model": unwrapped(accelerator, model).state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }
    )


def load_checkpoint(
    folder: RunFolder,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: torch.Tensor,
) -> int:
    """Restores model, optimizer, `losses` and clock from the folder's checkpoint, which the main process reads for all.

    Returns:
        The number of steps done; 0 if there is no checkpoint.

    Raises:
        InputError: the checkpoint belongs to a run with another identity (the message lists the differences), or cannot
            be read.
    """
    try:
        state = from_main_process(lambda: _own_checkpoint(folder))
        if state is None:
            return 0
        unwrapped(accelerator, model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        step = state["step"]
        if not 0 <= step <= len(losses) or len(state["losses"]) != step:
            raise ValueError(f"step {step}")
        losses[:step] = state["losses"]
        folder.clock.total, folder.clock.training = (
            float(state["seconds"]["total"]),
            float(state["seconds"]["training"]),
        )
        folder.continue_run(step, state["origin"])
    except InputError:
        raise
    except Exception as error:  # a checkpoint of other code may lack anything
        raise InputError(
            f"the checkpoint in {folder.path} does not fit the model, the optimizer or the plan: the code has changed "
            "since. Use the old code, or choose another --out."
        ) from error
    return step


def _own_checkpoint(folder: RunFolder) -> dict | None:
    """The folder's checkpoint; an InputError if it was saved by another script or by a run with another identity."""
    state = folder.read_checkpoint()
    if state is None:
        return None
    if code_key(state["script"]) != code_key(folder.script):
        raise InputError(
            f"{folder.path} was started by another version of the script: continue it with the copy in that folder, or "
            "choose another --out."
        )
    differ = [
        f"{name} was {str(state['identity'].get(name))[:60]}, now {str(value)[:60]}"
        for name, value in folder.identity.items()
        if state["identity"].get(name) != value
    ]
    if differ:
        raise InputError(
            f"{folder.path} holds another run: {'; '.join(differ)}. Use the old values, or choose another --out."
        )
    return state
