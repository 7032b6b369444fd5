"""Losses are computed in single precision at least, whatever autocast made of the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["full", "full_products"]


def full(x: Tensor) -> Tensor:
    """Return half precision as float32, and everything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_products(x: Tensor) -> torch.autocast:
    """Return a context in which autocast leaves matrix products alone: half precision moves a cosine by up to 0.004."""
    return torch.autocast(x.device.type, enabled=False)
