"""MoCo v3: contrast of two views between an encoder and its slowly moving average.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from stabilitylab.methods._output import Output
from stabilitylab.models.heads import mlp_head
from stabilitylab.parameters import Parameters

__all__ = ["Method", "contrast"]


def contrast(q_ND: Tensor, k_MD: Tensor, temperature: float, rank: int = 0) -> Tensor:
    """Return the InfoNCE loss of queries against keys, times 2 T as in MoCo v3 (Chen, Xie and He, 2021).

    Args:
        q_ND: queries; row i belongs to key ``rank * N + i``.
        k_MD: keys of all ranks.
        temperature: T.
        rank: which slice of the keys is this rank's own.
    """
    logits_NM = normalize(q_ND, dim=1) @ normalize(k_MD, dim=1).T / temperature
    labels_N = torch.arange(len(q_ND), device=q_ND.device) + rank * len(q_ND)
    return cross_entropy(logits_NM, labels_N) * (2 * temperature)


class Method(nn.Module):
    """Backbone, projector and predictor, and the momentum copy of the first two.

    Args:
        config: the parameters of the method.
        make_backbone: returns a new backbone with ``num_features``: images (N, C, H, W) to (N, num_features).
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
        """Linear layers of the projector."""
        predictor_layers: int = Field(2, ge=0)
        """Linear layers of the predictor on the query side; 0 for none."""
        batch_norm: bool = True
        """BatchNorm in the heads."""

    def __init__(self, config: Config, make_backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone()
        width = int(self.backbone.num_features)  # type: ignore[arg-type]
        hidden = [config.hidden]
        self.projector = mlp_head([width, *hidden * (config.projector_layers - 1), config.dim], config.batch_norm)
        layers = config.predictor_layers
        predictor = mlp_head([config.dim, *hidden * (layers - 1), config.dim], config.batch_norm) if layers else None
        self.predictor: nn.Module = predictor or nn.Identity()
        self.momentum_backbone = deepcopy(self.backbone).requires_grad_(False)
        self.momentum_projector = deepcopy(self.projector).requires_grad_(False)
        # a backbone with BatchNorm must see each view on its own; one without may see both at once, which is faster
        norms = nn.modules.batchnorm._BatchNorm
        self._views_at_once = not any(isinstance(module, norms) for module in self.backbone.modules())

    def forward(self, views: tuple[Tensor, Tensor], progress: float) -> Output:
        """Return the loss of two views of the same images, each (N, C, H, W), after moving the momentum encoder.

        The outputs ``representation``, ``projection`` and ``prediction`` are what backbone, projector and predictor
        make of the first view. ``positive`` is what the same backbone and projector, not the momentum encoder, make of
        the second one: its row i belongs to row i of ``projection``. ``key`` is what the momentum encoder makes of the
        first view, of all ranks.

        Args:
            views: two augmentations.
            progress: the part of the training that is done, 0 to 1, which sets the momentum.
        """
        momentum = self._move(progress)
        representations = self._split(self.backbone, views)
        projections = [self.projector(each) for each in representations]
        queries = [self.predictor(each) for each in projections]
        with torch.no_grad():
            keys = [self.momentum_projector(each) for each in self._split(self.momentum_backbone, views)]
            keys = [_gather(key) for key in keys]
        rank = torch.distributed.get_rank() if _many() else 0
        loss = sum(
            (contrast(queries[i].float(), keys[1 - i].float(), self.config.temperature, rank) for i in (0, 1)),
            start=torch.zeros((), device=queries[0].device),
        )
        outputs = {
            "representation": representations[0],
            "projection": projections[0],
            "positive": projections[1],
            "prediction": queries[0],
            "key": keys[0],
        }
        return Output(loss, {name: value.detach() for name, value in outputs.items()}, {"momentum": momentum})

    def _split(self, backbone: nn.Module, views: tuple[Tensor, Tensor]) -> list[Tensor]:
        if self._views_at_once:
            return list(backbone(torch.cat(views)).chunk(2))
        return [backbone(view) for view in views]

    @torch.no_grad()
    def _move(self, progress: float) -> float:
        """Let the momentum encoder follow the encoder; parameters only, before the update of the step."""
        momentum = self.config.momentum
        if self.config.momentum_schedule == "cosine":
            momentum = 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2
        if self.training:
            averaged, current = zip(*self._pairs(), strict=True)
            torch._foreach_lerp_(averaged, current, 1 - momentum)
        return momentum

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        modules = ((self.momentum_backbone, self.backbone), (self.momentum_projector, self.projector))
        for averaged, current in modules:
            for slow, fast in zip(averaged.parameters(), current.parameters(), strict=True):
                if fast.requires_grad:
                    yield slow.detach(), fast.detach()

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Return representation, projection and prediction of images, without moving anything; for the probes."""
        representation = self.backbone(images)
        projection = self.projector(representation)
        if not self.config.predictor_layers:
            return {"representation": representation, "projection": projection}
        return {"representation": representation, "projection": projection, "prediction": self.predictor(projection)}

    def encode_momentum(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the momentum encoder makes of images, without moving anything; for the probes."""
        representation = self.momentum_backbone(images)
        return {
            "momentum_representation": representation,
            "momentum_projection": self.momentum_projector(representation),
        }


def _many() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@torch.no_grad()
def _gather(key_ND: Tensor) -> Tensor:
    """Return the keys of all ranks, (M, D), in the order of ranks."""
    if not _many():
        return key_ND
    keys = [torch.empty_like(key_ND) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(keys, key_ND.contiguous())
    return torch.cat(keys)
