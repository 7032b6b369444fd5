"""What the past says of a series: level, scale and autocorrelation, blind to what is masked.

Everything stands on blocks of 8 samples. A block with fewer than 4 samples left does not exist for the past, so a level
is frozen while an event lasts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from stabilitylab.stats.level import line, widened
from stabilitylab.stats.robust import (
    BLOCK,
    SCALE_BLOCKS,
    delayed,
    last_counting,
    order,
    past_median,
    sum_of_last,
    without,
)

__all__ = ["Past", "level_and_residual", "past"]

SCALE_ERROR = 0.06
"""Two scales that stand on 512 samples each agree where they differ by so much, of their size, times `level.AGREE`."""

MEMORY_BLOCKS = 128
"""The autocorrelation stands on so many blocks (1024 samples)."""


class Past(NamedTuple):
    """What the past says of a series of B blocks; NaN where there is too little past."""

    residual: np.ndarray
    """Value minus level, folded, shape (8, B)."""
    whitened: np.ndarray
    """What the sample before does not explain of the residual, in the unit of the values, folded, shape (8, B)."""
    scale: np.ndarray
    """Robust standard deviation of the whitened residual in the last 512 samples, or up to 4,096 that agree, (B,)."""
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

    def uncertainty(self) -> np.ndarray:
        """Return how many times the scale the noise may have where it stands on few samples, shape (B,)."""
        return 1 + 8 / np.maximum(self.samples, 8)

    def matched(self) -> np.ndarray:
        """Return whitened residuals whose sum over a window is the matched filter of a rise that lasts so long.

        A rise is followed by a fall that the autocorrelation does not explain: the sample after counts against it,
        compared with the rise itself, also where that is masked.
        """
        following = np.empty_like(self.residual)
        following[:-1] = self.residual[1:]
        following[-1, :-1] = self.residual[0, 1:]
        following[-1, -1:] = np.nan
        following -= self.autocorrelation * self.residual
        following[np.isnan(following)] = 0.0
        following *= -self.autocorrelation
        following += self.whitened
        return following


def past(blocks: np.ndarray, masked: np.ndarray, floor: float = 0.0) -> Past:
    """Return residual, whitened residual and scale of each sample from the samples before its block.

    Args:
        blocks: folded values, shape (8, B); NaN does not count, infinity must not occur.
        masked: samples that do not belong to the past of later ones, as numbers. They are still compared with their
            own past.
        floor: smallest scale, in the unit of the values.
    """
    residual, rough, offset = level_and_residual(blocks, masked)
    known = without(residual, masked)
    phi = _autocorrelation(known, np.maximum(rough, floor))
    whitened = delayed(known)
    alone = np.flatnonzero(np.isnan(whitened))  # nothing is known of the sample before
    whitened *= -phi
    whitened += residual
    whitened.ravel()[alone] = residual.ravel()[alone] * np.sqrt(1 - phi[alone % len(phi)] ** 2)
    quiet = without(whitened, masked)
    _, width, good = order(quiet)
    count = np.cumsum(good) - good
    known_width = past_median(width[good])
    complete = known_width[SCALE_BLOCKS - 1 :]  # of so many blocks
    if len(complete):
        longer, _ = widened(complete, SCALE_BLOCKS, SCALE_ERROR * complete)
        known_width = np.append(known_width[: SCALE_BLOCKS - 1], longer)
    scale = np.maximum(last_counting(known_width, count, 2), floor)
    found = Past(residual, whitened, scale, scale, offset, BLOCK * np.minimum(count, SCALE_BLOCKS), phi)
    # Where it is as deep beside, what is masked may be a burst of noise itself.
    beside = np.clip(masked // BLOCK + np.array([[-1], [0], [1]]), 0, blocks.shape[1] - 1)
    spikes = masked[~(whitened[:, beside] < -DEEP * scale[beside]).any(axis=(0, 1))]
    return found._replace(
        local=scale * _burst(without(whitened, spikes), without(residual, spikes), phi, scale * found.uncertainty())
    )


def level_and_residual(blocks: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the residual (8, B), its rough standard deviation (B,), and its median in each block (B,)."""
    median, width, good = order(without(blocks, masked))
    level, slope = line(median, good)
    residual = blocks - level
    for place in range(1, BLOCK):
        residual[place] -= place * slope
    rough = last_counting(past_median(width[good]), np.cumsum(good) - good, 2)
    return residual, rough, median - level - (BLOCK - 1) / 2 * slope


