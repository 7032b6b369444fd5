"""Spectra of covariances: effective ranks, what sampling alone does to them, and directions that are dead."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = [
    "dead_directions",
    "effective_rank",
    "exponential_law",
    "marchenko_pastur_quantiles",
    "power_law",
]


def effective_rank(singular_values: np.ndarray) -> np.ndarray:
    """Return exp(entropy) of the normalized singular values: 1 if one direction carries all, D if all D do.

    Args:
        singular_values: non-negative, shape (..., D); need not be sorted.

    Returns:
        Shape (...), dimensionless; NaN where every value is zero.

    Raises:
        ValueError: if a value is negative or not finite.

    References:
        Roy and Vetterli, 2007, The effective rank. EUSIPCO.
    """
    values = np.asarray(singular_values, dtype=float)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError("singular values must be finite and not negative")
    total = values.sum(axis=-1, keepdims=True)
    share = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.where(total[..., 0] > 0, np.exp(-(share * logs).sum(axis=-1)), np.nan)


@lru_cache(maxsize=64)
def marchenko_pastur_quantiles(samples: int, dimensions: int) -> np.ndarray:
    """Return the eigenvalues to expect of the covariance of white noise of variance 1, descending.

    Args:
        samples: number of vectors, N; centering costs one.
        dimensions: D.

    Returns:
        Shape (D,): mid-quantiles of the Marchenko-Pastur law; zeros beyond N - 1.

    References:
        Marchenko and Pastur, 1967, Distribution of eigenvalues for some sets of random matrices.
    """
    freedom = max(samples - 1, 1)
    gamma = dimensions / freedom
    low, high = (1 - np.sqrt(gamma)) ** 2, (1 + np.sqrt(gamma)) ** 2
    # x = middle - half * cos(angle) takes the square roots at both edges out of the density
    angle = (np.arange(20000) + 0.5) * np.pi / 20000
    grid = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    weight = np.sin(angle) ** 2 / np.maximum(grid, 1e-300)
    share = np.cumsum(weight) / weight.sum()
    number = min(dimensions, freedom)
    expected = np.zeros(dimensions)
    expected[:number] = np.interp(1 - (np.arange(number) + 0.5) / number, share, grid)
    expected.flags.writeable = False
    return expected


def power_law(eigenvalues: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return intercept and slope of log eigenvalue over log rank among the first ``count`` of each row.

    Every octave of ranks counts alike (weights 1 / rank), as in alpha-ReQ.

    Args:
        eigenvalues: descending, positive among the first ``count``, shape (T, D).
        count: shape (T,); with fewer than three the slope is zero through the largest.

    References:
        Agrawal et al., 2022, alpha-ReQ: assessing representation quality. NeurIPS.
    """
    rank = np.arange(1, eigenvalues.shape[-1] + 1)
    return _line(eigenvalues, count, np.log(rank), 1 / rank)


def exponential_law(eigenvalues: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return intercept and slope of log eigenvalue over rank among the first ``count`` of each row, as `power_law`."""
    rank = np.arange(1, eigenvalues.shape[-1] + 1)
    return _line(eigenvalues, count, rank, np.ones(rank.shape))


def _line(
    eigenvalues: np.ndarray, count: np.ndarray, x: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted least-squares line of log eigenvalue over x, among the first ``count``."""
    weight = (np.arange(1, len(x) + 1) <= count[:, None]) * weight
    y = np.log(eigenvalues, out=np.zeros_like(eigenvalues, dtype=float), where=(weight > 0) & (eigenvalues > 0))
    total = np.maximum(weight.sum(axis=1), 1e-300)
    mean_x, mean_y = (weight * x).sum(axis=1) / total, (weight * y).sum(axis=1) / total
    deviation = x - mean_x[:, None]
    square = (weight * deviation**2).sum(axis=1)
    cross = (weight * deviation * y).sum(axis=1)
    slope = np.where(count >= 3, cross / np.maximum(square, 1e-300), 0.0)
    return np.where(count >= 3, mean_y - slope * mean_x, y[:, 0]), slope


def dead_directions(
    eigenvalues: np.ndarray, samples: int | None, relative: float = 1e-3, below_law: float = 0.1
) -> np.ndarray:
    """Return how many directions of each spectrum are dead beyond what steepness and sampling explain.

    A direction is dead if its eigenvalue is less than ``relative`` of the largest one, and less than ``below_law``
    of what both a power law and an exponential law through the directions that are not so small predict for its
    rank, times what sampling leaves of it (Marchenko-Pastur). So a steep spectrum is no collapse, nor is N close to
    D: it takes a fall that the spectrum did not announce. Directions beyond N - 1 cannot be measured and do not count.

    Args:
        eigenvalues: of the covariance, not negative, descending, shape (T, D).
        samples: N, number of vectors; None if it is not known: then no allowance for sampling is made.
        relative: part of the largest eigenvalue.
        below_law: part of what the laws predict.

    Returns:
        Shape (T,), integers.
    """
    dimensions = eigenvalues.shape[1]
    measurable = dimensions if samples is None else min(dimensions, max(samples - 1, 1))
    values = eigenvalues[:, :measurable]
    large = values >= relative * values[:, :1]
    large &= values > 0
    rank = np.arange(1, measurable + 1)
    count = large.sum(axis=1)
    law = np.full(values.shape, np.inf)
    for fit, x in ((power_law, np.log(rank)), (exponential_law, rank)):
        intercept, slope = fit(values, count)
        law = np.minimum(law, np.exp(intercept[:, None] + np.minimum(slope, 0.0)[:, None] * x))
    if samples is not None:
        law *= np.minimum(1.0, marchenko_pastur_quantiles(samples, dimensions)[:measurable])
    return (~large & (values < below_law * law)).sum(axis=1)
