"""Spikes: sudden, short rises of a positive series over its own level, such as the gradient norm of a layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from stabilitylab import parameters
from stabilitylab.findings import Event
from stabilitylab.stats.robust import (
    BLOCK,
    PRIOR,
    Past,
    Tail,
    delayed,
    fold,
    level_and_residual,
    past,
    runs_of,
    tail_of,
    unfold,
)

__all__ = ["Detector", "Parameters", "Resolution"]

LENGTHS = {1: 0.65, 3: 0.25, 6: 0.25}
"""Samples over which the whitened residuals are summed, and the share of the false alarms that each sum may have."""

PASSES = 2
"""The past is estimated again without the events found, so often at most."""

GROUP = 16
"""Columns that one thread takes at a time: as many as a cache line holds of one row."""

ENOUGH = 4096
"""Blocks that the tails of the noise are estimated from, evenly spread over a longer series."""


class Parameters(parameters.Parameters):
    """What counts as a spike."""

    false_alarms: float = Field(0.6, gt=0, le=100)
    """Expected false alarms in 10,000 samples of one label; the threshold follows from the tails of the noise."""
    min_ratio: float = Field(1.5, gt=1)
    """Smallest ratio to the level that is a spike, however quiet the series is."""
    exit: float = Field(0.5, gt=0, le=1)
    """Hysteresis: a spike lasts while it is above this part of the height at which it was noticed (log scale)."""
    merge_gap: int = Field(5, ge=0)
    """Spikes with no more than so many quiet samples between them are one."""
    patience: int = Field(200, ge=10)
    """A rise that lasts for so many samples is reported as a ``shift``, and the level follows it."""
    floor: float = Field(0.02, gt=0)
    """Smallest standard deviation of the noise on the log scale that is believed."""


class Resolution(NamedTuple):
    """What could have been seen in one label."""

    noise: float
    """Median robust standard deviation of the whitened log magnitude."""
    autocorrelation: float
    """Median autocorrelation of the log residuals at one sample."""
    threshold: float
    """Threshold of a single sample in those standard deviations."""
    ratio: float
    """Smallest one-sample spike, as a ratio to the level, that is found in nine of ten cases."""
    judged: int
    """Number of samples that had enough past to be judged."""
    chance: float
    """Number of spikes to expect of the noise alone."""


class Detector:
    """Finds spikes in every column of a positive series, on the log scale.

    A spike is a single whitened residual, or a sum of three or six, that stands out of the noise. Level and scale come
    from the past alone and are frozen while a spike lasts; where the surroundings on both sides are louder (a burst of
    noise), more is asked for. NaN and inf are spikes of infinite height; zeros and negative values are missing, and so
    is NaN before the first number of a column where other columns have one.
    """

    series: ClassVar[tuple[str, ...]] = ("gradients.norm",)
    """The series that an analysis gives to this detector (gradients layer by layer)."""

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = parameters or Parameters()

    def detect(self, name: str, frame: pd.DataFrame, about: Mapping[str, Any]) -> list[Event]:  # noqa: ARG002
        """Return the events ``spike`` and ``shift`` of all columns, ordered by start.

        Height is the ratio of the peak to the level, score the peak in robust standard deviations of the noise.
        """
        return self.examine(name, frame)[0]

    def examine(self, name: str, frame: pd.DataFrame) -> tuple[list[Event], dict[str, Resolution]]:
        """Return the events, and for each column the noise and the smallest spike that would have been found."""
        steps = frame.index.to_numpy()
        values = frame.to_numpy()
        if values.dtype.kind != "f":
            values = values.astype(float)
        recorded = _recorded(values)
        starts = range(0, values.shape[1], GROUP)
        # numpy lets go of the interpreter in long arrays, so that threads share the columns; short ones gain nothing
        workers = min(os.cpu_count() or 1, 8) if frame.size > 2_000_000 else 1
        with ThreadPoolExecutor(workers) as pool:
            groups = pool.map(lambda first: self._group(values[:, first : first + GROUP], recorded), starts)
            results = [each for group in groups for each in group]
        events: list[Event] = []
        for label, (found, _) in zip(frame.columns, results, strict=True):
            events += found.events(name, str(label), steps)
        return sorted(events), {str(n): each for n, (_, each) in zip(frame.columns, results, strict=True)}

    def _group(self, values: np.ndarray, recorded: np.ndarray) -> list[tuple[Found, Resolution]]:
        columns = np.empty(values.shape[::-1], dtype=values.dtype)
        for first in range(0, len(values), 4096):  # turned in parts that stay in the cache
            columns[:, first : first + 4096] = values[first : first + 4096].T
        return [self._column(each, recorded) for each in columns]

    def _column(self, values: np.ndarray, recorded: np.ndarray) -> tuple[Found, Resolution]:
        """Return the events of a column in samples, and what could have been seen in it."""
        log, broken, rows = _log(values, recorded)
        blocks = fold(np.where(broken, np.nan, log)) if broken.any() else fold(log)
        # What plainly stands out is left out of the first estimate too, or many spikes would pass for the noise.
        masked = self._outstanding(blocks)
        for _ in range(PASSES):
            before = past(blocks, masked, self.parameters.floor)
            noticed, tails = self._notice(before, masked)
            found = self._measure(log, broken, before, noticed)
            again = found.samples()
            if np.array_equal(again, masked):
                break
            masked = again
        return found.at(rows), self._resolution(before, tails[1], len(log))

    def _outstanding(self, blocks: np.ndarray) -> np.ndarray:
        """Return the samples of runs above two standard deviations that reach five, and the smallest ratio."""
        residual, rough, _ = level_and_residual(blocks, np.empty(0, dtype=np.int64))
        rough = np.maximum(rough, self.parameters.floor)
        with np.errstate(invalid="ignore"):
            far = residual > np.maximum(5 * rough, np.log(self.parameters.min_ratio))
            if not far.any():
                return np.empty(0, dtype=np.int64)
            first, last = runs_of(unfold(residual > 2 * rough, residual.size))
        reached = np.flatnonzero(unfold(far, far.size))
        reach = np.searchsorted(reached, first) < np.searchsorted(reached, last, side="right")
        return _ragged(first[reach], last[reach])[0]

    def _resolution(self, before: Past, tail: Tail, length: int) -> Resolution:
        known = np.isfinite(before.scale)
        if not known.any():
            return Resolution(float("nan"), 0.0, tail.threshold(self._rate(1)), float("nan"), 0, 0.0)
        noise = float(np.median(before.local[known]))
        threshold = tail.threshold(self._rate(1))
        needed = max(threshold * noise, float(np.log(self.parameters.min_ratio)))
        judged = min(BLOCK * int(known.sum()), length)
        rates = [min(self._rate(each), 1.0) for each in LENGTHS]
        chance = judged * (tail.chance(needed / noise) + sum(rates[1:]) * (needed <= threshold * noise))
        smallest = float(np.exp(needed + 1.28 * noise))
        return Resolution(noise, float(np.median(before.autocorrelation)), threshold, smallest, judged, chance)

    def _rate(self, length: int) -> float:
        return self.parameters.false_alarms / 1e4 * LENGTHS[length]

    def _notice(self, before: Past, masked: np.ndarray) -> tuple[_Noticed, dict[int, Tail]]:
        """Return where a sum of whitened residuals stands out, and the tails of the noise of each sum."""
        with np.errstate(divide="ignore", invalid="ignore"):
            score = before.matched() / before.local
            spread = np.minimum(before.local / np.sqrt(1 - before.autocorrelation**2), before.local / 0.6)
            uncertain = 1 + 8 / np.maximum(before.samples, 8)  # a scale that stands on few samples
            # neither where the level is still above a step down, nor where the scale is little known, if there is more
            usual = before.offset >= -1.5 * spread
            usual &= before.samples >= min(256, np.max(before.samples, initial=0) // 2)
        found, tails = [], {}
        every = max(1, -(-len(usual) // ENOUGH))
        for size in LENGTHS:
            if size == 3:
                score = score + delayed(score, 1) + delayed(score, 2)
            elif size == 6:
                score = score + delayed(score, 3)
            quiet = score
            if len(masked):
                touched = np.unique(masked[:, None] + np.arange(-1, size))
                touched = touched[(touched >= 0) & (touched < score.shape[1] * BLOCK)]
                touched = touched[(touched // BLOCK) % every == 0]
                quiet = score[:, ::every].copy()
                quiet[touched % BLOCK, touched // BLOCK // every] = np.nan
            else:
                quiet = score[:, ::every]
            prior = PRIOR / (1 + (size - 1) * (1 - 4 * PRIOR))
            tails[size] = tail_of(quiet[:, usual[::every]], prior, 1 / size)
            threshold = tails[size].threshold(self._rate(size)) * uncertain
            with np.errstate(invalid="ignore"):
                above = np.flatnonzero(score > threshold)
            place, block = np.divmod(above, score.shape[1])
            phi = before.autocorrelation[block]
            height = threshold[block] * before.local[block] / (1 + phi**2 + (size - 1) * (1 - phi) ** 2)
            found.append(self._peaks(before, BLOCK * block + place, size, height, spread[block]))
        at, low = (np.concatenate(each) for each in zip(*found, strict=True))
        first = np.lexsort((low, at))
        first = first[np.append(True, np.diff(at[first]) > 0)] if len(first) else first
        return _Noticed(at[first], low[first]), tails

    def _peaks(
        self, before: Past, at: np.ndarray, size: int, height: np.ndarray, spread: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the highest residual of each sum that was noticed, if high enough, and what it must stay above."""
        limits = self.parameters
        window = np.maximum(at[:, None] - np.arange(size), 0)
        residual = before.residual[window % BLOCK, window // BLOCK]
        residual = np.where(np.isnan(residual), -np.inf, residual)
        best = np.argmax(residual, axis=1) if len(at) else np.empty(0, dtype=int)
        top = residual[np.arange(len(at)), best]
        low = np.maximum(limits.exit * np.maximum(height, np.log(limits.min_ratio)), 1.5 * spread)
        high = top >= np.maximum(low, np.log(limits.min_ratio))
        return (at - best)[high], low[high]

    def _measure(self, log: np.ndarray, broken: np.ndarray, before: Past, noticed: _Noticed) -> Found:
        """Return the events that were noticed, each from start to stop, and those that are not finite."""
        begins, ends = runs_of(broken) if broken.any() else (np.empty(0, int), np.empty(0, int))
        at = np.concatenate([noticed.at, begins])
        low = np.concatenate([noticed.low, np.full(len(begins), np.inf)])
        order = np.argsort(at, kind="stable")
        at, low = at[order], low[order]
        place, block = at % BLOCK, at // BLOCK
        with np.errstate(invalid="ignore"):
            level = log[at] - before.residual[place, block]
        scale = before.local[block]
        infinite = broken[at]
        level[infinite] = 0.0
        start, stop = _extent(log, broken, at, np.where(infinite, np.inf, level + low), self.parameters)
        if len(begins):  # it lasts as long as it is not finite, whatever the patience
            run = np.maximum(np.searchsorted(begins, stop, side="right") - 1, 0)
            stop = np.where(broken[stop], ends[run], stop)
        keep, start, stop = _apart(at, start, stop, self.parameters)
        return _describe(log, broken, (start, stop), level[keep], scale[keep], self.parameters.patience)

    @staticmethod
    def example(rng: np.random.Generator) -> tuple[str, pd.DataFrame, dict[str, Any], list[Event]]:
        """Return a series with two spikes, and the events that must be found."""
        values = np.exp(0.1 * rng.standard_normal((600, 2)))
        values[300, 0] = 4.0
        values[420:423, 1] = 6.0, 5.9, 5.8
        frame = pd.DataFrame(values, columns=["a", "b"], index=pd.RangeIndex(600, name="step"))
        expected = [
            Event(300, 300, 300, 300, "spike", "gradients.norm", "a", 4.0, np.inf),
            Event(420, 420, 420, 422, "spike", "gradients.norm", "b", 6.0, np.inf),
        ]
        return "gradients.norm", frame, {}, expected


class _Noticed(NamedTuple):
    """Samples at which something stands out, and how far above the level it lasts; both of shape (N,)."""

    at: np.ndarray
    low: np.ndarray


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

    def samples(self) -> np.ndarray:
        """Return the samples within spikes."""
        return _ragged(self.start[~self.lasting], self.stop[~self.lasting])[0]

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


def _recorded(values: np.ndarray) -> np.ndarray:
    """Return where anything is finite, shape (T,); looked up only where a column does not begin with a number."""
    if len(values) and np.isfinite(values[0]).all():
        return np.ones(len(values), dtype=bool)
    return np.isfinite(values).any(axis=1)


def _log(values: np.ndarray, recorded: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the logarithms of what was measured, where they are not finite, and the rows (None: all of them)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(values).astype(np.float32, copy=False)
    broken = ~np.isfinite(log)
    if not broken.any():
        return log, broken, None
    known = np.isfinite(values)
    first = int(np.argmax(known)) if known.any() else len(values)
    missing = known & (values <= 0)
    missing[:first] |= np.isnan(values[:first]) & recorded[:first]
    rows = np.flatnonzero(~missing)
    return log[rows], broken[rows], rows


def _extent(
    log: np.ndarray, broken: np.ndarray, at: np.ndarray, low: np.ndarray, limits: Parameters
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


def _apart(
    at: np.ndarray, start: np.ndarray, stop: np.ndarray, limits: Parameters
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


def _ragged(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all samples of the events in a row, and where each event begins in it."""
    length = stop - start + 1
    ends = np.cumsum(length)
    first = ends - length
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - first, length), first


def _describe(
    log: np.ndarray,
    broken: np.ndarray,
    extent: tuple[np.ndarray, np.ndarray],
    level: np.ndarray,
    scale: np.ndarray,
    patience: int,
) -> Found:
    """Return the events with their times and heights."""
    start, stop = extent
    if not len(start):
        return Found(start, start, start, start, np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    length = stop - start + 1
    sample, first = _ragged(start, stop)
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
    return Found(
        start,
        np.where(infinite, bad, onset),
        np.where(infinite, bad, peak),
        stop,
        np.where(infinite, np.inf, top),
        score,
        (length >= patience) & ~infinite,
    )
