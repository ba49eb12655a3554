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
    """If the block raises InputError or OSError in one process, all processes raise an error at its end.

    If one process ended alone, those on other machines would wait for it for minutes. Inside the block, the processes
    must not wait for each other.
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
    """Executes the block in one process of each machine first; the others of the machine then find its files."""
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
    """Calls `function` in the main process only; returns its result, or raises its exception, in all processes."""
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
    """Raises an InputError with the names of the `values` that are not the same in all processes."""
    first, *others = gather_object([dict(values)])
    differ = {name for other in others for name in first.keys() | other.keys() if first.get(name) != other.get(name)}
    if differ:
        raise InputError(
            f"the processes of this run differ in {', '.join(sorted(differ))}: start them with the same options, data, "
            "code and packages on every machine."
        )


@contextmanager
def lost_process_explained() -> Iterator[None]:
    """Raises an InputError if this process waits for one that has ended. Also a decorator."""
    try:
        yield
    except RuntimeError as error:  # on CPUs, only the library's name in the message identifies it
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0].partition(". ")[0])
        raise InputError(
            f"another process of this run has ended or cannot be reached ({reason}): see its output, and continue with "
            "the same command and --resume."
        ) from error
