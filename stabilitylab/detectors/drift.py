"""Drift: an accuracy that degrades without a fall, against its own past or against runs that are known to be good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from stabilitylab import parameters
from stabilitylab.detectors import dip
from stabilitylab.detectors._votes import Votes, fall_z
from stabilitylab.findings import Event
from stabilitylab.stats.fall import WIDTH, slow_fall, stretch_means
from stabilitylab.stats.proportion import normal_quantile, standard_error
from stabilitylab.stats.reference import FEWEST, against, reached, running_level

__all__ = ["AT_WORST", "FEWEST_MEASUREMENTS", "Compared", "Detector", "Own", "Parameters"]

FEWEST_MEASUREMENTS = 32
"""Measurements, without those of dips, below which a slow fall is not told from wandering."""

AT_WORST = 2.5
"""A curve whose memory is as long as itself is called a drift so many times as often as ``alpha`` says, at most.

Measured, 2,000 flat curves each, at 5 %: with an autocorrelation of 0.97 10.7, 11.1, 10.4, 9.3, 7.4, 4.9 and 1.6 % in
32, 40, 50, 64, 100, 128 and 200 measurements; with 0.99 8.0, 10.8, 11.9, 12.3, 10.3 and 8.3 % in 32, 50, 64, 100, 128
and 200; with 0.9 6.5, 4.3 and 1.5 % in 32, 50 and 100; with 0.5 at most 0.6 %. No rule on these likelihoods that was
tried brings 32 and 50 measurements to 6 % and keeps the power at 0.5 or less within a tenth of what it was.
"""

STRETCHES = ((128, 64), (FEWEST_MEASUREMENTS, 32))
"""From so many measurements on, so many stretches."""

PART = 8
"""The level of a curve is its mean over this part of it."""


class Parameters(parameters.Parameters):
    """What counts as a drift."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance of a false alarm in a curve that rises and wanders; at its slowest, up to `AT_WORST` times it."""
    sampling_alpha: float = Field(0.01, gt=0, lt=0.5)
    """And of one by the sampling of images."""
    reference_alpha: float = Field(0.025, gt=0, lt=0.5)
    """Chance that a run like the references is called worse than they are."""
    smallest: float = Field(0.005, ge=0, lt=1)
    """Smallest fall that counts, as a part of the level."""
    draws: int = Field(999, ge=99)
    """Number of simulated curves."""
    seed: int = 0
    """Seed of the simulation."""


class Own(NamedTuple):
    """How one column stands against its own past."""

    fall: float
    """Largest fall between two levels, in the unit of the series."""
    p: float
    """Its chance, if the curve rose and wandered."""
    reach: float
    """Smallest fall that would be found nine times in ten; infinite where it is larger than the level itself."""
    since: int
    """Step at which the higher level ends."""
    until: int
    """Last step of the lower level."""


class Compared(NamedTuple):
    """How one column stands against the references, over the steps that all share."""

    references: int
    last: int
    """The last step that all share; -1 where they share too few to be compared."""
    difference: float
    """Its level at the last common step less their mean; NaN where they cannot be compared."""
    low: float
    """A run like the references would seldom lie lower; NaN with fewer than three."""
    plateau: int
    """Step at which it has made nine tenths of its rise."""
    plateaus: tuple[int, ...]
    """That of each reference."""


