"""The end-to-end mechanism that MoCo compares itself with: keys from the same batch and encoder, with gradient.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from stabilitylab.methods._contrast import CONTRASTS, against_batch
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
from stabilitylab.models.collectives import gather_with_gradient
from stabilitylab.models.heads import mlp_head
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class Method(Encoder):
    """Backbone and projector, which make queries and keys.

    References:
        He et al., 2020, arXiv 1911.05722, Figure 2 (a).
    """

    class Config(Parameters):
        """The end-to-end mechanism; the defaults are those of MoCo v1."""

        name: Literal["end_to_end"] = "end_to_end"
        """Name of the method."""
        temperature: PositiveFloat = 0.07
        """Temperature of the contrast."""
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

    settings: ClassVar[dict[str, dict[str, object]]] = {"digits": {"optimizer.lr": 3e-3}}
    diagnostics: ClassVar[tuple[str, ...]] = CONTRASTS

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:  # noqa: ARG002
        hidden = config.projector_layers - 1
        super().__init__(
            config,
            make_backbone,
            lambda width: mlp_head([width, *[config.hidden or width] * hidden, config.dim], config.batch_norm),
        )
        self.config: Method.Config = config

    def forward(
        self,
        views: tuple[Tensor, ...],
        progress: float,  # noqa: ARG002 - all methods are called alike
        indices: Tensor | None = None,  # noqa: ARG002
        labels: Tensor | None = None,  # noqa: ARG002
    ) -> Output:
        """Return the loss of two views of the same images, each (N, C, H, W).

        Outputs as of MoCo v3, without ``prediction``; ``key`` is the projection of the second view, of all ranks.

        Args:
            views: two augmentations.
            progress: not used.
            indices: not used.
            labels: not used.
        """
        representations = self.represent(views[:2])
        projections = [self.projector(each) for each in representations]
        keys = [gather_with_gradient(each) for each in projections]
        directions = ((0, 1), (1, 0)) if self.config.symmetric else ((0, 1),)
        losses, told = zip(
            *(against_batch(projections[q], keys[k], self.config.temperature) for q, k in directions), strict=True
        )
        outputs = {
            "representation": representations[0],
            "projection": projections[0],
            "positive": projections[1],
            "key": keys[1],
        }
        return Output(
            torch.stack(losses).mean(),
            {name: value.detach() for name, value in outputs.items()},
            {},
            {name: torch.stack([each[name] for each in told]).mean() for name in CONTRASTS},
        )
