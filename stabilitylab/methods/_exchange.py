"""What every method is built for, and what it returns for a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["UNKNOWN", "Batch", "Images", "MakeBackbone", "Output"]

MakeBackbone = Callable[[], nn.Module]
"""Returns a new backbone with ``num_features``: images (N, C, H, W) to (N, num_features)."""


class Images(NamedTuple):
    """The training images as a whole."""

    number: int = 0
    """How many there are; 0 where it is not known."""
    classes: int = 0
    """How many classes their labels have; 0 without labels."""
    batch: int = 0
    """How many make a batch, over all processes; 0 where it is not known."""


UNKNOWN = Images()
"""Images of which nothing is known."""


class Batch(NamedTuple):
    """The views of some images, and what is known of them."""

    views: tuple[Tensor, ...]
    """Those that are compared, (N, C, H, W) each."""
    progress: float
    """The part of the training that is done, 0 to 1."""
    indices: Tensor | None
    """Which training images these are, int64, shape (N,)."""
    labels: Tensor | None
    """Their classes, int64, shape (N,); -1 for none."""


class Output(NamedTuple):
    """The loss, the named outputs for the probes (detached), and numbers about the step."""

    loss: Tensor
    outputs: Mapping[str, Tensor]
    """``representation``, ``projection``, ``positive``, ``prediction``, ``key``: those that the method has."""
    scalars: Mapping[str, float] = {}
    """Numbers that the host knows."""
    diagnostics: Mapping[str, Tensor] = {}
    """Numbers of the method's own on the device, one each: those that its ``diagnostics`` names."""
