"""What an analysis knows before it tells anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from stabilitylab.calibration import Calibration
from stabilitylab.detectors.dip import Compared
from stabilitylab.detectors.drift import Compared as Beside
from stabilitylab.detectors.drift import Own
from stabilitylab.detectors.spike import Resolution
from stabilitylab.findings import Episode, Event
from stabilitylab.run import Run
from stabilitylab.trials import Trials

__all__ = ["Evidence"]


@dataclass(frozen=True)
class Evidence:
    """All that the findings are told from."""

    run: Run
    frames: Mapping[str, pd.DataFrame]
    """The series that were there, gradients layer by layer."""
    events: tuple[Event, ...]
    episodes: tuple[Episode, ...]
    lags: pd.DataFrame
    resolution: Mapping[str, Resolution]
    """Layer to what could have been seen in it."""
    compared: Mapping[str, Compared]
    """Column of the accuracy to how its measurements were compared."""
    parameters: Mapping[str, Any]
    couplings: pd.DataFrame = field(default_factory=pd.DataFrame)
    companions: tuple[Event, ...] = ()
    """Events of series that only couplings are about."""

    drifted: Mapping[str, tuple[Own | None, Beside | None]] = field(default_factory=dict)
    """Column of the accuracy to how it stands against its own past, and against reference runs."""
    trials: Mapping[str, Trials | None] = field(default_factory=dict)
    """Series to what its detector does on this run's noise, and on planted events; of the accuracy, of one column."""
    calibration: Calibration | None = None
    """What the spike detector does with the resampled noise of the gradients; None where that cannot be said."""

    def tried(self, series: str) -> dict[str, Any]:
        """Return what is told of the trials of a series in numbers; nothing where there were none."""
        trials = self.trials.get(series)
        return {"false_alarms_expected": trials.expected, "planted_found": dict(trials.found)} if trials else {}

    def of(self, *kinds: str, series: str | None = None) -> list[Event]:
        """Return the events of some kinds, of one series or of all."""
        return [each for each in self.events if each.kind in kinds and series in (None, each.series)]
