"""Divergence: a loss that is not finite, or that left its level for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from stabilitylab import parameters
from stabilitylab.findings import Event
from stabilitylab.stats.robust import BLOCK, fold, past, runs_of, unfold
from stabilitylab.stats.tails import tail_of, tail_threshold

__all__ = ["Detector", "Parameters"]


LEARNED = 50
"""Samples that a level takes."""

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
        """Return the events ``divergence`` of all columns, ordered by start.

        Height is the rise over the level in the unit of the loss, infinite where it is not finite.
        """
        steps = frame.index.to_numpy()
        events = []
        for label in frame.columns:
            values = frame[label].to_numpy(dtype=float)
            for (start, onset, peak, stop), height, score in self._find(values):
                first, half, top, last = (int(steps[each]) for each in (start, onset, peak, stop))
                events.append(Event(first, half, top, last, "divergence", name, str(label), height, score))
        return sorted(events)

    def _find(self, values: np.ndarray) -> list[_Found]:
        finite = np.isfinite(values)
        found: list[_Found] = [
            ((int(first), int(first), int(first), int(last)), np.inf, np.inf)
            for first, last in zip(*runs_of(~finite), strict=True)
        ]
        left = self._left(values, finite)
        return found if left is None else [*found, left]

    def _left(self, values: np.ndarray, finite: np.ndarray) -> _Found | None:
        at = np.flatnonzero(finite)
        series = values[at]
        limits = self.parameters
        if len(series) < limits.patience + LEARNED:
            return None
        floor = 1e-9 * float(np.median(np.abs(series)))
        before = past(fold(series), np.empty(0, dtype=np.int64), floor)
        residual, whitened = (unfold(each, len(series)) for each in (before.residual, before.whitened))
        scales = np.repeat(before.scale, BLOCK)[: len(series)]
        levels = series - residual
        with np.errstate(invalid="ignore"):  # where the level is wrong, after a jump, there is no noise to be seen
            usual = np.abs(before.offset) <= 1.5 * before.scale / np.sqrt(1 - before.autocorrelation**2)
        shape = tail_of(before.whitened[:, usual] / before.scale[usual]).shape
        needed = max(limits.score, 1.5 * tail_threshold(shape, 1e-5))
        end = np.median(series[-limits.patience // 2 :])
        with np.errstate(invalid="ignore"):
            # lowest value from each sample to the end, of medians of nine so that one low batch is no return
            smooth = _running_median(series)
            lowest = np.minimum.accumulate(smooth[::-1])[::-1]
            jumped = whitened > needed * scales
            jumped &= residual > needed * scales / 2
            gone = lowest > levels + limits.recovery * residual
        gone[len(series) - limits.patience :] = False
        candidates = np.flatnonzero(jumped & gone)
        if len(candidates):
            start = int(candidates[0])
            level, scale = float(levels[start]), float(scales[start])
        else:
            level, scale = float(np.median(series[:24])), float(np.median(np.abs(series[:24] - np.median(series[:24]))))
            scale = max(1.4826 * scale, float(np.nanmedian(scales)))
            below = np.flatnonzero(smooth <= level + needed * scale)
            start = int(below[-1]) + 1 if len(below) else 0
            # a loss that rises from the first step on is no evidence: contrastive losses with a filling queue do;
            # it must have fallen before, or have risen far faster than up to here
            fell = smooth.min() < level - needed * scale / 2
            steady = needed * scale * len(series) / max(start, 1)
            fled = start >= limits.patience and end > level + FASTER * steady
            if not end > level + needed * scale or not (fell or fled) or start > len(series) - limits.patience:
                return None
        peak = start + int(np.argmax(series[start:]))
        height = float(series[peak] - level)
        onset = start + int(np.argmax(series[start:] - level >= height / 2))
        times = (int(at[start]), int(at[min(onset, peak)]), int(at[peak]), int(at[-1]))
        return times, height, height / scale

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


_Found = tuple[tuple[int, int, int, int], float, float]
"""Start, onset, peak, stop in samples; height; score."""


def _running_median(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Return the median of the values around each one, shorter at both ends by repeating the edge."""
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
