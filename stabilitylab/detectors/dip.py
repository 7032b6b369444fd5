"""Dips and steps: falls of an accuracy below its own past that recover, and that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from stabilitylab import parameters
from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.stats.proportion import mcnemar_z, normal_quantile, two_proportion_z
from stabilitylab.stats.robust import MAD_TO_SD

__all__ = ["Detector", "Parameters"]

LEVEL = 5
"""The level is the median of so many measurements before."""

SPREAD = 40
"""The fluctuation is taken from so many measurements before, from at least 8."""

PASSES = 4


class Parameters(parameters.Parameters):
    """What counts as a dip."""

    alpha: float = Field(0.05, gt=0, lt=1)
    """False dips expected in one whole curve by the sampling of images, over all comparisons along it."""
    own_score: float = Field(5.0, gt=0)
    """Smallest fall in robust standard deviations of the curve's own fluctuation."""
    recovery: float = Field(0.5, gt=0, lt=1)
    """An event ends when the accuracy is within this part of its depth of the level."""
    patience: int = Field(50, ge=3)
    """A fall that does not recover within so many measurements is a ``step``, and the level follows it."""


class Detector:
    """Finds falls of accuracy that neither sampling nor the curve's own fluctuation explains.

    Where the votes per image are given (``about["correct"]``: a DataFrame of 0 and 1, one column per image, for the
    column ``about["correct_label"]``, by default the first), the same images are compared with the state before
    (McNemar); else the binomial error of ``about["samples"]`` images is used; else the own fluctuation alone.
    A fall that is still open when the record ends is a ``drop``: nobody knows yet whether it recovers.
    """

    series: ClassVar[tuple[str, ...]] = ("knn.accuracy",)

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = parameters or Parameters()

    def detect(self, name: str, frame: pd.DataFrame, about: Mapping[str, Any]) -> list[Event]:
        """Return the events ``dip``, ``step`` and ``drop``, ordered by start.

        Height is the depth in the unit of the series (0.015 is one and a half points), score the depth in robust
        standard deviations of the curve's own fluctuation.

        Raises:
            InputError: if an accuracy with a known sample size lies outside 0 to 1.
        """
        samples = about.get("samples")
        values = frame.to_numpy(dtype=float)
        if samples and not np.all((values >= 0) & (values <= 1) | np.isnan(values)):
            raise InputError(f"{name}: accuracies must lie between 0 and 1 when their number of samples is given")
        votes, voted = about.get("correct"), about.get("correct_label", frame.columns[0] if len(frame.columns) else "")
        events: list[Event] = []
        for label in frame.columns:
            column = frame[label].dropna()
            own = None
            if votes is not None and label == voted:
                column = column[column.index.isin(votes.index)]
                own = votes.loc[column.index].to_numpy()
            steps = column.index.to_numpy()
            found = self._find(column.to_numpy(dtype=float), own, int(samples) if samples else None)
            for each in found:
                start, onset, peak, stop = (int(steps[at]) for at in each.at)
                events.append(Event(start, onset, peak, stop, each.kind, name, str(label), each.depth, each.score))
        return sorted(events)

    def _find(self, values: np.ndarray, votes: np.ndarray | None, samples: int | None) -> list[_Found]:
        length = len(values)
        masked = np.zeros(length, dtype=bool)
        found: list[_Found] = []
        for _ in range(PASSES):
            before = _past(values, ~masked)
            own = (before.level - values) / before.spread
            sampling = self._sampling(values, votes, samples, before)
            with np.errstate(invalid="ignore"):
                fallen = (own > self.parameters.own_score) & sampling
            found = self._events(values, fallen, before)
            again = np.zeros(length, dtype=bool)
            for (start, *_, stop), kind, *_ in found:
                again[start : stop + 1] = kind != "step"
            if np.array_equal(again, masked):
                break
            masked = again
        return found

    def _sampling(self, values: np.ndarray, votes: np.ndarray | None, samples: int | None, before: _Past) -> np.ndarray:
        """Return where the sampling of images does not explain the fall, corrected for looking along the curve."""
        judged = np.isfinite(before.level)
        limit = normal_quantile(self.parameters.alpha / max(1, int(judged.sum())))
        z = np.full(len(values), np.inf)
        if votes is not None:
            at = np.flatnonzero(judged)
            z = np.full(len(values), -np.inf)
            for chunk in np.array_split(at, max(1, len(at) * votes.shape[1] // 2**22)):  # bounded memory
                reference = votes[before.members[chunk]].mean(axis=1)
                z[chunk] = mcnemar_z(reference, votes[chunk])
        elif samples is not None:
            z[judged] = two_proportion_z(before.level[judged], values[judged], samples)
        return z > limit

    def _events(self, values: np.ndarray, fallen: np.ndarray, before: _Past) -> list[_Found]:
        limits, length = self.parameters, len(values)
        found: list[_Found] = []
        last = -1
        for at in np.flatnonzero(fallen).tolist():
            if at <= last:
                continue
            level = before.level[at]
            window = values[at : at + limits.patience]
            deepest = np.minimum.accumulate(window)
            back = np.flatnonzero(window > level - limits.recovery * (level - deepest))
            if len(back):
                kind, stop = "dip", at + int(back[0]) - 1
            elif at + limits.patience <= length:
                kind, stop = "step", at + limits.patience - 1
            else:
                kind, stop = "drop", length - 1
            peak = at + int(np.argmin(values[at : stop + 1]))
            depth = float(level - values[peak])
            early = values[last + 1 : at] < level - 2 * before.spread[at]  # the fall may have begun before it is sure
            start = at - int(np.argmax(np.append(~early[::-1], True)))
            onset = start + int(np.argmax(level - values[start : peak + 1] >= depth / 2))
            found.append(_Found((start, onset, peak, stop), kind, depth, float(depth / before.spread[at])))
            last = stop
        return found

    @staticmethod
    def example(rng: np.random.Generator) -> tuple[str, pd.DataFrame, dict[str, Any], list[Event]]:
        """Return an accuracy curve with a dip and a step, and the events that must be found."""
        steps = np.arange(0, 2000, 10)
        truth = 0.95 - 0.85 * np.exp(-steps / 60)
        truth[(steps >= 800) & (steps < 840)] -= 0.12
        truth[steps >= 1200] -= 0.10
        values = rng.binomial(2000, truth) / 2000
        frame = pd.DataFrame({"bank": values}, index=pd.Index(steps, name="step"))
        expected = [
            Event(800, 800, 810, 830, "dip", "knn.accuracy", "bank", 0.12, np.inf),
            Event(1200, 1200, 1400, 1690, "step", "knn.accuracy", "bank", 0.10, np.inf),
        ]
        return "knn.accuracy", frame, {"samples": 2000}, expected


class _Found(NamedTuple):
    """An event in measurements: start, onset, peak, stop; its kind, depth and score."""

    at: tuple[int, int, int, int]
    kind: str
    depth: float
    score: float


class _Past(NamedTuple):
    """What the measurements before say of each one, shape (T,), NaN where they are too few."""

    level: np.ndarray
    spread: np.ndarray
    members: np.ndarray
    """Which measurements make the level, shape (T, `LEVEL`)."""


def _past(values: np.ndarray, valid: np.ndarray, least: int = 8) -> _Past:
    length = len(values)
    used = np.flatnonzero(valid)
    level, spread = np.full((2, length), np.nan)
    members = np.zeros((length, LEVEL), dtype=int)
    if len(used) <= LEVEL + least:
        return _Past(level, spread, members)
    windows = sliding_window_view(used, LEVEL)
    count = np.cumsum(valid) - valid
    enough = count >= LEVEL
    members[enough] = windows[count[enough] - LEVEL]
    level[enough] = np.median(values[members[enough]], axis=1)
    # The fluctuation: from second differences, which a rising curve hardly touches, and from the upper quartile of the
    # falls below the level, which knows a slow wandering and is nothing while the curve rises; the larger one counts.
    falls = level[used] - values[used]
    second = np.full(len(used), np.nan)
    second[2:] = np.abs(np.diff(values[used], n=2)) / np.sqrt(6)
    width = min(SPREAD, len(used))
    padded = np.stack([np.concatenate([np.full(width, np.nan), each]) for each in (falls, second)])
    blocks = sliding_window_view(padded, width, axis=1)[:, : len(used) + 1]  # the width values before each one
    known = np.isfinite(blocks).sum(axis=2).min(axis=0) >= least
    ordered = np.sort(blocks, axis=2)  # NaN last
    last = np.isfinite(blocks).sum(axis=2) - 1
    number = np.arange(len(used) + 1)
    quartile = ordered[0, number, np.maximum(3 * last[0] // 4, 0)]
    middle = ordered[1, number, np.maximum(last[1] // 2, 0)]
    past = np.where(known, np.fmax(quartile, middle) * MAD_TO_SD, np.nan)[count]
    resolution = 1e-3 * np.abs(level)
    spread = np.where(np.isfinite(past), np.maximum(past, resolution), np.nan)
    return _Past(level, spread, members)
