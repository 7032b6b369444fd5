"""The gradient of one layer, multiplied."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from stabilitylab.errors import InputError
from stabilitylab.training.injections.injection import Injection, Training

__all__ = ["Gradient"]


class Gradient(Injection):
    """The gradient of one layer is multiplied, before anybody sees it."""

    kind: Literal["gradient"] = "gradient"
    """The gradient of a layer."""
    layer: str
    """Name of the layer, such as patch_embed or blocks.3."""
    factor: float = Field(10.0, allow_inf_nan=False)
    """What it is multiplied by."""

    def check(self, name: str, training: Training) -> None:
        """Fail if there is no such layer, or if it is frozen."""
        super().check(name, training)
        trained = [layer for layer in training.layers.names if training.parameters(layer)]
        if self.layer not in trained:
            why = "takes no gradient" if self.layer in training.layers.names else "is no layer"
            raise InputError(f"{name}.layer is {self.layer!r}, which {why}; available: {', '.join(trained)}")

    def what(self) -> str:
        """Say what it does."""
        return f"the gradient of {self.layer} multiplied by {self.factor:g}"

    def after(self, training: Training) -> None:
        """Multiply what the backward pass left."""
        gradients = [each.grad for each in training.parameters(self.layer) if each.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, self.factor)
