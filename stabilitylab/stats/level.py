"""The level of a series from its own past: a short past where it moves, a long one where it is steady."""

from __future__ import annotations

import numpy as np

from stabilitylab.stats.robust import BLOCK, fold, last_counting, order, past_median, sum_of_last, unfold

__all__ = ["line", "past_level", "widened"]

LEVEL_BLOCKS = 4
"""A level that moves is the median of so many block medians; its slope compares them with as many before."""

FIRST_BLOCKS = 3
"""No level is given before so many blocks are complete (24 samples)."""

MEMORY_BLOCKS = 128
"""Which past the level stands on is decided by the errors in so many blocks (1024 samples)."""

DOUBLINGS = 3
"""The longest past is so many times twice as long as the shortest."""

AGREE = 2.5
"""A longer past counts where its two halves differ by no more than so many standard deviations."""

RISE_ERROR = 0.47
"""Error of the difference of two medians of four blocks, over the median of the second differences of the blocks."""


def past_level(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the level expected at each sample: a median of block medians, moved along a trend, or a longer past.

    A rising trend is extrapolated as far as it is more than the noise of the medians; a falling one only as far as
    each of the last blocks confirms it, because a step down would otherwise put the level below what follows.

    Args:
        values: shape (T,).
        valid: shape (T,), True where a sample counts.

    Returns:
        Shape (T,); NaN before `FIRST_BLOCKS` blocks are complete.
    """
    median, _, good = order(fold(np.where(valid, values, np.nan)))
    level, slope = line(median, good)
    return unfold(level + np.arange(BLOCK)[:, None] * slope, len(values))


def line(median: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the level at the first sample of each block and its change in a sample, from the blocks before it.

    After a block that does not count the level stays where it would have been without the blocks in between. Of a
    short past with a slope and of the longest past that agrees with it (`widened`), that one decides which was nearer
    to the blocks so far.

    Args:
        median: of each block, shape (B,).
        good: which of them count, shape (B,).
    """
    medians = median[good]
    start, slope, error = _short(medians)
    number = len(medians)
    if number >= 4 * LEVEL_BLOCKS:
        middle = _median_of_four(medians)[LEVEL_BLOCKS:]
        level, longer = (
            np.append(np.zeros(number - len(middle), dtype=each.dtype), each)
            for each in widened(middle, LEVEL_BLOCKS, error)
        )
        center = (BLOCK - 1) / 2  # of the next block
        nearer = np.abs(medians[1:] - start[:-1] - center * slope[:-1])
        nearer -= np.abs(medians[1:] - np.where(longer, level, start + center * slope)[:-1])
        longer &= np.append(False, sum_of_last(np.nan_to_num(nearer), MEMORY_BLOCKS) > 0)
        start, slope = np.where(longer, level, start), np.where(longer, 0.0, slope)
    count = np.cumsum(good) - good
    moving = np.append(False, good[:-1]) if len(good) else good
    slopes = np.where(moving, last_counting(slope, count, FIRST_BLOCKS), 0.0)
    return last_counting(start, count, FIRST_BLOCKS), slopes.astype(median.dtype)


def _short(medians: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return level and slope after each block from eight blocks, and the error of the difference of two levels.

    A rise counts as far as it is more than its error, a fall only where each of the last three blocks confirms it.
    """
    number = len(medians)
    flat, up, center = np.full((3, number), np.nan, dtype=medians.dtype)
    error = np.empty(0)
    for index in range(1, min(number, 2 * LEVEL_BLOCKS - 1)):  # the first blocks: halves of what there is
        half = (index + 2) // 2
        recent, earlier = medians[index + 1 - half : index + 1], medians[: index + 1 - half]
        flat[index] = _middle(recent)
        up[index] = (flat[index] - _middle(earlier)) / (BLOCK * (index + 1) / 2)
        center[index] = BLOCK * half / 2 + 0.5
    if number >= 2 * LEVEL_BLOCKS:
        smooth = _median_of_four(medians)
        at = slice(2 * LEVEL_BLOCKS - 1, None)
        error = RISE_ERROR * past_median(np.abs(np.diff(medians, 2)))[2 * LEVEL_BLOCKS - 3 :]
        flat[at] = smooth[LEVEL_BLOCKS:]
        up[at] = np.maximum(smooth[LEVEL_BLOCKS:] - smooth[:-LEVEL_BLOCKS] - error, 0.0) / (BLOCK * LEVEL_BLOCKS)
        center[at] = BLOCK * LEVEL_BLOCKS / 2 + 0.5
    change = np.diff(medians, prepend=medians[:1]) / BLOCK
    down = np.minimum(0.0, np.maximum(change, np.maximum(_shift(change, 1), _shift(change, 2))))
    slope = np.where(up > 0, up, down)
    return flat + slope * center, slope, error


def widened(values: np.ndarray, width: int, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values from the longest past that agrees with each shorter one, and where it is longer than their own.

    The past is doubled as long as its two halves agree (after Lepski, 1991).

    Args:
        values: each from the last ``width`` blocks, shape (N,).
        width: number of blocks.
        error: standard deviation of the difference of two values ``width`` blocks apart, shape (N,).
    """
    found, longer, agrees = values, np.zeros(len(values), dtype=bool), np.ones(len(values), dtype=bool)
    wide, span = values, width
    for _ in range(DOUBLINGS):
        if len(wide) <= span:
            break
        since = len(values) - len(wide) + span
        change = np.abs(wide[span:] - wide[:-span])
        agrees = agrees[-len(change) :] & (change <= AGREE * np.sqrt(width / span) * error[since:])
        wide, span = (wide[span:] + wide[:-span]) / 2, 2 * span
        found = np.append(found[:since], np.where(agrees, wide, found[since:]))
        longer[since:] |= agrees
    return found, longer


def _median_of_four(medians: np.ndarray) -> np.ndarray:
    four = np.stack([medians[each : len(medians) - 3 + each] for each in range(LEVEL_BLOCKS)])
    return (four.sum(axis=0) - four.max(axis=0) - four.min(axis=0)) / 2


def _middle(values: np.ndarray) -> float:
    """Return the median of a few values, without the checks that `numpy.median` spends its time on."""
    ordered = np.sort(values)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _shift(values: np.ndarray, by: int) -> np.ndarray:
    """Return the values moved to later places, the first one repeated."""
    return np.concatenate([np.repeat(values[:1], min(by, len(values))), values[: max(len(values) - by, 0)]])
