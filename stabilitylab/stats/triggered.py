r"""What happens around events: events of another series, against moved ones, and the course of a curve.

The sign of a lag, everywhere::

    warning  ____|\_________        lag = time of the target - time of the warning
    target   _________|\____
                 |----|  lag > 0: the target follows, the warning warns
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stabilitylab.stats.interval import num_beyond

__all__ = ["Course", "Excess", "aligned", "course", "excess", "moved_into", "num_within"]


def num_within(times: np.ndarray, others: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return for each row of other times how many times have one of them from low to high after them.

    Args:
        times: shape (A,).
        others: shape (S, B), sorted in each row.
        low: may be negative: before.
        high: likewise, not below ``low``; both ends count.

    Returns:
        Shape (S,).
    """
    rows, number = others.shape
    if number == 0 or len(times) == 0:
        return np.zeros(rows, dtype=int)
    least = min(float(others.min()), float(times.min()) + low)
    reach = max(float(others.max()), float(times.max()) + high) - least + 1.0
    offset = np.arange(rows)[:, None] * reach  # one sorted line holds all rows, each in a stretch of its own
    line = np.append((others - least + offset).ravel(), np.inf)
    at = times - least + offset
    return (line[np.searchsorted(line, at + low)] <= at + high).sum(axis=1)


def moved_into(times: np.ndarray, first: float, last: float) -> np.ndarray:
    """Return times mirrored at the ends of a record into it, sorted in each row, so that none leaves it."""
    length = max(last - first, 1.0)
    folded = np.mod(times - first, 2 * length)
    return np.sort(first + np.where(folded > length, 2 * length - folded, folded), axis=-1)


class Excess(NamedTuple):
    """How many events have one of another series in each of some windows, and how unusual the largest excess is."""

    counts: np.ndarray
    """Shape (windows,)."""
    expected: np.ndarray
    """Mean over the surrogates, shape (windows,)."""
    p: float
    """Share of surrogates whose largest standardized count is at least the one seen."""
    p_smallest: float
    """The p if every event that can have a partner had one: no smaller one is reachable with so few events."""


def excess(
    times: np.ndarray, others: np.ndarray, surrogates: np.ndarray, windows: Sequence[tuple[float, float]]
) -> Excess:
    """Compare the counts of `num_within` with those of surrogates, all windows at once.

    Args:
        times: shape (A,).
        others: sorted, shape (B,).
        surrogates: the other times under no association, sorted in each row, shape (S, B).
        windows: pairs of low and high, in the unit of the times.

    References:
        Westfall and Young, 1993, Resampling-based multiple testing: the largest statistic over windows.
    """
    rows = [others[None, :], surrogates]
    counts = np.stack([np.concatenate([num_within(times, each, *window) for each in rows]) for window in windows])
    mean = counts.mean(axis=1, keepdims=True)  # the one seen included: it is one of them if nothing is there
    scale = np.sqrt(counts.var(axis=1, keepdims=True) + 0.25)  # a count is not exact to less than a half
    largest = ((counts - mean) / scale).max(axis=0)
    best = float(((min(len(times), len(others)) - mean) / scale).max())
    return Excess(
        counts[:, 0],
        counts[:, 1:].mean(axis=1),
        float((largest >= largest[0] - 1e-9).mean()),
        float((1 + (largest[1:] >= best - 1e-9).sum()) / len(largest)),
    )


def aligned(steps: np.ndarray, values: np.ndarray, times: np.ndarray, offsets: np.ndarray, every: int) -> np.ndarray:
    """Return the value of a curve at offsets from times, shape (..., offsets); NaN where it was not measured.

    Args:
        steps: increasing, shape (T,).
        values: shape (T,).
        times: in steps, any shape (...).
        offsets: in steps, shape (offsets,).
        every: a value counts for an offset if it was measured at it or less than so many steps after it.
    """
    wanted = np.asarray(times)[..., None] + offsets
    at = np.searchsorted(steps, wanted)
    found = np.minimum(at, len(steps) - 1)
    return np.where((at < len(steps)) & (steps[found] < wanted + every), values[found], np.nan)


class Course(NamedTuple):
    """The typical course of a curve around events; each of shape (offsets,), NaN where it is not known."""

    offsets: np.ndarray
    """Steps after the event; of a curve that is measured seldom the middle of the steps that count together."""
    each: np.ndarray
    """Each event's course, shape (events, offsets)."""
    median: np.ndarray
    low: np.ndarray
    """Interval of the median over events, by its order statistics, which the bootstrap over events tends to."""
    high: np.ndarray
    chance_low: np.ndarray
    """Interval of such a median around as many moved events."""
    chance_high: np.ndarray


def course(
    steps: np.ndarray,
    values: np.ndarray,
    times: np.ndarray,
    rng: np.random.Generator,
    *,
    before: int = 50,
    after: int = 150,
    every: int = 1,
    width: float = 500,
    draws: int = 200,
    confidence: float = 0.95,
) -> Course:
    """Return the median course of a curve around events, less its own level before each.

    Args:
        steps: increasing, shape (T,), T at least 1.
        values: shape (T,); what is not finite is left out.
        times: events, shape (E,).
        rng: for the moves.
        before: steps before the event that are shown; the level is the median over these, or over five measurements
            where that is more.
        after: steps after it that are shown.
        every: steps between the measurements.
        width: steps by which an event is moved at most, for the interval by chance.
        draws: number of such moves.
        confidence: of both intervals.
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    reach = -(-max(before, 5 * every) // every)
    offsets = every * np.arange(-reach, after // every + 1)
    shown = offsets >= -before
    middle = offsets[shown] + (every - 1) / 2
    if len(steps) == 0 or len(times) == 0:
        nothing = np.full(len(middle), np.nan)
        return Course(middle, np.full((len(times), len(middle)), np.nan), *[nothing] * 5)

    def rises(around: np.ndarray) -> np.ndarray:
        found = aligned(steps, values, around, offsets, every)
        return found[:, shown] - _median(np.sort(found[:, offsets < 0].T, axis=0))[:, None]

    each = rises(times)
    moved = moved_into(times + rng.uniform(-width, width, (draws, len(times))), float(steps[0]), float(steps[-1]))
    chance = np.sort([_median(np.sort(rises(np.round(row)), axis=0)) for row in moved], axis=0)  # NaN last
    known = np.isfinite(chance).sum(axis=0)
    left_out = (known * (1 - confidence) / 2).astype(int)
    return Course(middle, each, *_middle(each, confidence), _at(chance, left_out), _at(chance, known - 1 - left_out))


def _at(ordered: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return one value of each column."""
    return ordered[np.clip(place, 0, len(ordered) - 1), np.arange(ordered.shape[1])]


def _median(ordered: np.ndarray) -> np.ndarray:
    """Return the median of each column, its numbers in order and NaN last; NaN where there is no number."""
    number = np.isfinite(ordered).sum(axis=0)
    return np.where(number > 0, (_at(ordered, (number - 1) // 2) + _at(ordered, number // 2)) / 2, np.nan)


def _middle(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the median over the first axis and both ends of its interval; NaN is left out, and where all is NaN."""
    ordered = np.sort(values, axis=0)  # NaN last
    number = np.isfinite(values).sum(axis=0)
    beyond = np.array([num_beyond(each, confidence) for each in range(len(values) + 1)])[number]
    low, high = (np.where(beyond > 0, _at(ordered, place), np.nan) for place in (beyond - 1, number - beyond))
    return _median(ordered), low, high
