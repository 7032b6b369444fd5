"""Level, scale and tails of a series from its own past, blind to what is masked.

Everything counts *samples*: what is masked or missing does not exist for the past, so a level is frozen while an
event lasts. Levels and scales stand on blocks of 8 samples, which makes the cost linear in the length.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import stdtr, stdtrit

__all__ = [
    "PRIOR",
    "Past",
    "autocorrelation",
    "past",
    "past_level",
    "past_scale",
    "runs_of",
    "tail_chance",
    "tail_shape",
    "tail_threshold",
]

BLOCK = 8
"""Samples in a block; its median resists three outliers."""

LEVEL_BLOCKS = 4
"""The level is the median of so many block medians; its slope compares them with as many before."""

FIRST_BLOCKS = 3
"""No level is given before so many blocks are complete (24 samples)."""

SCALE_BLOCKS = 64
"""The slow scale is the median over so many blocks (512 samples)."""

MAD_TO_SD = 1.482602218505602
"""Standard deviation of a normal distribution over its median absolute deviation."""


class Past(NamedTuple):
    """What the past of each sample says of it; each of shape (T,), NaN where there is too little past."""

    level: np.ndarray
    """Expected value."""
    residual: np.ndarray
    """Value minus level."""
    innovation: np.ndarray
    """What the sample before does not explain of the residual, in robust standard deviations of the past."""
    scale: np.ndarray
    """Robust standard deviation of that innovation, in the unit of the values."""
    spread: np.ndarray
    """Robust standard deviation of the residual, in the unit of the values."""
    after: np.ndarray
    """How far the 8 to 24 valid samples that follow fall below the level, as a standard deviation; 0 at the end."""
    samples: np.ndarray
    """Number of samples that the scale stands on."""
    autocorrelation: np.ndarray
    """Autocorrelation of the residuals at one sample, estimated from the past."""


def past(values: np.ndarray, valid: np.ndarray, floor: float | np.ndarray = 0.0) -> Past:
    """Return level, residual, whitened innovation and scale of each sample from the valid samples before it.

    Args:
        values: shape (T,); what is not valid may be anything.
        valid: shape (T,), True where a sample belongs to the past of later ones. A sample that is not valid is
            still compared with its past.
        floor: smallest scale, in the unit of the values.
    """
    finite = np.isfinite(values)
    valid = valid & finite
    level = past_level(values, valid)
    residual = np.where(finite, values - level, np.nan)
    known = valid & np.isfinite(residual)
    before = np.zeros(len(values), dtype=bool)
    before[1:] = known[:-1]
    spread, _ = past_scale(residual, known)
    spread = np.maximum(spread, floor)
    phi = autocorrelation(residual, known & before, spread)
    shifted = np.zeros_like(residual)
    shifted[1:] = np.where(before[1:], residual[:-1], 0.0)
    whitened = np.where(before, residual - phi * shifted, residual * np.sqrt(1 - phi**2))
    scale, count = past_scale(whitened, known)
    after = _next_depth(residual, known)
    scale = np.maximum(scale, floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        innovation = whitened / scale
    return Past(level, residual, innovation, scale, spread, after, count, phi)


def past_level(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the level expected at each sample: a median of block medians, moved along a trend.

    A rising trend is extrapolated as measured; a falling one only as far as each of the last blocks confirms it,
    because a step down would otherwise put the level below what follows.

    Args:
        values: shape (T,).
        valid: shape (T,), True where a sample counts.

    Returns:
        Shape (T,); NaN before `FIRST_BLOCKS` blocks are complete.
    """
    used = values[valid]
    num_blocks = len(used) // BLOCK
    if num_blocks < FIRST_BLOCKS:
        return np.full(len(values), np.nan)
    medians = _median_of_eight(_blocks(used))
    flat, up, center = np.full((3, num_blocks), np.nan)
    for index in range(1, min(num_blocks, 2 * LEVEL_BLOCKS)):  # the first blocks: halves of what there is
        half = (index + 2) // 2
        recent, earlier = medians[index + 1 - half : index + 1], medians[: index + 1 - half]
        flat[index] = np.median(recent)
        up[index] = (flat[index] - np.median(earlier)) / (BLOCK * (index + 1) / 2)
        center[index] = BLOCK * (index + 1 - half / 2) - 0.5
    if num_blocks >= 2 * LEVEL_BLOCKS:
        four = np.stack([medians[each : num_blocks - 3 + each] for each in range(LEVEL_BLOCKS)])
        smooth = (four.sum(axis=0) - four.max(axis=0) - four.min(axis=0)) / 2  # the median of four
        at = np.arange(2 * LEVEL_BLOCKS - 1, num_blocks)
        flat[at] = smooth[at - LEVEL_BLOCKS + 1]
        up[at] = (flat[at] - smooth[at - 2 * LEVEL_BLOCKS + 1]) / (BLOCK * LEVEL_BLOCKS)
        center[at] = BLOCK * (at + 1 - LEVEL_BLOCKS / 2) - 0.5
    change = np.diff(medians, prepend=medians[0]) / BLOCK
    down = np.minimum(0.0, np.maximum(change, np.maximum(_shift(change, 1), _shift(change, 2))))
    slope = np.where(up > 0, up, down)
    count = np.cumsum(valid) - valid
    block = count // BLOCK - 1
    level = flat[block] + slope[block] * (count - center[block])
    return np.where(block >= FIRST_BLOCKS - 1, level, np.nan)


