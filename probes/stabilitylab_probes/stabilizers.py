"""What clipping, of gradients and of updates, and resets of moments did in each step."""

from __future__ import annotations

from typing import Any, ClassVar

from stabilitylab import probe
from stabilitylab.errors import InputError

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``stabilizers.coefficient``, ``.first_layer``, ``.update``, ``.reset``: those that the training has.

    ``coefficient``: by what the gradients were multiplied, 1 where nothing was clipped; a column for all of them
    (``total``), each layer, or each tensor. ``first_layer``: by what those of the first layer were multiplied besides.
    ``update``: by what the optimizer itself multiplied the update of a tensor; NaN where it made none. ``reset``: 1
    where the moments were forgotten, else 0.

    The training says so by ``optimizer.stabilizers``: an object with ``labels``, the name of a series without its
    ``stabilizers.`` to its columns, and ``latest``, after each step, the same name to a value for each column. Seen at
    the next call and recorded at the step that made it.
    """

    delay: ClassVar[int] = 1
    fixed_schedule: ClassVar[bool] = True
    cost: ClassVar[str] = "nothing of its own; no wait"

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        self._seen_at: int | None = None
        self._stabilizers = getattr(target.optimizer, "stabilizers", None)
        labels = dict(getattr(self._stabilizers, "labels", {}))
        if not labels:
            raise InputError("the probe 'stabilizers' needs an optimizer whose 'stabilizers' do something")
        self.labels = {f"stabilizers.{name}": [str(each) for each in columns] for name, columns in labels.items()}
        self.about = {name: {"unit": "1"} for name in self.labels}

    def measure(self, step: probe.Step) -> probe.Measurement | None:
        """Return what was done in the step before, or None where that was not seen, or was told already."""
        latest = getattr(self._stabilizers, "latest", {})
        seen, self._seen_at = self._seen_at, step.index
        return None if seen != step.index - 1 else {f"stabilizers.{name}": each for name, each in latest.items()}
