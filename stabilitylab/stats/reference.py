"""One curve against several others that are taken for good: their spread says how far another one would lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

__all__ = ["FEWEST", "Against", "against", "reached", "running_level"]

FEWEST = 3
"""Curves whose spread is a test; with fewer there is only a difference."""


class Against(NamedTuple):
    """A curve less the mean of the references, at each point; each array of shape (T,)."""

    difference: np.ndarray
    low: np.ndarray
    """A curve like the references lies above it but with the probability asked for; NaN with fewer than `FEWEST`."""
    spread: np.ndarray
    """Standard deviation of the difference of such a curve; NaN likewise."""


def running_level(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of so many values up to each one, of fewer at the start; along the last axis."""
    total = np.cumsum(values, axis=-1)
    count = np.minimum(np.arange(values.shape[-1]) + 1, width)
    earlier = np.zeros_like(total)
    earlier[..., width:] = total[..., :-width]
    return (total - earlier) / count


def against(curve: np.ndarray, references: np.ndarray, alpha: float, floor: float | np.ndarray = 0.0) -> Against:
    """Compare a curve with others at the same points (prediction interval of Student's t).

    Args:
        curve: shape (T,).
        references: shape (K, T).
        alpha: chance that a curve like the references lies below ``low`` at one point.
        floor: smallest standard deviation between curves that is believed.
    """
    number = len(references)
    difference = curve - references.mean(axis=0)
    if number < FEWEST:
        unknown = np.full(curve.shape, np.nan)
        return Against(difference, unknown, unknown)
    spread = np.maximum(references.std(axis=0, ddof=1), floor) * np.sqrt(1 + 1 / number)
    return Against(difference, -spread * float(stdtrit(number - 1, 1 - alpha)), spread)


def reached(levels: np.ndarray, part: float = 0.9) -> int:
    """Return where a curve has made so much of its rise from its first to its highest value."""
    first, top = levels[0], levels.max()
    return int(np.argmax(levels >= first + part * (top - first)))