def _burst(whitened: np.ndarray, residual: np.ndarray, phi: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return how much louder than usual the surroundings of each block are, one where they are not clearly so.

    Of the windows of four blocks that hold a block the loudest counts: a burst begins and ends anywhere.
    """
    factor = np.ones_like(scale)
    size = np.abs(whitened)
    np.minimum(size, CLIP * scale, out=size)
    total = size.sum(axis=0)
    number = np.full(len(total), float(BLOCK))
    partial = np.flatnonzero(np.isnan(total))
    total[partial], number[partial] = np.nansum(size[:, partial], axis=0), np.isfinite(size[:, partial]).sum(axis=0)
    loud = np.flatnonzero(_loudest(_window(total) / np.maximum(_window(number), 1)) > _clipped_mean(BURST) * scale)
    if len(loud):  # elsewhere not even all of the size would be a burst
        around = np.zeros(len(scale) + 8, dtype=bool)  # what their windows hold, and the block before
        for place in range(8):
            around[loud + place] = True
        around = np.flatnonzero(around[4:-4])
        loudest = _loudest(_loudness(whitened[:, around], residual[:, around], phi[around], scale[around]))
        at = np.searchsorted(around, loud)
        louder = np.interp(loudest[at] / scale[loud], _clipped_mean(LOUDER), LOUDER)
        factor[loud] = np.clip(1 + 5 * (louder - BURST), 1, 1.5 * louder)
    return factor


def _loudness(whitened: np.ndarray, residual: np.ndarray, phi: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the mean size of the noise in the windows of four blocks that end with each block and three later ones.

    Each sample counts up to `CLIP`. What six samples in a row rise by more than noise does is left out, neither side
    counts more than twice the other, and changes from sample to sample must be as loud, so that neither a spike nor its
    aftermath nor a level that is wrong makes a burst.
    """
    size = np.clip(whitened, -CLIP * scale, CLIP * scale)
    valid = ~np.isnan(size)
    size[~valid] = 0.0
    three = size + delayed(size, 1) + delayed(size, 2)
    six = np.maximum.reduce(three + delayed(three, 3), axis=0)  # not a number in the first block
    usual = np.append(USUAL * scale, USUAL * scale[-1:].repeat(3))
    rises = np.maximum(size, 0.0).sum(axis=0)
    above, below, number = (_window(each) for each in (rises, rises - size.sum(axis=0), valid.sum(axis=0)))
    above -= np.maximum(_loudest(np.pad(np.nan_to_num(six), 3)) - usual, 0.0)
    both_ways = np.minimum(above + below, 3 * np.minimum(above, below))
    change = (residual - delayed(residual)) * np.sqrt((1 + phi) / 2)  # as large as what is whitened, without a level
    np.abs(change, out=change)
    np.minimum(change, CLIP * scale, out=change)
    known = ~np.isnan(change)
    change[~known] = 0.0
    changes, times = (_window(each.sum(axis=0)) for each in (change, known))
    loudness = np.minimum(both_ways / np.maximum(number, 1), changes / np.maximum(times, 1))
    loudness[number < 2 * BLOCK] = 0.0
    return loudness


def _window(values: np.ndarray) -> np.ndarray:
    """Return the sum over the four blocks that end with each block and with three later ones, shape (B + 3,)."""
    padded = np.zeros(len(values) + 6, dtype=values.dtype)
    padded[3:-3] = values
    return padded[:-3] + padded[1:-2] + padded[2:-1] + padded[3:]


def _loudest(windows: np.ndarray) -> np.ndarray:
    """Return the largest value of the four windows that hold each block, from shape (B + 3,) to (B,)."""
    return np.maximum.reduce([windows[delay : len(windows) - 3 + delay] for delay in range(4)])


DEEP = 3.5
"""So many standard deviations below the level are no part of a spike."""

CLIP = 1.75
"""Largest size of a sample in standard deviations."""

USUAL = 4.5
"""Sum of the six samples in a row that are highest in 32 of noise, clipped, in standard deviations."""

LOUDER = np.linspace(1.0, 8.0, 141)
"""How many times louder surroundings may be."""

BURST = 1.41
"""So many times louder surroundings are a burst of noise; less may be chance."""


def _clipped_mean(sd: np.ndarray | float) -> np.ndarray:
    """Return the mean size of a normal value of this standard deviation that is clipped at `CLIP`."""
    end = CLIP / sd
    return sd * np.sqrt(2 / np.pi) * (1 - np.exp(-(end**2) / 2)) + 2 * CLIP * ndtr(-end)


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
