"""Barlow Twins: the cross-correlation of two views' embeddings is to be the identity.

Shape suffixes: N samples of this rank, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Batch, Images, MakeBackbone, Output
from stabilitylab.methods._precision import full, full_products
from stabilitylab.models.collectives import sum_over_ranks, world_size
from stabilitylab.models.sync_batch_norm import SyncBatchNorm
from stabilitylab.parameters import Parameters

__all__ = ["Method", "redundancy"]


def redundancy(correlation_DD: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Return the two terms of the loss: sum of (1 - C_ii)^2, and weight times the sum of C_ij^2 off the diagonal."""
    diagonal_D = correlation_DD.diagonal()
    off = correlation_DD.square().sum() - diagonal_D.square().sum()
    return (1 - diagonal_D).square().sum(), weight * off


class Method(Encoder):
    """Backbone and projector.

    References:
        Zbontar et al., 2021, Barlow Twins: self-supervised learning via redundancy reduction. ICML. arXiv 2103.03230.
    """

    class Config(Parameters):
        """Barlow Twins; the defaults are the published ones for a ResNet-50."""

        name: Literal["barlow_twins"] = "barlow_twins"
        """Name of the method."""
        redundancy: PositiveFloat = 5e-3
        """Weight of the correlations off the diagonal."""
        hidden: PositiveInt = 8192
        """Hidden width of the projector."""
        dim: PositiveInt = 8192
        """Width of the embeddings."""
        projector_layers: PositiveInt = 3
        """Linear layers of the projector."""
        batch_norm: bool = True
        """BatchNorm in the hidden layers of the projector."""

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.projector_layers": 1, "method.redundancy": 0.02, "optimizer.lr": 3e-3}
    }
    diagnostics: ClassVar[tuple[str, ...]] = ("diagonal", "off_diagonal")
    last_batch_norm: ClassVar[bool] = False
    config: Config

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        super().__init__(config, make_backbone, images)
        self.standardize = SyncBatchNorm(config.dim, affine=False)

    def compare(self, projections: list[Tensor], _: Batch, /) -> Output:
        """Return the sum of the two terms, which are the diagnostics."""
        first_ND, second_ND = (self.standardize(full(each)) for each in projections)
        with full_products(first_ND):
            correlation_DD = sum_over_ranks(first_ND.T @ second_ND / (len(first_ND) * world_size()))
        on, off = redundancy(correlation_DD, self.config.redundancy)
        return Output(on + off, {}, {}, {"diagonal": on, "off_diagonal": off})
