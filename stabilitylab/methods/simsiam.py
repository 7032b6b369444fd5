"""SimSiam: predict the projection of the other view, without negatives and without a momentum encoder."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import Batch, Output
from stabilitylab.methods._precision import full
from stabilitylab.models.heads import mlp_head
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class Method(Encoder):
    """Backbone, projector and predictor.

    References:
        Chen and He, 2021, Exploring simple Siamese representation learning. CVPR. arXiv 2011.10566.
    """

    class Config(Parameters):
        """SimSiam; the defaults are the published ones for a ResNet-50."""

        name: Literal["simsiam"] = "simsiam"
        """Name of the method."""
        hidden: PositiveInt = 2048
        """Hidden width of the projector."""
        dim: PositiveInt = 2048
        """Width of the projections."""
        projector_layers: PositiveInt = 3
        """Linear layers of the projector."""
        bottleneck: PositiveInt | None = None
        """Hidden width of the predictor; by default a quarter of ``dim``."""
        predictor: bool = True
        """Whether there is a predictor; without one everything collapses."""
        stop_gradient: bool = True
        """Whether the target carries no gradient; with one everything collapses."""
        batch_norm: bool = True
        """BatchNorm in the heads."""
        symmetric: bool = True
        """Whether each view predicts the other one, or the first one the second alone."""

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.projector_layers": 1, "method.bottleneck": 256, "optimizer.lr": 5e-3}
    }
    diagnostics: ClassVar[tuple[str, ...]] = ("positive", "std")
    config: Config

    def make_predictor(self) -> nn.Module | None:
        """Return an MLP with a bottleneck."""
        config = self.config
        widths = [config.dim, config.bottleneck or max(1, config.dim // 4), config.dim]
        return mlp_head(widths, config.batch_norm, False, last_bias=True) if config.predictor else None

    @property
    def num_queries(self) -> int | None:
        """How many views are encoded with gradient: all if the targets carry one too."""
        return len(self.directions) if self.config.stop_gradient else None

    def compare(self, projections: list[Tensor], _: Batch, /) -> Output:
        """Return minus the mean cosine of predictions with their targets.

        The diagnostic ``std`` is the mean standard deviation of the l2-normalized projections: 1 / sqrt(dim) where
        they are spread out, 0 where they collapsed.
        """
        predictions = {q: self.predictor(projections[q]) for q, _ in self.directions}
        targets = [each.detach() if self.config.stop_gradient else each for each in projections]
        cosines = [cosine_similarity(full(predictions[q]), full(targets[k]), dim=1).mean() for q, k in self.directions]
        positive = torch.stack(cosines).mean()
        std = normalize(full(projections[0].detach()), dim=1).std(dim=0).mean()
        return Output(-positive, {"prediction": predictions[0]}, {}, {"positive": positive, "std": std})
