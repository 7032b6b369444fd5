"""A jump of the learning rate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stabilitylab.training.injections.injection import Injection, Training

__all__ = ["LearningRate"]


class LearningRate(Injection):
    """The learning rate is multiplied."""

    kind: Literal["learning_rate"] = "learning_rate"
    """The learning rate."""
    factor: float = Field(10.0, ge=0, allow_inf_nan=False)
    """What it is multiplied by."""

    def what(self) -> str:
        """Say what it does."""
        return f"the learning rate multiplied by {self.factor:g}"

    def before(self, training: Training) -> None:
        """Multiply what the schedule set for this step."""
        for group in training.optimizer.param_groups:
            group["lr"] *= self.factor
