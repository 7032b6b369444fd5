"""What every method returns for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["Output"]


class Output(NamedTuple):
    """The loss, the named outputs for the probes (detached), and numbers that the host knows."""

    loss: Tensor
    outputs: Mapping[str, Tensor]
    scalars: Mapping[str, float]
