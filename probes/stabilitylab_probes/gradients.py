"""The size of the gradient of every parameter tensor at every step, before clipping."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from stabilitylab import probe
from stabilitylab.norms import norms

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``gradients.norm`` (L2 norm), ``.max`` (largest absolute entry), ``.total``, ``.clip``.

    ``norm`` and ``max`` have a column per tensor; a parameter without a gradient, or frozen, reads 0. ``total`` is the
    L2 norm over all of them. ``clip`` is the coefficient by which clipping to the total norm that the loop named
    multiplies the gradients, min(1, limit / (total + 1e-6)) as in torch; NaN where the total is. NaN and inf are kept
    as they are. Norms are summed in float32 at least, and are those of whole tensors where these are sharded.
    """

    fixed_schedule: ClassVar[bool] = True
    cost: ClassVar[str] = "5 tensor operations, two passes over the gradients; no wait"

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        target.need_trainable("gradients")
        self._parameters = list(target.trainable.values())
        names = list(target.trainable)
        self.labels = {
            "gradients.norm": names,
            "gradients.max": names,
            "gradients.total": ["total"],
            "gradients.clip": ["coefficient"],
        }
        provenance = {"unit": "gradient", "clipped": False, "unscaled": True}
        self.about = dict.fromkeys(self.labels, provenance) | {"gradients.clip": {"unit": "1"}}

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return the norms and the largest entries, each of shape (number of tensors,), and what follows of them."""
        found = self.target.gradients()
        known = [index for index, each in enumerate(found) if each is not None]
        gradients = [each for each in found if each is not None]
        if gradients:
            values = [self._unscaled(norms(gradients, order), known, step) for order in (2.0, float("inf"))]
        elif any(each.requires_grad for each in self._parameters):
            return {}  # called where there are none
        else:
            values = [torch.zeros(len(found), device=self._parameters[0].device)] * 2
        measured = dict(zip(("gradients.norm", "gradients.max"), values, strict=True))
        total = torch.linalg.vector_norm(measured["gradients.norm"], keepdim=True)
        measured["gradients.total"] = total
        if step.max_norm is not None:
            measured["gradients.clip"] = (step.max_norm / (total + 1e-6)).clamp(max=1)
        return measured

    def _unscaled(self, values: Tensor, known: list[int], step: probe.Step) -> Tensor:
        if len(known) < len(self._parameters):
            whole = values.new_zeros(len(self._parameters))
            values = whole.index_copy_(0, torch.tensor(known, device=values.device), values)
        return values / step.scale if isinstance(step.scale, Tensor) or step.scale != 1 else values
