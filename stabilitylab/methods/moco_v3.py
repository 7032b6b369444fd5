"""MoCo v3: contrast of two views between an encoder and its slowly moving average.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from stabilitylab.methods._contrast import CONTRASTS, against_batch, averaged
from stabilitylab.methods._encoder import MomentumEncoder
from stabilitylab.methods._exchange import Batch, Output
from stabilitylab.models.collectives import gather
from stabilitylab.parameters import Parameters

__all__ = ["Method", "contrast"]


def contrast(q_ND: Tensor, k_MD: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of queries against keys, times 2 T as in MoCo v3 (Chen, Xie and He, 2021).

    Args:
        q_ND: queries; row i of this rank belongs to key ``rank * N + i``.
        k_MD: keys of all ranks.
        temperature: T.
    """
    return against_batch(q_ND, k_MD, temperature)[0] * (2 * temperature)


class Method(MomentumEncoder):
    """Backbone, projector and predictor, and the momentum copy of the first two.

    Args:
        config: the parameters of the method.
        make_backbone: returns a new backbone with ``num_features``: images (N, C, H, W) to (N, num_features).
        images: the training images as a whole.

    References:
        Chen, Xie and He, 2021, An empirical study of training self-supervised vision transformers. ICCV.
        arXiv 2104.02057.
    """

    class Config(Parameters):
        """MoCo v3; the defaults are the published ones for a ViT."""

        name: Literal["moco_v3"] = "moco_v3"
        """Name of the method."""
        temperature: PositiveFloat = 0.2
        """Temperature of the contrast: 0.2 for a ViT, 1.0 for a ResNet."""
        momentum: float = Field(0.99, ge=0, le=1)
        """Momentum of the momentum encoder at the start; 0 makes it a copy of the encoder."""
        momentum_schedule: Literal["cosine", "constant"] = "cosine"
        """Whether the momentum rises to 1 by a cosine over the training, or stays."""
        hidden: PositiveInt = 4096
        """Hidden width of projector and predictor."""
        dim: PositiveInt = 256
        """Width of the embeddings that are contrasted."""
        projector_layers: PositiveInt = 3
        """Linear layers of the projector: 3 for a ViT, 2 for a ResNet."""
        predictor_layers: int = Field(2, ge=0)
        """Linear layers of the predictor on the query side; 0 for none."""
        batch_norm: bool = True
        """BatchNorm in the heads."""
        last_batch_norm: bool = True
        """BatchNorm behind the predictor, where the heads have any: yes for a ViT, no for a ResNet."""
        symmetric: bool = True
        """Whether each view is query and key, or the first one query alone."""

    diagnostics: ClassVar[tuple[str, ...]] = CONTRASTS
    config: Config

    def make_predictor(self) -> nn.Module | None:
        """Return an MLP, if it has layers."""
        layers = self.config.predictor_layers
        return self.head(self.config.dim, layers, self.config.last_batch_norm) if layers else None

    def compare(self, projections: list[Tensor], batch: Batch, /) -> Output:
        """Return the sum of the directions.

        ``prediction`` is of the first view; ``key`` is what the momentum encoder makes of the first view that is a
        key, of all ranks.
        """
        temperature = self.config.temperature
        keys = {k: gather(each) for k, each in self.keys_of(batch.views).items()}
        queries = {q: self.predictor(projections[q]) for q, _ in self.directions}
        loss, told = averaged(against_batch(queries[q], keys[k], temperature) for q, k in self.directions)
        outputs = {"prediction": queries[0], "key": keys[min(keys)]}
        return Output(loss * (2 * temperature * len(self.directions)), outputs, {}, told)
