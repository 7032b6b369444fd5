"""Level and scale of a series from its own past, blind to what is masked.

Everything stands on blocks of 8 samples that lie at fixed places. They are held *folded*: an array (8, B), one row
for each place within a block, so that all blocks are handled at once. A block with fewer than 4 samples left does not
exist for the past, so a level is frozen while an event lasts; the cost is linear in the length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

__all__ = [
    "Past",
    "fold",
    "level_and_residual",
    "past",
    "past_level",
    "past_median",
    "runs_of",
    "sum_of_last",
    "unfold",
]

BLOCK = 8
"""Samples in a block; its median resists three outliers."""

LEVEL_BLOCKS = 4
"""The level is the median of so many block medians; its slope compares them with as many before."""

FIRST_BLOCKS = 3
"""No level is given before so many blocks are complete (24 samples)."""

SCALE_BLOCKS = 64
"""The scale is the median over so many blocks (512 samples)."""

MEMORY_BLOCKS = 128
"""The autocorrelation stands on so many blocks (1024 samples)."""

MAD_TO_SD = 1.482602218505602
"""Standard deviation of a normal distribution over its median absolute deviation."""

MIDDLE = 1.325
"""Distance between the middles of the upper and the lower half of eight normal values, each without its ends."""


class Past(NamedTuple):
    """What the past says of a series of B blocks; NaN where there is too little past."""

    residual: np.ndarray
    """Value minus level, folded, shape (8, B)."""
    whitened: np.ndarray
    """What the sample before does not explain of the residual, in the unit of the values, folded, shape (8, B)."""
    scale: np.ndarray
    """Robust standard deviation of the whitened residual in the last 512 samples, shape (B,)."""
    local: np.ndarray
    """The same, larger where the 32 samples around the block are so much louder that they are a burst, shape (B,)."""
    offset: np.ndarray
    """Median residual of the block, shape (B,)."""
    samples: np.ndarray
    """Number of samples that the scale stands on, shape (B,)."""
    autocorrelation: np.ndarray
    """Autocorrelation of the residual at one sample, shape (B,)."""

    def spread(self) -> np.ndarray:
        """Return the standard deviation of the residual itself, shape (B,)."""
        return self.local / np.maximum(np.sqrt(1 - self.autocorrelation**2), 0.6)

    def matched(self) -> np.ndarray:
        """Return whitened residuals whose sum over a window is the matched filter of a rise that lasts so long.

        A rise is followed by a fall that the autocorrelation does not explain: the sample after counts against it.
        """
        following = np.empty_like(self.whitened)
        following[:-1] = self.whitened[1:]
        following[-1, :-1] = self.whitened[0, 1:]
        following[-1, -1:] = np.nan
        following[np.isnan(following)] = 0.0
        following *= -self.autocorrelation
        following += self.whitened
        return following


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


def past(blocks: np.ndarray, masked: np.ndarray, floor: float = 0.0) -> Past:
    """Return residual, whitened residual and scale of each sample from the samples before its block.

    Args:
        blocks: folded values, shape (8, B); NaN does not count, infinity must not occur.
        masked: samples that do not belong to the past of later ones, as numbers. They are still compared with their
            own past.
        floor: smallest scale, in the unit of the values.
    """
    residual, rough, offset = level_and_residual(blocks, masked)
    known = _without(residual, masked)
    phi = _autocorrelation(known, np.maximum(rough, floor))
    whitened = delayed(known)
    alone = np.flatnonzero(np.isnan(whitened))  # nothing is known of the sample before
    whitened *= -phi
    whitened += residual
    whitened.ravel()[alone] = residual.ravel()[alone] * np.sqrt(1 - phi[alone % len(phi)] ** 2)
    quiet = _without(whitened, masked)
    _, width, good = _order(quiet)
    count = np.cumsum(good) - good
    scale = np.maximum(_at(past_median(width[good]), count, 2), floor)
    local = scale * _burst(quiet, scale)
    return Past(residual, whitened, scale, local, offset, BLOCK * np.minimum(count, SCALE_BLOCKS), phi)


def level_and_residual(blocks: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the residual (8, B), its rough standard deviation (B,), and its median in each block (B,)."""
    median, width, good = _order(_without(blocks, masked))
    level, slope = _line(median, good)
    residual = blocks - level
    for place in range(1, BLOCK):
        residual[place] -= place * slope
    rough = _at(past_median(width[good]), np.cumsum(good) - good, 2)
    return residual, rough, median - level - (BLOCK - 1) / 2 * slope


