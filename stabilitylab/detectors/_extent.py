"""How far an event of a series reaches: from the sample at which it was noticed to its start, onset, peak and stop."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from stabilitylab.detectors._onset import WINDOW, half_rise
from stabilitylab.findings import Event
from stabilitylab.stats.robust import BLOCK

__all__ = ["Found", "apart", "describe", "extent_of", "ragged"]


CLEAR = 12.0
"""The onset of a spike of so many standard deviations is read off: noise does not move it."""

OPEN = 4
"""Where the record ends, what lasts for the patience divided by this is a shift already, if it has settled."""

NEAR = 12
"""So are those of spikes that take more samples to their peak."""


class Limits(Protocol):
    """The parameters that say how far an event may reach."""

    @property
    def merge_gap(self) -> int: ...
    @property
    def patience(self) -> int: ...


class Found(NamedTuple):
    """Events of one column in samples, each field of shape (N,)."""

    start: np.ndarray
    onset: np.ndarray
    peak: np.ndarray
    stop: np.ndarray
    rise: np.ndarray
    """Logarithm of the height, infinite where it is not finite."""
    score: np.ndarray
    lasting: np.ndarray
    """True for a shift."""

    def at(self, rows: np.ndarray | None) -> Found:
        """Return the events in rows, of the samples that were measured."""
        if rows is None:
            return self
        times = {name: rows[getattr(self, name)] for name in ("start", "onset", "peak", "stop")}
        return self._replace(**times)

    def events(self, series: str, label: str, steps: np.ndarray) -> list[Event]:
        start, onset, peak, stop = (steps[each].tolist() for each in (self.start, self.onset, self.peak, self.stop))
        kinds = np.where(self.lasting, "shift", "spike").tolist()
        with np.errstate(over="ignore"):
            heights = np.exp(self.rise).tolist()
        rows = zip(start, onset, peak, stop, kinds, heights, self.score.tolist(), strict=True)
        return [Event(a, b, c, d, kind, series, label, height, score) for a, b, c, d, kind, height, score in rows]


def extent_of(
    log: np.ndarray, broken: np.ndarray, at: np.ndarray, low: np.ndarray, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last sample of what goes on at each sample: what is above ``low`` or broken, with gaps.

    Backward it is without any gap. It reaches no farther than the patience.
    """
    start, stop = at.copy(), at.copy()
    open_ = np.arange(len(at))
    for reach in (4 * (limits.merge_gap + 2), limits.patience):
        left = []
        for first in range(0, len(open_), 2048):
            part = open_[first : first + 2048]
            window = at[part, None] + np.arange(-reach, reach)
            inside = (window >= 0) & (window < len(log))
            window = np.clip(window, 0, len(log) - 1)
            on = inside & ((log[window] >= low[part, None]) | broken[window])
            back = np.argmin(on[:, reach::-1], axis=1)
            whole = on[:, : reach + 1].all(axis=1)
            start[part] = at[part] - np.where(whole, reach, back - 1)
            place = np.arange(reach)
            last = np.maximum.accumulate(np.where(on[:, reach:], place, 0), axis=1)
            ended = place - last > limits.merge_gap
            final = np.where(ended.any(axis=1), np.argmax(ended, axis=1), reach - 1)
            stop[part] = at[part] + last[np.arange(len(part)), final]
            left.append(part[whole | ~ended.any(axis=1)])
        open_ = np.concatenate(left) if left else open_
    return start, stop


def apart(
    at: np.ndarray, start: np.ndarray, stop: np.ndarray, limits: Limits
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which of the overlapping events stay, the earlier ones, with starts and stops; close ones are joined."""
    keep: list[int] = []
    starts: list[int] = []
    stops: list[int] = []
    last = -1
    for index, (here, begin, end) in enumerate(zip(at.tolist(), start.tolist(), stop.tolist(), strict=True)):
        if here <= last:
            continue
        first = max(begin, last + 1)
        if keep and first - last <= limits.merge_gap + 1 and end - starts[-1] + 1 < limits.patience:
            stops[-1] = end
        else:
            keep.append(index)
            starts.append(first)
            stops.append(end)
        last = end
    return np.array(keep, dtype=np.int64), np.array(starts, dtype=np.int64), np.array(stops, dtype=np.int64)


def ragged(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all samples of the events in a row, and where each event begins in it."""
    length = stop - start + 1
    ends = np.cumsum(length)
    first = ends - length
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - first, length), first


def describe(
    log: np.ndarray,
    broken: np.ndarray,
    extent: tuple[np.ndarray, np.ndarray],
    level: np.ndarray,
    scale: np.ndarray,
    correlation: np.ndarray,
    patience: int,
) -> Found:
    """Return the events with their times and heights."""
    start, stop = extent
    if not len(start):
        return Found(start, start, start, start, np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    length = stop - start + 1
    sample, first = ragged(start, stop)
    never = len(log)
    bad = np.minimum.reduceat(np.where(broken[sample], sample, never), first)
    infinite = bad < never
    rise = np.where(broken[sample], -np.inf, log[sample]) - np.repeat(level, length)
    top = np.maximum.reduceat(rise, first)
    peak = np.minimum.reduceat(np.where(rise == np.repeat(top, length), sample, never), first)
    # a foreshock is not the main rise if the series came back to a quarter of the way in between
    calm = (rise < np.repeat(top / 4, length)) & (sample < np.repeat(peak, length))
    begin = np.maximum.reduceat(np.where(calm, sample + 1, 0), first)
    up = (rise >= np.repeat(top / 2, length)) & (sample >= np.repeat(begin, length))
    onset = np.minimum.reduceat(np.where(up, sample, never), first)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(infinite, np.inf, top / scale)
    stays = stop >= len(log) - BLOCK  # up to where the record ends
    noisy = np.flatnonzero((score < CLEAR) & (peak - start <= NEAR) & (peak > WINDOW))
    if len(noisy):
        samples = peak[noisy, None] + np.arange(-WINDOW - 1, 1)
        rises = log[samples] - level[noisy, None]
        rises[broken[samples] | np.isnan(rises)] = 0.0
        onset[noisy] = np.maximum(start[noisy], peak[noisy] + half_rise(rises, correlation[noisy], scale[noisy]))
    return Found(
        start,
        np.where(infinite, bad, onset),
        np.where(infinite, bad, peak),
        stop,
        np.where(infinite, np.inf, top),
        score,
        ((length >= patience) | (stays & (length >= patience // OPEN))) & ~infinite,
    )
