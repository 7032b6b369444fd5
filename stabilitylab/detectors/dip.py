"""Dips and steps: falls of an accuracy below its own past that recover, and that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from stabilitylab import parameters
from stabilitylab.detectors._votes import Votes
from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.stats.area import area_below
from stabilitylab.stats.proportion import mcnemar_z, normal_quantile, standard_error, two_proportion_z
from stabilitylab.stats.robust import MAD_TO_SD

__all__ = ["FEWEST_MEASUREMENTS", "Compared", "Detector", "Parameters", "area_lost", "measured"]

LEVEL = 5
"""The level is the median of so many measurements before."""

LEAST = 8
"""The fluctuation is known from so many levels on, each with the measurement after it."""

FEWEST_MEASUREMENTS = LEVEL + LEAST
"""With so many measurements falls can be judged: sampling alone does not say how much a model wanders."""

EARLY, CAUTION = 3, 2.0
"""Before the fluctuation is known, from so many measurements on, it is so many times that of the first ones."""

SPREADS = (40, 120)
"""The fluctuation is taken from so many measurements before, from `LEAST` on, and from the whole curve, which knows a
slow wandering better; the largest counts."""

PASSES = 4

SHARP = 2
"""So many measurements in a row lie below as many before where a fall is sharp."""

TOGETHER = (1, 2, 4, 8)
"""So many low measurements in a row count together, as their mean."""

MEDIAN_WORTH = 2 / np.pi * LEVEL
"""The level is as exact as a mean of so many measurements."""


class Compared(NamedTuple):
    """How the measurements of one column were compared with those before."""

    judged: int
    """Number of measurements that had enough before them."""
    paired: int
    """How many of them on the same images."""
    smallest: float = np.nan
    """The fall of one measurement that stands out of the curve's own fluctuation, in the unit of the series; median."""


class Parameters(parameters.Parameters):
    """What counts as a dip."""

    alpha: float = Field(0.05, gt=0, lt=1)
    """False dips expected in one whole curve by the sampling of images, over all comparisons along it."""
    own_score: float = Field(4.5, gt=0)
    """Smallest fall in robust standard deviations of the curve's own fluctuation, of the mean where several are low;
    but for those with a sharp edge."""
    edge: float = Field(4.0, gt=0)
    """Two measurements in a row that lie below the level and below the two before by so many usual changes from one to
    the next are a fall too: dips that come often pass for the curve's own fluctuation, but for their edges."""
    recovery: float = Field(0.5, gt=0, lt=1)
    """An event ends when the accuracy is within this part of its depth of the level, and no fall is left to be seen."""
    patience: int = Field(50, ge=3)
    """A fall that does not recover within so many measurements is a ``step``, and the level follows it."""


