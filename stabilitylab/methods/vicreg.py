"""VICReg: invariance of two views, variance of each feature, and no covariance between them.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import mse_loss, relu

from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
from stabilitylab.methods._precision import full, full_products
from stabilitylab.models.collectives import gather_with_gradient
from stabilitylab.models.heads import mlp_head
from stabilitylab.parameters import Parameters

__all__ = ["Method", "covariance", "variance"]


def variance(z_MD: Tensor) -> Tensor:
    """Return the mean over features of how far their standard deviation, sqrt(var + 1e-4), is below one."""
    return relu(1 - (z_MD.var(dim=0) + 1e-4).sqrt()).mean()


def covariance(z_MD: Tensor) -> Tensor:
    """Return the sum of the squared covariances of different features, over the number of features."""
    centered = z_MD - z_MD.mean(dim=0)
    covariance_DD = centered.T @ centered / (len(z_MD) - 1)
    return (covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()) / z_MD.shape[1]


class Method(Encoder):
    """Backbone and projector (there called expander).

    References:
        Bardes et al., 2022, VICReg: variance-invariance-covariance regularization. ICLR. arXiv 2105.04906.
    """

    class Config(Parameters):
        """VICReg; the defaults are the published ones for a ResNet-50."""

        name: Literal["vicreg"] = "vicreg"
        """Name of the method."""
        invariance: NonNegativeFloat = 25.0
        """Weight of the mean squared distance of the two views."""
        variance: NonNegativeFloat = 25.0
        """Weight of the variance term, half of which is of each view."""
        covariance: NonNegativeFloat = 1.0
        """Weight of the covariance term, the sum over both views."""
        hidden: PositiveInt = 8192
        """Hidden width of the projector."""
        dim: PositiveInt = 8192
        """Width of the embeddings."""
        projector_layers: PositiveInt = 3
        """Linear layers of the projector."""
        batch_norm: bool = True
        """BatchNorm in the hidden layers of the projector."""

    settings: ClassVar[dict[str, dict[str, object]]] = {"digits": {"optimizer.lr": 3e-3}}
    diagnostics: ClassVar[tuple[str, ...]] = ("invariance", "variance", "covariance")

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:  # noqa: ARG002
        hidden = [config.hidden] * (config.projector_layers - 1)
        super().__init__(
            config,
            make_backbone,
            lambda width: mlp_head([width, *hidden, config.dim], config.batch_norm, last_batch_norm=False),
        )
        self.config: Method.Config = config

    def forward(
        self,
        views: tuple[Tensor, ...],
        progress: float,  # noqa: ARG002 - all methods are called alike
        indices: Tensor | None = None,  # noqa: ARG002
        labels: Tensor | None = None,  # noqa: ARG002
    ) -> Output:
        """Return the weighted sum of the three terms for two views of the same images, each (N, C, H, W).

        The diagnostics are the three terms, without their weights.

        Args:
            views: two augmentations.
            progress: not used.
            indices: not used.
            labels: not used.
        """
        representations = self.represent(views[:2])
        projections = [self.projector(each) for each in representations]
        with full_products(projections[0]):
            first_MD, second_MD = (gather_with_gradient(full(each)) for each in projections)
            told = {
                "invariance": mse_loss(first_MD, second_MD),
                "variance": (variance(first_MD) + variance(second_MD)) / 2,
                "covariance": covariance(first_MD) + covariance(second_MD),
            }
        weights = {name: getattr(self.config, name) for name in told}
        loss = torch.stack([weights[name] * value for name, value in told.items()]).sum()
        outputs = {"representation": representations[0], "projection": projections[0], "positive": projections[1]}
        return Output(
            loss,
            {name: value.detach() for name, value in outputs.items()},
            {},
            {name: value.detach() for name, value in told.items()},
        )
