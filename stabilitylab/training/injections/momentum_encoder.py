"""A momentum encoder that does not follow."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from stabilitylab.errors import InputError
from stabilitylab.training.injections.injection import Injection, Training

__all__ = ["MomentumEncoder"]


class MomentumEncoder(Injection):
    """The momentum encoder is frozen: its momentum is exactly 1."""

    kind: Literal["momentum_encoder"] = "momentum_encoder"
    """The momentum encoder."""
    steps: PositiveInt | None = None
    """It is frozen for so many steps; none for all that follow."""

    def check(self, name: str, training: Training) -> None:
        """Fail if the method has no momentum encoder."""
        super().check(name, training)
        method = training.method
        if not hasattr(method, "encode_momentum") or not hasattr(method.config, "momentum"):
            raise InputError(f"{name}: the method {method.config.name} has no momentum encoder that could be frozen")

    def what(self) -> str:
        """Say what it does."""
        return "the momentum encoder frozen"

    def before(self, training: Training) -> None:
        """Let the method read a momentum of 1 in this step; it is put back after the step."""
        training.method.config = training.method.config.model_copy(update={"momentum": 1.0})