class Detector:
    """Finds falls of accuracy that neither sampling nor the curve's own fluctuation explains.

    Where the votes per image are given (``about["correct"]``: a DataFrame of 0 and 1, one column per image, for the
    column ``about["correct_label"]``, by default the first), the same images are compared with the state before
    (McNemar); where they are missing, the binomial error of ``about["samples"]`` images is used; else the own
    fluctuation alone. Up to eight low measurements in a row count together.
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
        return self.examine(name, frame, about)[0]

    def examine(
        self, name: str, frame: pd.DataFrame, about: Mapping[str, Any]
    ) -> tuple[list[Event], dict[str, Compared]]:
        """Return the events, and for each column how its measurements were compared; arguments as for `detect`."""
        samples = about.get("samples")
        values = frame.to_numpy(dtype=float)
        if samples and not np.all((values >= 0) & (values <= 1) | np.isnan(values)):
            raise InputError(f"{name}: accuracies must lie between 0 and 1 when their number of samples is given")
        votes, voted = about.get("correct"), about.get("correct_label", frame.columns[0] if len(frame.columns) else "")
        events: list[Event] = []
        compared = {}
        for label in frame.columns:
            column = measured(frame[label])
            own = Votes(votes, column.index) if votes is not None and label == voted else None
            steps = column.index.to_numpy()
            found, compared[str(label)] = self._find(column.to_numpy(), own, samples and int(samples))
            for each in found:
                start, onset, peak, stop = (int(steps[at]) for at in each.at)
                events.append(Event(start, onset, peak, stop, each.kind, name, str(label), each.depth, each.score))
        return sorted(events), compared

    def _find(self, values: np.ndarray, votes: Votes | None, samples: int | None) -> tuple[list[_Found], Compared]:
        length = len(values)
        masked = np.zeros(length, dtype=bool)
        found: list[_Found] = []
        for _ in range(PASSES):
            before = _past(values, ~masked, self.parameters.edge)
            if found and not np.isfinite(before.spread).any():
                break  # without what fell hardly anything is left
            fallen = np.zeros(length, dtype=int)  # the smallest number of measurements that shows the fall
            paired = np.zeros(length, dtype=bool)
            for number in TOGETHER:
                fell, same = self._fallen(values, votes, samples, before, number)
                fallen = np.where((fallen == 0) & fell, number, fallen)
                paired |= same
            known = before.spread[np.isfinite(before.spread)]
            settled = known[FEWEST_MEASUREMENTS - EARLY :] if len(known) > FEWEST_MEASUREMENTS - EARLY else known
            smallest = self.parameters.own_score * float(np.median(settled)) if len(known) else np.nan
            compared = Compared(len(known), int(paired.sum()), smallest)
            found = self._events(values, fallen, before)
            again = np.zeros(length, dtype=bool)
            for (start, *_, stop), kind, *_ in found:
                again[start : stop + 1] = kind != "step"
            if np.array_equal(again, masked):
                break
            masked = again
        return found, compared

    def _fallen(
        self, values: np.ndarray, votes: Votes | None, samples: int | None, before: _Past, number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return where a fall of so many measurements begins, and which were compared on the same images."""
        length = len(values)
        judged = np.isfinite(before.spread) & (np.arange(length) <= length - number)
        rows = np.minimum(np.arange(length)[:, None] + np.arange(number), length - 1)
        after = values[rows].mean(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # a curve that is zero has no fluctuation
            low = judged & ((before.level - after) / before.spread_of[number] > self.parameters.own_score)
            if number == SHARP:
                low |= judged & before.sharp & (before.level - after > before.edge)
            low &= before.level - values >= (before.level - after) / 2  # it begins here, not within the next ones
        # what sampling explains, corrected for looking along the curve, with as many means as do not overlap
        tests = max(1, int(np.isfinite(before.level).sum())) * sum(1 / each for each in TOGETHER)
        limit = normal_quantile(self.parameters.alpha / tests)
        z = np.full(length, np.inf)
        if samples:
            # the part of the sampling error that each measurement draws anew shows in the fluctuation, and averages out
            new = np.clip(before.white[low] / standard_error(before.level[low], samples), 0, 1) ** 2
            exact = np.sqrt(1 - new + new * (1 / number + 1 / MEDIAN_WORTH) / 2)
            z[low] = two_proportion_z(before.level[low], after[low], samples) / exact
        paired = np.zeros(length, dtype=bool)
        if votes is not None:
            paired = judged & votes.known[rows].all(axis=1) & votes.known[before.members].all(axis=1)
            for at in np.flatnonzero(low & paired):  # few are low: their votes are read one after the other
                z[at] = mcnemar_z(votes.share(before.members[at]), votes.share(rows[at]))
        return low & (z > limit), paired

    def _events(self, values: np.ndarray, fallen: np.ndarray, before: _Past) -> list[_Found]:
        limits, length = self.parameters, len(values)
        found: list[_Found] = []
        last = -1
        for at in np.flatnonzero(fallen).tolist():
            if at <= last:
                continue
            number = int(fallen[at])
            level = before.level[at]
            window = values[at : at + limits.patience]
            deepest = np.minimum.accumulate(window)
            back = np.flatnonzero(_following(window, number) > level - limits.recovery * (level - deepest))
            if len(back):
                kind, stop = "dip", at + max(int(back[0]) - 1, 0)
            elif at + limits.patience <= length:
                kind, stop = "step", at + limits.patience - 1
            else:
                kind, stop = "drop", length - 1
            if kind == "dip" and found and found[-1].kind == "dip":
                enough = limits.own_score * before.spread_of[number][at]
                _, _, low, _ = found[-1].at
                reached = np.maximum.accumulate(values[low : stop + 1])[at - low - 1 :]
                if not reached[0] - values[at : at + number].mean() > enough:  # it did not fall again
                    falls = np.flatnonzero(reached[:-1] - values[at : stop + 1] > enough)
                    last = at + int(falls[0]) - 1 if len(falls) else stop
                    found[-1] = found[-1].until(last, values)
                    continue
            early = values[last + 1 : at] < level - 2 * before.spread[at]  # the fall may have begun before it is sure
            start = at - int(np.argmax(np.append(~early[::-1], True)))
            peak = start + int(np.argmin(values[start : stop + 1]))
            depth = float(level - values[peak])
            onset = start + int(np.argmax(level - values[start : peak + 1] >= depth / 2))
            with np.errstate(divide="ignore"):
                score = float(np.divide(depth, before.spread[at]))
            found.append(_Found((start, onset, peak, stop), kind, depth, score))
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


def measured(column: pd.Series) -> pd.Series:
    """Return the values of a column that are finite, as floats: what is NaN or infinite was not measured."""
    values = column.astype(float)
    return values[np.isfinite(values)]


def area_lost(event: Event, curve: pd.Series) -> float:
    """Return what a fall cost: the area between the level before it and the curve, in accuracy x steps.

    Args:
        event: a dip, step or drop.
        curve: the column in which it was found, index ``step``, with the measurement at its peak.
    """
    level = float(curve.loc[event.peak]) + event.height
    return area_below(curve.index.to_numpy(), curve.to_numpy(dtype=float), event.start, event.stop, level)


class _Found(NamedTuple):
    """An event in measurements: start, onset, peak, stop; its kind, depth and score."""

    at: tuple[int, int, int, int]
    kind: str
    depth: float
    score: float

    def until(self, stop: int, values: np.ndarray) -> _Found:
        """Return the same event, still on the way back at a later stop."""
        start, onset, peak, _ = self.at
        lowest = start + int(np.argmin(values[start : stop + 1]))
        depth = self.depth + float(values[peak] - values[lowest])
        return self._replace(at=(start, onset, lowest, stop), depth=depth, score=self.score * depth / self.depth)


class _Past(NamedTuple):
    """What the measurements before say of each one, shape (T,), NaN where they are too few."""

    level: np.ndarray
    spread: np.ndarray
    members: np.ndarray
    """Which measurements make the level, shape (T, `LEVEL`)."""
    spread_of: Mapping[int, np.ndarray]
    """The fluctuation of the fall of the mean of so many measurements in a row."""
    white: np.ndarray
    """The fluctuation from one measurement to the next."""
    edge: np.ndarray
    """The fall of a sharp edge: `Parameters.edge` usual changes from one measurement to the next."""
    sharp: np.ndarray
    """Where two measurements in a row lie below the two before by more than that."""


def _past(values: np.ndarray, valid: np.ndarray, edge: float, least: int = LEAST) -> _Past:
    length = len(values)
    used = np.flatnonzero(valid)
    level = np.full(length, np.nan)
    members = np.zeros((length, LEVEL), dtype=int)
    if len(used) < LEVEL + least:
        return _Past(level, level, members, dict.fromkeys(TOGETHER, level), level, level, np.zeros(length, dtype=bool))
    windows = sliding_window_view(np.concatenate([np.repeat(used[:1], LEVEL - EARLY), used]), LEVEL)
    count = np.cumsum(valid) - valid
    enough = count >= EARLY
    members[enough] = windows[count[enough] - EARLY]
    level[enough] = np.median(values[members[enough]], axis=1)
    white = _white(values[used], least)
    settled = np.where(count >= LEVEL, level, np.nan)[used]
    known = {number: _spread(values[used], settled, white, number, least) for number in TOGETHER}
    spreads = {number: _from_early_on(each)[count] for number, each in known.items()}
    least_one = np.fmax(spreads[1], 1e-3 * np.abs(level))
    for number, each in spreads.items():  # no mean is more exact than that of measurements without a memory
        part = np.sqrt((1 / number + 1 / MEDIAN_WORTH) / (1 + 1 / MEDIAN_WORTH))
        spreads[number] = np.where(np.isfinite(spreads[1]), np.fmax(each, part * least_one), np.nan)
    early_white = _from_early_on(np.concatenate([[np.nan], white]))[count]
    return _Past(level, spreads[1], members, spreads, early_white, *_sharp(values, edge, least))


def _sharp(values: np.ndarray, edge: float, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how far a sharp fall goes, and where two values in a row lie so far below the two before, both (T,).

    The usual change from value to value hardly knows the edges of dips, and noise, with a memory or without, seldom
    makes one between pairs. Values that are as the one before, held or rounded, say nothing of it.
    """
    change = pd.Series(np.abs(np.diff(values, prepend=np.nan))).replace(0.0, np.nan)
    usual = change.rolling(min(SPREADS[0], max(len(values), least)), min_periods=least).median()
    usual = usual.clip(lower=change.median()).shift()
    limit = edge * MAD_TO_SD * usual.to_numpy()
    sharp = np.zeros(len(values), dtype=bool)
    pairs = sliding_window_view(values, 2)
    sharp[SHARP:-1] = pairs[:-SHARP].min(axis=1) - pairs[SHARP:].max(axis=1) > limit[SHARP:-1]
    return limit, sharp


def _from_early_on(spread: np.ndarray) -> np.ndarray:
    """Return the fluctuation before each value, where it is not known yet with caution that of the first ones."""
    at = np.arange(len(spread))
    early = (at >= EARLY) & (at < FEWEST_MEASUREMENTS)
    return np.where(early, CAUTION * spread[min(SPREADS[0], len(spread) - 1)], spread)


def _following(values: np.ndarray, number: int) -> np.ndarray:
    """Return the smaller of each value and the mean of so many from it on, of fewer at the end."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    until = np.minimum(np.arange(len(values)) + number, len(values))
    mean = (total[until] - total[:-1]) / (until - np.arange(len(values)))
    return np.minimum(values, mean) if number > 1 else values


def _white(values: np.ndarray, least: int) -> np.ndarray:
    """Return the fluctuation from one value to the next up to each value: second differences ignore a rise."""
    second = np.full(len(values), np.nan)
    second[2:] = np.abs(np.diff(values, n=2)) / np.sqrt(6)
    rolling = pd.Series(second).rolling(min(SPREADS[0], max(len(values), least)), min_periods=least)
    return rolling.median().to_numpy() * MAD_TO_SD


def _spread(values: np.ndarray, level: np.ndarray, white: np.ndarray, number: int, least: int) -> np.ndarray:
    """Return the fluctuation of the fall of so many values in a row, before each value and after the last.

    From that from value to value, and from the upper quartile of the falls below the level, which knows a slow
    wandering and is nothing while the curve rises; the largest one counts.
    """
    falls = np.full(len(values), np.nan)
    if len(values) >= number:
        falls[number - 1 :] = level[: len(level) - number + 1] - sliding_window_view(values, number).mean(axis=1)
    fall = pd.Series(falls)
    widths = [min(each, max(len(values), least)) for each in SPREADS]
    quartiles = [fall.rolling(each, min_periods=least).quantile(0.75).to_numpy() for each in widths]
    around = max(min(widths[0], len(values) // 3), least)
    usual = fall.rolling(around, min_periods=around // 2, center=True).median()  # of a rise
    whole = (fall - usual).abs().median()
    known = np.isfinite(quartiles[0]) & np.isfinite(white)
    wandering = np.fmax(np.fmax(*quartiles), whole) * MAD_TO_SD
    largest = np.fmax(wandering, white / np.sqrt(number))
    return np.concatenate([[np.nan], np.where(known, largest, np.nan)])
