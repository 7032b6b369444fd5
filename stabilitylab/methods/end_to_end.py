"""The end-to-end mechanism that MoCo compares itself with: keys from the same batch and encoder, with gradient.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from stabilitylab.methods._contrast import CONTRASTS, against_batch, averaged
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import Batch, Output
from stabilitylab.models.collectives import gather_with_gradient
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class Method(Encoder):
    """Backbone and projector, which make queries and keys.

    References:
        He et al., 2020, arXiv 1911.05722, Figure 2 (a).
    """

    class Config(Parameters):
        """The end-to-end mechanism; the defaults are those of MoCo v1."""

        name: Literal["end_to_end"] = "end_to_end"
        """Name of the method."""
        temperature: PositiveFloat = 0.07
        """Temperature of the contrast."""
        dim: PositiveInt = 128
        """Width of the embeddings that are contrasted."""
        hidden: PositiveInt | None = None
        """Hidden width of the projector where it has several layers; by default the width of the backbone."""
        projector_layers: PositiveInt = 1
        """Linear layers of the projector."""
        batch_norm: bool = False
        """BatchNorm in the projector."""
        symmetric: bool = False
        """Whether each view is query and key, or the first one query alone."""

    settings: ClassVar[dict[str, dict[str, object]]] = {"digits": {"optimizer.lr": 3e-3}}
    diagnostics: ClassVar[tuple[str, ...]] = CONTRASTS
    config: Config

    def compare(self, projections: list[Tensor], _: Batch, /) -> Output:
        """Return the mean loss of the directions; ``key`` is the projection of the second view, of all ranks."""
        keys = [gather_with_gradient(each) for each in projections]
        temperature = self.config.temperature
        loss, told = averaged(against_batch(projections[q], keys[k], temperature) for q, k in self.directions)
        return Output(loss, {"key": keys[1]}, {}, told)
