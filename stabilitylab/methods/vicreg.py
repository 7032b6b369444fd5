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
from stabilitylab.methods._exchange import Batch, Output
from stabilitylab.methods._precision import full, full_products
from stabilitylab.models.collectives import gather_with_gradient
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
    last_batch_norm: ClassVar[bool] = False
    config: Config

    def compare(self, projections: list[Tensor], _: Batch, /) -> Output:
        """Return the weighted sum of the three terms; the diagnostics are the terms without their weights."""
        with full_products(projections[0]):
            first_MD, second_MD = (gather_with_gradient(full(each)) for each in projections)
            told = {
                "invariance": mse_loss(first_MD, second_MD),
                "variance": (variance(first_MD) + variance(second_MD)) / 2,
                "covariance": covariance(first_MD) + covariance(second_MD),
            }
        weighted = [getattr(self.config, name) * value for name, value in told.items()]
        return Output(torch.stack(weighted).sum(), {}, {}, told)
