"""The learning rate over the training, per iteration."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from stabilitylab.errors import InputError
from stabilitylab.parameters import Parameters

__all__ = ["Schedule", "factor"]


class Schedule(Parameters):
    """The learning rate over the training."""

    name: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine down to zero, or constant."""
    warmup_steps: int | None = Field(None, ge=0)
    """Length of the linear warm-up from zero, in steps; give this or warmup_epochs."""
    warmup_epochs: float | None = Field(None, ge=0)
    """Length of the linear warm-up from zero, in epochs."""

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError("give either warmup_steps or warmup_epochs")
        return self

    def warmup(self, steps_per_epoch: int, total: int) -> int:
        """Return the length of the warm-up in steps.

        Raises:
            InputError: if it is longer than the training.
        """
        steps = self.warmup_steps
        if steps is None:
            steps = round((self.warmup_epochs or 0) * steps_per_epoch)
        if steps > total:
            name = "warmup_epochs" if self.warmup_steps is None else "warmup_steps"
            raise InputError(f"the warm-up takes {steps} steps (schedule.{name}), but the training has {total}")
        return steps


def factor(config: Schedule, step: int, warmup: int, total: int) -> float:
    """Return the factor on the learning rate at a step: 0 at the first of a warm-up, 1 at its end."""
    if step < warmup:
        return step / warmup
    if config.name == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
