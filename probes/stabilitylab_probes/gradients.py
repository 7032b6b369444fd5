"""The size of the gradient of every parameter tensor at every step, before clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stabilitylab import probe
from stabilitylab.errors import InputError

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``gradients.norm`` (L2 norm) and ``gradients.max`` (largest absolute entry), a column per tensor.

    Two tensor operations per series and step, none of which waits for the device. A parameter without a gradient
    reads 0; NaN and inf are kept as they are. Norms are summed in float32 at least.
    """

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        if not target.trainable:
            raise InputError("the probe 'gradients' needs a model with trainable parameters")
        target.refuse_shards("gradients")
        self._parameters = list(target.trainable.values())
        self.labels = {series: list(target.trainable) for series in ("gradients.norm", "gradients.max")}
        provenance = {"unit": "gradient", "clipped": False, "unscaled": True}
        self.about = dict.fromkeys(self.labels, provenance)

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return the norms and the largest entries, each of shape (number of tensors,)."""
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        if not gradients:
            return {}
        measured = {
            "gradients.norm": self._stack(torch._foreach_norm(gradients, 2, dtype=_at_least_float32(gradients))),
            "gradients.max": self._stack(torch._foreach_norm(gradients, float("inf"))),
        }
        if isinstance(step.scale, Tensor) or step.scale != 1:
            measured = {name: value / step.scale for name, value in measured.items()}
        return measured

    def _stack(self, values: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
        if len(values) == len(self._parameters):
            return torch.stack(list(values))
        known = iter(values)
        zero = torch.zeros_like(values[0])
        return torch.stack([zero if each.grad is None else next(known) for each in self._parameters])


def _at_least_float32(tensors: list[Tensor]) -> torch.dtype | None:
    half = {torch.float16, torch.bfloat16}
    return torch.float32 if any(tensor.dtype in half for tensor in tensors) else None
