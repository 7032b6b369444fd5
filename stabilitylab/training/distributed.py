"""Many processes: what torchrun says of them, and the few collectives that training needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from stabilitylab.errors import InputError

__all__ = ["Ranks", "mean_over_ranks", "process_group"]


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many, and its device."""

    rank: int
    world: int
    device: torch.device


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun describes, or stand alone; ``device`` may be ``auto``.

    Raises:
        InputError: if the device is not there.
    """
    world, rank, local = (
        int(os.environ.get(name, d)) for name, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    chosen = _device(device, local)
    if world == 1:
        yield Ranks(0, 1, chosen)
        return
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world, chosen)
    finally:
        torch.distributed.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    available = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    kind = available[-1] if name == "auto" else name.split(":")[0]
    if kind not in available:
        raise InputError(f"train.device is {name!r}; available here: {', '.join(available)}")
    if kind == "cuda":
        device = torch.device(name if ":" in name else f"cuda:{local}")
        torch.cuda.set_device(device)
        return device
    return torch.device(kind)


def mean_over_ranks(value: Tensor, world: int) -> Tensor:
    """Return the mean of a detached tensor over all ranks."""
    if world == 1:
        return value.detach()
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total / world
