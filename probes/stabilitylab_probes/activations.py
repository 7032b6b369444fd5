"""The size of what each layer hands on, on fixed inputs."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from stabilitylab import probe
from stabilitylab.errors import InputError
from stabilitylab.norms import is_sharded, norms
from stabilitylab.target import first_tensor

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``activations.rms``, ``.max`` (largest absolute entry), ``.zeros`` (fraction of exact zeros).

    A column per layer, in depth order: of the first floating-point tensor that the module of the layer returns when
    the model is shown the fixed inputs in eval mode, over all its entries; of its last call where there are several.
    A layer that is not reached has no column. Half precision is squared and summed in float32; NaN and inf are kept.
    """

    class Parameters(probe.Parameters):
        """When the model is shown the fixed inputs."""

        every: PositiveInt = 50
        """Measure at every so many steps."""

    cost: ClassVar[str] = "a forward pass on the fixed inputs, three passes over the output of each layer; no wait"

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        target.need_inputs("activations")
        reached = _look(target)
        layers = [layer for layer in target.modules if layer in reached]
        if not layers:
            raise InputError("the probe 'activations' found no layer whose module returns a floating-point tensor")
        shared = {"shown": "fixed inputs, in eval mode", "call": "last"}
        units = {"activations.rms": "activation", "activations.max": "activation", "activations.zeros": "1"}
        self.labels = dict.fromkeys(units, layers)
        self.about = {series: {"unit": unit, **shared} for series, unit in units.items()}

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return the three numbers of each layer; NaN for a layer that is not reached any more."""
        seen = _look(step.target)
        device = next((each.device for each in seen.values()), torch.device("cpu"))
        missing = torch.full((3,), float("nan"), device=device)
        layers = self.labels["activations.rms"]
        rows = [seen.get(layer, missing).to(device, non_blocking=True) for layer in layers]
        return dict(zip(self.labels, torch.stack(rows, dim=1), strict=True))


def _look(target: probe.Target) -> dict[str, Tensor]:
    """Return size, largest entry and zeros of the output of each layer that is reached, shape (3,)."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer, module in target.modules.items():

            def look(_: nn.Module, __: Any, output: Any, layer: str = layer) -> None:
                values = first_tensor(output)
                if values is not None:
                    seen[layer] = _sizes(values)  # at once: what follows may change it in place

            hooks.callback(module.register_forward_hook(look).remove)
        target.show_inputs()
    return seen


def _sizes(values: Tensor) -> Tensor:
    """Return RMS, largest absolute entry and fraction of exact zeros, shape (3,)."""
    if is_sharded(values):
        values = values.full_tensor()  # type: ignore[attr-defined]
    number = values.numel()
    rms = norms([values]) / math.sqrt(number)  # of no entries 0 / 0, which is NaN
    zeros = (number - torch.count_nonzero(values).reshape(1)) / number
    return torch.cat([rms, norms([values], float("inf")), zeros.to(rms.dtype)])
