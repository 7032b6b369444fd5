"""SimCLR: contrast of two views against both views of all other images, with gradient to both sides."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from stabilitylab.methods._contrast import CONTRASTS, nt_xent
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
from stabilitylab.models.heads import mlp_head
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

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:  # noqa: ARG002
        hidden = [config.hidden] * (config.projector_layers - 1)
        super().__init__(
            config,
            make_backbone,
            lambda width: mlp_head(
                [width, *hidden, config.dim] if config.projector_layers else [width], config.batch_norm
            ),
        )
        self.config: Method.Config = config

    def forward(
        self,
        views: tuple[Tensor, ...],
        progress: float,  # noqa: ARG002 - all methods are called alike
        indices: Tensor | None = None,  # noqa: ARG002
        labels: Tensor | None = None,  # noqa: ARG002
    ) -> Output:
        """Return the loss of two views of the same images, each (N, C, H, W).

        ``representation`` and ``projection`` are of the first view, ``positive`` is the projection of the second one.

        Args:
            views: two augmentations.
            progress: not used.
            indices: not used.
            labels: not used.
        """
        representations = self.represent(views[:2])
        projections = [self.projector(each) for each in representations]
        loss, told = nt_xent(projections[0], projections[1], self.config.temperature)
        outputs = {"representation": representations[0], "projection": projections[0], "positive": projections[1]}
        return Output(loss, {name: value.detach() for name, value in outputs.items()}, {}, told)
