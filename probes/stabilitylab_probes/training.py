"""The loss, the learning rate, the momentum of the momentum encoder, and the speed, at every step."""

from __future__ import annotations

import time
import warnings
from typing import Any, ClassVar

import torch

from stabilitylab import probe

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``training.loss``, ``.lr`` (a column per parameter group), ``.momentum``, ``.scale`` and speed.

    ``scale`` is the factor of a gradient scaler. The speed, ``training.images_per_second``, is wall-clock time on
    the host, and the only series that differs between equal runs.
    """

    fixed_schedule: ClassVar[bool] = True
    cost: ClassVar[str] = "numbers that the host knows, and the loss; no wait"

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        self.labels = {
            "training.loss": ["loss"],
            "training.lr": self._groups(),
            "training.momentum": ["momentum"],
            "training.scale": ["scale"],
            "training.images_per_second": ["images_per_second"],
        }
        self.about = {"training.images_per_second": {"unit": "1/s", "wall_clock": True}}
        self._before: float | None = None

    def _groups(self) -> list[str]:
        groups = len(getattr(self.target.optimizer, "param_groups", ()))  # a wrapper may hide them
        return ["lr"] if groups == 1 else [f"group_{index}" for index in range(groups)]

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return what the host knows, and the loss where it is."""
        now = time.perf_counter()
        measured: dict[str, Any] = {}
        given = {"loss": step.loss, "scale": step.loss_scale, "momentum": step.scalars.get("momentum")}
        measured |= {f"training.{name}": _one(name, value) for name, value in given.items() if value is not None}
        rates = [float(group["lr"]) for group in getattr(self.target.optimizer, "param_groups", ())]
        if rates:
            if len(rates) != len(self.labels["training.lr"]):  # a group was added
                self.labels = {**self.labels, "training.lr": self._groups()}
            measured["training.lr"] = rates
        if step.images is not None and self._before is not None:
            measured["training.images_per_second"] = [step.images * self.every / (now - self._before)]
        self._before = now
        return measured


def _one(name: str, value: Any) -> torch.Tensor | list[float]:
    """Return a number as a row of its own: a tensor is copied, for the loop may go on to use it."""
    if not isinstance(value, torch.Tensor):
        return [float(value)]
    value = value.detach()
    if value.numel() == 1:
        return value.reshape(1).clone()
    warnings.warn(f"the {name} has {value.numel()} values: their mean is recorded", stacklevel=8)
    return value.to(torch.float64 if value.dtype == torch.float64 else torch.float32).mean().reshape(1)
