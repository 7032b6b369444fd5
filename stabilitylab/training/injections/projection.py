"""Dimensions of the projection that carry nothing any more."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from stabilitylab.errors import InputError
from stabilitylab.target import untouched
from stabilitylab.training.injections.injection import Injection, Training

__all__ = ["Projection"]


class Projection(Injection):
    """Some outputs of the projector are zero, in training and wherever a probe asks for the projection.

    The momentum encoder's projector keeps its own; with zero gradients behind it, what it follows stands still.
    """

    kind: Literal["projection"] = "projection"
    """Outputs of the projector."""
    dimensions: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)
    """Which of them are zero."""
    steps: PositiveInt | None = None
    """They are for so many steps; none for all that follow."""

    def check(self, name: str, training: Training) -> None:
        """Fail if the projection is not that wide."""
        super().check(name, training)
        width = _width(training)
        if max(self.dimensions) >= width:
            there = f"the projection has {width} dimensions, 0 to {width - 1}"
            raise InputError(f"{name}.dimensions holds {max(self.dimensions)}; {there}")

    def what(self) -> str:
        """Say what it does."""
        number = len(set(self.dimensions))
        return f"{number} dimension{'' if number == 1 else 's'} of the projection killed"

    def start(self, training: Training) -> None:
        """Hook into the projector."""

        def kill(_: Any, __: Any, output: Tensor) -> Tensor:
            dead = training.dead & set(self.dimensions)
            return output.index_fill(1, torch.tensor(sorted(dead), device=output.device), 0) if dead else output

        training.method.projector.register_forward_hook(kill)

    def before(self, training: Training) -> None:
        """Say which dimensions are dead in this step."""
        training.dead |= set(self.dimensions)


def _width(training: Training) -> int:
    """Return the width of the projection, by looking at that of an empty image."""
    method = training.method
    with untouched(method), torch.no_grad():
        method.eval()
        image = torch.zeros((1, *training.image_shape), device=training.ranks.device)
        return int(method.encode(image)["projection"].shape[1])
