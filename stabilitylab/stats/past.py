"""What the past says of a series: level, scale and autocorrelation, blind to what is masked.

Everything stands on blocks of 8 samples. A block with fewer than 4 samples left does not exist for the past, so a level
is frozen while an event lasts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stabilitylab.stats.burst import burst
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

__all__ = ["Past", "again", "autocorrelation", "level_and_residual", "past", "wandering"]

SCALE_ERROR = 0.06
"""Two scales that stand on 512 samples each agree where they differ by so much, of their size, times `level.AGREE`."""

DEEP = 3.5
"""So many standard deviations below the level are no part of a spike."""

MEMORY_BLOCKS = 128
"""The autocorrelation stands on so many blocks (1024 samples)."""

REACH = 1024
"""What the past says of a block hardly depends on what is more than so many blocks before it."""


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
    phi = autocorrelation(known, np.maximum(rough, floor))
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
        local=scale * burst(without(whitened, spikes), without(residual, spikes), phi, scale * found.uncertainty())
    )


def again(before: Past, blocks: np.ndarray, masked: np.ndarray, changed: np.ndarray, floor: float = 0.0) -> Past:
    """Return what the past says where more is masked than before, estimated anew only as far as that reaches.

    It is as good an estimate as that of `past`, and not the same one: blocks are taken by eights from other places on.

    Args:
        before: what it said; it may be overwritten.
        blocks: folded values, shape (8, B).
        masked: samples that do not belong to the past of later ones, as numbers, increasing.
        changed: blocks that hold the new ones, increasing.
        floor: smallest scale.
    """
    first = changed[np.diff(changed, prepend=-REACH) >= REACH]
    last = changed[np.diff(changed, append=changed[-1] + REACH) >= REACH]
    number = blocks.shape[1]
    if (last - first + 2 * REACH).sum() > number / 2:
        return past(blocks, masked, floor)
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        start, stop = max(0, begin - REACH), min(end + REACH, number)
        inside = masked[slice(*np.searchsorted(masked, (BLOCK * start, BLOCK * stop)))]
        found = past(blocks[:, start:stop], inside - BLOCK * start, floor)
        for whole, part in zip(before, found, strict=True):
            whole[..., begin:stop] = part[..., begin - start :]
    return before


def level_and_residual(blocks: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the residual (8, B), its rough standard deviation (B,), and its median in each block (B,)."""
    median, width, good = order(without(blocks, masked))
    level, slope = line(median, good)
    residual = blocks - level
    for place in range(1, BLOCK):
        residual[place] -= place * slope
    rough = last_counting(past_median(width[good]), np.cumsum(good) - good, 2)
    return residual, rough, median - level - (BLOCK - 1) / 2 * slope


def autocorrelation(residual: np.ndarray, scale: np.ndarray, prior: float = 32.0) -> np.ndarray:
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


def wandering(phi: np.ndarray) -> np.ndarray:
    """Return how many times as wide as within a block noise of this autocorrelation is, shape (B,).

    Noise that wanders farther than it moves within a block would else pass for what is looked for. Below a half, where
    both differ little, it is 1, and small spikes are easier to find.
    """
    return np.interp(phi, CORRELATIONS, WIDER).astype(phi.dtype)


def _wider() -> np.ndarray:
    """Return the ratio of the standard deviations, of an autoregressive process, at `CORRELATIONS`."""
    apart = np.arange(1, BLOCK)
    within = (BLOCK + 2 * ((BLOCK - apart) * CORRELATIONS[:, None] ** apart).sum(axis=1)) / BLOCK**2
    ratio = np.sqrt((1 - 1 / BLOCK) / (1 - within))
    return 1 + (ratio - 1) * np.clip((CORRELATIONS - 0.5) / 0.15, 0, 1)


CORRELATIONS = np.linspace(0, 0.95, 96)
WIDER = _wider()


def _sum(pairs: np.ndarray) -> np.ndarray:
    """Return the sum of each block, where what is NaN counts nothing."""
    total = pairs.sum(axis=0, dtype=float)
    some = np.flatnonzero(np.isnan(total))
    total[some] = np.nansum(pairs[:, some], axis=0, dtype=float)
    return total
