"""What the processes of one run do together, on one machine or on several that share no files."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from common.config import InputError

T = TypeVar("T")


@contextmanager
def failing_together() -> Iterator[None]:
    """Raises the InputError or OSError of one process in all of them, at the end of the block.

    A process that ended alone would leave those on other machines waiting for it, for minutes. The block must not
    contain anything for which the processes wait for each other.
    """
    error: Exception | None = None
    try:
        yield
    except (InputError, OSError) as raised:
        error = raised
    errors = [other for other in gather_object([error]) if other is not None]
    if error is not None:
        raise error
    if errors:
        raise InputError(f"another process of this run has failed: {errors[0]}")


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Executes the block in one process of each machine and then in its others, which find the files of the first."""
    state = PartialState()
    with failing_together():
        if not state.is_local_main_process:
            state.wait_for_everyone()
        try:
            yield
        finally:
            if state.is_local_main_process:
                state.wait_for_everyone()


def from_main_process(function: Callable[[], T]) -> T:
    """The result of `function` in the main process, for every process; the others do not call it.

    What it raises is raised in all of them.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome = [function(), None]
        except Exception as error:
            outcome = [None, error]
    result, raised = broadcast_object_list(outcome)
    if raised is not None:
        raise raised
    return result


def check_equal(values: Mapping[str, Any]) -> None:
    """Raises an InputError that names the `values` that are not the same in all processes."""
    first, *others = gather_object([dict(values)])
    differ = {name for other in others for name in first.keys() | other.keys() if first.get(name) != other.get(name)}
    if differ:
        raise InputError(
            f"the processes of this run differ in {', '.join(sorted(differ))}: start them with the same options, data, "
            "code and packages on every machine."
        )


@contextmanager
def lost_process_explained() -> Iterator[None]:
    """Turns the error of a process that waits for one that has ended into an InputError. Also a decorator."""
    try:
        yield
    except RuntimeError as error:  # on CPUs, the only sign of its kind is the name of the library
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0].partition(". ")[0])
        raise InputError(
            f"another process of this run has ended or cannot be reached ({reason}): see its output, and continue with "
            "the same command and --resume."
        ) from error
