"""BYOL: predict the momentum encoder's projection of the other view; there are no negatives."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stabilitylab.methods._encoder import MomentumEncoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
from stabilitylab.methods._precision import full
from stabilitylab.models.collectives import gather
from stabilitylab.models.heads import mlp_head
from stabilitylab.parameters import Parameters

__all__ = ["Method", "distance"]


def distance(prediction_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Return the mean of 2 - 2 cos, the squared distance of l2-normalized vectors: 0 to 4."""
    return 2 - 2 * cosine_similarity(full(prediction_ND), full(target_ND), dim=1).mean()


class Method(MomentumEncoder):
    """Backbone, projector and predictor, and the momentum copy of the first two.

    References:
        Grill et al., 2020, Bootstrap your own latent. NeurIPS. arXiv 2006.07733.
    """

    class Config(Parameters):
        """BYOL; the defaults are the published ones."""

        name: Literal["byol"] = "byol"
        """Name of the method."""
        momentum: float = Field(0.99, ge=0, le=1)
        """Momentum of the momentum encoder at the start; 0 makes it a copy of the encoder."""
        momentum_schedule: Literal["cosine", "constant"] = "cosine"
        """Whether the momentum rises to 1 by a cosine over the training, or stays."""
        hidden: PositiveInt = 4096
        """Hidden width of projector and predictor."""
        dim: PositiveInt = 256
        """Width of the projections."""
        projector_layers: PositiveInt = 2
        """Linear layers of the projector."""
        predictor_layers: int = Field(2, ge=0)
        """Linear layers of the predictor; without one, at 0, everything collapses."""
        batch_norm: bool = True
        """BatchNorm in the hidden layers of the heads."""
        symmetric: bool = True
        """Whether each view predicts the other one, or the first one the second alone."""

    settings: ClassVar[dict[str, dict[str, object]]] = {"digits": {"method.momentum": 0.9}}
    diagnostics: ClassVar[tuple[str, ...]] = ("positive",)

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:  # noqa: ARG002
        hidden, layers = [config.hidden], config.predictor_layers
        super().__init__(
            config,
            make_backbone,
            lambda width: mlp_head([width, *hidden * (config.projector_layers - 1), config.dim], config.batch_norm,
                                   last_batch_norm=False),
            (lambda: mlp_head([config.dim, *hidden * (layers - 1), config.dim], config.batch_norm,
                              last_batch_norm=False)) if layers else None,
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
        """Return the sum of both directions for two views, each (N, C, H, W), after moving the momentum encoder.

        Outputs as of MoCo v3; the diagnostic ``positive`` is the mean cosine of predictions with their targets.

        Args:
            views: two augmentations.
            progress: the part of the training that is done, 0 to 1.
            indices: not used.
            labels: not used.
        """
        momentum = self.move(progress)
        representations = self.represent(views[:2])
        projections = [self.projector(each) for each in representations]
        predictions = [self.predictor(each) for each in projections]
        targets = self.keys(views[:2])
        directions = ((0, 1), (1, 0)) if self.config.symmetric else ((0, 1),)
        losses = torch.stack([distance(predictions[q], targets[k]) for q, k in directions])
        outputs = {
            "representation": representations[0],
            "projection": projections[0],
            "positive": projections[1],
            "prediction": predictions[0],
            "key": gather(targets[0]),
        }
        told = {"positive": 1 - losses.detach().mean() / 2}
        return Output(
            losses.sum(), {name: value.detach() for name, value in outputs.items()}, {"momentum": momentum}, told
        )
