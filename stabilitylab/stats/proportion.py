"""Proportions of the same or of different items: paired and unpaired comparisons, standard errors."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

__all__ = ["mcnemar_z", "normal_quantile", "standard_error", "two_proportion_z"]


def standard_error(proportion: np.ndarray | float, samples: int) -> np.ndarray:
    """Return the binomial standard error of a proportion, with one success and one failure added.

    The addition keeps it above zero at 0 and 1 (Agresti and Coull, 1998, with one instead of two).
    """
    smoothed = (np.asarray(proportion, dtype=float) * samples + 1) / (samples + 2)
    return np.sqrt(smoothed * (1 - smoothed) / (samples + 2))


def two_proportion_z(before: np.ndarray, after: np.ndarray, samples: int) -> np.ndarray:
    """Return how far a proportion fell, in standard errors of the difference of two independent samples.

    Positive where ``after`` is lower. On the same items this is conservative: their agreement is not used.
    """
    both = (np.asarray(before, dtype=float) + np.asarray(after, dtype=float)) / 2
    drop = np.asarray(before, dtype=float) - np.asarray(after, dtype=float)
    return drop / (np.sqrt(2) * standard_error(both, samples))


def mcnemar_z(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return how far the share of right answers to the same items fell, in standard errors under no change.

    For answers of 0 and 1 this is McNemar's statistic, (lost - gained) / sqrt(lost + gained). ``before`` may be an
    average over several measurements, which makes items that flip all the time count less.

    Args:
        before: shape (..., n), each between 0 and 1.
        after: shape (..., n), the same items.

    Returns:
        Shape (...), positive where ``after`` is lower, 0 where nothing changed.

    References:
        McNemar, 1947, Note on the sampling error of the difference between correlated proportions. Psychometrika.
    """
    change = np.asarray(before, dtype=float) - np.asarray(after, dtype=float)
    size = np.sqrt((change**2).sum(axis=-1))
    total = change.sum(axis=-1)
    return np.divide(total, size, out=np.zeros_like(total), where=size > 0)


def normal_quantile(tail: float) -> float:
    """Return the normal deviate that is exceeded with a probability."""
    return float(-ndtri(tail))