def past_scale(values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the robust standard deviation around zero of the valid samples before each one, and their number.

    The slow scale is a median over 64 blocks, by eights; where the last two blocks say much more, they count, so that
    a burst of noise is met by a scale of its own.

    Returns:
        Two arrays of shape (T,): the scale (NaN before two blocks are complete) and the number of samples it uses.
    """
    used = np.abs(values[valid])
    num_blocks = len(used) // BLOCK
    if num_blocks < 2:
        return np.full(len(values), np.nan), np.zeros(len(values))
    medians = _median_of_eight(_blocks(used))
    first = min(num_blocks, SCALE_BLOCKS)
    number = np.arange(first)
    growing = np.sort(np.where(number <= number[:, None], medians[:first], np.inf), axis=1)
    slow = np.empty(num_blocks)
    slow[:first] = (growing[number, number // 2] + growing[number, (number + 1) // 2]) / 2
    if num_blocks > SCALE_BLOCKS:
        eights = _median_of_eight(_blocks(medians))
        longer = _median_of_eight(sliding_window_view(eights, 8).T)
        slow[first:] = longer[(np.arange(first, num_blocks) + 1) // 8 - 8]
    fast = (medians + _shift(medians, 1)) / 2
    both = np.maximum(slow, 0.6 * fast) * MAD_TO_SD
    count = np.cumsum(valid) - valid
    block = count // BLOCK - 1
    return np.where(block >= 1, both[block], np.nan), np.minimum(count, BLOCK * SCALE_BLOCKS)


def _blocks(values: np.ndarray) -> np.ndarray:
    """Return the complete blocks of eight as columns, shape (8, number of blocks)."""
    return np.ascontiguousarray(values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK).T)


def _median_of_eight(rows: np.ndarray) -> np.ndarray:
    """Return the median over the first axis, of length eight, by Batcher's sorting network: all columns at once."""
    lanes = list(rows)
    for low, high in NETWORK:
        lanes[low], lanes[high] = np.minimum(lanes[low], lanes[high]), np.maximum(lanes[low], lanes[high])
    return (lanes[3] + lanes[4]) / 2


NETWORK = (
    (0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6),
    (0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (3, 4),
)  # fmt: skip
"""Comparisons that sort eight values as far as the two in the middle need it (Batcher, 1968)."""


def _next_depth(residual: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return how far the two blocks after the one of each sample fall below their level, as a standard deviation.

    A burst of noise goes down as far as up; the aftermath of a spike stays above the level and counts as nothing.
    """
    blocks = _blocks(residual[valid])
    if blocks.shape[1] < 4:
        return np.zeros(len(residual))
    second = np.partition(blocks, 1, axis=0)[1]
    depth = np.maximum(-(second[1:] + second[:-1]) / 2, 0.0) / SECOND_OF_EIGHT
    block = (np.cumsum(valid) - valid) // BLOCK
    return np.append(depth, 0.0)[np.minimum(block + 1, len(depth))]


SECOND_OF_EIGHT = 0.8522
"""Expected depth of the second lowest of eight normal values, in standard deviations."""


def autocorrelation(
    residual: np.ndarray, pairs: np.ndarray, scale: np.ndarray, memory: int = 1024, prior: float = 32.0
) -> np.ndarray:
    """Return the autocorrelation at one sample of the residuals before each sample, between 0 and 0.95.

    Residuals are clipped at three standard deviations, so that a spike does not decide it.

    Args:
        residual: shape (T,).
        pairs: shape (T,), True where this sample and the one before both count.
        scale: shape (T,), rough standard deviation of the residuals.
        memory: number of samples that count.
        prior: pairs that the starting value of zero is worth.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.clip(residual / scale, -3.0, 3.0)
    ratio = np.where(np.isfinite(ratio), ratio, 0.0)
    length = len(ratio)
    num_blocks = -(-length // BLOCK)
    product, square = np.zeros((2, num_blocks * BLOCK))
    product[1:length] = np.where(pairs[1:], ratio[1:] * ratio[:-1], 0.0)
    square[1:length] = np.where(pairs[1:], (ratio[1:] ** 2 + ratio[:-1] ** 2) / 2, 0.0)
    sums = np.stack([each.reshape(num_blocks, BLOCK).sum(axis=1) for each in (product, square)])
    products, squares = _window_sum(sums, max(1, memory // BLOCK))
    phi = np.clip(products / (squares + prior), 0.0, 0.95)
    delayed = np.concatenate([[0.0], phi[:-1]])  # a block is judged by the blocks before it
    return np.repeat(delayed, BLOCK)[:length]


def _window_sum(values: np.ndarray, width: int) -> np.ndarray:
    """Return the sum of the last ``width`` values along the last axis, of fewer at the start."""
    total = np.cumsum(values, axis=-1)
    total[..., width:] -= total[..., :-width].copy()
    return total


def _shift(values: np.ndarray, by: int) -> np.ndarray:
    """Return the values moved to later places, the first one repeated."""
    return np.concatenate([np.repeat(values[:1], min(by, len(values))), values[: max(len(values) - by, 0)]])


def tail_shape(innovation: np.ndarray) -> float:
    """Return one over the degrees of freedom of the Student-t that has the tails of a sample; 0 is normal.

    They give the observed ratios of outer quantiles to the median absolute deviation: 2 and 0.5 % on the lower side,
    which upward events do not touch, or 5 % on the upper side where that is clearly wider, but at most `HEAVIEST`:
    beyond it a long upper tail is taken for what is looked for, or a layer that spikes often would never be seen to
    spike. A short sample is drawn towards `PRIOR`.

    Args:
        innovation: any shape, in robust standard deviations; values that are not finite are left out.
    """
    sample = innovation[np.isfinite(innovation)]
    length = len(sample)
    if length < 50:
        return PRIOR
    far, low, middle = np.quantile(sample, [0.005, 0.02, 0.5])
    center = np.median(np.abs(sample - middle))
    if center <= 0:
        return PRIOR
    below = _inverse_freedom((middle - low) / center, 0.02, length, 150)
    below = (below + _inverse_freedom((middle - far) / center, 0.005, length, 300)) / 2
    usual = sample[sample < middle + 1.5 * center * MAD_TO_SD * tail_threshold(below, 5e-5)]  # no obvious event
    high = np.quantile(usual, 0.95)
    above = _inverse_freedom((high - middle) / center, 0.05, length, 100) - 3.2 / np.sqrt(length)  # 1.5 errors
    # what cannot be below zero is estimated too high on average: half a standard error is taken off a long sample
    below -= 0.6 / np.sqrt(length) * length / (length + 1000)
    return float(max(below, min(above, HEAVIEST), 0.0))


HEAVIEST = 0.15
"""One over the degrees of freedom of the heaviest upper tail that counts as noise."""

PRIOR = 0.15
"""One over the degrees of freedom that are assumed where the sample does not say."""


def _inverse_freedom(ratio: float, tail: float, length: int, prior: float) -> float:
    """Return one over the degrees of freedom at which Student-t has this ratio, drawn towards `PRIOR`."""
    inverse, ratios = _ratios(tail)
    weight = length / (length + prior)
    return weight * float(np.interp(ratio, ratios, inverse)) + (1 - weight) * PRIOR


@cache
def _ratios(tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Return one over the degrees of freedom, ascending, and the ratio of the outer quantile to the median |t|."""
    inverse = np.linspace(1e-4, 0.45, 200)
    return inverse, -stdtrit(1 / inverse, tail) / stdtrit(1 / inverse, 0.75)


def tail_threshold(shape: float, rate: float) -> float:
    """Return the value that is exceeded upward with probability ``rate``, in robust standard deviations.

    Args:
        shape: one over the degrees of freedom, of `tail_shape`.
        rate: probability, far in the tail.

    Returns:
        3.9 for normal noise and a rate of 5e-5.
    """
    freedom = 1 / max(shape, 1e-4)
    return float(-stdtrit(freedom, rate) / stdtrit(freedom, 0.75) / MAD_TO_SD)


def tail_chance(threshold: float, shape: float) -> float:
    """Return the probability with which a threshold is exceeded: the inverse of `tail_threshold`."""
    freedom = 1 / max(shape, 1e-4)
    return float(stdtr(freedom, -threshold * stdtrit(freedom, 0.75) * MAD_TO_SD))


def runs_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last index of each run of True, two arrays of shape (number of runs,)."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
