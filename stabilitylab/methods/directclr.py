"""DirectCLR: contrast of a part of the representation itself, without a projector.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.methods._contrast import CONTRASTS, against_batch, averaged
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import Batch, Output
from stabilitylab.models.collectives import gather_with_gradient
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class FirstCoordinates(nn.Module):
    """The first coordinates of a representation, in the place of a projector."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return them, shape (N, number)."""
        return x_ND[:, : self.number]


class Method(Encoder):
    """A backbone alone.

    Raises:
        InputError: if the backbone is not as wide as ``d0``.

    References:
        Jing et al., 2022, Understanding dimensional collapse in contrastive self-supervised learning. ICLR.
        arXiv 2110.09348.
    """

    class Config(Parameters):
        """DirectCLR; the defaults are the published ones for a ResNet-50."""

        name: Literal["directclr"] = "directclr"
        """Name of the method."""
        d0: PositiveInt = 360
        """So many coordinates of the representation are contrasted: 360 of the 2048 of a ResNet-50."""
        temperature: PositiveFloat = 0.1
        """Temperature of the contrast."""

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.d0": 24, "optimizer.lr": 3e-3},
        "small": {"method.d0": 32},
    }
    diagnostics: ClassVar[tuple[str, ...]] = CONTRASTS
    config: Config

    def make_projector(self) -> nn.Module:
        """Return what takes the first coordinates."""
        if self.config.d0 > self.width:
            raise InputError(f"method.d0 is {self.config.d0}; the backbone has {self.width} coordinates")
        return FirstCoordinates(self.config.d0)

    def compare(self, projections: list[Tensor], _: Batch, /) -> Output:
        """Return the mean loss of both directions between the contrasted coordinates."""
        keys = [gather_with_gradient(each) for each in projections]
        temperature = self.config.temperature
        loss, told = averaged(against_batch(projections[q], keys[k], temperature) for q, k in self.directions)
        return Output(loss, {}, {}, told)
