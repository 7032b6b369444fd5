r"""Lead and lag between events: one-to-one matching, sign tests, intervals, and surrogates for association.

The sign of a lag, everywhere::

    first layer   ____|\_________        lag = time in the later layer - time in the first layer
    later layer   _________|\____
                      |----|  lag > 0: the later layer follows, the first layer leads
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr

__all__ = [
    "Association",
    "association",
    "cluster",
    "jitter",
    "match",
    "max_sign_p",
    "median_interval",
    "shift_blocks",
    "sign_p",
    "signs_of",
]


def match(first: np.ndarray, later: np.ndarray, window: float) -> np.ndarray:
    """Return the pairs of events that are each other's nearest, at most a window apart: one-to-one, symmetric.

    Args:
        first: times, sorted, shape (A,).
        later: times, sorted, shape (B,).
        window: largest distance, in the unit of the times.

    Returns:
        Indices into ``first`` and ``later``, shape (number of pairs, 2), ordered in time.
    """
    if len(first) == 0 or len(later) == 0:
        return np.empty((0, 2), dtype=int)
    to_later, to_first = _nearest(first, later), _nearest(later, first)
    index = np.arange(len(first))
    mutual = (to_first[to_later] == index) & (np.abs(later[to_later] - first) <= window)
    return np.stack([index[mutual], to_later[mutual]], axis=1)


def _nearest(times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each time the index of the nearest other one."""
    right = np.clip(np.searchsorted(others, times), 0, len(others) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(others[left] - times) <= np.abs(others[right] - times), left, right)


def cluster(times: np.ndarray, gap: float) -> np.ndarray:
    """Return the number of the cluster of each time: a new one begins after a gap without any.

    Args:
        times: sorted, shape (N,).
        gap: longest distance within a cluster.
    """
    return np.cumsum(np.diff(times, prepend=times[:1]) > gap)


def sign_p(lags: np.ndarray) -> float:
    """Return the exact two-sided p-value that lags are positive as often as negative; ties say nothing.

    References:
        Conover, 1999, Practical nonparametric statistics, section 3.4.
    """
    later, sooner = int((lags > 0).sum()), int((lags < 0).sum())
    if later + sooner == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(later, sooner), later + sooner, 0.5)))


def max_sign_p(signs: np.ndarray, rng: np.random.Generator, draws: int = 4096) -> np.ndarray:
    """Return p-values of sign tests of many layers at once, corrected for the largest of them.

    Under no lead, each episode is as likely as its mirror image in time, all layers together: the signs of whole
    episodes are flipped, exactly for up to 12 episodes, at random for more. Dependence between layers is kept.

    Args:
        signs: -1, 0 or 1 for each episode and layer, 0 also where there is no match, shape (E, L).
        rng: for the random flips.
        draws: number of random flips.

    Returns:
        Shape (L,): share of flips whose largest statistic over layers is at least that of this layer.

    References:
        Westfall and Young, 1993, Resampling-based multiple testing.
    """
    episodes, layers = signs.shape
    used = np.sqrt(np.maximum((signs != 0).sum(axis=0), 1))
    observed = np.abs(signs.sum(axis=0)) / used
    if episodes <= 12:
        flips = 1.0 - 2.0 * ((np.arange(2**episodes)[:, None] >> np.arange(episodes)) & 1)
    else:
        flips = rng.choice([-1.0, 1.0], size=(draws, episodes))
        flips[0] = 1.0
    largest = np.abs(flips @ signs / used).max(axis=1, initial=0.0)
    return (largest[:, None] >= observed - 1e-9).mean(axis=0) if layers else np.empty(0)


