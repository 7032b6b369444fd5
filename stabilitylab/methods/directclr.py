"""DirectCLR: contrast of a part of the representation itself, without a projector.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.methods._contrast import CONTRASTS, against_batch
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
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

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:  # noqa: ARG002
        super().__init__(config, make_backbone, lambda _: FirstCoordinates(config.d0))
        if config.d0 > self.width:
            raise InputError(f"method.d0 is {config.d0}; the backbone has {self.width} coordinates")
        self.config: Method.Config = config

    def forward(
        self,
        views: tuple[Tensor, ...],
        progress: float,  # noqa: ARG002 - all methods are called alike
        indices: Tensor | None = None,  # noqa: ARG002
        labels: Tensor | None = None,  # noqa: ARG002
    ) -> Output:
        """Return the mean loss of both directions between two views of the same images, each (N, C, H, W).

        ``projection`` and ``positive`` are the contrasted coordinates of the first and of the second view.

        Args:
            views: two augmentations.
            progress: not used.
            indices: not used.
            labels: not used.
        """
        representations = self.represent(views[:2])
        parts = [self.projector(each) for each in representations]
        keys = [gather_with_gradient(each) for each in parts]
        pairs = [against_batch(parts[q], keys[1 - q], self.config.temperature) for q in (0, 1)]
        outputs = {"representation": representations[0], "projection": parts[0], "positive": parts[1]}
        return Output(
            torch.stack([loss for loss, _ in pairs]).mean(),
            {name: value.detach() for name, value in outputs.items()},
            {},
            {name: torch.stack([told[name] for _, told in pairs]).mean() for name in CONTRASTS},
        )
