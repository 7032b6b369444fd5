"""What planted disturbances have in common: when they come, and what they may touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.layers import Layers
from stabilitylab.parameters import Parameters
from stabilitylab.training.distributed import Ranks

__all__ = ["Injection", "Training"]


@dataclass
class Training:
    """What a disturbance may touch, the same on every rank."""

    method: Any
    """The method: a module with its configuration in ``config``."""
    optimizer: torch.optim.Optimizer
    layers: Layers
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    ranks: Ranks
    seed: int
    total: int
    """Number of steps of the training."""
    step: int = 0
    """The step of now."""
    dead: set[int] = field(default_factory=set)
    """Dimensions of the projection that carry nothing at this step."""

    def parameters(self, layer: str) -> list[nn.Parameter]:
        """Return the parameters of a layer that take a gradient."""
        return [
            each
            for name, each in self.method.named_parameters()
            if each.requires_grad and self.layers.of.get(name) == layer
        ]


class Injection(Parameters):
    """A disturbance that is planted at steps that are known; what it does is a function of the step alone."""

    kind: str
    """What is disturbed."""
    step: int = Field(ge=0)
    """First step of the disturbance."""
    steps: PositiveInt | None = 1
    """It lasts for so many steps; none for all that follow."""
    every: PositiveInt | None = None
    """It comes again every so many steps."""
    until: int | None = None
    """The last step at which it may come again."""

    @model_validator(mode="after")
    def _order(self) -> Injection:
        if self.every is not None and (self.steps is None or self.every <= self.steps):
            raise ValueError(f"every is {self.every}; it must be more than steps, which is {self.steps}")
        if self.until is not None and self.every is None:
            raise ValueError("until is for a disturbance that comes again: give every too")
        if self.until is not None and self.until < self.step:
            raise ValueError(f"until is {self.until}, before step {self.step}")
        return self

    def on(self, step: int) -> bool:
        """Tell whether it is there at a step."""
        after = step - self.step
        if self.every is not None and after >= 0:
            if self.until is not None and step - after % self.every > self.until:
                return False
            after %= self.every
        return after >= 0 and (self.steps is None or after < self.steps)

    def spans(self, total: int) -> list[tuple[int, int]]:
        """Return the first and the last step of each time that it comes in a training of so many steps."""
        end = total if self.until is None else min(self.until + 1, total)
        starts = [self.step] if self.every is None else range(self.step, end, self.every)
        return [(start, total - 1 if self.steps is None else min(start + self.steps, total) - 1) for start in starts]

    def check(self, name: str, training: Training) -> None:
        """Fail if it cannot be planted in the training.

        Args:
            name: what the setting is called.
            training: where it is to be planted.

        Raises:
            InputError: then.
        """
        if self.step >= training.total:
            steps = f"{training.total} steps, 0 to {training.total - 1}"
            raise InputError(f"{name}.step is {self.step}; the training has {steps}")

    def what(self) -> str:
        """Say what it does, as a part of a sentence."""
        raise NotImplementedError

    def start(self, training: Training) -> None:
        """Prepare the training, once."""

    def views(self, views: Sequence[Tensor], training: Training) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return what the method sees of a batch in a step in which it is there."""
        return tuple(views)

    def before(self, training: Training) -> None:
        """Act before the forward pass of a step in which it is there, the learning rate being set."""

    def after(self, training: Training) -> None:
        """Act after the backward pass of a step in which it is there, on gradients reduced and still scaled."""