def median_interval(
    values: np.ndarray, clusters: np.ndarray, rng: np.random.Generator, confidence: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Return a bootstrap interval of the median, whole clusters drawn with replacement.

    Where every cluster holds one value, the interval is made of the order statistics that the bootstrap's limit
    names (the binomial interval of a median), so that it does not fall short with few values.

    Args:
        values: shape (N,).
        clusters: number of the cluster of each value, shape (N,).
        rng: for the draws.
        confidence: of the interval, two-sided.
        draws: number of bootstrap samples.

    Returns:
        Both ends; NaN with fewer than five values.
    """
    names, member = np.unique(clusters, return_inverse=True)
    low, high = _order_interval(np.sort(values), confidence)
    if len(names) == len(values) or np.isnan(low):
        return low, high
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    order = np.argsort(values)
    total = np.cumsum(weights[:, member[order]], axis=1)
    middle = np.argmax(total * 2 >= total[:, -1:], axis=1)
    medians = values[order][middle]
    tails = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return min(low, float(tails[0])), max(high, float(tails[1]))


def _order_interval(ordered: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the distribution-free interval of the median from order statistics (94 % with five)."""
    number = len(ordered)
    ranks = np.arange(number // 2 + 1)
    inside = np.flatnonzero(2 * bdtr(ranks - 1, number, 0.5) <= 1 - confidence) if number else np.empty(0, dtype=int)
    rank = int(inside[-1]) if len(inside) else 0
    if rank == 0 and number >= 5:
        rank = 1  # of five values, the smallest and the largest enclose the median in 94 %
    if rank == 0:
        return float("nan"), float("nan")
    return float(ordered[rank - 1]), float(ordered[number - rank])


class Association(NamedTuple):
    """How many events of one series have one of another nearby, and how many would by chance."""

    together: int
    expected: float
    p: float


def association(first: np.ndarray, later: np.ndarray, surrogates: np.ndarray, window: float) -> Association:
    """Return how many events have a later-series event within a window, against surrogates of the later series.

    Args:
        first: times, shape (A,).
        later: times, shape (B,).
        surrogates: times of the later series under no association, shape (S, B).
        window: in the unit of the times, both sides.
    """
    seen = _near(first, later[None, :], window)[0]
    chance = _near(first, surrogates, window)
    p = (1 + int((chance >= seen).sum())) / (1 + len(chance))
    return Association(int(seen), float(chance.mean()) if len(chance) else 0.0, p)


def _near(first: np.ndarray, later: np.ndarray, window: float) -> np.ndarray:
    """Return for each row of later times how many of the first times have one of them within the window."""
    rows, number = later.shape
    if number == 0 or len(first) == 0:
        return np.zeros(rows, dtype=int)
    low = min(float(later.min()), float(first.min())) - window
    span = max(float(later.max()), float(first.max())) + window - low + 1.0
    offset = np.arange(rows)[:, None] * span  # one sorted line holds all rows, each in a stretch of its own
    line = np.sort(later - low + offset, axis=1).ravel()
    at = first - low + offset
    counts = np.searchsorted(line, at + window, side="right") - np.searchsorted(line, at - window, side="left")
    return (counts > 0).sum(axis=1)


def jitter(times: np.ndarray, width: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return surrogates in which each event is moved uniformly within a width on both sides, shape (draws, N)."""
    return times + rng.uniform(-width, width, size=(draws, len(times)))


def shift_blocks(times: np.ndarray, block: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return surrogates in which the events of each block of time are rotated together, shape (draws, N).

    What varies more slowly than a block, such as an unstable phase, stays where it is.
    """
    if len(times) == 0:
        return np.empty((draws, 0))
    number = (times // block).astype(int)
    number -= number.min()
    by = rng.uniform(0, block, size=(draws, int(number.max()) + 1))[:, number]
    return (times // block) * block + (times % block + by) % block


def signs_of(lags: Sequence[np.ndarray], members: Sequence[np.ndarray], episodes: int) -> np.ndarray:
    """Return the sign of the summed lag signs of each episode and layer, shape (episodes, layers)."""
    signs = np.zeros((episodes, len(lags)))
    for layer, (each, member) in enumerate(zip(lags, members, strict=True)):
        np.add.at(signs[:, layer], member, np.sign(each))
    return np.sign(signs)
