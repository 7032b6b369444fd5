"""SimCLR: contrast of two views against both views of all other images, with gradient to both sides."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from stabilitylab.methods._contrast import CONTRASTS, nt_xent
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import Batch, Output
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class Method(Encoder):
    """Backbone and projector.

    References:
        Chen et al., 2020, A simple framework for contrastive learning of visual representations. ICML.
        arXiv 2002.05709.
    """

    class Config(Parameters):
        """SimCLR; 0.1 to 0.2 are usual temperatures."""

        name: Literal["simclr"] = "simclr"
        """Name of the method."""
        temperature: PositiveFloat = 0.1
        """Temperature of the contrast."""
        hidden: PositiveInt = 2048
        """Hidden width of the projector."""
        dim: PositiveInt = 128
        """Width of the embeddings that are contrasted."""
        projector_layers: int = Field(2, ge=0)
        """Linear layers of the projector; 0 contrasts the representation itself."""
        batch_norm: bool = True
        """BatchNorm in the projector."""

    settings: ClassVar[dict[str, dict[str, object]]] = {"digits": {"optimizer.lr": 3e-3}}
    diagnostics: ClassVar[tuple[str, ...]] = CONTRASTS
    config: Config

    def compare(self, projections: list[Tensor], _: Batch, /) -> Output:
        """Return the loss of each view against both views of all other images."""
        loss, told = nt_xent(projections[0], projections[1], self.config.temperature)
        return Output(loss, {}, {}, told)
