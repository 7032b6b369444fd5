"""A poisoned batch: its images are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stabilitylab.training.injections.injection import Injection, Training

__all__ = ["Batch"]

WORDS = {"noise": "noise", "repeated": "one image, repeated"}


class Batch(Injection):
    """The images of a batch are replaced; their labels and places in the data set stay."""

    kind: Literal["batch"] = "batch"
    """The images of a batch."""
    images: Literal["noise", "contrast", "repeated"] = "noise"
    """Replaced by normal noise, another for each view; by themselves with extreme contrast; all by the first one."""
    factor: float = Field(10.0, gt=0, allow_inf_nan=False)
    """How much stronger the contrast is, where it is extreme."""

    def what(self) -> str:
        """Say what it does."""
        return f"a batch of {WORDS.get(self.images, f'images with {self.factor:g} times the contrast')}"

    def views(self, views: Sequence[Tensor], training: Training) -> tuple[Tensor, ...]:
        """Return views of the same shapes; noise depends on seed, step and rank alone."""
        if self.images == "contrast":
            return tuple(view * self.factor for view in views)
        if self.images == "repeated":
            return tuple(_first(view, training).expand_as(view).contiguous() for view in views)
        key = np.random.SeedSequence([training.seed, training.step, training.ranks.rank])
        generator = torch.Generator().manual_seed(int(key.generate_state(1)[0]))
        return tuple(torch.randn(view.shape, generator=generator).to(view) for view in views)


def _first(view: Tensor, training: Training) -> Tensor:
    """Return the first image of the whole batch, which the first rank holds."""
    first = view[:1].clone()
    if training.ranks.world > 1:
        torch.distributed.broadcast(first, 0)
    return first
