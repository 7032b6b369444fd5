"""BYOL: predict the momentum encoder's projection of the other view; there are no negatives."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from stabilitylab.methods._encoder import MomentumEncoder
from stabilitylab.methods._exchange import Batch, Output
from stabilitylab.methods._precision import full
from stabilitylab.models.collectives import gather
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
        projection_batch_norm: bool = False
        """BatchNorm behind the projector too, where the heads have any: a linear projector needs it."""
        symmetric: bool = True
        """Whether each view predicts the other one, or the first one the second alone."""

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.momentum": 0.9, "method.projector_layers": 1, "method.projection_batch_norm": True,
                   "optimizer.lr": 3e-3}
    }  # fmt: skip
    diagnostics: ClassVar[tuple[str, ...]] = ("positive",)
    config: Config

    def make_projector(self) -> nn.Module:
        """Return an MLP without BatchNorm behind it, unless asked for."""
        return self.head(self.width, self.config.projector_layers, self.config.projection_batch_norm)

    def make_predictor(self) -> nn.Module | None:
        """Return an MLP, if it has layers."""
        layers = self.config.predictor_layers
        return self.head(self.config.dim, layers, last_batch_norm=False) if layers else None

    def compare(self, projections: list[Tensor], batch: Batch, /) -> Output:
        """Return the sum of the directions; the diagnostic ``positive`` is the mean cosine with the targets.

        ``prediction`` is of the first view, ``key`` the momentum encoder's projection of the first view that is a
        target, of all ranks.
        """
        targets = self.keys_of(batch.views)
        predictions = {q: self.predictor(projections[q]) for q, _ in self.directions}
        losses = torch.stack([distance(predictions[q], targets[k]) for q, k in self.directions])
        outputs = {"prediction": predictions[0], "key": gather(targets[min(targets)])}
        return Output(losses.sum(), outputs, {}, {"positive": 1 - losses.mean() / 2})
