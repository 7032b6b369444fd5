"""Lags without onsets: where the log magnitudes of two layers around the same spikes look most alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stabilitylab.sampling import spacing
from stabilitylab.stats.correlation import Alike, most_alike, windows
from stabilitylab.stats.lag import FEWEST

__all__ = ["Curves"]

CURVE = 50
"""Steps around a spike of the first layer whose curve is looked for in the later layers."""


class Curves(NamedTuple):
    """The log magnitudes around each cluster of the first layer."""

    frames: Sequence[pd.DataFrame]
    rows: Sequence[np.ndarray]
    """Of each frame, where the clusters begin."""
    first: np.ndarray
    """Curves of the first layer, shape (E, 2 curve + 1)."""
    every: int
    curve: int
    reach: int
    """In rows."""

    @classmethod
    def around(
        cls, frames: Sequence[pd.DataFrame], shifts: Sequence[int], first: str, begins: np.ndarray, window: int
    ) -> Curves:
        """Take the curves around the times at which clusters begin; none if runs were recorded at different steps.

        Args:
            frames: gradient norm of each layer, one of each run.
            shifts: by how many steps the times of each run were moved.
            first: the first layer.
            begins: times, moved.
            window: largest lag in steps.
        """
        shown = [(frame, shift) for frame, shift in zip(frames, shifts, strict=False) if first in frame and len(frame)]
        spaced = {spacing(frame.index.to_numpy()) for frame, _ in shown}
        if len(spaced) != 1:
            return cls((), (), np.empty((0, 0)), 1, 0, 0)
        (every,) = spaced
        curve, reach = max(CURVE // every, 1), max(window // every, 1)
        rows = [_rows_at(frame.index.to_numpy(), begins - shift, every, curve + reach) for frame, shift in shown]
        kept = [frame for frame, _ in shown]
        around = [windows(_log(frame[first]), at, curve) for frame, at in zip(kept, rows, strict=True)]
        return cls(kept, rows, np.concatenate(around), every, curve, reach)

    def compare(self, layer: str, rng: np.random.Generator, draws: int) -> Alike:
        """Return the lag of a layer in steps."""
        if len(self.first) < FEWEST or any(layer not in frame for frame in self.frames):
            return Alike(np.nan, np.nan, np.nan, 0)
        reach = self.curve + self.reach
        around = [windows(_log(frame[layer]), at, reach) for frame, at in zip(self.frames, self.rows, strict=True)]
        found = most_alike(self.first, np.concatenate(around), self.reach, rng, draws)
        lag, low, high = (self.every * each for each in (found.lag, found.low, found.high))
        return Alike(lag, low, high, found.windows)


def _rows_at(steps: np.ndarray, times: np.ndarray, every: int, reach: int) -> np.ndarray:
    """Return the rows of those times around which no row is missing."""
    at = np.searchsorted(steps, times)
    at = at[(at < len(steps)) & (steps[np.minimum(at, len(steps) - 1)] == times)]
    before, after = np.maximum(at - reach, 0), np.minimum(at + reach, len(steps) - 1)
    return at[steps[after] - steps[before] == every * (after - before)]


def _log(magnitudes: pd.Series) -> np.ndarray:
    values = magnitudes.to_numpy(dtype=float)
    return np.log(values, out=np.full(len(values), np.nan), where=values > 0)
