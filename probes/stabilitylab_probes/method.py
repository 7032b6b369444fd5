"""What a method tells of itself: how alike positives and negatives are, how prototypes are used, how old keys are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from stabilitylab import probe
from stabilitylab.errors import InputError
from stabilitylab.target import unwrapped

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``method.diagnostics``, a column for each name in the model's ``diagnostics``.

    The loop gives them as outputs named ``diagnostics.NAME``, one number each, on the device. With many processes they
    are those of the first one, unless the method says otherwise.
    """

    cost: ClassVar[str] = "one tensor operation; no wait"

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        self._names = [str(each) for each in getattr(unwrapped(target.model), "diagnostics", ())]
        if not self._names:
            raise InputError("the probe 'method' needs a model that names its 'diagnostics'")
        self.labels = {"method.diagnostics": self._names}
        self.about = {"method.diagnostics": {"measured_on": "the first rank"}}

    def measure(self, step: probe.Step) -> probe.Measurement | None:
        """Return what the step told, NaN for what it did not."""
        given = [step.outputs.get(f"diagnostics.{name}") for name in self._names]
        values = [each.detach().reshape(()).float() for each in given if each is not None]
        if not values:
            return None
        missing = values[0].new_full((), torch.nan)
        found = iter(values)
        return {"method.diagnostics": torch.stack([missing if each is None else next(found) for each in given])}
