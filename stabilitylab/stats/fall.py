"""The largest slow fall of a curve, and how large a fall of one that never falls would look by its wandering."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.signal import lfilter, savgol_filter

__all__ = ["Fall", "largest_falls", "risen", "slow_fall", "stretch_means", "wandering"]

WIDTH = 8
"""A level is the mean of so many stretches."""


class Fall(NamedTuple):
    """The largest fall from one level to a later one, in stretches of the curve."""

    size: float
    """In the unit of the curve, positive."""
    before: int
    """First stretch of the higher level, a mean of `WIDTH`."""
    after: int
    """First stretch of the lower level."""
    p: float
    """Chance of one as large, if the curve only rose and wandered."""
    spread: float
    """Standard deviation of the largest fall by wandering alone."""
    critical: float
    """Fall that wandering exceeds with the probability asked for."""


def stretch_means(values: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of so many stretches of nearly equal length, and where each begins.

    Args:
        values: finite, shape (T,), T at least ``number``.
        number: of stretches.
    """
    begins = np.arange(number) * len(values) // number
    return np.add.reduceat(values, begins) / np.diff(np.append(begins, len(values))), begins


def largest_falls(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the largest fall from a mean of `WIDTH` stretches to a later one that does not overlap.

    Args:
        means: shape (..., B), B at least twice `WIDTH`.

    Returns:
        Three arrays of shape (...): the size, and the first stretch of the higher and of the lower level.
    """
    total = np.cumsum(means, axis=-1)
    levels = total[..., WIDTH - 1 :].copy()
    levels[..., 1:] -= total[..., :-WIDTH]
    levels /= WIDTH
    best = np.maximum.accumulate(levels, axis=-1)[..., :-WIDTH]
    falls = best - levels[..., WIDTH:]
    after = falls.argmax(axis=-1)
    size = np.take_along_axis(falls, after[..., None], -1)[..., 0]
    highest = np.take_along_axis(best, after[..., None], -1)
    earlier = np.arange(levels.shape[-1]) <= after[..., None]
    before = np.where(earlier, levels >= highest, False).argmax(axis=-1)
    return size, before, after + WIDTH


def risen(means: np.ndarray) -> np.ndarray:
    """Return the curve that never falls and is nearest to the means (least squares)."""
    return np.asarray(isotonic_regression(means).x)


MEMORY = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
"""Autocorrelations between neighboring stretches; a slower wandering cannot be told from a trend."""

PLAUSIBLE = 0.75
"""The autocorrelation is taken so much of a standard error higher than it was measured."""

FREEDOM = 6.0
"""The strength of a wandering counts as known from so many independent stretches at least."""

RISE = 0.9
"""Wandering is measured after so much of the rise, from the best level on; if that is late, in the last half."""


def wandering(means: np.ndarray) -> tuple[float, float, float]:
    """Return autocorrelation and standard deviation of the wandering of a curve, and how well they are known.

    Measured on what a moving parabola over a third of the curve leaves, and compared with what it leaves of an
    autoregression, which is known in closed form. The autocorrelation is the largest that is plausible: what is too
    slow a wandering for the record looks like a trend.

    Args:
        means: of stretches of equal length, shape (B,).

    Returns:
        The autocorrelation between neighboring stretches, the standard deviation in the unit of the curve, and the
        number of independent stretches.
    """
    left = _left(means)
    variance, seen = _moments(np.outer(left, left))
    number = len(means)
    if variance <= 0:
        return 0.0, 0.0, float(number)
    lag = np.abs(np.subtract.outer(np.arange(number), np.arange(number)))
    expected = [_moments(_left(_left(phi ** lag.astype(float)).T)) for phi in MEMORY]
    variances, correlations = np.array(expected).T
    phi = float(np.interp(seen + PLAUSIBLE / np.sqrt(number), np.maximum.accumulate(correlations), MEMORY))
    independent = max(number * (1 - phi) / (1 + phi), FREEDOM)
    return phi, float(np.sqrt(variance / np.interp(phi, MEMORY, variances))), independent


def _left(curves: np.ndarray) -> np.ndarray:
    """Return what a moving parabola leaves, along the last axis."""
    width = curves.shape[-1] // 6 * 2 + 1
    return curves - np.asarray(savgol_filter(curves, width, 2, axis=-1))


def _moments(products: np.ndarray) -> tuple[float, float]:
    """Return variance and autocorrelation of neighbors from the products of all pairs, shape (n, n)."""
    variance = float(np.trace(products)) / len(products)
    return variance, float(np.diag(products, 1).mean()) / variance if variance > 0 else 0.0


def slow_fall(means: np.ndarray, rng: np.random.Generator, draws: int = 999, alpha: float = 0.01) -> Fall:
    """Return the largest fall between levels, and its chance if the curve only rose and wandered.

    The wandering is an autoregression of the first order, with its strength as uncertain as so few independent
    stretches make it; it is added to the nearest curve that never falls, and the largest fall of each sum is the
    comparison.

    Args:
        means: of stretches of equal length, shape (B,), B at least 24.
        rng: source of randomness.
        draws: number of simulated curves.
        alpha: probability for which the critical fall is returned.

    Returns:
        The fall; its size is negative and its p is 1 where the curve rises all along.
    """
    size, before, after = largest_falls(means)
    number = len(means)
    curve = risen(means)
    settled = max(int(np.argmax(curve >= curve[0] + RISE * (curve[-1] - curve[0]))), int(before))
    phi, sd, freedom = wandering(means[min(settled, number // 2) :])
    white = np.sqrt(1 - phi**2) * rng.standard_normal((draws, number))
    white[:, 0] = rng.standard_normal(draws)
    strength = sd * np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))
    by_chance = largest_falls(curve + strength * lfilter([1.0], [1.0, -phi], white, axis=1))[0]
    p = (1 + int(np.sum(by_chance >= size - 1e-12 * abs(float(size))))) / (draws + 1) if size > 0 else 1.0
    critical = float(np.quantile(by_chance, 1 - alpha))
    return Fall(float(size), int(before), int(after), p, float(by_chance.std()), critical)
