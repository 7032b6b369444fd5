"""Order statistics of series, all blocks of 8 samples at once.

Blocks lie at fixed places and are held *folded*: an array (8, B), one row for each place within a block. The cost is
linear in the length.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "BLOCK",
    "MAD_TO_SD",
    "SCALE_BLOCKS",
    "delayed",
    "fold",
    "last_counting",
    "order",
    "past_median",
    "runs_of",
    "sum_of_last",
    "unfold",
    "without",
]

BLOCK = 8
"""Samples in a block; its median resists three outliers."""

MAD_TO_SD = 1.482602218505602
"""Standard deviation of a normal distribution over its median absolute deviation."""

MIDDLE = 1.325
"""Distance between the middles of the upper and the lower half of eight normal values, each without its ends."""

SCALE_BLOCKS = 64
"""A median of the past is over so many blocks (512 samples)."""


def fold(values: np.ndarray) -> np.ndarray:
    """Return a series (T,) as blocks, shape (8, B), NaN at the end of the last block."""
    blocks = np.full((BLOCK, -(-len(values) // BLOCK)), np.nan, dtype=values.dtype)
    whole = len(values) // BLOCK
    blocks[:, :whole] = values[: whole * BLOCK].reshape(whole, BLOCK).T
    blocks[: len(values) - whole * BLOCK, whole:] = values[whole * BLOCK :, None]
    return blocks


def unfold(blocks: np.ndarray, length: int) -> np.ndarray:
    """Return folded values (8, B) as a series of shape (length,)."""
    return np.ascontiguousarray(blocks.T).reshape(-1)[:length]


def delayed(blocks: np.ndarray, by: int = 1) -> np.ndarray:
    """Return folded values moved to later samples by 1 to 7, NaN at the start."""
    moved = np.empty_like(blocks)
    moved[by:] = blocks[:-by]
    moved[:by, 1:] = blocks[-by:, :-1]
    moved[:by, :1] = np.nan
    return moved


def without(blocks: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Return folded values with NaN at some samples; the same array where there are none."""
    if not len(masked):
        return blocks
    left = blocks.copy()
    left[masked % BLOCK, masked // BLOCK] = np.nan
    return left


def past_median(values: np.ndarray) -> np.ndarray:
    """Return the median of the last 64 values, itself included, by eights; of all where there are fewer."""
    number = len(values)
    first = min(number, SCALE_BLOCKS)
    place = np.arange(first)
    growing = np.sort(np.where(place <= place[:, None], values[:first], np.inf), axis=1)
    found = np.empty(number, dtype=values.dtype)
    found[:first] = (growing[place, place // 2] + growing[place, (place + 1) // 2]) / 2
    if number > SCALE_BLOCKS:
        eights = _median(_sorted(fold(values)[:, : number // BLOCK]))
        windows = np.lib.stride_tricks.sliding_window_view(eights, BLOCK)
        longer = _median(_sorted(np.ascontiguousarray(windows.T)))
        found[first:] = np.repeat(longer, BLOCK)[first + 1 - SCALE_BLOCKS :][: number - first]
    return found


def last_counting(values: np.ndarray, count: np.ndarray, least: int) -> np.ndarray:
    """Return for each block the value of the last counting block before it, NaN where fewer than ``least`` are."""
    if not len(values):
        return np.full(len(count), np.nan, dtype=values.dtype)
    found = values[np.maximum(count - 1, 0)]
    found[count < least] = np.nan
    return found


def order(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each block the median, the robust standard deviation, and whether it counts."""
    ordered = _sorted(blocks)
    partial = np.flatnonzero(np.isnan(ordered[0]))  # one NaN makes all of its block NaN
    if len(partial):
        some = np.sort(blocks[:, partial], axis=0)
        left = np.isfinite(some).sum(axis=0)
        place = np.clip((np.arange(BLOCK)[:, None] + 0.5) / BLOCK * left - 0.5, 0, np.maximum(left - 1, 0))
        below = place.astype(int)
        above = np.minimum(below + 1, np.maximum(left - 1, 0))
        low, high = (np.take_along_axis(some, each, axis=0) for each in (below, above))
        ordered[:, partial] = np.where(left >= BLOCK // 2, low + (place - below) * (high - low), np.nan)
    width = (ordered[5] + ordered[6] - ordered[1] - ordered[2]) / (2 * MIDDLE)
    return _median(ordered), width, np.isfinite(width)


def _median(ordered: np.ndarray) -> np.ndarray:
    return (ordered[3] + ordered[4]) / 2


def _sorted(blocks: np.ndarray, width: int = 4096) -> np.ndarray:
    """Return the blocks, each sorted, by Batcher's network: all at once, by parts that stay in the cache.

    A block with a NaN becomes NaN as a whole.
    """
    if blocks.shape[1] <= FEW:
        few = np.sort(blocks, axis=0)
        few[:, np.isnan(few[-1])] = np.nan
        return few
    ordered = np.empty_like(blocks)
    for start in range(0, blocks.shape[1], width):
        part = blocks[:, start : start + width].copy()
        rows, spare = list(part), np.empty_like(part[0])
        for low, high in NETWORK:
            np.minimum(rows[low], rows[high], out=spare)
            np.maximum(rows[low], rows[high], out=rows[high])
            rows[low], spare = spare, rows[low]
        for row, values in zip(ordered, rows, strict=True):
            row[start : start + width] = values
    return ordered


FEW = 600
"""So many blocks are sorted faster one by one."""

NETWORK = (
    (0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6),
    (0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (1, 2), (3, 4), (5, 6),
)  # fmt: skip
"""Comparisons that sort eight values (Batcher, 1968)."""


def sum_of_last(values: np.ndarray, width: int) -> np.ndarray:
    """Return the sum of the last ``width`` values, of fewer at the start."""
    total = np.cumsum(values, dtype=float)
    total[width:] -= total[:-width].copy()
    return total


def runs_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last index of each run of True, two arrays of shape (number of runs,)."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
