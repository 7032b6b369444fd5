"""The size of every weight tensor."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveInt

from stabilitylab import probe
from stabilitylab.norms import norms

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``weights.norm``: the L2 norm of every trainable tensor before the update, a column per tensor.

    Norms are summed in float32 at least, and are those of whole tensors where these are sharded.
    """

    cost: ClassVar[str] = "2 tensor operations, one pass over the weights; no memory, no wait"

    class Parameters(probe.Parameters):
        """When the weights are measured."""

        every: PositiveInt = 10
        """Measure at every so many steps."""

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        target.need_trainable("weights")
        self._weights = list(target.trainable.values())
        self.labels = {"weights.norm": list(target.trainable)}
        self.about = {"weights.norm": {"unit": "weight", "measured": "before the update of the step"}}

    def measure(self, step: probe.Step) -> probe.Measurement:  # noqa: ARG002 - the weights are those of now
        """Return the norms, shape (number of tensors,)."""
        return {"weights.norm": norms(self._weights)}
