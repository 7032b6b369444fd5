"""SimSiam: predict the projection of the other view, without negatives and without a momentum encoder."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
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

    settings: ClassVar[dict[str, dict[str, object]]] = {"digits": {"optimizer.lr": 3e-3}}
    diagnostics: ClassVar[tuple[str, ...]] = ("positive", "std")

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:  # noqa: ARG002
        hidden = [config.hidden] * (config.projector_layers - 1)
        bottleneck = config.bottleneck or max(1, config.dim // 4)
        super().__init__(
            config,
            make_backbone,
            lambda width: mlp_head([width, *hidden, config.dim], config.batch_norm),
            (lambda: mlp_head([config.dim, bottleneck, config.dim], config.batch_norm, False, last_bias=True))
            if config.predictor else None,
        )  # fmt: skip
        self.config: Method.Config = config

    def forward(
        self,
        views: tuple[Tensor, ...],
        progress: float,  # noqa: ARG002 - all methods are called alike
        indices: Tensor | None = None,  # noqa: ARG002
        labels: Tensor | None = None,  # noqa: ARG002
    ) -> Output:
        """Return minus the mean cosine of predictions with their targets for two views, each (N, C, H, W).

        The diagnostic ``std`` is the mean standard deviation of the l2-normalized projections: 1 / sqrt(dim) where
        they are spread out, 0 where they collapsed.

        Args:
            views: two augmentations.
            progress: not used.
            indices: not used.
            labels: not used.
        """
        representations = self.represent(views[:2])
        projections = [self.projector(each) for each in representations]
        predictions = [self.predictor(each) for each in projections]
        targets = [each.detach() if self.config.stop_gradient else each for each in projections]
        directions = ((0, 1), (1, 0)) if self.config.symmetric else ((0, 1),)
        loss = -torch.stack(
            [cosine_similarity(full(predictions[q]), full(targets[k]), dim=1).mean() for q, k in directions]
        ).mean()
        outputs = {
            "representation": representations[0],
            "projection": projections[0],
            "positive": projections[1],
            "prediction": predictions[0],
        }
        std = normalize(full(projections[0].detach()), dim=1).std(dim=0).mean()
        return Output(
            loss,
            {name: value.detach() for name, value in outputs.items()},
            {},
            {"positive": -loss.detach(), "std": std},
        )
