"""A typical value of a few measurements, and between which bounds the true one lies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, stdtrit

__all__ = ["Interval", "mean_interval", "median_interval", "num_beyond"]

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and its confidence bounds; these are NaN where there are too few measurements."""

    value: float
    low: float
    high: float

    @property
    def differs_from_zero(self) -> bool:
        """Whether zero lies outside of the bounds."""
        return self.low > 0 or self.high < 0


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean and its interval by Student's t; bounds need two values.

    Args:
        values: independent measurements, shape (n,), n at least 1; their mean is taken to be nearly normal.
        confidence: the part of such intervals that hold the true mean.
    """
    values = np.asarray(values, dtype=float)
    number, mean = len(values), float(np.mean(values))
    if number < 2:
        return Interval(mean, np.nan, np.nan)
    reach = float(stdtrit(number - 1, (1 + confidence) / 2) * np.std(values, ddof=1) / np.sqrt(number))
    return Interval(mean, mean - reach, mean + reach)


def median_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Return the median and its interval by the sign test: two of the values, whatever their distribution.

    Holds the true median at least as often as ``confidence`` says. Bounds at 95 % need six values.

    Args:
        values: independent measurements of one continuous distribution, shape (n,), n at least 1.
        confidence: the part of such intervals that hold the true median.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    number, median = len(ordered), float(np.median(ordered))
    beyond = num_beyond(number, confidence)
    if beyond == 0:
        return Interval(median, np.nan, np.nan)
    return Interval(median, float(ordered[beyond - 1]), float(ordered[-beyond]))


def num_beyond(number: int, confidence: float = CONFIDENCE) -> int:
    """Return which of so many ordered values, from either end, bounds their median with a confidence; 0 if none does.

    So many can be left out, less one: fewer lie below the median only that seldom.
    """
    return int(np.sum(bdtr(np.arange(number // 2), number, 0.5) <= (1 - confidence) / 2))
