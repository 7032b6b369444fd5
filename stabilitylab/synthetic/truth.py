"""The answer to a synthetic run: what was planted, where, and what goes with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from stabilitylab.findings import Event
from stabilitylab.synthetic.parameters import Parameters

__all__ = ["Coupling", "Phase", "Synthetic"]


@dataclass(frozen=True)
class Coupling:
    """Events of one series that were planted at a fixed distance from gradient spikes of the first layer."""

    series: str
    """Where they are."""
    kind: str
    lag: int
    """Steps from the gradient spike to them: negative where they come before it."""
    spikes: tuple[int, ...]
    """First steps of the gradient spikes that have one."""


@dataclass(frozen=True)
class Phase:
    """A stretch with many spikes."""

    start: int
    stop: int
    """The step after its last."""
    coupled: bool
    """Whether its spikes run through the layers with their lags, or are independent in each layer."""
    rate: float
    """Spikes a step."""


@dataclass(frozen=True)
class Synthetic:
    """A synthetic run: its series, what is said of them, its layers, and what was planted."""

    series: Mapping[str, pd.DataFrame]
    about: Mapping[str, Mapping[str, Any]]
    layers: Mapping[str, Any]
    """As in ``run.json``: names, of, first."""
    truth: tuple[Event, ...]
    """What was planted, heights without noise, scores infinite."""
    parameters: Parameters = field(default_factory=Parameters)
    couplings: tuple[Coupling, ...] = ()
    phases: tuple[Phase, ...] = ()

    def of(self, kind: str, series: str | None = None) -> list[Event]:
        """Return the planted events of one kind, in one series or in all."""
        return [each for each in self.truth if each.kind == kind and series in (None, each.series)]

    @property
    def lags(self) -> dict[str, int]:
        """The delay that was planted in each layer, in steps: positive where it follows the first one."""
        delays = self.parameters.lags
        names = self.layers["names"]
        return dict(zip(names, delays * len(names) if len(delays) == 1 else delays, strict=False))
