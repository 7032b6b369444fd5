r"""Two groups of runs, paired or not: the difference, its interval, and how seldom chance makes so large a one.

The sign, everywhere: difference = second group - first group, positive where the second is larger.
"""

from __future__ import annotations

from itertools import combinations, product
from math import comb
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit
from scipy.stats import ks_2samp, rankdata

from stabilitylab.stats.interval import CONFIDENCE

__all__ = ["Difference", "ExcessError", "excess_error", "holm", "paired_difference", "unpaired_difference"]

EXACT = 9999
"""Up to so many arrangements all are gone through; beyond it so many are drawn."""


class Difference(NamedTuple):
    """What sets the second group apart from the first; NaN where there are too few runs to say."""

    value: float
    """Difference of the means."""
    low: float
    high: float
    """Its 95 % interval by Student's t."""
    p_t: float
    """Two-sided p of the same t, which takes the values to be nearly normal."""
    p: float
    """Two-sided permutation p, which takes nothing for granted."""
    p_smallest: float
    """The smallest p that so many runs can reach."""
    exact: bool
    """Whether all arrangements were gone through."""


def paired_difference(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> Difference:
    """Return the mean difference within pairs; by chance each pair may as well be the other way around.

    Args:
        first: one value for each pair, shape (n,), n at least 1; an infinite one makes the test one of ranks.
        second: likewise, in the same order.
        rng: for arrangements that are drawn.
    """
    size = len(first)
    one, other = _ranked(first, second)
    exact = 2**size <= EXACT
    signs = np.array(list(product((1, -1), repeat=size))) if exact else rng.choice((1, -1), (EXACT, size))
    p = _p(signs @ (other - one), float(np.sum(other - one)), exact)
    apart = _finite(second) - _finite(first)
    error = np.std(apart, ddof=1) / np.sqrt(size) if size > 1 else np.nan
    by_t = _by_t(float(np.mean(apart)), float(error), size - 1.0)
    return Difference(*by_t, p, _smallest(2**size), exact)


def unpaired_difference(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> Difference:
    """Return the difference of two means with Welch's interval; by chance any run may belong to either group.

    Args:
        first: one value for each run, shape (n,), n at least 1; an infinite one makes the test one of ranks.
        second: likewise, shape (m,).
        rng: for arrangements that are drawn.
    """
    sizes = (len(first), len(second))
    total, number = sum(sizes), comb(sum(sizes), len(second))
    exact = number <= EXACT
    one, other = _ranked(first, second)
    if exact:
        members = np.array(list(combinations(range(total), sizes[1])))
    else:
        members = rng.permuted(np.tile(np.arange(total), (EXACT, 1)), axis=1)[:, : sizes[1]]
    p = _p(np.concatenate([one, other])[members].sum(axis=1), float(other.sum()), exact)
    value = float(np.mean(_finite(second)) - np.mean(_finite(first)))
    parts = [np.var(_finite(each), ddof=1) / len(each) if len(each) > 1 else np.nan for each in (first, second)]
    freedom = np.nan
    if sum(parts) > 0:
        freedom = sum(parts) ** 2 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    by_t = _by_t(value, float(np.sqrt(sum(parts))), float(freedom))
    return Difference(*by_t, p, _smallest(number), exact)


def _by_t(value: float, error: float, freedom: float) -> tuple[float, float, float, float]:
    """Return a difference, its bounds and its p by Student's t; values without any spread tell no error."""
    if not error > 0:
        return value, np.nan, np.nan, np.nan
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return value, value - reach, value + reach, float(2 * stdtr(freedom, -abs(value) / error))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _ranked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values, or the ranks of all of them where one is infinite and no mean exists."""
    together = np.concatenate([first, second]).astype(float)
    if not np.isfinite(together).all():
        together = rankdata(together)
    return together[: len(first)], together[len(first) :]


def _p(arranged: np.ndarray, seen: float, exact: bool) -> float:
    """Return twice the share of arrangements beyond what was seen, on its rarer side; drawn ones count it too."""
    slack = 1e-12 * np.abs(arranged).max(initial=1e-300)  # sums in another order differ in their last digits
    beyond = min(int((arranged >= seen - slack).sum()), int((arranged <= seen + slack).sum()))
    return min(1.0, 2 * (beyond / len(arranged) if exact else (beyond + 1) / (len(arranged) + 1)))


def _smallest(arrangements: int) -> float:
    return min(1.0, 2 / min(arrangements, EXACT + 1))


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values corrected so that one false claim among all of them is as rare as the level says.

    Args:
        p: shape (n,); NaN is no test, and stays NaN.

    References:
        Holm, 1979, A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics.
    """
    p = np.asarray(p, dtype=float)
    corrected = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0) if len(order) else []
    return corrected


class ExcessError(NamedTuple):
    """How far the runs of two groups stay behind the best run of their own group.

    ::

        1 |      ____ first        mean = area between the curve and 1
          |   __|  __ second       value = area between the curves, second - first
          |  |  __|
        0 |__|_|______ error - best error of the group
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    """Bootstrap over runs, 95 %; the best one is found anew in each draw."""
    distance: float
    """Largest vertical distance between the two curves (Kolmogorov and Smirnov)."""


def excess_error(first: np.ndarray, second: np.ndarray, rng: np.random.Generator, draws: int = 2000) -> ExcessError:
    """Return the comparison of two distributions of error - best error over runs of different settings.

    Args:
        first: error of each run of the first group, shape (n,); of a run that diverged, the largest possible.
        second: likewise, shape (m,).
        rng: for the bootstrap.
        draws: number of bootstrap samples.

    References:
        Radosavovic et al., 2019, On network design spaces for visual recognition. ICCV.
        Xiao et al., 2021, Early convolutions help transformers see better. NeurIPS.
    """
    behind = [each - each.min() for each in (first, second)]
    means = [float(each.mean()) for each in behind]
    drawn = []
    for each in (first, second):
        samples = each[rng.integers(len(each), size=(draws, len(each)))]
        drawn.append((samples - samples.min(axis=1, keepdims=True)).mean(axis=1))
    low, high = np.quantile(drawn[1] - drawn[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    distance = ks_2samp(*behind).statistic
    return ExcessError(means[0], means[1], means[1] - means[0], float(low), float(high), float(distance))
