"""What an analysis knows before it tells anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stabilitylab.detectors.dip import Compared
from stabilitylab.detectors.spike import Resolution
from stabilitylab.findings import Episode, Event
from stabilitylab.run import Run

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

    def of(self, *kinds: str, series: str | None = None) -> list[Event]:
        """Return the events of some kinds, of one series or of all."""
        return [each for each in self.events if each.kind in kinds and series in (None, each.series)]
