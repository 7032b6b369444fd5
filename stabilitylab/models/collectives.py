"""Sums and concatenations over all ranks, with and without gradient; the identity in one process.

Each rank backpropagates its own loss, and DistributedDataParallel averages the gradients over ranks. With the
gradients of these functions summed over ranks, the result is the gradient of the mean of the ranks' losses, also
where the loss of one rank depends on the samples of another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["gather", "gather_with_gradient", "rank", "sum_over_ranks", "world_size"]


def world_size() -> int:
    """Return the number of processes that train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def rank() -> int:
    """Return the number of this process among them."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(x_N: Tensor) -> Tensor:
    """Return the rows of all ranks, equally many of each, in the order of ranks; without gradient."""
    if world_size() == 1:
        return x_N.detach()
    parts = [torch.empty_like(x_N, memory_format=torch.contiguous_format) for _ in range(world_size())]
    torch.distributed.all_gather(parts, x_N.contiguous())
    return torch.cat(parts)


def gather_with_gradient(x_N: Tensor) -> Tensor:
    """Return the rows of all ranks, equally many of each, in the order of ranks."""
    return x_N if world_size() == 1 else _Gather.apply(x_N)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of the tensors of all ranks."""
    return x if world_size() == 1 else _Sum.apply(x)


class _Gather(torch.autograd.Function):
    """Concatenate; the gradient of a row is the sum over the ranks that used it."""

    @staticmethod
    def forward(context: Any, x_N: Tensor) -> Tensor:
        context.rows = len(x_N)
        return gather(x_N)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[rank() * context.rows : (rank() + 1) * context.rows]


class _Sum(torch.autograd.Function):
    """Add; the gradient is the sum over ranks too."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total
