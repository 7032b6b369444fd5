"""What methods have in common: a backbone with its heads, and a copy of them that follows slowly.

Shape suffixes: N samples of this rank, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stabilitylab.methods._exchange import UNKNOWN, Batch, Images, MakeBackbone, Output
from stabilitylab.models.heads import mlp_head
from stabilitylab.parameters import Parameters

__all__ = ["Encoder", "MomentumEncoder"]


class Encoder(nn.Module):
    """Backbone, projector and, where a method has one, predictor; a method says by `compare` what its loss is.

    Args:
        config: the parameters of the method.
        make_backbone: returns a new backbone.
        images: the training images as a whole.
    """

    settings: ClassVar[dict[str, dict[str, object]]] = {}
    """Preset to the settings in which this method differs from it, dotted name to value."""
    needs_labels: ClassVar[bool] = False
    """Whether it can do nothing without the labels of the training images."""
    diagnostics: ClassVar[tuple[str, ...]] = ()
    """The names of what it tells of itself in each step."""
    num_views: ClassVar[int] = 2
    """So many views are compared, beside small crops."""
    takes_small_crops: ClassVar[bool] = False
    """Whether it learns from small crops beside the two views."""
    last_batch_norm: ClassVar[bool] = True
    """Whether a BatchNorm follows the projector's last layer, where the heads have any."""
    config: Any

    def __init__(self, config: Parameters, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        super().__init__()
        self.config, self.images = config, images
        self.backbone = make_backbone()
        self.width = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.projector = self.make_projector()
        predictor = self.make_predictor()
        self._predicts = predictor is not None
        self.predictor: nn.Module = nn.Identity() if predictor is None else predictor
        # a backbone with BatchNorm must see each view on its own; one without may see all at once, which is faster
        norms = nn.modules.batchnorm._BatchNorm
        self._views_at_once = not any(isinstance(module, norms) for module in self.backbone.modules())

    def make_projector(self) -> nn.Module:
        """Return the projector of the representation."""
        return self.head(self.width, self.config.projector_layers, self.last_batch_norm)

    def make_predictor(self) -> nn.Module | None:
        """Return the predictor of the projection, or None."""
        return None

    def head(self, inputs: int, layers: int, last_batch_norm: bool) -> nn.Module:
        """Return an MLP with the widths of the configuration; of no layers, one that returns what it is given."""
        config = self.config
        widths = [config.hidden or inputs] * (layers - 1) + [config.dim] * (layers > 0)
        return mlp_head([inputs, *widths], config.batch_norm, last_batch_norm)

    def forward(
        self, views: tuple[Tensor, ...], progress: float, indices: Tensor | None = None, labels: Tensor | None = None
    ) -> Output:
        """Return the loss of views of the same images, each (N, C, H, W), and what is told of it.

        The outputs ``representation`` and ``projection`` are what backbone and projector make of the first view,
        ``positive`` is the projection of the second one, where it is looked at, row by row.

        Args:
            views: two augmentations, and small crops after them, if any.
            progress: the part of the training that is done, 0 to 1.
            indices: which training images these are, int64, shape (N,).
            labels: their classes, int64, shape (N,); -1 for none.
        """
        views = views if self.takes_small_crops else views[: self.num_views]
        representations, projections = self.project(views[: self.num_queries])
        if len(projections) < len(views):
            with torch.no_grad():  # a target, or for the probes alone; after the queries, whose casts autocast keeps
                projections += self.project(views[len(projections) :])[1]
        found = self.compare(projections, Batch(views, progress, indices, labels))
        named = zip(("projection", "positive"), projections, strict=False)  # one view only has no positive
        outputs = {"representation": representations[0], **dict(named)}
        return found._replace(
            outputs={name: value.detach() for name, value in {**outputs, **found.outputs}.items()},
            diagnostics={name: value.detach() for name, value in found.diagnostics.items()},
        )

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """Which view is the query and which the key or target, for each term of the loss."""
        return ((0, 1), (1, 0)) if getattr(self.config, "symmetric", True) else ((0, 1),)

    @property
    def num_queries(self) -> int | None:
        """So many views are encoded with gradient; None for all."""
        return None

    def project(self, views: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return representation and projection of each view."""
        representations = self.represent(views)
        return representations, [self.projector(each) for each in representations]

    def compare(self, projections: list[Tensor], batch: Batch, /) -> Output:
        """Return the loss, what outputs there are beside those of the encoder, and the diagnostics.

        Args:
            projections: of each view, (N, D) each.
            batch: what else is known of the images.
        """
        raise NotImplementedError

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

    def __init__(self, config: Parameters, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        super().__init__(config, make_backbone, images)
        self.followed: list[str] = []
        self.follow("backbone")
        self.follow("projector")

    def follow(self, name: str) -> None:
        """Make the copy of a part."""
        setattr(self, f"momentum_{name}", deepcopy(self.get_submodule(name)).requires_grad_(False))
        self.followed.append(name)

    @property
    def num_queries(self) -> int | None:
        """The keys are the momentum encoder's."""
        return len(self.directions)

    def forward(
        self, views: tuple[Tensor, ...], progress: float, indices: Tensor | None = None, labels: Tensor | None = None
    ) -> Output:
        """Return the loss of views of the same images, as `Encoder` does, after moving the momentum encoder."""
        momentum = self.move(progress)
        return super().forward(views, progress, indices, labels)._replace(scalars={"momentum": momentum})

    @torch.no_grad()
    def move(self, progress: float) -> float:
        """Let the momentum encoder follow, before the update of the step, and return the momentum.

        Args:
            progress: the part of the training that is done, 0 to 1, over which a cosine raises the momentum to 1.
        """
        momentum = float(self.config.momentum)
        if self.config.momentum_schedule == "cosine":
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

    def keys_of(self, views: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return the keys of the views that are a key in one of the directions, by their number."""
        numbers = sorted(k for _, k in self.directions)
        return dict(zip(numbers, self.keys([views[k] for k in numbers]), strict=True))

    def encode_momentum(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the momentum encoder makes of images, without moving anything; for the probes."""
        representation = self.get_submodule("momentum_backbone")(images)
        projection = self.get_submodule("momentum_projector")(representation)
        return {"momentum_representation": representation, "momentum_projection": projection}
