"""Rules for spikes that are in use, each from its description alone: a series (T, N) in, flagged samples (T, N) out.

Windows are the past of each sample. A rule flags nothing before it has the past that it asks for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.signal import find_peaks

MAD_TO_SD = 1.4826


def mean_and_sd(values: np.ndarray, window: int, factor: float) -> np.ndarray:
    """Value above mean + factor x standard deviation of the last ``window`` values."""
    past = pd.DataFrame(values).shift(1).rolling(window)
    return values > (past.mean() + factor * past.std()).to_numpy()


def z_on_moving_average(values: np.ndarray, factor: float = 2.5, span: int = 100) -> np.ndarray:
    """More than so many standard deviations above an exponential moving average, both of the past."""
    past = pd.DataFrame(values).shift(1).ewm(span=span, min_periods=span // 4)
    return values > (past.mean() + factor * past.std()).to_numpy()


def tenfold_of_the_first(values: np.ndarray, factor: float = 10.0, first: int = 100) -> np.ndarray:
    """Above ten times the maximum of the first hundred values."""
    flagged = values > factor * values[:first].max(axis=0)
    flagged[:first] = False
    return flagged


def threefold_of_ten(values: np.ndarray, factor: float = 3.0, window: int = 10) -> np.ndarray:
    """At least three times the mean of the last ten values."""
    return values >= factor * pd.DataFrame(values).shift(1).rolling(window).mean().to_numpy()


def cusum(values: np.ndarray, window: int = 100, allowance: float = 0.5, limit: float = 5.0) -> np.ndarray:
    """One-sided CUSUM of the logarithm in units of a rolling median and MAD; it restarts after each alarm."""
    log = pd.DataFrame(np.log(values))
    level = log.shift(1).rolling(window).median()
    scale = MAD_TO_SD * (log - level).abs().shift(1).rolling(window).median()
    z = np.nan_to_num(((log - level) / scale).to_numpy(), nan=0.0, posinf=0.0)
    total, flagged = np.zeros(values.shape[1]), np.zeros(values.shape, dtype=bool)
    for at, each in enumerate(z):
        total = np.maximum(0.0, total + each - allowance)
        flagged[at] = total > limit
        total[flagged[at]] = 0.0
    return flagged


def prominent_peaks(values: np.ndarray, factor: float = 5.0) -> np.ndarray:
    """``scipy.signal.find_peaks`` on the logarithm, prominence of five robust standard deviations of the series."""
    log, flagged = np.log(values), np.zeros(values.shape, dtype=bool)
    scale = MAD_TO_SD * np.median(np.abs(log - np.median(log, axis=0)), axis=0)
    for column in range(values.shape[1]):
        flagged[find_peaks(log[:, column], prominence=factor * scale[column])[0], column] = True
    return flagged


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean + 6 sd / 128": lambda values: mean_and_sd(values, 128, 6.0),
    "mean + 7 sd / 1000": lambda values: mean_and_sd(values, 1000, 7.0),
    "z > 2.5 on EMA": z_on_moving_average,
    "10x max of first 100": tenfold_of_the_first,
    "3x mean of 10": threefold_of_ten,
    "median/MAD CUSUM": cusum,
    "find_peaks": prominent_peaks,
}
