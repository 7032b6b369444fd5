"""The largest slow fall of a curve, and how large a fall of one that never falls would look by its wandering."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import isotonic_regression

__all__ = ["Fall", "Wandering", "largest_falls", "risen", "slow_fall", "stretch_means", "wandering"]

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
    """Robust standard deviation of the largest fall by wandering alone."""
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


MEMORY = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)
"""Autocorrelations between neighboring stretches that a wandering may have."""

WHITE = (0.0, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Parts of its variance that may be noise without a memory."""

SLOW = 0.25
"""A memory beyond this part of the curve, in stretches, looks like a slow fall; it is taken for `LIKELY` times as
likely beforehand as a shorter one."""

LIKELY = 4.0

RISE = 0.9
"""Wandering is measured after so much of the rise, from the best level on; if that is late, in the last `MEASURED`."""

MEASURED = 0.75


class Wandering(NamedTuple):
    """What a curve may do beside a trend: a mixture of processes, each with its chance; fields of shape (M,)."""

    memory: np.ndarray
    """Autocorrelation between neighboring stretches of the part that has a memory."""
    white: np.ndarray
    """Part of the variance that has none."""
    chance: np.ndarray
    squares: np.ndarray
    """Sum of the squared whitened residuals: the variance is this over a chi-squared variable of so much `freedom`."""
    freedom: int

    def draw(self, length: int, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return so many curves that only wander, shape (draws, length)."""
        numbers = rng.multinomial(draws, self.chance)
        curves = []
        for root, squares, number in zip(_roots(length), self.squares, numbers, strict=True):
            strength = np.sqrt(squares / rng.chisquare(self.freedom, (number, 1)))
            curves.append(strength * (rng.standard_normal((number, length)) @ root.T))
        return np.concatenate(curves)


def wandering(means: np.ndarray, whole: int | None = None) -> Wandering:
    """Return what the wandering of a curve around a straight line may be: a first-order autoregression and white noise.

    How long its memory is, and how large it is, is known the less the shorter the curve; every memory has the chance
    that the residual likelihood gives it. So a curve that wanders as slowly as it falls cannot be told from one that
    falls, and does not count as one.

    Args:
        means: of stretches of equal length, shape (B,).
        whole: number of stretches of the whole curve, of which these may be a part.

    References:
        Patterson and Thompson, 1971, Recovery of inter-block information when block sizes are unequal. Biometrika.
    """
    number = len(means)
    line = np.vander(np.linspace(-1, 1, number), 2)
    memory, white = (np.array(each) for each in zip(*_processes(), strict=True))
    chance = np.where(1 / (1 - memory) > SLOW * (whole or number), LIKELY, 1.0)
    chance /= np.where(memory > 0, len(WHITE), 1)
    log = np.log(chance)
    squares = np.empty(len(memory))
    freedom = number - line.shape[1]
    for at, root in enumerate(_roots(number)):
        both = solve_triangular(root, np.column_stack([line, means]), lower=True)
        basis, size = np.linalg.qr(both[:, :-1])
        residual = both[:, -1] - basis @ (basis.T @ both[:, -1])
        squares[at] = max(float(residual @ residual), np.finfo(float).tiny)
        log[at] -= np.log(np.diag(root)).sum() + np.log(np.abs(np.diag(size))).sum()
    log -= freedom / 2 * np.log(squares)
    chance = np.exp(log - log.max())
    return Wandering(memory, white, chance / chance.sum(), squares, freedom)


def _processes() -> list[tuple[float, float]]:
    """Return memory and white part of each process; without a memory all of it is white."""
    return [(memory, white) for memory in MEMORY for white in (WHITE if memory else (0.0,))]


@lru_cache(maxsize=8)
def _roots(number: int) -> np.ndarray:
    """Return the Cholesky factor of the correlations of so many stretches for each process, shape (M, B, B)."""
    lag = np.abs(np.subtract.outer(np.arange(number), np.arange(number))).astype(float)
    return np.linalg.cholesky([(1 - white) * memory**lag + white * (lag == 0) for memory, white in _processes()])


def slow_fall(means: np.ndarray, rng: np.random.Generator, draws: int = 999, alpha: float = 0.05) -> Fall:
    """Return the largest fall between levels, and its chance if the curve only rose and wandered.

    The wandering (`wandering`) is added to the nearest curve that never falls, flat from where it has made most of its
    rise, and the largest fall of each sum is the comparison.

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
    top = int(np.argmax(curve >= curve[0] + RISE * (curve[-1] - curve[0])))
    settled = min(max(top, int(before)), number - int(MEASURED * number))
    wander = wandering(means[settled:], number)
    by_chance = largest_falls(np.minimum(curve, curve[top]) + wander.draw(number, draws, rng))[0]
    p = (1 + int(np.sum(by_chance >= size - 1e-12 * abs(float(size))))) / (draws + 1) if size > 0 else 1.0
    low, high, critical = (float(each) for each in np.quantile(by_chance, (0.159, 0.841, 1 - alpha)))
    spread = (high - low) / 2
    return Fall(float(size), int(before), int(after), p, spread, critical)
