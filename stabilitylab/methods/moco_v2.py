"""MoCo v2: MoCo v1 with an MLP projector and a higher temperature; its views are blurred, its schedule is a cosine."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from stabilitylab.methods import moco_v1
from stabilitylab.methods._queue_contrast import QueueContrast

__all__ = ["Method"]


class Method(QueueContrast):
    """Backbone with an MLP projector, their momentum copy, and the queue.

    References:
        Chen et al., 2020, Improved baselines with momentum contrastive learning. arXiv 2003.04297.
    """

    class Config(moco_v1.Method.Config):
        """MoCo v2; the defaults are the published ones."""

        name: Literal["moco_v2"] = "moco_v2"  # type: ignore[assignment]
        """Name of the method."""
        temperature: PositiveFloat = 0.2
        """Temperature of the contrast."""
        projector_layers: PositiveInt = 2
        """Linear layers of the projector."""
