"""What clipping did to the gradients of each step."""

from __future__ import annotations

from typing import Any, ClassVar

from stabilitylab import probe
from stabilitylab.errors import InputError

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``stabilizers.coefficient``: by what the gradients were multiplied, 1 where nothing was clipped.

    A column for all gradients (``total``), each layer, each tensor, or the first layer alone (``stem``), as the
    stabilizers of the training say, which are ``optimizer.stabilizers``: an object with ``labels`` and, after each
    step, ``coefficients``. Seen at the next call and recorded at the step that made them.
    """

    delay: ClassVar[int] = 1
    fixed_schedule: ClassVar[bool] = True
    cost: ClassVar[str] = "nothing of its own; no wait"

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        self._seen_at: int | None = None
        self._stabilizers = getattr(target.optimizer, "stabilizers", None)
        labels = [str(each) for each in getattr(self._stabilizers, "labels", ())]
        if not labels:
            raise InputError("the probe 'stabilizers' needs an optimizer whose 'stabilizers' clip something")
        self.labels = {"stabilizers.coefficient": labels}
        self.about = {"stabilizers.coefficient": {"unit": "1"}}

    def measure(self, step: probe.Step) -> probe.Measurement | None:
        """Return the coefficients of the step before, or None where that was not seen, or was told already."""
        found = getattr(self._stabilizers, "coefficients", None)
        seen, self._seen_at = self._seen_at, step.index
        return None if found is None or seen != step.index - 1 else {"stabilizers.coefficient": found}
