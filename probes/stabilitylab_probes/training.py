"""The loss, the learning rate, the momentum of the momentum encoder, and the speed, at every step."""

from __future__ import annotations

import time
from typing import Any

import torch

from stabilitylab import probe

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``training.loss``, ``.lr`` (a column per parameter group), ``.momentum`` and ``.images_per_second``.

    The speed is wall-clock time on the host, and the only series that differs between equal runs.
    """

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        groups = 0 if target.optimizer is None else len(target.optimizer.param_groups)
        rates = ["lr"] if groups == 1 else [f"group_{index}" for index in range(groups)]
        self.labels = {
            "training.loss": ["loss"],
            "training.lr": rates,
            "training.momentum": ["momentum"],
            "training.images_per_second": ["images_per_second"],
        }
        self.about = {"training.images_per_second": {"unit": "1/s", "wall_clock": True}}
        self._before: float | None = None

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return what the host knows, and the loss where it is."""
        now = time.perf_counter()
        measured: dict[str, Any] = {}
        if isinstance(step.loss, torch.Tensor):
            measured["training.loss"] = step.loss.reshape(1)
        elif step.loss is not None:
            measured["training.loss"] = [float(step.loss)]
        if self.target.optimizer is not None:
            measured["training.lr"] = [float(group["lr"]) for group in self.target.optimizer.param_groups]
        if "momentum" in step.scalars:
            measured["training.momentum"] = [step.scalars["momentum"]]
        if step.images is not None and self._before is not None:
            measured["training.images_per_second"] = [step.images * self.parameters.every / (now - self._before)]
        self._before = now
        return measured
