r"""The lag at which two curves around the same times look most alike: a second opinion that knows no onsets.

::

    first   ___/\________         lag = shift of the later curve on which the product is largest
    later   _______/\____
               |---|  lag > 0: the later curve follows
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabilitylab.stats.lag import FEWEST

__all__ = ["TAPER", "Alike", "most_alike", "windows"]


TAPER = 0.1
"""Part that the largest lag loses: where spikes come at equal distances, the nearest counterpart is meant."""


class Alike(NamedTuple):
    """Lag of the largest mean cross-correlation in rows, and its bootstrap interval; NaN where there is too little."""

    lag: float
    low: float
    high: float
    windows: int
    """Number of times it stands on."""


def windows(values: np.ndarray, centers: np.ndarray, reach: int) -> np.ndarray:
    """Return the rows around each center less their median, upward only, shape (number of centers, 2 reach + 1).

    What is missing, not finite or outside of the series is 0, as unremarkable as the usual level.

    Args:
        values: such as log magnitudes, shape (T,).
        centers: rows.
        reach: rows on both sides.
    """
    padded = np.concatenate([np.full(reach, np.nan), values, np.full(reach, np.nan)])
    padded[~np.isfinite(padded)] = np.nan
    around = sliding_window_view(padded, 2 * reach + 1)[centers]
    level = np.full((len(around), 1), np.nan)
    known = np.isfinite(around).any(axis=1)
    if known.any():
        level[known] = np.nanmedian(around[known], axis=1, keepdims=True)
    return np.maximum(np.nan_to_num(around - level), 0.0)


def most_alike(first: np.ndarray, later: np.ndarray, reach: int, rng: np.random.Generator, draws: int = 2000) -> Alike:
    """Return the lag of the largest cross-correlation, the mean over times at which each counts the same.

    Args:
        first: curves around the times, shape (E, 2 a + 1).
        later: longer by ``reach`` on both sides, shape (E, 2 (a + reach) + 1).
        reach: largest lag, in rows.
        rng: for the bootstrap, which draws whole times.
        draws: number of bootstrap samples.
    """
    size = np.sqrt((first**2).sum(axis=1) * (later**2).sum(axis=1))
    used = size > 0
    if used.sum() < FEWEST:
        return Alike(float("nan"), float("nan"), float("nan"), int(used.sum()))
    shifted = sliding_window_view(later[used], first.shape[1], axis=1)  # (E, 2 reach + 1, 2 a + 1)
    products = np.einsum("elt,et->el", shifted, first[used]) / size[used][:, None]
    products *= 1 - TAPER * np.abs(np.arange(-reach, reach + 1)) / reach
    number = len(products)
    weights = rng.multinomial(number, np.full(number, 1 / number), size=draws).astype(float)
    drawn = np.argmax(weights @ products, axis=1) - reach
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return Alike(float(np.argmax(products.sum(axis=0)) - reach), float(low), float(high), number)
