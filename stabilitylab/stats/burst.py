"""Bursts of noise: surroundings of a block that are louder than the past, and no spike."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from stabilitylab.stats.robust import BLOCK, delayed

__all__ = ["burst"]

CLIP = 1.75
"""Largest size of a sample in standard deviations."""

USUAL = 4.5
"""Sum of the six samples in a row that are highest in 32 of noise, clipped, in standard deviations."""

LOUDER = np.linspace(1.0, 8.0, 141)
"""How many times louder surroundings may be."""

BURST = 1.41
"""So many times louder surroundings are a burst of noise; less may be chance."""


def burst(whitened: np.ndarray, residual: np.ndarray, phi: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return how much louder than usual the surroundings of each block are, one where they are not clearly so.

    Of the windows of four blocks that hold a block the loudest counts: a burst begins and ends anywhere.

    Args:
        whitened: what the sample before does not explain, folded, shape (8, B); NaN does not count.
        residual: value minus level, in the same form.
        phi: autocorrelation at one sample, shape (B,).
        scale: standard deviation of ``whitened`` so far, shape (B,).
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


def _clipped_mean(sd: np.ndarray | float) -> np.ndarray:
    """Return the mean size of a normal value of this standard deviation that is clipped at `CLIP`."""
    end = CLIP / sd
    return sd * np.sqrt(2 / np.pi) * (1 - np.exp(-(end**2) / 2)) + 2 * CLIP * ndtr(-end)
