"""SwAV: predict from one view to which prototypes another view of the image was assigned.

Shape suffixes: N samples of this rank, K prototypes, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Batch, Images, MakeBackbone, Output
from stabilitylab.methods._precision import full, full_products
from stabilitylab.methods._prototypes import Frozen, sinkhorn, swapped, usage
from stabilitylab.methods._queue import Queue
from stabilitylab.models.collectives import gather, rank, world_size
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class Method(Frozen, Encoder):
    """Backbone, projector and prototypes; small crops beyond the first two views predict and are not predicted.

    References:
        Caron et al., 2020, Unsupervised learning of visual features by contrasting cluster assignments. NeurIPS.
        arXiv 2006.09882.
    """

    class Config(Parameters):
        """SwAV; the defaults are the published ones for a ResNet-50."""

        name: Literal["swav"] = "swav"
        """Name of the method."""
        temperature: PositiveFloat = 0.1
        """Temperature of the prediction."""
        prototypes: int = Field(3000, ge=2)
        """Number of prototypes."""
        epsilon: PositiveFloat = 0.05
        """Entropy of the assignments."""
        iterations: PositiveInt = 3
        """Iterations of Sinkhorn's algorithm."""
        frozen_prototypes: NonNegativeInt = 313
        """So many first steps leave the prototypes as they are."""
        queue: NonNegativeInt = 0
        """Earlier embeddings of each view that are assigned along with the batch, for small batches; 0 for none."""
        queue_from: float = Field(0.075, ge=0, le=1)
        """Part of the training after which they are: 15 of 200 epochs."""
        hidden: PositiveInt = 2048
        """Hidden width of the projector."""
        dim: PositiveInt = 128
        """Width of the embeddings."""
        projector_layers: PositiveInt = 2
        """Linear layers of the projector."""
        batch_norm: bool = True
        """BatchNorm in the hidden layers of the projector."""

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.prototypes": 60, "method.frozen_prototypes": 20, "optimizer.lr": 3e-3},
        "small": {"method.prototypes": 300},
    }
    takes_small_crops: ClassVar[bool] = True
    diagnostics: ClassVar[tuple[str, ...]] = ("prototype_usage", "assignment_confidence")
    last_batch_norm: ClassVar[bool] = False
    config: Config

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        super().__init__(config, make_backbone, images)
        self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        self.after_update()
        self.queues = nn.ModuleList(
            [Queue(config.queue, config.dim, images.batch) for _ in range(2 if config.queue else 0)]
        )

    @torch.no_grad()
    def after_update(self) -> None:
        """Scale the prototypes to length one, as is done after each update of the optimizer."""
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))

    def compare(self, projections: list[Tensor], batch: Batch, /) -> Output:
        """Return the mean over the assigned views of the mean over all others of the cross entropy.

        ``prediction`` is the score of each prototype for the first view. The diagnostics are how equally the
        prototypes are used, 0 to 1, and the mean largest assignment of a sample.
        """
        embeddings = [normalize(full(each), dim=1) for each in projections]
        scores = [self._scores(each) for each in embeddings]
        assigned = [self._assign(scores[view].detach(), view, batch.progress) for view in (0, 1)]
        loss = swapped(assigned, scores, self.config.temperature)
        if self.training:
            for view, queue in enumerate(self.queues):
                queue.push(gather(embeddings[view].detach()))  # type: ignore[operator]
        confidence = torch.stack([each.max(dim=1).values.mean() for each in assigned]).mean()
        told = {"prototype_usage": usage(torch.cat(assigned)), "assignment_confidence": confidence}
        return Output(loss, {"prediction": scores[0]}, {}, told)

    def _scores(self, embedding_ND: Tensor) -> Tensor:
        """Return the cosine with each prototype.

        Whatever length an optimizer gave the prototypes since they were scaled, they count with length one, and the
        gradient is that of prototypes of length one (Caron et al. scale them, and do not differentiate the scaling).
        """
        weight_KD = self.prototypes.weight
        unit_KD = normalize(weight_KD.detach(), dim=1)
        unit_KD = unit_KD + weight_KD - weight_KD.detach()
        with full_products(embedding_ND):
            return linear(embedding_ND, unit_KD)

    @torch.no_grad()
    def _assign(self, scores_NK: Tensor, view: int, progress: float) -> Tensor:
        """Return the assignments of a view; this rank's part of what came into its queue is assigned along."""
        number = len(scores_NK)
        if self.queues and progress >= self.config.queue_from:
            queue: Queue = self.queues[view]  # type: ignore[assignment]
            mine = slice(rank(), None, world_size())
            random = queue.ages[mine].isnan()[:, None]
            scores_NK = torch.cat([scores_NK, self._scores(queue.keys[mine]).masked_fill(random, -torch.inf)])
        return sinkhorn(scores_NK, self.config.epsilon, self.config.iterations)[:number]