class Detector:
    """Finds accuracies that degrade slowly: after their best level, or below the runs that they are compared with.

    Dips and steps are taken out first. The levels are means over an eighth of the record; their largest fall is
    compared with that of simulated curves that only rise and wander as much, and with the error of sampling images.
    ``about["references"]``, curves of runs that are known to be good (DataFrames like the one that is judged), gives
    the second comparison, at equal steps: three or more make a test, fewer only a difference. ``about["falls"]``, the
    dips and steps that were found already, spares looking for them again.
    """

    series: ClassVar[tuple[str, ...]] = ("knn.accuracy",)

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = parameters or Parameters()

    def detect(self, name: str, frame: pd.DataFrame, about: Mapping[str, Any]) -> list[Event]:
        """Return the events ``drift``, ordered by start.

        Height is the level lost in the unit of the series, score the same in standard deviations of what wandering,
        or the difference between the references, makes.

        Raises:
            InputError: if an accuracy with a known sample size lies outside 0 to 1.
        """
        return self.examine(name, frame, about)[0]

    def examine(
        self, name: str, frame: pd.DataFrame, about: Mapping[str, Any]
    ) -> tuple[list[Event], dict[str, tuple[Own | None, Compared | None]]]:
        """Return the events, and how each column stands against its past and the references; None where untold."""
        samples = int(about["samples"]) if about.get("samples") else None
        votes, voted = about.get("correct"), about.get("correct_label", frame.columns[0] if len(frame.columns) else "")
        falls = about["falls"] if "falls" in about else dip.Detector().detect(name, frame, about)
        events: list[Event] = []
        told = {}
        for label in frame.columns:
            whole = dip.measured(frame[label])
            column = _without(whole, [each for each in falls if each.label == str(label)])
            own = Votes(votes, column.index) if votes is not None and label == voted else None
            found, past = self._own(column, own, samples)
            others = [dip.measured(each[label]) for each in about.get("references", ()) if label in each]
            behind, compared = self._against(whole, others, samples)
            events += [each(name, str(label)) for each in (found, behind) if each is not None]
            told[str(label)] = (past, compared)
        return sorted(events), told

    def _own(self, column: pd.Series, votes: Votes | None, samples: int | None) -> tuple[_Found | None, Own | None]:
        limits, values, steps = self.parameters, column.to_numpy(), column.index.to_numpy()
        number = next((stretches for least, stretches in STRETCHES if len(values) >= least), None)
        if number is None:
            return None, None
        means, begins = stretch_means(values, number)
        ends = np.append(begins[1:], len(values))
        fall = slow_fall(means, np.random.default_rng(limits.seed), limits.draws, limits.alpha)
        high, low = (slice(at, at + WIDTH) for at in (fall.before, fall.after))
        level = float(means[high].mean())
        near = np.flatnonzero(means[fall.before : fall.after] >= level - fall.size / PART)
        begin = min(fall.before + int(near[-1]) + 1 if len(near) else fall.before, fall.after)
        half = begin + int(np.argmax(means[begin : fall.after + WIDTH] <= level - fall.size / 2))
        lowest = fall.after + int(np.argmin(means[low]))
        back = means[-WIDTH:].mean() > level - fall.size / 2
        stop = int(ends[fall.after + WIDTH - 1]) - 1 if back else len(values) - 1
        best, worst = (_few(int(begins[each.start]), int(ends[each.stop - 1])) for each in (high, low))
        z = fall_z(values, best, worst, votes, samples)
        smallest = limits.smallest * abs(level)
        reach = max(fall.critical + 1.28 * fall.spread, smallest)
        reach = reach if reach <= abs(level) else np.inf
        past = Own(fall.size, fall.p, reach, int(steps[begins[begin]]), int(steps[stop]))
        if fall.p > limits.alpha or z < normal_quantile(limits.sampling_alpha) or fall.size < smallest:
            return None, past
        at = (int(begins[begin]), int(begins[max(half, begin)]), int(begins[max(lowest, half)]), stop)
        start, onset, peak, last = (int(steps[each]) for each in at)
        score = fall.size / fall.spread if fall.spread > 0 else np.inf
        return _Found(start, onset, peak, max(last, peak), fall.size, float(score)), past

    def _against(
        self, column: pd.Series, others: Sequence[pd.Series], samples: int | None
    ) -> tuple[_Found | None, Compared | None]:
        limits = self.parameters
        curves = [each for each in others if len(each)]
        if not curves:
            return None, None
        alone = Compared(len(curves), -1, np.nan, np.nan, -1, ())
        if column.empty:
            return None, alone
        first = max(int(each.index[0]) for each in (column, *curves))
        last = min(int(each.index[-1]) for each in (column, *curves))
        shared = column[(column.index >= first) & (column.index <= last)]
        if len(shared) < PART:
            return None, alone
        steps, width = shared.index.to_numpy(), max(1, len(shared) // PART)
        curve = running_level(shared.to_numpy(), width)
        interpolated = [np.interp(steps, each.index.to_numpy(), each.to_numpy()) for each in curves]
        levels = running_level(np.array(interpolated), width)
        floor = standard_error(levels.mean(axis=0), samples * min(width, 4)) if samples else 0.0
        beside = against(curve, levels, limits.reference_alpha, floor)
        plateaus = tuple(int(steps[reached(each)]) for each in levels)
        plateau = int(steps[reached(curve)])
        compared = Compared(len(curves), int(steps[-1]), float(beside.difference[-1]), float(beside.low[-1]), plateau,
                            plateaus)  # fmt: skip
        below = beside.difference < np.fmin(beside.low, -limits.smallest * np.abs(levels.mean(axis=0)))
        if len(curves) < FEWEST or not below[-1]:
            return None, compared
        start = int(np.flatnonzero(~below)[-1]) + 1 if not below.all() else 0
        lost = -beside.difference
        peak = start + int(np.argmax(lost[start:]))
        onset = start + int(np.argmax(lost[start:] >= lost[peak] / 2))
        with np.errstate(divide="ignore"):
            score = float(np.divide(lost[-1], beside.spread[-1]))
        begun, half, lowest, stop = (int(steps[each]) for each in (start, onset, peak, -1))
        return _Found(begun, half, lowest, stop, float(lost[-1]), score), compared

    @staticmethod
    def example(rng: np.random.Generator) -> tuple[str, pd.DataFrame, dict[str, Any], list[Event]]:
        """Return an accuracy that loses six points from step 800 on, without a fall, and what must be found."""
        steps = np.arange(0, 3200, 10)
        truth = 0.9 - 0.8 * np.exp(-steps / 150) - 0.06 * np.clip((steps - 800) / 2400, 0, 1)
        values = truth + 0.0008 * rng.standard_normal(len(steps))
        frame = pd.DataFrame({"bank": values}, index=pd.Index(steps, name="step"))
        return "knn.accuracy", frame, {}, [Event(800, 2050, 3190, 3190, "drift", "knn.accuracy", "bank", 0.06, np.inf)]


class _Found(NamedTuple):
    """An event in steps, before it has a name."""

    start: int
    onset: int
    peak: int
    stop: int
    height: float
    score: float

    def __call__(self, series: str, label: str) -> Event:
        times = (self.start, self.onset, self.peak, self.stop)
        return Event(*times, "drift", series, label, self.height, self.score)


def _few(first: int, stop: int, most: int = 40) -> np.ndarray:
    """Return at most so many indices of a range, evenly spread."""
    return np.unique(np.linspace(first, stop - 1, min(most, stop - first)).astype(int))


def _without(column: pd.Series, falls: Sequence[Event]) -> pd.Series:
    """Return a column without its dips, and with what comes after a step raised by its depth."""
    values, steps = column.to_numpy(copy=True), column.index.to_numpy()
    for each in falls:
        inside = (steps >= each.start) & (steps <= each.stop)
        before = values[steps < each.start]
        before = before[np.isfinite(before)][-dip.LEVEL :]
        if each.kind == "step" and len(before):
            values[steps >= each.start] += np.median(before) - np.nanmedian(values[inside])
        elif each.kind != "step":
            values[inside] = np.nan
    return pd.Series(values, index=column.index).dropna()
