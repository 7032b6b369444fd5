"""What methods have in common: a backbone with its heads, and a copy of them that follows slowly.

Shape suffixes: N samples of this rank, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import ClassVar

import torch
from torch import Tensor, nn

from stabilitylab.methods._exchange import MakeBackbone
from stabilitylab.parameters import Parameters

__all__ = ["Encoder", "MomentumEncoder"]


class Encoder(nn.Module):
    """Backbone, projector and, where a method has one, predictor.

    Args:
        config: the parameters of the method.
        make_backbone: returns a new backbone.
        make_projector: returns the projector for a width of the representation.
        make_predictor: returns the predictor, if there is one.
    """

    settings: ClassVar[dict[str, dict[str, object]]] = {}
    """Preset to the settings in which this method differs from it, dotted name to value."""
    needs_labels: ClassVar[bool] = False
    """Whether it can do nothing without the labels of the training images."""
    diagnostics: ClassVar[tuple[str, ...]] = ()
    """The names of what it tells of itself in each step."""

    def __init__(
        self,
        config: Parameters,
        make_backbone: MakeBackbone,
        make_projector: Callable[[int], nn.Module],
        make_predictor: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone()
        self.width = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.projector = make_projector(self.width)
        self._predicts = make_predictor is not None
        self.predictor: nn.Module = make_predictor() if make_predictor is not None else nn.Identity()
        # a backbone with BatchNorm must see each view on its own; one without may see all at once, which is faster
        norms = nn.modules.batchnorm._BatchNorm
        self._views_at_once = not any(isinstance(module, norms) for module in self.backbone.modules())

    def represent(self, views: Sequence[Tensor], backbone: nn.Module | None = None) -> list[Tensor]:
        """Return what the backbone, or another one, makes of each view, (N, D) each; views of one size together."""
        backbone = self.backbone if backbone is None else backbone
        if not self._views_at_once:
            return [backbone(view) for view in views]
        found: list[Tensor] = []
        while len(found) < len(views):
            rest = views[len(found) :]
            alike = next((at for at, view in enumerate(rest) if view.shape != rest[0].shape), len(rest))
            found += backbone(torch.cat(list(rest[:alike]))).chunk(alike)
        return found

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Return representation, projection and prediction of images, without moving anything; for the probes."""
        representation = self.backbone(images)
        projection = self.projector(representation)
        encoded = {"representation": representation, "projection": projection}
        return {**encoded, "prediction": self.predictor(projection)} if self._predicts else encoded


class MomentumEncoder(Encoder):
    """An encoder with a copy that follows its parameters, not its buffers, as a moving average.

    The copy of a part named ``x`` is ``momentum_x``. The fields ``momentum`` and ``momentum_schedule`` of the
    configuration say how fast it follows.
    """

    followed: ClassVar[tuple[str, ...]] = ("backbone", "projector")
    """The parts that are copied."""

    def start_following(self) -> None:
        """Make the copies, once all parts are there."""
        for name in self.followed:
            copy = deepcopy(getattr(self, name)).requires_grad_(False)
            setattr(self, f"momentum_{name}", copy)

    @torch.no_grad()
    def move(self, progress: float) -> float:
        """Let the momentum encoder follow, before the update of the step, and return the momentum.

        Args:
            progress: the part of the training that is done, 0 to 1, over which a cosine raises the momentum to 1.
        """
        momentum = float(self.config.momentum)  # type: ignore[attr-defined]
        if self.config.momentum_schedule == "cosine":  # type: ignore[attr-defined]
            momentum = 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2
        if self.training:
            averaged, current = zip(*self._pairs(), strict=True)
            torch._foreach_lerp_(averaged, current, 1 - momentum)
        return momentum

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name in self.followed:
            averaged, current = self.get_submodule(f"momentum_{name}"), self.get_submodule(name)
            for slow, fast in zip(averaged.parameters(), current.parameters(), strict=True):
                if fast.requires_grad:
                    yield slow.detach(), fast.detach()

    @torch.no_grad()
    def keys(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Return the momentum encoder's projection of each view, (N, D) each, without gradient."""
        projector = self.get_submodule("momentum_projector")
        return [projector(each) for each in self.represent(views, self.get_submodule("momentum_backbone"))]

    def encode_momentum(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the momentum encoder makes of images, without moving anything; for the probes."""
        representation = self.get_submodule("momentum_backbone")(images)
        projection = self.get_submodule("momentum_projector")(representation)
        return {"momentum_representation": representation, "momentum_projection": projection}
