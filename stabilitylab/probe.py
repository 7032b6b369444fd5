"""What a probe is: it looks at one training step, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor

from stabilitylab.parameters import Parameters as BaseParameters
from stabilitylab.target import Features, HeldOut, Target

__all__ = ["HeldOut", "Measurement", "Parameters", "Probe", "Step", "Target"]

Measurement = Mapping[str, Tensor | Sequence[float]]
"""Series name to one value per label: a tensor on the device, or numbers that the host already knows."""


class Parameters(BaseParameters):
    """What every probe can be told."""

    every: PositiveInt = 1
    """Measure at every so many steps."""


@dataclass
class Step:
    """What a probe may look at: one training step after its backward pass, before clipping and the update."""

    index: int
    target: Target
    loss: Tensor | float | None = None
    """The loss of the step; detached."""
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    """The method's named outputs, detached: ``representation``, ``projection``, ``labels``, ..."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Numbers that the host knows: ``momentum``, ..."""
    images: int | None = None
    """How many images the step used, over all ranks."""
    scale: Tensor | float = 1.0
    """The factor by which the gradients are still scaled; 1 after ``scaler.unscale_``."""
    loss_scale: Tensor | float | None = None
    """The factor by which the loss was scaled, whether the gradients still are or not; None without a scaler."""
    max_norm: float | None = None
    """The total norm to which the gradients are about to be clipped."""

    @cached_property
    def features(self) -> Features:
        """Features of the fixed images under the weights of this step; computed at most once."""
        held_out = self.target.need_held_out("features")
        return Features(self.target.features(held_out.images), self.target.features(held_out.bank))


class Probe:
    """An instrument: one subclass named ``Probe`` in a file named after it.

    A subclass sets `labels` in its constructor, where it fails with an `InputError` if it cannot measure, and
    defines `measure`. It must leave weights, gradients, buffers, modes and random states untouched.
    """

    Parameters: ClassVar[type[Parameters]] = Parameters
    delay: ClassVar[int] = 0
    """1 if what `measure` returns belongs to the step before (an update is known only after it was made)."""
    needs_labels: ClassVar[bool] = False
    """Whether it can do nothing without the labels of the held-out images."""
    fixed_schedule: ClassVar[bool] = False
    """Whether a budget must leave its schedule alone."""
    cost: ClassVar[str] = ""
    """What one measurement costs, in words: tensor operations, passes over the weights, forward passes, memory."""

    labels: Mapping[str, Sequence[str]]
    """Series name to its columns. More may appear in `measure`; what was recorded before reads NaN there."""
    about: Mapping[str, Mapping[str, Any]] = {}
    """Series name to what ``run.json`` should say of it: unit, number of samples, ..."""

    def __init__(self, parameters: Any, target: Target) -> None:
        self.parameters = parameters
        self.target = target
        self.every: int = parameters.every
        """Measure at every so many steps: as configured, or stretched by a budget."""

    def observe(self, step: Step) -> None:
        """See a step at which nothing need be measured; called at every step, before `measure`."""

    def measure(self, step: Step) -> Measurement | None:
        """Return one value per label for each series, without waiting for the device; None if there is nothing."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Return what an interrupted run needs to go on as if it had not been interrupted."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
