"""MoCo v1: contrast against a queue of keys that a momentum encoder made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from stabilitylab.methods._queue_contrast import QueueContrast
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class Method(QueueContrast):
    """Backbone with a linear projector, their momentum copy, and the queue.

    References:
        He et al., 2020, Momentum contrast for unsupervised visual representation learning. CVPR. arXiv 1911.05722.
    """

    class Config(Parameters):
        """MoCo v1; the defaults are the published ones."""

        name: Literal["moco_v1"] = "moco_v1"
        """Name of the method."""
        temperature: PositiveFloat = 0.07
        """Temperature of the contrast."""
        momentum: float = Field(0.999, ge=0, le=1)
        """Momentum of the momentum encoder; 0 makes it a copy of the encoder."""
        momentum_schedule: Literal["cosine", "constant"] = "constant"
        """Whether the momentum rises to 1 by a cosine over the training, or stays."""
        queue: PositiveInt = 65536
        """Number of keys in the queue; at least a batch."""
        dim: PositiveInt = 128
        """Width of the embeddings that are contrasted."""
        hidden: PositiveInt | None = None
        """Hidden width of the projector where it has several layers; by default the width of the backbone."""
        projector_layers: PositiveInt = 1
        """Linear layers of the projector."""
        batch_norm: bool = False
        """BatchNorm in the projector."""
        symmetric: bool = False
        """Whether each view is query and key, or the first one query alone."""
        shuffle_bn: bool | None = None
        """Whether keys are computed on images shuffled over processes; by default where the backbone has BatchNorm."""
