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
from stabilitylab.stats.robust import PRIOR, Past, past, runs_of, tail_chance, tail_shape, tail_threshold

__all__ = ["Detector", "Parameters"]

LOUD = 0.6
"""A spike stands out of a burst of noise by so much of the threshold, in the depth of what follows."""

PASSES = 3
"""The past is estimated again without the events found, so often at most."""


class Parameters(parameters.Parameters):
    """What counts as a spike."""

    false_alarms: float = Field(0.5, gt=0, le=100)
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
    """Threshold in those standard deviations."""
    ratio: float
    """Smallest one-sample spike, as a ratio to the level, that is found in nine of ten cases."""
    judged: int
    """Number of samples that had enough past to be judged."""
    chance: float
    """Number of spikes to expect of the noise alone."""


class Detector:
    """Finds spikes in every column of a positive series, on the log scale.

    Level, scale and autocorrelation come from the past alone and are frozen while a spike lasts. NaN and inf are
    spikes of infinite height; zeros and negative values are missing, and so is NaN before the first number of a
    column where other columns have one.
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
        recorded = np.isfinite(frame.to_numpy(dtype=float)).any(axis=1)
        events: list[Event] = []
        resolutions = {}
        # numpy lets go of the interpreter in long arrays, so that threads share the columns; short ones gain nothing
        workers = min(os.cpu_count() or 1, 8) if frame.size > 2_000_000 else 1
        with ThreadPoolExecutor(workers) as pool:
            results = list(
                pool.map(lambda label: self._column(frame[label].to_numpy(dtype=float), recorded), frame.columns)
            )
        for label, (found, quiet) in zip(frame.columns, results, strict=True):
            events += [each.event(name, str(label), steps) for each in found]
            needed = max(quiet.threshold * quiet.noise, float(np.log(self.parameters.min_ratio)))
            smallest = float(np.exp(needed + 1.28 * quiet.noise))
            chance = quiet.judged * tail_chance(needed / quiet.noise, quiet.shape) if quiet.judged else 0.0
            resolutions[str(label)] = Resolution(
                quiet.noise, quiet.correlation, quiet.threshold, smallest, quiet.judged, chance
            )
        return sorted(events), resolutions

    def _column(self, values: np.ndarray, recorded: np.ndarray) -> tuple[list[_Found], _Quiet]:
        """Return the events of a column, and what of its past is told on."""
        found, before, threshold, shape = self._find(values, recorded)
        known = np.isfinite(before.scale)
        noise = float(np.median(before.scale[known])) if known.any() else float("nan")
        correlation = float(np.median(before.autocorrelation)) if len(values) else 0.0
        judged = int(np.isfinite(before.innovation).sum())
        return found, _Quiet(noise, correlation, judged, threshold, shape)

    def _find(self, values: np.ndarray, recorded: np.ndarray) -> tuple[list[_Found], Past, float, float]:
        """Return the events, the past of each sample, the threshold and the shape of the tails that it stands on."""
        log, missing = _log(values, recorded)
        broken = ~np.isfinite(log) & ~missing
        # What plainly stands out is left out of the first estimate too, or many spikes would pass for the noise.
        masked = self._outstanding(past(log, ~missing, self.parameters.floor))
        for _ in range(PASSES):
            before = past(log, ~masked & ~missing, self.parameters.floor)
            quiet = before.innovation[~masked & ~missing]
            shape = tail_shape(quiet)
            threshold = tail_threshold(shape, self.parameters.false_alarms / 1e4)
            found = self._events(log, broken, before, threshold)
            again = np.zeros(len(log), dtype=bool)
            for each in found:
                if each.kind == "spike":
                    again[each.start : each.stop + 1] = True
            if np.array_equal(again, masked):
                break
            masked = again
        return found, before, threshold, shape

    def _outstanding(self, before: Past) -> np.ndarray:
        """Return the runs of samples above two standard deviations that reach five, and the smallest ratio."""
        with np.errstate(invalid="ignore"):
            first, last = runs_of(before.residual > 2 * before.spread)
            far = before.residual > np.maximum(5 * before.spread, np.log(self.parameters.min_ratio))
        count = np.concatenate([[0], np.cumsum(far)])
        reach = count[last + 1] > count[first]
        edges = np.zeros(len(far) + 1, dtype=int)
        edges[first[reach]] += 1
        edges[last[reach] + 1] -= 1
        return np.cumsum(edges[:-1]) > 0

    def _events(self, log: np.ndarray, broken: np.ndarray, before: Past, threshold: float) -> list[_Found]:
        limits = self.parameters
        # a scale that stands on few samples is itself uncertain
        enter = threshold * (1 + 8 / np.maximum(before.samples, 8))
        height = np.fmax(np.log(limits.min_ratio), enter * np.fmin(before.spread, before.scale / 0.6))
        enough = np.maximum(np.log(limits.min_ratio), limits.exit * height)
        with np.errstate(invalid="ignore", divide="ignore"):
            # A burst of noise goes on: what follows falls as far below the level as what is to be judged rises above
            # it. Within a burst the noise has usual tails; the heavy ones of the whole record come from its bursts.
            usual = min(threshold, tail_threshold(PRIOR, limits.false_alarms / 1e4))
            loud = LOUD * usual * before.after / before.scale
            rising = (before.innovation > np.fmax(enter, loud)) & (before.residual > enough)
        found: list[_Found] = []
        last = -1
        for at in np.flatnonzero(rising | broken):
            if at <= last:
                continue
            level = before.level[at]
            start, stop = self._extent(log, broken, int(at), last, float(level + limits.exit * height[at]))
            found.append(self._describe(log, broken, (start, stop), float(level), float(before.scale[at])))
            last = stop
        return found

    def _extent(self, log: np.ndarray, broken: np.ndarray, at: int, last: int, low: float) -> tuple[int, int]:
        """Return the first and the last sample of the event that was noticed at a sample, its level frozen."""
        limits = self.parameters
        first, end = max(last + 1, at - limits.patience), at + limits.patience
        with np.errstate(invalid="ignore"):
            on = np.flatnonzero((log[first:end] >= low) | broken[first:end]) + first
        here = int(np.searchsorted(on, at))
        before, after = np.diff(on[: here + 1]), np.diff(on[here:])
        begin = here - int(np.argmax(np.append(before[::-1] > 1, True)))
        stop = here + int(np.argmax(np.append(after > limits.merge_gap + 1, True)))
        return int(on[begin]), int(on[stop])

    def _describe(
        self, log: np.ndarray, broken: np.ndarray, extent: tuple[int, int], level: float, scale: float
    ) -> _Found:
        start, stop = extent
        inside = slice(start, stop + 1)
        if broken[inside].any():
            peak = start + int(np.argmax(broken[inside]))
            begins, ends = runs_of(broken[stop:])
            if len(begins) and begins[0] == 0:  # it lasts as long as it is not finite, whatever the patience
                stop += int(ends[0])
            return _Found("spike", start, peak, peak, stop, np.inf, np.inf)
        peak = start + int(np.nanargmax(log[inside]))
        rise = log[peak] - level
        with np.errstate(invalid="ignore"):
            # a foreshock is not the main rise if the series came back to a quarter of the way in between
            calm = np.flatnonzero(log[start:peak] - level < rise / 4)
            begin = start + int(calm[-1]) + 1 if len(calm) else start
            onset = begin + int(np.argmax(log[begin : stop + 1] - level >= rise / 2))
        kind = "shift" if stop - start + 1 >= self.parameters.patience else "spike"
        return _Found(kind, start, onset, peak, stop, float(np.exp(rise)), float(rise / scale))

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


class _Quiet(NamedTuple):
    """What is told of the past of a column, so that no arrays are kept."""

    noise: float
    correlation: float
    judged: int
    threshold: float
    shape: float


class _Found(NamedTuple):
    """An event in samples."""

    kind: str
    start: int
    onset: int
    peak: int
    stop: int
    height: float
    score: float

    def event(self, series: str, label: str, steps: np.ndarray) -> Event:
        start, onset, peak, stop = (int(steps[at]) for at in (self.start, self.onset, self.peak, self.stop))
        return Event(start, onset, peak, stop, self.kind, series, label, self.height, self.score)


def _log(values: np.ndarray, recorded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithms (NaN where there is none) and where nothing was measured."""
    positive = values > 0
    log = np.full(len(values), np.nan)
    np.log(values, out=log, where=positive)
    known = np.isfinite(values)
    first = int(np.argmax(known)) if known.any() else len(values)
    missing = known & ~positive
    missing[:first] |= np.isnan(values[:first]) & recorded[:first]
    return log, missing
