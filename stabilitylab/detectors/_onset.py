"""Where a spike begins, to the sample, where noise could move the sample at which it has half the height of its peak.

Rises of many shapes are compared with the samples up to the peak, whitened, by least squares; the onset is where the
best one has half its height. Read off from single samples, the onset of a spike of a few standard deviations is as
noisy as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

__all__ = ["WINDOW", "half_rise"]

WINDOW = 16
"""So many samples before the peak are compared."""

TIMES = np.arange(-WINDOW - 1, 1)
"""Samples before the peak; the first one only whitens the second."""

STEP = 0.5
BEGINS = np.arange(-WINDOW, STEP, STEP)
"""Where rises begin."""

WIDTHS = (0.25, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0)
"""Samples that a rise takes, linear in the logarithm; then it stays."""

FEET = (0.3, 0.7)
"""A rise may have a foot before it, as high as these parts of it."""

LENGTHS = (1, 2, 3, 4, 6, 8)
"""Samples of a foot."""

STEEP = (0.25, 2.0)
"""Widths of the rises that may have a foot."""

PENALTY = 8.0
"""A foot must explain so many variances of the noise more than a rise without."""

FEW = 32
"""So many rises are multiplied at once: few enough that BLAS starts no threads beside those of the detector."""

FINE = 20
"""Autocorrelations are taken as multiples of 1 / FINE."""


class Shapes(NamedTuple):
    """Rises, whitened and of length one."""

    samples: np.ndarray
    """Shape (WINDOW + 2, K)."""
    onsets: np.ndarray
    """Where each has half its height, in samples from the peak on, shape (K,)."""


def half_rise(rises: np.ndarray, correlation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return where each of N rises has half its height, in samples from its peak on, 0 or negative, shape (N,).

    Args:
        rises: logarithms over the level, up to the peak, shape (N, WINDOW + 2).
        correlation: autocorrelation of the noise at one sample, shape (N,).
        scale: standard deviation of what the sample before does not explain of it, shape (N,).
    """
    found = np.empty(len(rises), dtype=np.int64)
    rounded = np.rint(correlation * FINE).astype(int)
    for each in np.unique(rounded).tolist():
        members = np.flatnonzero(rounded == each)
        plain, footed = (
            _best(rises[members].astype("float32"), _whitened(shapes, each / FINE)) for shapes in (_plain, _footed)
        )
        better = footed[0] > plain[0] + PENALTY * scale[members] ** 2
        found[members] = np.where(better, footed[1], plain[1])
    return found


def _best(rises: np.ndarray, shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of the square of each rise the best shape explains, and its onset."""
    best, most = np.empty(len(rises), dtype=np.int64), np.empty(len(rises), dtype=rises.dtype)
    for first in range(0, len(rises), FEW):
        agreement = rises[first : first + FEW] @ shapes.samples
        best[first : first + FEW], most[first : first + FEW] = agreement.argmax(axis=1), agreement.max(axis=1)
    return np.square(most.clip(0)), shapes.onsets[best]


@lru_cache(maxsize=2 * (FINE + 1))
def _whitened(shapes: Callable[[], list[np.ndarray]], correlation: float) -> Shapes:
    """Return shapes by which rises are multiplied to see how far they agree, both whitened; each as whitened, unit."""
    plain = np.array(shapes())
    white = plain[:, 1:] - correlation * plain[:, :-1]
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    back = np.zeros_like(plain)  # the rises are whitened by it
    back[:, 1:] += white
    back[:, :-1] -= correlation * white
    return Shapes(back.T.astype("float32"), TIMES[np.argmax(plain >= 0.5, axis=1)])


def _plain() -> list[np.ndarray]:
    return [_rise(begin, width) for begin, width in product(BEGINS, WIDTHS) if begin + width <= STEP]


def _footed() -> list[np.ndarray]:
    return [
        np.maximum(_rise(begin, width), np.where(begin - length <= TIMES, foot, 0.0))
        for begin, width in product(BEGINS[::2], STEEP)
        if begin + width <= STEP
        for foot, length in product(FEET, LENGTHS)
    ]


def _rise(begin: float, width: float) -> np.ndarray:
    rise = np.clip((TIMES - begin + STEP / 2) / width, 0, 1)  # no sample lies at its half: no tie
    return rise / rise[-1]
