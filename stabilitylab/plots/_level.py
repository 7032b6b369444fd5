"""A series relative to its own level: the level that spikes are measured against, drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabilitylab.findings import Event
from stabilitylab.stats.level import past_level

__all__ = ["relative"]


def relative(steps: np.ndarray, values: np.ndarray, spikes: Sequence[Event] = ()) -> np.ndarray:
    """Divide each value by the robust level of its past, so that the usual is 1 and a spike of 3 x is 3.

    The level is the one that the spike detector uses, of log magnitudes and frozen during spikes. The first rows,
    which have too little past, are divided by the median of the first 24.

    Args:
        steps: increasing, shape (T,).
        values: not negative, shape (T,); what is not finite or zero is left out of the level, never out of the result.
        spikes: the spikes of this series.

    Returns:
        Dimensionless, shape (T,); NaN where there is no level at all.
    """
    values = np.asarray(values, dtype=np.float64)
    usable = np.isfinite(values) & (values > 0)
    valid = usable.copy()
    for event in spikes:
        valid[np.searchsorted(steps, event.start) : np.searchsorted(steps, event.stop, side="right")] = False
    if not valid.any():  # nothing but spikes: their own level is better than none
        valid = usable
    log = np.log(values, out=np.full(len(values), np.nan), where=values > 0)
    level = past_level(log, valid)
    beginning = np.isnan(level)
    level[beginning] = np.median(log[valid][:24]) if valid.any() else np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        return values / np.exp(level)
