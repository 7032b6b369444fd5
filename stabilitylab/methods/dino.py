"""DINO: a student predicts the sharpened and centered output of its momentum teacher for another view.

Shape suffixes: N samples of this rank, K outputs, D features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from stabilitylab.methods._encoder import MomentumEncoder
from stabilitylab.methods._exchange import UNKNOWN, Batch, Images, MakeBackbone, Output
from stabilitylab.methods._precision import full, full_products
from stabilitylab.methods._prototypes import Frozen, sinkhorn, swapped
from stabilitylab.models.collectives import gather, sum_over_ranks, world_size
from stabilitylab.parameters import Parameters

__all__ = ["Method"]

ITERATIONS = 3
"""How often Sinkhorn's algorithm rescales, as in DINOv2."""


class Method(Frozen, MomentumEncoder):
    """Backbone, projector down to a bottleneck, and prototypes of length one; and the momentum copy of all three.

    Small crops beyond the first two views are seen by the student alone.

    References:
        Caron et al., 2021, Emerging properties in self-supervised vision transformers. ICCV. arXiv 2104.14294.
    """

    class Config(Parameters):
        """DINO; the defaults are the published ones for a ViT-S/16."""

        name: Literal["dino"] = "dino"
        """Name of the method."""
        temperature: PositiveFloat = 0.1
        """Temperature of the student."""
        teacher_temperature: PositiveFloat = 0.07
        """Temperature of the teacher."""
        first_teacher_temperature: PositiveFloat = 0.04
        """Temperature of the teacher at the start."""
        teacher_warmup: float = Field(0.1, ge=0, le=1)
        """Part of the training in which it rises from one to the other."""
        momentum: float = Field(0.996, ge=0, le=1)
        """Momentum of the teacher at the start; 0 makes it a copy of the student."""
        momentum_schedule: Literal["cosine", "constant"] = "cosine"
        """Whether the momentum rises to 1 by a cosine over the training, or stays."""
        centering: Literal["mean", "sinkhorn"] = "mean"
        """How all of the teacher's outputs come to be used: a moving mean is taken away, or Sinkhorn's algorithm as in
        DINOv2 (Oquab et al., 2023, arXiv 2304.07193), where ``center_momentum`` is without effect."""
        center_momentum: float = Field(0.9, ge=0, le=1)
        """Part of the center that is kept in each step; 1 leaves it at zero, so that nothing is centered."""
        prototypes: int = Field(65536, ge=2)
        """Number of outputs."""
        frozen_prototypes: NonNegativeInt = 1250
        """So many first steps leave the prototypes as they are: about one epoch of ImageNet at batch 1024."""
        hidden: PositiveInt = 2048
        """Hidden width of the projector."""
        dim: PositiveInt = 256
        """Width of the bottleneck."""
        projector_layers: PositiveInt = 3
        """Linear layers of the projector."""

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.prototypes": 128, "method.frozen_prototypes": 20, "method.momentum": 0.9,
                   "method.centering": "sinkhorn", "method.first_teacher_temperature": 0.02,
                   "method.teacher_temperature": 0.02, "method.projector_layers": 2,
                   "optimizer.lr": 4e-3},
        "small": {"method.prototypes": 4096, "method.frozen_prototypes": 100},
    }  # fmt: skip
    takes_small_crops: ClassVar[bool] = True
    diagnostics: ClassVar[tuple[str, ...]] = ("teacher_entropy", "divergence", "center_norm")
    config: Config
    center: Tensor
    """Moving average of the teacher's outputs, shape (K,)."""

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        super().__init__(config, make_backbone, images)
        self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        nn.init.trunc_normal_(self.prototypes.weight, std=0.02)
        self.register_buffer("center", torch.zeros(config.prototypes))
        self.follow("prototypes")

    @property
    def num_queries(self) -> int | None:
        """The student learns from all views."""
        return None

    def make_projector(self) -> nn.Module:
        """Return an MLP with GELU down to the bottleneck, initialized as its authors do."""
        config = self.config
        widths = [self.width, *[config.hidden] * (config.projector_layers - 1), config.dim]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers[:-1])

    def compare(self, projections: list[Tensor], batch: Batch, /) -> Output:
        """Return the mean cross entropy over all pairs of a teacher's and another student's view.

        ``prediction`` are the student's outputs for the first view, ``key`` the teacher's bottleneck of it, of all
        ranks. The diagnostics: mean entropy of the teacher's outputs over its largest value, log K (0 or 1 is a
        collapse), Kullback-Leibler divergence of the student from it, and the length of the center.
        """
        outputs_NK = [self._outputs(each, self.prototypes.weight) for each in projections]
        keys = self.keys(batch.views[:2])
        with torch.no_grad():
            teacher_NK = [self._outputs(each, self.get_submodule("momentum_prototypes").weight) for each in keys]  # type: ignore[arg-type]
            targets = self._targets(teacher_NK, self._teacher_temperature(batch.progress))
        loss = swapped(targets, outputs_NK, self.config.temperature)
        entropy = torch.stack([torch.special.entr(each).sum(dim=1).mean() for each in targets]).mean()
        told = {
            "teacher_entropy": entropy / torch.tensor(float(max(self.config.prototypes, 2))).log(),
            "divergence": loss.detach() - entropy,
            "center_norm": self.center.norm(),
        }
        if self.training:
            self._after(torch.cat(teacher_NK))
        return Output(loss, {"prediction": outputs_NK[0], "key": gather(keys[0])}, {}, told)

    def _targets(self, teacher_NK: list[Tensor], temperature: float) -> list[Tensor]:
        """Return the teacher's distribution over the outputs for each view; Sinkhorn's algorithm takes both at once."""
        if self.config.centering == "mean":
            return [((each - self.center) / temperature).softmax(dim=1) for each in teacher_NK]
        return list(sinkhorn(torch.cat(teacher_NK), temperature, ITERATIONS).split(len(teacher_NK[0])))

    @staticmethod
    def _outputs(projection_ND: Tensor, weight_KD: Tensor) -> Tensor:
        with full_products(projection_ND):
            return linear(normalize(full(projection_ND), dim=1), normalize(full(weight_KD), dim=1))

    def _teacher_temperature(self, progress: float) -> float:
        config = self.config
        done = min(progress / config.teacher_warmup, 1.0) if config.teacher_warmup else 1.0
        return config.first_teacher_temperature + done * (config.teacher_temperature - config.first_teacher_temperature)

    @torch.no_grad()
    def _after(self, teacher_NK: Tensor) -> None:
        """Let the center, if there is one, follow the mean output of the teacher over all ranks."""
        if self.config.centering == "sinkhorn":
            return
        mean_K = sum_over_ranks(teacher_NK.mean(dim=0)) / world_size()
        self.center = torch.lerp(mean_K, self.center, self.config.center_momentum)
