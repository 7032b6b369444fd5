"""Divergence: a loss that is not finite, or that left its level for good; a rise that is still open at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from stabilitylab import parameters
from stabilitylab.findings import Event
from stabilitylab.stats.past import past
from stabilitylab.stats.robust import BLOCK, MAD_TO_SD, fold, runs_of, unfold
from stabilitylab.stats.tails import tail_of, tail_threshold

__all__ = ["Detector", "Parameters"]


LEARNED = 50
"""Samples that a level takes."""

OPEN = 10
"""A rise that has lasted for so many samples when the record ends is told, as one that may come back."""

BLOCKS = 25
"""The wandering of a loss is that of the medians of so many samples, or of more in a long series."""

MOST_BLOCKS = 60
"""So many medians are enough."""

WANDERING = 3.0
"""A slow rise counts from so many standard deviations of a random walk with these steps on."""

PARTS = 8
"""A slow rise is looked at in so many parts."""

LAST = 0.1
"""The last of them adds at least this part of the rise, or it has come to rest: in a straight line it is a seventh."""

FASTER = 4.0
"""A loss that never fell has diverged if it ends so many times as high as its rise up to then lets expect."""


class Parameters(parameters.Parameters):
    """What counts as a divergence."""

    score: float = Field(8.0, gt=0)
    """Smallest jump of the loss in robust standard deviations of its own past."""
    patience: int = Field(100, ge=10)
    """Samples for which the loss must have stayed away, up to the end of the record."""
    recovery: float = Field(0.5, gt=0, lt=1)
    """The loss has come back when it is below the level plus this part of the jump."""


class Detector:
    """Finds where a loss is not finite, jumps and never returns, runs away, or falls and ends above where it began."""

    series: ClassVar[tuple[str, ...]] = ("training.loss",)

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = parameters or Parameters()

    def detect(self, name: str, frame: pd.DataFrame, about: Mapping[str, Any]) -> list[Event]:  # noqa: ARG002
        """Return the events ``divergence`` and ``rise`` of all columns, ordered by start.

        Height is the rise over the level in the unit of the loss, infinite where it is not finite. A ``rise`` is as
        clear as a divergence, but the record ends before the patience does, or it is slow and has lost only a part of
        what was learned: nobody knows yet whether it comes back.
        """
        steps = frame.index.to_numpy()
        events = []
        for label in frame.columns:
            values = frame[label].to_numpy(dtype=float)
            for (start, onset, peak, stop), kind, height, score in self._find(values):
                first, half, top, last = (int(steps[each]) for each in (start, onset, peak, stop))
                events.append(Event(first, half, top, last, kind, name, str(label), height, score))
        return sorted(events)

    def _find(self, values: np.ndarray) -> list[_Found]:
        finite = np.isfinite(values)
        found = [
            _Found((int(first), int(first), int(first), int(last)), "divergence", np.inf, np.inf)
            for first, last in zip(*runs_of(~finite), strict=True)
        ]
        at = np.flatnonzero(finite)
        series = values[at]
        if len(series) < LEARNED + OPEN:
            return found
        left = self._jumped(series) or self._crept(series)
        slow = self._rising(series if left is None else series[: left[0]])
        away = left or slow
        if away is None:
            return found
        start, level, _ = slow or away
        scale = away[2]
        curve = series if left is not None else _running_median(series, 9)  # one value is no slow rise
        peak = start + int(np.argmax(curve[start:]))
        height = float(curve[peak] - level)
        onset = start + int(np.argmax(curve[start:] - level >= height / 2))
        times = (int(at[start]), int(at[min(onset, peak)]), int(at[peak]), int(at[-1]))
        stayed = at[start] <= len(values) - self.parameters.patience or not finite[-1]
        kind = "divergence" if left is not None and stayed else "rise"
        return [*found, _Found(times, kind, height, height / scale)]

    def _jumped(self, series: np.ndarray) -> _Left | None:
        """Return where a loss jumps and never returns."""
        limits = self.parameters
        size = np.abs(series)
        floor = 1e-9 * (float(np.median(size)) or float(size.max()) or 1.0)
        before = past(fold(series), np.empty(0, dtype=np.int64), floor)
        residual, whitened = (unfold(each, len(series)) for each in (before.residual, before.whitened))
        scales = np.repeat(before.scale, BLOCK)[: len(series)]
        levels = series - residual
        with np.errstate(invalid="ignore"):  # where the level is wrong, after a jump, there is no noise to be seen
            usual = np.abs(before.offset) <= 1.5 * before.scale / np.sqrt(1 - before.autocorrelation**2)
        shape = tail_of(before.whitened[:, usual] / before.scale[usual]).shape
        needed = max(limits.score, 1.5 * tail_threshold(shape, 1e-5))
        with np.errstate(invalid="ignore"):
            jumped = (whitened > needed * scales) & (residual > needed * scales / 2)
            # medians, so that one low batch is no return, nor are those of a loss that swings
            stays = [_lowest_from_here(series, width) for width in (9, limits.patience // 2 + 1)]
            gone = np.maximum(*stays) > levels + limits.recovery * residual
        gone[len(series) - OPEN + 1 :] = False
        candidates = np.flatnonzero(jumped & gone)
        if not len(candidates):
            return None
        start = int(candidates[0])
        return start, float(levels[start]), float(scales[start])

    def _crept(self, series: np.ndarray) -> _Left | None:
        """Return where a loss rises above its first level for good: after it had fallen, or ever faster.

        A loss that rises from the first step on is no evidence: contrastive losses with a filling queue do.
        """
        patience = self.parameters.patience
        if len(series) < patience + LEARNED:
            return None
        smooth = _running_median(series, patience // 2 + 1)
        level, end = float(np.median(series[:24])), float(np.median(series[-patience // 2 :]))
        own = MAD_TO_SD * float(np.median(np.abs(series[:24] - level)))
        margin = max(_wandering(series), own)
        below = np.flatnonzero(smooth <= level + margin)
        start = int(below[-1]) + 1 if len(below) else 0
        fell = smooth[24:].min() < level - margin / 2
        fled = start >= patience and end > level + FASTER * margin * len(series) / max(start, 1)
        if start == len(series) or not end > level + margin or not (fell or fled):
            return None
        return start, level, max(margin / self.parameters.score, np.finfo(float).tiny)

    def _rising(self, series: np.ndarray) -> _Left | None:
        """Return from where on a loss that had fallen rises, without coming to rest, by more than ever before.

        A rise from the first step on, or one that comes to rest, is no evidence: that of a filling queue does.
        """
        patience = self.parameters.patience
        if len(series) < patience + LEARNED:
            return None
        smooth = _running_median(series, patience // 2 + 1)
        lowest = int(np.argmin(smooth))
        level, margin = float(smooth[lowest]), _wandering(series)
        before = smooth[LEARNED : lowest + 1]
        earlier = float((before - np.minimum.accumulate(before)).max()) if len(before) else 0.0
        since, curve = series[lowest:], smooth[lowest:]
        rise = float(curve[-1] - level)
        fell = lowest > patience // 2 and float(np.median(series[:24])) - level > margin / 2
        if not fell or len(since) < patience or rise <= max(margin, 2 * earlier):
            return None
        parts = [float(np.median(each)) for each in np.array_split(since, PARTS)]
        lower = float((np.maximum.accumulate(curve) - curve).max())
        if parts[-1] - parts[-2] < LAST * (parts[-1] - parts[0]) or lower > rise / 2:
            return None
        left = lowest + int(np.flatnonzero(smooth[lowest:] <= level + margin)[-1])
        return left, level, max(margin / self.parameters.score, np.finfo(float).tiny)

    @staticmethod
    def example(rng: np.random.Generator) -> tuple[str, pd.DataFrame, dict[str, Any], list[Event]]:
        """Return a loss that jumps for good at step 500 and is NaN for three steps, and what must be found."""
        steps = np.arange(900)
        values = 2.0 + 3.0 * np.exp(-steps / 150) + 0.05 * rng.standard_normal(900)
        values[500:] += 2.0
        values[500] += 0.5
        values[800:803] = np.nan
        frame = pd.DataFrame({"loss": values}, index=pd.RangeIndex(900, name="step"))
        expected = [
            Event(500, 500, 500, 899, "divergence", "training.loss", "loss", 2.5, np.inf),
            Event(800, 800, 800, 802, "divergence", "training.loss", "loss", np.inf, np.inf),
        ]
        return "training.loss", frame, {}, expected


class _Found(NamedTuple):
    """An event in samples: start, onset, peak, stop; its kind, height and score."""

    at: tuple[int, int, int, int]
    kind: str
    height: float
    score: float


_Left = tuple[int, float, float]
"""The sample at which a loss leaves its level, the level, and the scale of its noise."""


def _wandering(series: np.ndarray) -> float:
    """Return by how much a loss of these steps wanders at most in all, by the changes between medians of blocks."""
    size = max(BLOCKS, len(series) // MOST_BLOCKS)
    number = len(series) // size
    medians = np.median(series[len(series) - number * size :].reshape(number, size), axis=1)
    step = MAD_TO_SD * float(np.median(np.abs(np.diff(medians, n=2)))) / np.sqrt(2)
    return float(WANDERING * step * np.sqrt(number))


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Return the median of the values around each one, shorter at both ends by repeating the edge."""
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)[: len(values)]


def _lowest_from_here(values: np.ndarray, width: int) -> np.ndarray:
    """Return the lowest running median from each value to the end."""
    return np.minimum.accumulate(_running_median(values, width)[::-1])[::-1]
