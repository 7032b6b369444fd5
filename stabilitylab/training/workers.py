"""Worker processes that work ahead: a function of a whole number, its values in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["in_workers"]

T = TypeVar("T")


class Calls(Dataset):
    """A function of a whole number as a data set of torch, whose loader can then call it in its workers."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def __getitem__(self, number: int) -> Any:
        return self.function(number)


def in_workers(
    function: Callable[[int], T], numbers: Sequence[int], workers: int, *, pinned: bool = False
) -> Generator[T]:
    """Yield the function's values in order, computed ahead in worker processes if there are any.

    The workers end with the generator. Close it where it may be left early: what an exception keeps alive is only
    collected some time later, and the loader then waits in vain for its workers, five seconds for each.
    """
    if workers == 0:
        yield from map(function, numbers)
        return
    loader = DataLoader(
        Calls(function),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # otherwise the loader draws a number from the global one
    )
    results = iter(loader)
    try:
        yield from results
    finally:
        del results  # the last reference, which ends the workers


def _start_worker(_: int) -> None:
    """Leave Ctrl-C to the main process, and let the loader end the worker whatever handler the main process has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
