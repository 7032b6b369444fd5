"""Worker processes that work ahead: a function of a whole number, its values in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["in_workers"]


class Calls(Dataset):
    """A function of a whole number as a data set of torch, whose loader can then call it in its workers."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def __getitem__(self, number: int) -> Any:
        return self.function(number)


def in_workers(function: Callable[[int], Any], numbers: Any, workers: int, device: torch.device) -> Iterable[Any]:
    """Return the function's values in order, computed ahead in worker processes if there are any."""
    if workers == 0:
        return map(function, numbers)
    return DataLoader(
        Calls(function),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # otherwise the loader draws a number from the global one
    )


def _start_worker(_: int) -> None:
    """Leave Ctrl-C to the main process, and let the loader end the worker whatever handler the main process has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
