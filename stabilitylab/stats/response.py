r"""How a series answers to what happened at known times, against the same series at other times.

::

    before         window
    _ _ _ _ _|  /\  |_ _ _   deviation: the farthest from the level of what lies around the window, up or down
    level     |_/  \_| level   delay: from the start to the first half of the way
              start
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import mannwhitneyu

__all__ = ["Response", "respond"]

LEVEL = 20
"""The level is the mean of the medians of so many rows before and after, so that a trend is no answer.

Of a single time that lasts to the end of the series, only what lies before counts."""

LEAST = 5
"""And of no fewer numbers than this."""

FEWEST = 10
"""With fewer quiet windows nothing is said of chance."""


class Response(NamedTuple):
    """The answer at each time; NaN where it could not be measured.

    All answers go the same way, up or down, the one that is the more unusual on the whole.
    """

    deviation: np.ndarray
    """Signed, in the unit of the series, shape (number of starts,)."""
    delay: np.ndarray
    """Rows from the start to the first half of the way, shape (number of starts,)."""
    p: np.ndarray
    """Two-sided: its rank among the quiet windows, shape (number of starts,)."""
    p_all: float
    """The same for all times together: the rank sum of Mann and Whitney."""
    p_smallest: float
    """The smallest value that ``p_all`` could have."""


def respond(values: np.ndarray, starts: Sequence[int], length: int, busy: np.ndarray, *, most: int = 2000) -> Response:
    """Return how far the series leaves its level in a window from each start, and whether it does so anyway.

    Quiet windows do not overlap and count by their ranks, so that the level of the test holds for tails of any weight.

    Args:
        values: shape (T,), such as the logarithm of a magnitude; NaN is missing, infinite values count.
        starts: rows.
        length: rows of a window.
        busy: rows that no quiet window and no level may touch, bool, shape (T,).
        most: so many quiet windows at most, those nearest to the starts.

    References:
        Mann and Whitney, 1947, On a test of whether one of two random variables is stochastically larger.
    """
    quiet = _quiet(busy, length)
    each = max(most // max(len(starts), 1), 1)
    near = np.unique(np.concatenate([_nearest(quiet, start, each) for start in starts]).astype(int))
    rows = np.unique(np.concatenate([starts, near]).astype(int))  # the only ones that are looked at
    before, after = _sides(np.where(busy, np.nan, values), rows, length)
    alone = len(starts) == 1 and bool(np.isnan(after[np.searchsorted(rows, starts[0])]))
    padded = np.concatenate([values, np.full(length, np.nan)])
    windows = sliding_window_view(padded, length)
    level, up, down = (np.full(len(values), np.nan) for _ in range(3))
    level[rows] = before if alone else (before + after) / 2  # of one that lasts to the end, nothing lies behind it
    level[rows[np.isnan(windows[rows]).all(axis=1)]] = np.nan
    with np.errstate(invalid="ignore"):
        up[rows] = np.where(np.isnan(windows[rows]), -np.inf, windows[rows]).max(axis=1) - level[rows]
        down[rows] = level[rows] - np.where(np.isnan(windows[rows]), np.inf, windows[rows]).min(axis=1)
    chance = near[~np.isnan(level[near])]
    measured = [at for at, start in enumerate(starts) if not np.isnan(level[start])]
    deviation, delay, p = (np.full(len(starts), np.nan) for _ in range(3))
    if not measured:
        return Response(deviation, delay, p, float("nan"), 1.0)
    begun = np.array([starts[at] for at in measured])
    ways = {sign: _tails(way[begun], way[chance]) for sign, way in ((1, up), (-1, down))}
    sign = min(ways, key=lambda each: (ways[each][1], -float(np.median((up if each > 0 else down)[begun]))))
    deviation[measured] = sign * (up if sign > 0 else down)[begun]
    with np.errstate(invalid="ignore"):
        gone = sign * (windows[begun] - level[begun, None]) >= sign * deviation[measured, None] / 2
    delay[measured] = gone.argmax(axis=1)
    if len(chance) < FEWEST:
        return Response(deviation, delay, p, float("nan"), 1.0)
    p[measured] = np.minimum(2 * np.minimum(ways[1][0], ways[-1][0]), 1)
    smallest = 2 / comb(len(begun) + len(chance), len(begun))
    return Response(deviation, delay, p, min(1.0, 2 * ways[sign][1]), min(1.0, smallest))


def _tails(answers: np.ndarray, quiet: np.ndarray) -> tuple[np.ndarray, float]:
    """Return how unusual it is to go as far one way as each answer, and as all of them; 1 with nothing to compare."""
    each = (1 + (quiet >= answers[:, None]).sum(axis=1)) / (1 + len(quiet))
    if len(answers) == 1 or len(quiet) == 0:
        return each, float(each[0])
    return each, float(mannwhitneyu(answers, quiet, alternative="greater").pvalue)


def _quiet(busy: np.ndarray, length: int) -> np.ndarray:
    """Return where windows begin that touch nothing busy, do not overlap and do not leave the series."""
    edges = np.flatnonzero(np.diff(busy, prepend=True, append=True))
    stretches = edges.reshape(-1, 2)  # first quiet row, first busy one after it
    return np.concatenate(
        [np.empty(0, dtype=int), *(np.arange(first, stop - length + 1, length) for first, stop in stretches)]
    )


def _nearest(rows: np.ndarray, start: int, number: int) -> np.ndarray:
    """Return so many of the rows, which increase, that are nearest to a start."""
    at = int(np.searchsorted(rows, start))
    around = rows[max(0, at - number) : at + number]
    return around[np.argsort(np.abs(around - start), kind="stable")[:number]]


def _sides(values: np.ndarray, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the medians of what lies before and after the window of each row; NaN where there is too little."""
    sides = sliding_window_view(
        np.concatenate([np.full(LEVEL, np.nan), values, np.full(length + LEVEL, np.nan)]), LEVEL
    )
    found = []
    for shown in (sides[rows], sides[rows + LEVEL + length]):
        median = np.full(len(rows), np.nan)
        enough = np.isfinite(shown).sum(axis=1) >= LEAST
        median[enough] = np.nanmedian(np.where(np.isfinite(shown[enough]), shown[enough], np.nan), axis=1)
        found.append(median)
    return found[0], found[1]
