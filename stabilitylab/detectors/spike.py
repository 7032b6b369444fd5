"""Spikes: sudden, short rises of a positive series over its own level, such as the gradient norm of a layer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from stabilitylab import parameters
from stabilitylab.detectors._extent import Found, apart, describe, extent_of, ragged
from stabilitylab.detectors._shift import apart_from_shifts
from stabilitylab.detectors._vanished import vanished
from stabilitylab.findings import Event, place
from stabilitylab.stats.past import Past, again, autocorrelation, level_and_residual, past, wandering
from stabilitylab.stats.robust import BLOCK, delayed, fold, runs_of, unfold
from stabilitylab.stats.tails import PRIOR, Evidence, Tail, evidence_of, normal_prior, pooled, posterior, shape_of_sum

__all__ = ["Detector", "Parameters", "Resolution"]

LENGTHS = {1: 0.7, 3: 0.2, 6: 0.15}
"""Samples over which the whitened residuals are summed, a single one first, and the share of false alarms of each."""

LONG = 3 * BLOCK
"""Samples of an event that the level would begin to follow."""

SHORT = 32_768
"""In a series of up to so many samples every event counts as long: looking twice finds a few small spikes more."""

GROUP = 16
"""Columns that one thread takes at a time, at most: as many as a cache line holds of one row."""

KEPT = 2**25 - 2**16
"""glibc keeps what is freed for the next column, up to the largest block that it has seen freed so far, below 32 MB."""

ENOUGH = 4096
"""Blocks that the tails of the noise are estimated from, evenly spread over a longer series."""

ALONE = 32_768
"""The tails of a longer series are estimated from it alone; a shorter one is helped by the other columns."""

PASSES = 3
"""So often samples that vanish are looked for: many of them move the level at first."""

CLUSTERED = 0.02
"""How much one over the degrees of freedom of a sum may differ from that of a sum of independent samples."""

ASKED = 24
"""So many columns, evenly spread, say what is expected of the others."""


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
    """A rise that lasts for so many samples, or a quarter of them up to the last one recorded, is a ``shift``, which
    the level follows; what stands out of it is a spike."""
    vanished: float = Field(0.01, gt=0, lt=1)
    """Samples under this part of the level, up to three in a row and far out of reach of noise, count as missing."""
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
    first: int
    """Number of samples before the first one that is judged."""


Shapes = dict[int, np.ndarray]
"""What is expected of the tails of a column (`pooled`), by the number of samples that are summed."""


class Detector:
    """Finds spikes in every column of a positive series, on the log scale.

    A spike is a single whitened residual, or a sum of three or six, that stands out of the noise. Level and scale come
    from the past alone and are frozen while a spike lasts; where the surroundings on both sides are louder (a burst of
    noise), more is asked for. NaN and inf are spikes of infinite height; zeros and negative values are
    missing, and so is what all but vanishes for a step or a few.
    """

    series: ClassVar[tuple[str, ...]] = ("gradients.norm",)
    """The series that an analysis gives to this detector (gradients layer by layer)."""

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = parameters or Parameters()

    def detect(self, name: str, frame: pd.DataFrame, about: Mapping[str, Any]) -> list[Event]:  # noqa: ARG002
        """Return the events ``spike`` and ``shift`` of all columns, ordered by start.

        Height is the ratio to the level of the peak, for a shift of where it settles; score is the same in robust
        standard deviations of the noise.
        """
        return self.examine(name, frame)[0]

    def examine(
        self, name: str, frame: pd.DataFrame, shapes: Sequence[Shapes] | None = None
    ) -> tuple[list[Event], dict[str, Resolution]]:
        """Return the events, and for each column the noise and the smallest spike that would have been found.

        Args:
            name: of the series.
            frame: one column for each label.
            shapes: what is expected of the tails of each column; taken from the other columns if not given.
        """
        steps = frame.index.to_numpy()
        values = _floats(frame)
        expected = self.shapes(frame) if shapes is None else shapes
        # numpy lets go of the interpreter in long arrays, so that threads share the columns; short ones gain nothing
        workers = min(os.cpu_count() or 1, 8) if frame.size > 2_000_000 else 1
        rounds = -(-values.shape[1] // (GROUP * workers))
        size = max(1, -(-values.shape[1] // max(1, rounds * workers)))  # no thread waits for the last group
        if workers > 1:
            np.empty(KEPT, dtype=np.uint8)
        with ThreadPoolExecutor(workers) as pool:
            groups = pool.map(
                lambda first: self._group(values[:, first : first + size], expected[first : first + size]),
                range(0, values.shape[1], size),
            )
            results = [each for group in groups for each in group]
        events: list[Event] = []
        for label, (found, _) in zip(frame.columns, results, strict=True):
            events += found.events(name, str(label), steps)
        return sorted(events, key=place), {str(n): each for n, (_, each) in zip(frame.columns, results, strict=True)}

    def shapes(self, frame: pd.DataFrame) -> list[Shapes]:
        """Return what is expected of the tails of each column, from the noise of the others.

        A series that is longer than `ALONE` says enough itself; of many columns `ASKED` are asked.
        """
        number = frame.shape[1]
        if number < 2 or len(frame) > ALONE:
            return [{}] * number
        asked = np.unique(np.linspace(0, number - 1, min(number, ASKED)).astype(int))
        values = _floats(frame)
        said = []
        for column in asked:
            _, _, _, blocks = self._folded(np.ascontiguousarray(values[:, column]))
            masked = self._outstanding(blocks)
            before = past(blocks, masked, self.parameters.floor)
            sums = self._sums(before, masked, before.spread())
            said.append({size: evidence.both for size, _, evidence in sums})
        shapes: list[Shapes] = [{} for _ in range(number)]
        single = None
        for size in LENGTHS:
            own, further = pooled(np.array([each[size] for each in said]), _beforehand(size, single))
            single = posterior(further)[0] if single is None else single
            for each in shapes:
                each[size] = further
            for column, one in zip(asked, own, strict=True):
                shapes[column][size] = one
        return shapes

    def _group(self, values: np.ndarray, shapes: Sequence[Shapes]) -> list[tuple[Found, Resolution]]:
        columns = np.empty(values.shape[::-1], dtype=values.dtype)
        for first in range(0, len(values), 4096):  # turned in parts that stay in the cache
            columns[:, first : first + 4096] = values[first : first + 4096].T
        return [self._column(each, expected) for each, expected in zip(columns, shapes, strict=True)]

    def _column(self, values: np.ndarray, shapes: Shapes) -> tuple[Found, Resolution]:
        """Return the events of a column in samples, and what could have been seen in it."""
        log, broken, rows, blocks = self._folded(values)
        masked = self._outstanding(blocks)
        before = past(blocks, masked, self.parameters.floor)
        noticed, tails = self._notice(before, masked, shapes)
        found = self._measure(log, broken, before, noticed, tails[1])
        hiding = ~found.lasting & ((found.stop - found.start >= LONG) | (len(log) <= SHORT))
        further = ragged(found.start[hiding], found.stop[hiding])[0]
        further = np.setdiff1d(further[~broken[further]], masked)  # what is not finite is not there anyhow
        if len(further):  # what these hold is left out of the past too, and all is looked for again
            masked = np.union1d(masked, further)
            before = again(before, blocks, masked, further // BLOCK, self.parameters.floor)
            noticed, tails = self._notice(before, masked, shapes)
            found = self._measure(log, broken, before, noticed, tails[1])
        seen = self._resolution(before, tails[1], len(log))
        if rows is not None:  # what is missing counts as a sample of the record
            seen = seen._replace(first=int(rows[seen.first]) if seen.first < len(rows) else len(values))
        return found.at(rows), seen

    def _folded(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """Return what `_log` does without samples that all but vanish, and the finite logarithms as blocks."""
        log, broken, rows = _log(values)
        blocks = fold(np.where(broken, np.nan, log)) if broken.any() else fold(log)
        for _ in range(PASSES):
            lost = vanished(blocks, len(log), self.parameters.vanished)
            if not len(lost):
                break
            kept = np.delete(np.arange(len(log)), lost)
            log, broken, rows = log[kept], broken[kept], kept if rows is None else rows[kept]
            blocks = fold(np.where(broken, np.nan, log))
        return log, broken, rows, blocks

    def _outstanding(self, blocks: np.ndarray) -> np.ndarray:
        """Return the samples of runs above two standard deviations that reach five, and the smallest ratio.

        They are left out of what the past says, or many spikes would pass for the noise.
        """
        residual, rough, _ = level_and_residual(blocks, np.empty(0, dtype=np.int64))
        rough = np.maximum(rough, self.parameters.floor)
        rough *= wandering(autocorrelation(residual, rough))
        with np.errstate(invalid="ignore"):
            far = residual > np.maximum(5 * rough, np.log(self.parameters.min_ratio))
            if not far.any():
                return np.empty(0, dtype=np.int64)
            first, last = runs_of(unfold(residual > 2 * rough, residual.size))
        reached = np.flatnonzero(unfold(far, far.size))
        reach = np.searchsorted(reached, first) < np.searchsorted(reached, last, side="right")
        return ragged(first[reach], last[reach])[0]

    def _resolution(self, before: Past, tail: Tail, length: int) -> Resolution:
        known = np.isfinite(before.scale)
        if not known.any():
            return Resolution(float("nan"), 0.0, tail.threshold(self._rate(1)), float("nan"), 0, 0.0, length)
        noise = float(np.median(before.local[known]))
        threshold = tail.threshold(self._rate(1))
        needed = max(threshold * noise, float(np.log(self.parameters.min_ratio)))
        judged = min(BLOCK * int(known.sum()), length)
        rates = [min(self._rate(each), 1.0) for each in LENGTHS]
        chance = judged * (tail.chance(needed / noise) + sum(rates[1:]) * (needed <= threshold * noise))
        smallest = float(np.exp(needed + 1.28 * noise))
        first = BLOCK * int(np.argmax(known))
        return Resolution(noise, float(np.median(before.autocorrelation)), threshold, smallest, judged, chance, first)

    def _rate(self, length: int) -> float:
        return self.parameters.false_alarms / 1e4 * LENGTHS[length]

    def _sums(self, before: Past, masked: np.ndarray, spread: np.ndarray) -> Iterator[tuple[int, np.ndarray, Evidence]]:
        """Yield each sum of whitened residuals over its scale, and what the noise says of its tails."""
        with np.errstate(divide="ignore", invalid="ignore"):
            score = before.matched() / before.local
            # neither where the level is still above a step down, nor where the scale is little known, if there is more
            usual = before.offset >= -1.5 * spread
            usual &= before.samples >= min(256, np.max(before.samples, initial=0) // 2)
        every = max(1, -(-len(usual) // ENOUGH))
        for size in LENGTHS:
            if size == 3:
                score = score + delayed(score, 1) + delayed(score, 2)
            elif size == 6:
                score = score + delayed(score, 3)
            quiet = score
            if len(masked):
                touched = (masked[:, None] + np.arange(-1, size)).ravel()
                touched = touched[(touched >= 0) & (touched < score.shape[1] * BLOCK)]
                touched = touched[(touched // BLOCK) % every == 0]
                quiet = score[:, ::every].copy()
                quiet[touched % BLOCK, touched // BLOCK // every] = np.nan
            else:
                quiet = score[:, ::every]
            yield size, score, evidence_of(quiet[:, usual[::every]], size)

    def _notice(self, before: Past, masked: np.ndarray, shapes: Shapes) -> tuple[_Noticed, dict[int, Tail]]:
        """Return where a sum of whitened residuals stands out, and the tails of the noise of each sum."""
        uncertain = before.uncertainty()
        spread = before.spread()
        found = []
        tails: dict[int, Tail] = {}
        for size, score, evidence in self._sums(before, masked, spread):
            others = shapes.get(size)
            if others is None and size > 1:
                others = _beforehand(size, tails[1].shape)
            tails[size] = evidence.tail(shape_of_sum(PRIOR, size), others)
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

    def _measure(self, log: np.ndarray, broken: np.ndarray, before: Past, noticed: _Noticed, tail: Tail) -> Found:
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
        start, stop = extent_of(log, broken, at, np.where(infinite, np.inf, level + low), self.parameters)
        if len(begins):  # it lasts as long as it is not finite, whatever the patience
            run = np.maximum(np.searchsorted(begins, stop, side="right") - 1, 0)
            stop = np.where(broken[stop], ends[run], stop)
        keep, start, stop = apart(at, start, stop, self.parameters)
        found = describe(
            log,
            broken,
            (start, stop),
            level[keep],
            scale[keep],
            before.autocorrelation[block[keep]],
            self.parameters.patience,
        )
        known = level[keep], scale[keep], before.spread()[block[keep]], before.autocorrelation[block[keep]]
        return apart_from_shifts(log, broken, found, known, tail.threshold(self._rate(1)), self.parameters)

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


def _floats(frame: pd.DataFrame) -> np.ndarray:
    values = frame.to_numpy()
    return values if values.dtype.kind == "f" else values.astype(float)


def _beforehand(size: int, single: float | None) -> np.ndarray:
    """Return what is expected of the tails of a sum of so many samples, given the shape of a single one."""
    return normal_prior(PRIOR) if single is None else normal_prior(shape_of_sum(single, size), CLUSTERED)


def _log(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the logarithms of what was measured, where they are not finite, and the rows (None: all of them)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(values).astype(np.float32, copy=False)
    broken = ~np.isfinite(log)
    if not broken.any():
        return log, broken, None
    rows = np.flatnonzero(~(np.isfinite(values) & (values <= 0)))
    return log[rows], broken[rows], rows
