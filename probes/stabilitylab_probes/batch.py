"""Which samples each step was made of, so that those of a spike can be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from stabilitylab import probe
from stabilitylab.errors import InputError

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``batch.indices``: the samples of the step, int64, a column per position in the batch ("0", "1", ...).

    They are what the loop gives as ``outputs["indices"]``, shape (N,); nothing is recorded where it gives none. What
    an index refers to is the loop's to say. With ``stabilitylab train`` it is a row of the training images::

        images = open_dataset(Data(**Run("runs/mine").config["data"])).train    # of stabilitylab.training.data
        rows = Run("runs/mine")["batch.indices"].loc[1499].to_list()            # the step of a spike
        [images.files[row] for row in rows]                                     # or images.pixels[rows]

    A batch wider than all before adds columns; a narrower one ends with -1. With many processes, these are the samples
    of the first one.
    """

    cost: ClassVar[str] = "2 tensor operations, 8 bytes per sample until the next flush; no wait"

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        self.labels = {"batch.indices": []}
        self.about = {"batch.indices": {"unit": "index", "none": -1, "measured_on": "the first rank"}}

    def measure(self, step: probe.Step) -> probe.Measurement | None:
        """Return the indices, int64, shape (number of columns,)."""
        indices = step.outputs.get("indices")
        if indices is None:
            return None
        if indices.ndim != 1 or indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise InputError(
                f"the probe 'batch' needs indices as integers of shape (N,); {indices.dtype} of shape "
                f"{tuple(indices.shape)} was given"
            )
        self._widen(len(indices))
        row = indices.new_full((len(self.labels["batch.indices"]),), -1, dtype=torch.int64)
        row[: len(indices)] = indices
        return {"batch.indices": row}

    def _widen(self, columns: int) -> None:
        if columns > len(self.labels["batch.indices"]):
            self.labels = {"batch.indices": [str(position) for position in range(columns)]}

    def state(self) -> dict[str, Tensor]:
        """Return as many numbers as there are columns."""
        return {"columns": torch.zeros(len(self.labels["batch.indices"]), dtype=torch.uint8)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back the number of columns."""
        if state:
            self._widen(len(state["columns"]))
