r"""How a series answers to what happened at known times, against the same series at other times.

::

    before         window
    _ _ _ _ _|  /\  |_ _ _   deviation: the farthest from the level of what lies around the window, up or down
    level     |_/  \_| level   delay: from the start to the first half of the way
              start
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import stdtr

__all__ = ["Response", "respond"]

LEVEL = 20
"""The level is the mean of the medians of so many rows before and after, so that a trend is no answer.

Of a single time that lasts to the end of the series, only what lies before counts."""

LEAST = 5
"""And of no fewer numbers than this."""

FEWEST = 10
"""With fewer quiet windows nothing is said."""


class Response(NamedTuple):
    """The answer at each time; NaN where it could not be measured.

    All answers go the same way, up or down, the one that is the more unusual on the whole.
    """

    deviation: np.ndarray
    """Signed, in the unit of the series, shape (number of starts,)."""
    delay: np.ndarray
    """Rows from the start to the first half of the way, shape (number of starts,)."""
    p: np.ndarray
    """Two-sided: how unusual it is among the quiet windows nearby, shape (number of starts,)."""
    p_all: float
    """The same for the mean of all times, against means of quiet windows."""
    p_smallest: float
    """The smallest value that ``p_all`` could have."""


def respond(
    values: np.ndarray,
    starts: Sequence[int],
    length: int,
    busy: np.ndarray,
    rng: np.random.Generator,
    *,
    windows_each: int = 400,
    draws: int = 2000,
) -> Response:
    """Return how far the series leaves its level in a window from each start, and whether it does so anyway.

    Args:
        values: shape (T,), such as the logarithm of a magnitude; NaN is missing, infinite values count.
        starts: rows.
        length: rows of a window.
        busy: rows that no quiet window and no level may touch, bool, shape (T,).
        rng: for the means.
        windows_each: each start is compared with so many quiet windows, those that begin nearest.
        draws: number of means.
    """
    number = len(values)
    quiet = _quiet(busy, length)
    nearest = [_nearest(quiet, start, windows_each) for start in starts]
    rows = np.unique(np.concatenate([starts, *nearest]).astype(int))  # the only ones that are looked at
    before, after = _sides(np.where(busy, np.nan, values), rows, length)
    alone = len(starts) == 1 and bool(np.isnan(after[np.searchsorted(rows, starts[0])]))
    padded = np.concatenate([values, np.full(length, np.nan)])
    windows = sliding_window_view(padded, length)
    level, up, down = (np.full(number, np.nan) for _ in range(3))
    level[rows] = before if alone else (before + after) / 2  # of one that lasts to the end, nothing lies behind it
    level[rows[np.isnan(windows[rows]).all(axis=1)]] = np.nan
    with np.errstate(invalid="ignore"):
        up[rows] = np.where(np.isnan(windows[rows]), -np.inf, windows[rows]).max(axis=1) - level[rows]
        down[rows] = level[rows] - np.where(np.isnan(windows[rows]), np.inf, windows[rows]).min(axis=1)
    near = [each[~np.isnan(level[each])] for each in nearest]
    measured = [at for at, start in enumerate(starts) if not np.isnan(level[start]) and len(near[at]) >= FEWEST]
    deviation, delay, p = (np.full(len(starts), np.nan) for _ in range(3))
    if not measured:
        return Response(deviation, delay, p, float("nan"), 1.0)
    begun, chance = np.array([starts[at] for at in measured]), [near[at] for at in measured]
    drawn = np.stack([rng.choice(each, draws) for each in chance])
    ways = {sign: _tails(way, begun, chance, drawn, length) for sign, way in ((1, up), (-1, down))}
    sign = min(ways, key=lambda each: (ways[each][1], -ways[each][2]))
    p[measured] = np.minimum(2 * np.minimum(ways[1][0], ways[-1][0]), 1)
    deviation[measured] = sign * (up if sign > 0 else down)[begun]
    with np.errstate(invalid="ignore"):
        gone = sign * (windows[begun] - level[begun, None]) >= sign * deviation[measured, None] / 2
    delay[measured] = gone.argmax(axis=1)
    most = 1 + len(chance[0]) if len(measured) == 1 else 1 + min(draws, min(map(len, chance)) ** len(measured))
    return Response(deviation, delay, p, min(1.0, 2 * ways[sign][1]), min(1.0, 2 / most))


def _tails(
    way: np.ndarray, starts: np.ndarray, chance: Sequence[np.ndarray], drawn: np.ndarray, length: int
) -> tuple[np.ndarray, float, float]:
    """Return how unusual it is to go as far one way, at each start and on the mean, and that mean.

    The larger of two p-values: a rank among quiet windows, which overlap and so are fewer than they seem; and
    Student's t, which counts only those that do not.
    """
    each = [
        max((1 + int((way[near] >= way[at]).sum())) / (1 + len(near)), _student(way[[at]], way[near], length))
        for at, near in zip(starts, chance, strict=True)
    ]
    mean = float(way[starts].mean())
    if len(starts) == 1:
        return np.array(each), each[0], mean
    means = way[drawn].mean(axis=0)
    rank = (1 + int((means >= mean - 1e-12).sum())) / (1 + len(means))
    return np.array(each), max(rank, _student(way[starts], way[np.unique(np.concatenate(chance))], length)), mean


def _student(answers: np.ndarray, quiet: np.ndarray, length: int) -> float:
    """Return the chance that quiet windows have so high a mean, with as many of them as do not overlap."""
    number = max(len(quiet) / length, 2.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = (answers.mean() - quiet.mean()) / (quiet.std() * np.sqrt(1 / len(answers) + 1 / number))
    return 1.0 if np.isnan(score) else float(stdtr(number - 1, -score))


def _quiet(busy: np.ndarray, length: int) -> np.ndarray:
    """Return the rows from which on a whole window touches nothing busy and does not leave the series."""
    count = np.concatenate([[0], np.cumsum(busy)])
    return np.flatnonzero(count[length:] == count[:-length])


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
