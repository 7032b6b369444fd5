"""A queue of keys, first in, first out: the dictionary of MoCo v1 and v2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stabilitylab.errors import InputError

__all__ = ["Queue"]


class Queue(nn.Module):
    """The newest keys of all ranks, l2-normalized; random directions until it has been filled once.

    Everything is in buffers, so that an interrupted training goes on with the same queue, and nothing waits for the
    device.

    Args:
        length: number of keys.
        dim: their width.
        step: how many keys will come in a step, if that is known.

    Raises:
        InputError: when more keys come at once than it holds.

    References:
        He et al., 2020, arXiv 1911.05722.
    """

    keys: Tensor
    """Shape (length, dim)."""
    ages: Tensor
    """How many steps ago each key came; NaN for a random one."""
    start: Tensor
    """Where the next key goes."""

    def __init__(self, length: int, dim: int, step: int = 0) -> None:
        super().__init__()
        _check(length, step)
        self.length = length
        self.register_buffer("keys", normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("ages", torch.full((length,), torch.nan))
        self.register_buffer("start", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys_MD: Tensor) -> None:
        """Let new keys take the places of the oldest ones."""
        _check(self.length, len(keys_MD))
        at = (self.start + torch.arange(len(keys_MD), device=keys_MD.device)) % self.length
        keys = self.keys.clone()  # the loss of this step still needs the keys that it saw
        keys[at] = normalize(keys_MD, dim=1).to(keys.dtype)
        self.keys = keys
        self.ages += 1
        self.ages[at] = 0
        self.start.copy_((self.start + len(keys_MD)) % self.length)

    def age(self) -> Tensor:
        """Return the mean age of its keys in steps; NaN while there are only random ones."""
        return self.ages.nanmean()


def _check(length: int, step: int) -> None:
    if step > length:
        raise InputError(
            f"method.queue is {length}, shorter than the {step} keys of a step; it must hold those at least"
        )
