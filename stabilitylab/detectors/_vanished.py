"""Samples that all but vanish: a gradient of nearly nothing, as of a batch that is all alike, is no noise."""

from __future__ import annotations

import numpy as np

from stabilitylab.stats.past import level_and_residual
from stabilitylab.stats.robust import BLOCK, MAD_TO_SD, runs_of, unfold

__all__ = ["vanished"]

SCALES = 12.0
"""So many standard deviations below the level is out of reach of noise; they are taken from the upper side."""

LONGEST = BLOCK // 2 - 1
"""A longer run of low samples is a level of its own."""

AROUND, LOUD = 2 * BLOCK, 6
"""With more than so many samples above three standard deviations, of so many on each side, it is loud noise."""


def vanished(blocks: np.ndarray, length: int, part: float) -> np.ndarray:
    """Return the samples of short runs that lie under a part of the level, far out of reach of the noise.

    Args:
        blocks: folded logarithms, shape (8, B); NaN does not count.
        length: number of samples.
        part: of the level.

    Returns:
        Sample numbers, increasing; none in noise, however loud it is for a time.
    """
    deep = -np.log(part)
    if not blocks.size or blocks.max() - blocks.min() <= deep:  # most series; NaN decides nothing
        return np.empty(0, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        if not (np.fmax.reduce(blocks) - np.fmin.reduce(blocks) > deep).any():  # no block spans so much
            return np.empty(0, dtype=np.int64)
        residual = unfold(level_and_residual(blocks, np.empty(0, dtype=np.int64))[0], length)
        upper = residual[residual > 0]
        scale = MAD_TO_SD * float(np.median(upper)) if len(upper) else 0.0
        low = residual < -max(deep, SCALES * scale)
        loud = np.cumsum(np.concatenate([[0], residual > 3 * scale]))
    first, last = runs_of(low)
    around = loud[np.minimum(last + 1 + AROUND, length)] - loud[np.maximum(first - AROUND, 0)]
    chosen = (last - first < LONGEST) & (around <= LOUD)
    lost = np.zeros(length + 1, dtype=np.int64)
    np.add.at(lost, first[chosen], 1)
    np.add.at(lost, last[chosen] + 1, -1)
    return np.flatnonzero(np.cumsum(lost[:-1]))