def _without(blocks: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Return folded values with NaN at some samples; the same array where there are none."""
    if not len(masked):
        return blocks
    left = blocks.copy()
    left[masked % BLOCK, masked // BLOCK] = np.nan
    return left


def _burst(whitened: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return how much louder than usual the surroundings of each block are, one where they are not clearly so.

    Of the windows of four blocks that hold a block the loudest counts: a burst begins and ends anywhere. Each sample
    counts up to `CLIP`, and what is clearly one-sided does not count, so that neither a spike nor a level that is wrong
    makes a burst; what is clipped away is put back.
    """
    size = np.clip(whitened, -CLIP * scale, CLIP * scale)
    valid = ~np.isnan(size)
    size[~valid] = 0.0
    rise, total, number = size.sum(axis=0), np.abs(size).sum(axis=0), valid.sum(axis=0)
    rises, totals, numbers = (sum_of_last(np.append(each, np.zeros(3)), 4) for each in (rise, total, number))
    both_ways = totals - 2 * np.maximum(np.abs(rises) - totals / 5, 0.0)
    loudness = np.where(numbers >= BLOCK, both_ways / np.maximum(numbers, 1), 0.0)  # of the window that ends there
    blocks = len(scale)
    loudest = np.maximum.reduce([loudness[delay : delay + blocks] for delay in range(4)])
    with np.errstate(divide="ignore", invalid="ignore"):
        louder = np.interp(loudest / scale, _clipped_mean(LOUDER), LOUDER)
    return np.clip(1 + 5 * (louder - BURST), 1, 1.2 * louder).astype(scale.dtype)


CLIP = 1.75
"""Largest size of a sample in standard deviations."""

LOUDER = np.linspace(1.0, 8.0, 141)
"""How many times louder surroundings may be."""

BURST = 1.45
"""So many times louder surroundings are a burst of noise; less may be chance."""


def _clipped_mean(sd: np.ndarray) -> np.ndarray:
    """Return the mean size of a normal value of this standard deviation that is clipped at `CLIP`."""
    end = CLIP / sd
    return sd * np.sqrt(2 / np.pi) * (1 - np.exp(-(end**2) / 2)) + 2 * CLIP * ndtr(-end)


def past_level(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the level expected at each sample: a median of block medians, moved along a trend.

    A rising trend is extrapolated as far as it is more than the noise of the medians; a falling one only as far as
    each of the last blocks confirms it, because a step down would otherwise put the level below what follows.

    Args:
        values: shape (T,).
        valid: shape (T,), True where a sample counts.

    Returns:
        Shape (T,); NaN before `FIRST_BLOCKS` blocks are complete.
    """
    median, _, good = _order(fold(np.where(valid, values, np.nan)))
    level, slope = _line(median, good)
    return unfold(level + np.arange(BLOCK)[:, None] * slope, len(values))


def _line(median: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the level at the first sample of each block and its change in a sample, from the blocks before it.

    After a block that does not count the level stays where it would have been without the blocks in between.
    """
    medians = median[good]
    number = len(medians)
    flat, up, center = np.full((3, number), np.nan, dtype=median.dtype)
    for index in range(1, min(number, 2 * LEVEL_BLOCKS - 1)):  # the first blocks: halves of what there is
        half = (index + 2) // 2
        recent, earlier = medians[index + 1 - half : index + 1], medians[: index + 1 - half]
        flat[index] = _middle(recent)
        up[index] = (flat[index] - _middle(earlier)) / (BLOCK * (index + 1) / 2)
        center[index] = BLOCK * half / 2 + 0.5
    if number >= 2 * LEVEL_BLOCKS:
        four = np.stack([medians[each : number - 3 + each] for each in range(LEVEL_BLOCKS)])
        smooth = (four.sum(axis=0) - four.max(axis=0) - four.min(axis=0)) / 2  # the median of four
        at = slice(2 * LEVEL_BLOCKS - 1, None)
        flat[at] = smooth[LEVEL_BLOCKS:]
        bend = np.abs(np.diff(medians, 2))
        error = RISE_ERROR * past_median(bend)[2 * LEVEL_BLOCKS - 3 :]
        rise = np.maximum(smooth[LEVEL_BLOCKS:] - smooth[:-LEVEL_BLOCKS] - error, 0.0)
        up[at] = rise / (BLOCK * LEVEL_BLOCKS)
        center[at] = BLOCK * LEVEL_BLOCKS / 2 + 0.5
    change = np.diff(medians, prepend=medians[:1]) / BLOCK
    down = np.minimum(0.0, np.maximum(change, np.maximum(_shift(change, 1), _shift(change, 2))))
    slope = np.where(up > 0, up, down)
    count = np.cumsum(good) - good
    level = _at(flat + slope * center, count, FIRST_BLOCKS)
    moving = np.append(False, good[:-1]) if len(good) else good
    return level, np.where(moving, _at(slope, count, FIRST_BLOCKS), 0.0).astype(median.dtype)


RISE_ERROR = 0.47
"""Error of the difference of two medians of four blocks, over the median of the second differences of the blocks."""


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


def _at(values: np.ndarray, count: np.ndarray, least: int) -> np.ndarray:
    """Return for each block the value of the last counting block before it, NaN where fewer than ``least`` are."""
    if not len(values):
        return np.full(len(count), np.nan, dtype=values.dtype)
    found = values[np.maximum(count - 1, 0)]
    found[count < least] = np.nan
    return found


def _order(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _middle(values: np.ndarray) -> float:
    """Return the median of a few values, without the checks that `numpy.median` spends its time on."""
    ordered = np.sort(values)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


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


def _autocorrelation(residual: np.ndarray, scale: np.ndarray, prior: float = 32.0) -> np.ndarray:
    """Return the autocorrelation at one sample of the residuals before each block, between 0 and 0.95.

    Residuals are clipped at three standard deviations, so that a spike does not decide it.

    Args:
        residual: folded, shape (8, B), NaN where it does not count.
        scale: rough standard deviation of the residuals, shape (B,).
        prior: pairs that the starting value of zero is worth.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = residual / scale
    np.clip(ratio, -3.0, 3.0, out=ratio)
    earlier = delayed(ratio)
    product = _sum(ratio * earlier)
    np.square(ratio, out=ratio)
    np.square(earlier, out=earlier)
    ratio += earlier
    square = _sum(ratio) / 2
    products, squares = sum_of_last(product, MEMORY_BLOCKS), sum_of_last(square, MEMORY_BLOCKS)
    phi = np.clip(products / (squares + prior), 0.0, 0.95)
    return np.append(0.0, phi)[: len(phi)].astype(residual.dtype)  # a block is judged by the blocks before it


def _sum(pairs: np.ndarray) -> np.ndarray:
    """Return the sum of each block, where what is NaN counts nothing."""
    total = pairs.sum(axis=0, dtype=float)
    some = np.flatnonzero(np.isnan(total))
    total[some] = np.nansum(pairs[:, some], axis=0, dtype=float)
    return total


def sum_of_last(values: np.ndarray, width: int) -> np.ndarray:
    """Return the sum of the last ``width`` values, of fewer at the start."""
    total = np.cumsum(values)
    total[width:] -= total[:-width].copy()
    return total


def _shift(values: np.ndarray, by: int) -> np.ndarray:
    """Return the values moved to later places, the first one repeated."""
    return np.concatenate([np.repeat(values[:1], min(by, len(values))), values[: max(len(values) - by, 0)]])


def runs_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last index of each run of True, two arrays of shape (number of runs,)."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
