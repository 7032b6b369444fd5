"""MoCo v3: contrast of two views between an encoder and its slowly moving average.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from stabilitylab.methods._contrast import CONTRASTS, against_batch
from stabilitylab.methods._encoder import MomentumEncoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
from stabilitylab.models.collectives import gather
from stabilitylab.models.heads import mlp_head
from stabilitylab.parameters import Parameters

__all__ = ["Method", "contrast"]


def contrast(q_ND: Tensor, k_MD: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of queries against keys, times 2 T as in MoCo v3 (Chen, Xie and He, 2021).

    Args:
        q_ND: queries; row i of this rank belongs to key ``rank * N + i``.
        k_MD: keys of all ranks.
        temperature: T.
    """
    return against_batch(q_ND, k_MD, temperature)[0] * (2 * temperature)


class Method(MomentumEncoder):
    """Backbone, projector and predictor, and the momentum copy of the first two.

    Args:
        config: the parameters of the method.
        make_backbone: returns a new backbone with ``num_features``: images (N, C, H, W) to (N, num_features).
        images: the training images as a whole.

    References:
        Chen, Xie and He, 2021, An empirical study of training self-supervised vision transformers. ICCV.
        arXiv 2104.02057.
    """

    class Config(Parameters):
        """MoCo v3; the defaults are the published ones for a ViT."""

        name: Literal["moco_v3"] = "moco_v3"
        """Name of the method."""
        temperature: PositiveFloat = 0.2
        """Temperature of the contrast: 0.2 for a ViT, 1.0 for a ResNet."""
        momentum: float = Field(0.99, ge=0, le=1)
        """Momentum of the momentum encoder at the start; 0 makes it a copy of the encoder."""
        momentum_schedule: Literal["cosine", "constant"] = "cosine"
        """Whether the momentum rises to 1 by a cosine over the training, or stays."""
        hidden: PositiveInt = 4096
        """Hidden width of projector and predictor."""
        dim: PositiveInt = 256
        """Width of the embeddings that are contrasted."""
        projector_layers: PositiveInt = 3
        """Linear layers of the projector: 3 for a ViT, 2 for a ResNet."""
        predictor_layers: int = Field(2, ge=0)
        """Linear layers of the predictor on the query side; 0 for none."""
        batch_norm: bool = True
        """BatchNorm in the heads."""
        last_batch_norm: bool = True
        """BatchNorm behind the predictor, where the heads have any: yes for a ViT, no for a ResNet."""
        symmetric: bool = True
        """Whether each view is query and key, or the first one query alone."""

    diagnostics: ClassVar[tuple[str, ...]] = CONTRASTS

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:  # noqa: ARG002
        hidden, layers = [config.hidden], config.predictor_layers
        super().__init__(
            config,
            make_backbone,
            lambda width: mlp_head([width, *hidden * (config.projector_layers - 1), config.dim], config.batch_norm),
            (lambda: mlp_head([config.dim, *hidden * (layers - 1), config.dim], config.batch_norm,
                              config.last_batch_norm)) if layers else None,
        )  # fmt: skip
        self.config: Method.Config = config
        self.start_following()

    def forward(
        self,
        views: tuple[Tensor, ...],
        progress: float,
        indices: Tensor | None = None,  # noqa: ARG002 - all methods are called alike
        labels: Tensor | None = None,  # noqa: ARG002
    ) -> Output:
        """Return the loss of two views of the same images, each (N, C, H, W), after moving the momentum encoder.

        The outputs ``representation``, ``projection`` and ``prediction`` are what backbone, projector and predictor
        make of the first view. ``positive`` is what the same backbone and projector, not the momentum encoder, make of
        the second one: its row i belongs to row i of ``projection``. ``key`` is what the momentum encoder makes of the
        first view, of all ranks.

        Args:
            views: two augmentations.
            progress: the part of the training that is done, 0 to 1, which sets the momentum.
            indices: not used.
            labels: not used.
        """
        momentum = self.move(progress)
        representations = self.represent(views[:2])
        projections = [self.projector(each) for each in representations]
        queries = [self.predictor(each) for each in projections]
        keys = [gather(each) for each in self.keys(views[:2])]
        directions = ((0, 1), (1, 0)) if self.config.symmetric else ((0, 1),)
        losses, told = zip(
            *(against_batch(queries[q], keys[k], self.config.temperature) for q, k in directions), strict=True
        )
        outputs = {
            "representation": representations[0],
            "projection": projections[0],
            "positive": projections[1],
            "prediction": queries[0],
            "key": keys[0],
        }
        return Output(
            torch.stack([loss * (2 * self.config.temperature) for loss in losses]).sum(),
            {name: value.detach() for name, value in outputs.items()},
            {"momentum": momentum},
            {name: torch.stack([each[name] for each in told]).mean() for name in CONTRASTS},
        )
