"""The size of each update over the size of the weight that it changes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from stabilitylab import probe
from stabilitylab.norms import local, norms, over_shards

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``updates.ratio``: the norm of the change of a tensor in a step over its norm before, a column per tensor.

    The change is what really happened to the weights, by the optimizer, weight decay or anything else, and 0 where
    the optimizer skipped the step. It is seen at the next call and recorded at the step that made it. A tensor of
    zeros that changes reads inf, one that stays reads NaN. Keeps one copy of the trainable weights.
    """

    delay: ClassVar[int] = 1
    cost: ClassVar[str] = "6 tensor operations, four passes over the weights; a copy of the trainable weights"

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        target.need_trainable("updates")
        self._weights: list[torch.Tensor] = list(target.trainable.values())
        self._before: list[torch.Tensor] = []
        self._seen_at: int | None = None
        self.labels = {"updates.ratio": list(target.trainable)}
        self.about = {"updates.ratio": {"unit": "1"}}

    def measure(self, step: probe.Step) -> probe.Measurement | None:
        """Return the ratios of the step before, shape (number of tensors,), and keep the weights of this one."""
        ratio = None
        weights = [local(each) for each in self._weights]
        if any(map(_differ, self._before, weights)):  # the model was moved, or has another type now
            self._before, self._seen_at = [], None
        if self._seen_at == step.index - 1:
            size = over_shards(norms(self._before), self._weights)
            torch._foreach_sub_(self._before, weights)  # the copy is ours: it becomes the change
            ratio = over_shards(norms(self._before), self._weights) / size
            self._seen_at = None
        if step.index % self.every == 0:
            if not self._before:
                self._before = [torch.empty_like(each) for each in weights]
            torch._foreach_copy_(self._before, weights)
            self._seen_at = step.index
        return None if ratio is None else {"updates.ratio": ratio}


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype != other.dtype or one.device != other.device or one.shape != other.shape
