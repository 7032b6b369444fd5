"""Spectra of covariances: what sums them up, what sampling alone does to them, and directions that are dead."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = [
    "alpha_req",
    "dead_directions",
    "effective_rank",
    "exponential_law",
    "feature_std",
    "marchenko_pastur_quantiles",
    "participation_ratio",
    "power_law",
    "rankme",
    "resolution",
    "stable_rank",
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
    share = _shares(singular_values)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.exp(-(share * logs).sum(axis=-1))


def _shares(values: np.ndarray) -> np.ndarray:
    """Return non-negative numbers over their sum, NaN where all are zero; refuse others."""
    values = np.asarray(values, dtype=float)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError("singular values must be finite and not negative")
    total = values.sum(axis=-1, keepdims=True)
    return np.divide(values, total, out=np.full_like(values, np.nan), where=total > 0)


def rankme(singular_values: np.ndarray) -> np.ndarray:
    """Return exp(entropy) of p = singular value / sum + 1e-7, which is not normalized again.

    Args:
        singular_values: of the features themselves (N, D), not centered, shape (..., min(N, D)).

    Returns:
        Shape (...), dimensionless; as defined it can exceed D a little. NaN where every value is zero.

    Raises:
        ValueError: if a value is negative or not finite.

    References:
        Garrido et al., 2023, RankMe: assessing the downstream performance of pretrained self-supervised
        representations by their rank. ICML.
    """
    share = _shares(singular_values) + 1e-7
    return np.exp(-(share * np.log(share)).sum(axis=-1))


def participation_ratio(eigenvalues: np.ndarray) -> np.ndarray:
    """Return (sum l)^2 / sum l^2 of the eigenvalues of a covariance: 1 if one direction carries all, D if all D do.

    Args:
        eigenvalues: non-negative, shape (..., D); need not be sorted.

    Returns:
        Shape (...), dimensionless; NaN where every value is zero.

    Raises:
        ValueError: if a value is negative or not finite.

    References:
        Gao et al., 2017, A theory of multineuronal dimensionality, dynamics and measurement. bioRxiv.
    """
    return 1 / (_shares(eigenvalues) ** 2).sum(axis=-1)


def stable_rank(eigenvalues: np.ndarray) -> np.ndarray:
    """Return sum l / max l, the squared Frobenius norm of the centered features over their squared spectral norm.

    Args:
        eigenvalues: of the covariance, non-negative, shape (..., D); need not be sorted.

    Returns:
        Shape (...), dimensionless; NaN where every value is zero.

    Raises:
        ValueError: if a value is negative or not finite.

    References:
        Rudelson and Vershynin, 2007, Sampling from large matrices. Journal of the ACM.
    """
    return 1 / _shares(eigenvalues).max(axis=-1)


def alpha_req(eigenvalues: np.ndarray, first: int = 10, last: int = 100) -> np.ndarray:
    """Return alpha of the law l_i ~ i^-alpha: minus the slope of log l_i over log i, weights 1 / i.

    Positive where the eigenvalues fall, and the larger the faster.

    Args:
        eigenvalues: of the covariance, descending, shape (..., D).
        first: the first rank i that counts, from 1.
        last: the last one. What the rounding of float32 features alone explains does not count, l_i <= D eps^2 l_1:
            a LayerNorm, for one, leaves a direction without variance.

    Returns:
        Shape (...), dimensionless; NaN where fewer than three eigenvalues count.

    References:
        Agrawal et al., 2022, alpha-ReQ: assessing representation quality. NeurIPS.
    """
    values = np.asarray(eigenvalues, dtype=float)
    rank = np.arange(1, values.shape[-1] + 1)
    known = values > values[..., :1] * values.shape[-1] * np.finfo(np.float32).eps ** 2
    weight = ((first <= rank) & (rank <= last) & known) / rank
    x = np.log(rank)
    y = np.log(values, out=np.zeros_like(values), where=weight > 0)
    total = np.where((weight > 0).sum(axis=-1) >= 3, weight.sum(axis=-1), np.nan)[..., None]
    x = x - (weight * x).sum(axis=-1, keepdims=True) / total
    return -(weight * x * y).sum(axis=-1) / (weight * x**2).sum(axis=-1)


def feature_std(features: np.ndarray) -> np.ndarray:
    """Return the mean over dimensions of the standard deviation of l2-normalized features: at most 1 / sqrt(D).

    That much if they are spread evenly around zero, 0 if all are equal.

    Args:
        features: shape (..., N, D). The deviation is that of the N rows at hand (divided by N).

    Returns:
        Shape (...), dimensionless; NaN where a feature is not finite.

    References:
        Chen and He, 2021, Exploring simple Siamese representation learning. CVPR.
    """
    values = np.asarray(features, dtype=float)
    size = np.linalg.norm(values, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # inf / inf is NaN, and so is the result
        return (values / np.where(size == 0, 1.0, size)).std(axis=-2).mean(axis=-1)


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


def resolution(eigenvalues: np.ndarray) -> np.ndarray:
    """Return the smallest eigenvalue that each spectrum can hold: a smaller one, or zero, may have been as large.

    An eigenvalue of a covariance is negative by rounding alone, so the rounding is as large as the most negative one.
    Spectra of float16 values, in which small ones are zero, hold no less than the smallest of these.

    Args:
        eigenvalues: of the covariance, as measured, shape (T, D).

    Returns:
        Shape (T, 1), not negative.
    """
    rounding = np.maximum(-eigenvalues.min(axis=1, keepdims=True), 0.0)
    with np.errstate(over="ignore"):
        halves = np.array_equal(eigenvalues.astype(np.float16), eigenvalues)
    return np.maximum(rounding, float(np.finfo(np.float16).smallest_subnormal) if halves else 0.0)
