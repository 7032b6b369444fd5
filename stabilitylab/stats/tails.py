"""The upper tail of noise: how far a value must stand out to be exceeded at a stated rate."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, stdtr, stdtrit

from stabilitylab.stats.robust import MAD_TO_SD

__all__ = [
    "PRIOR",
    "Evidence",
    "Tail",
    "evidence_of",
    "normal_prior",
    "pooled",
    "posterior",
    "shape_of_sum",
    "tail_of",
    "tail_threshold",
]

PRIOR = 0.15
"""One over the degrees of freedom that are assumed where a sample does not say."""


LEAST, FEW = 24, 50
"""Fewer values say nothing; up to so many may hold a part of what is looked for, and be far too wide."""


class Tail(NamedTuple):
    """The upper tail of a sample of noise: a Student-t of its middle and spread."""

    shape: float
    """One over the degrees of freedom; 0 is normal."""
    middle: float
    spread: float
    """Robust standard deviation."""

    def threshold(self, rate: float) -> float:
        """Return the value that is exceeded upward with this probability."""
        return self.middle + self.spread * tail_threshold(self.shape, rate)

    def chance(self, threshold: float) -> float:
        """Return the probability with which a value is exceeded: the inverse of `threshold`."""
        freedom = 1 / max(self.shape, 1e-4)
        distance = (threshold - self.middle) / self.spread
        return float(stdtr(freedom, -distance * stdtrit(freedom, 0.75) * MAD_TO_SD))


class Evidence(NamedTuple):
    """What a sample of noise says of its tails."""

    both: np.ndarray
    """Logarithm of the likelihood of each of `SHAPES`: of the lower side and the nearer part of the upper one."""
    upper: np.ndarray
    """That of the nearer part of the upper side alone."""
    lower: np.ndarray
    """That of the nearer part of the lower side alone."""
    middle: float
    spread: float

    def tail(self, prior: float, log_prior: np.ndarray | None = None) -> Tail:
        """Return the Student-t of these tails; where the upper side is clearly wider it decides, up to ``prior``.

        So it does where it is clearly narrower: the norm of a few entries has a long tail below and hardly one above.

        Beyond it a long upper tail is taken for what is looked for, or a layer that spikes often would never be seen
        to spike.

        Args:
            prior: one over the degrees of freedom that are assumed where the sample does not say.
            log_prior: logarithm of what each of `SHAPES` is expected with, where more is known (by `normal_prior` or
                `pooled`).
        """
        alone = normal_prior(prior)
        shape = prior  # also the answer where nothing is said: the posterior mean of no evidence is cut at both ends
        if log_prior is not None or self.both.any():
            shape, _ = posterior(self.both + (alone if log_prior is None else log_prior))
        upper, error = posterior(self.upper + alone)
        lower, unsure = posterior(self.lower + alone)
        if upper + 2 * error < lower - 2 * unsure:
            shape = min(shape, upper + 2 * error)
        return Tail(max(shape, min(upper - 2 * error, prior)), self.middle, self.spread)


def tail_of(sample: np.ndarray, prior: float = PRIOR) -> Tail:
    """Return the Student-t that has the tails of a sample, from that sample alone; see `evidence_of`."""
    return evidence_of(sample).tail(prior)


def evidence_of(sample: np.ndarray, size: int = 1) -> Evidence:
    """Return what a sample says of its tails, from how many values lie beyond multiples of the median deviation.

    All of the lower side counts, which upward events do not touch, and the nearer values of the upper side.

    Args:
        sample: any shape; values that are not finite are left out.
        size: number of values of standard deviation 1 in a row that each is the sum of: so many say no more than one,
            and where too few say anything, their root is the spread.
    """
    ordered = np.sort(sample[np.isfinite(sample)], axis=None)
    none = np.zeros(len(SHAPES))
    nothing = Evidence(none, none, none, 0.0, float(np.sqrt(size)))
    if len(ordered) < LEAST:
        return nothing
    middle = float(ordered[len(ordered) // 2])
    center = float(np.median(np.abs(ordered - middle)))
    if center <= 0 or (len(ordered) < FEW and center * MAD_TO_SD > 1.5 * nothing.spread):
        return nothing
    edges = (EDGES * center).astype(ordered.dtype)
    below = np.searchsorted(ordered, middle - edges[::-1], side="right")[::-1]
    above = len(ordered) - np.searchsorted(ordered, middle + edges, side="left")
    lower = _log_shares(len(EDGES)) @ -np.diff(below, append=0)
    inner = _log_shares(INNER) @ -np.diff(below)[:INNER]
    upper = _log_shares(INNER) @ -np.diff(above)[:INNER]
    return Evidence((lower + upper) / size, upper / size, inner / size, middle, center * MAD_TO_SD)


def shape_of_sum(shape: float, size: int) -> float:
    """Return one over the degrees of freedom of a sum of independent values, by its fourth moment."""
    return shape / (1 + (size - 1) * max(1 - 4 * shape, 0.0))


def pooled(likelihoods: np.ndarray, log_prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what is expected of the shape of one sample from the shapes of others of its kind.

    The shapes of the samples are normal around a center, which is little known beforehand, with a spread of one of
    `SPREADS`; both are summed over.

    Args:
        likelihoods: `Evidence.both` of each sample, shape (N, number of shapes).
        log_prior: logarithm of what each of `SHAPES` is expected with beforehand (`normal_prior`).

    Returns:
        Logarithm of the density at `SHAPES`, without its constant: for each of the samples from the others, shape
        (N, number of shapes), and for a further one from all, shape (number of shapes,).
    """
    around = -(((SHAPES - SHAPES[:, None]) / SPREADS[:, None, None]) ** 2) / 2
    around -= logsumexp(around, axis=-1, keepdims=True)
    around = around.reshape(-1, len(SHAPES))  # (centers and spreads, shapes)
    center = np.tile(log_prior, len(SPREADS))
    fit = logsumexp(around + likelihoods[:, None], axis=-1)
    total = fit.sum(axis=0)
    weight = center + np.vstack([total - fit, total])
    weight -= logsumexp(weight, axis=-1, keepdims=True)
    expected = np.log(np.exp(weight) @ np.exp(around) + 1e-300)
    return expected[:-1], expected[-1]


SPREADS = np.array([0.01, 0.03, 0.06])
"""How much the shapes of the layers of a run may differ."""

EDGES = np.array([0.0, 1.0, 1.5, *np.geomspace(2.0, 16.0, 22)])
"""Multiples of the median absolute deviation between which values are counted."""

INNER = 11
"""Bins of the upper side that count: up to three standard deviations, where what is looked for hardly matters."""

SHAPES = np.linspace(0.0, 0.45, 46)
"""What one over the degrees of freedom may be."""


def normal_prior(center: float, width: float = 0.1) -> np.ndarray:
    """Return the logarithm of a normal prior of one over the degrees of freedom at `SHAPES`."""
    return -(((SHAPES - center) / width) ** 2) / 2


def posterior(log_weight: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of one over the degrees of freedom."""
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = float(weight @ SHAPES)
    return mean, float(np.sqrt(weight @ (SHAPES - mean) ** 2))


@cache
def _log_shares(bins: int) -> np.ndarray:
    """Return the logarithm of the share that each of the first bins has of them, shape (number of shapes, bins)."""
    freedom = 1 / np.maximum(SHAPES, 1e-4)[:, None]
    beyond = 2 * stdtr(freedom, -EDGES * stdtrit(freedom, 0.75))
    share = -np.diff(beyond, axis=1, append=0.0)[:, :bins]
    return np.log(share / share.sum(axis=1, keepdims=True))


def tail_threshold(shape: float, rate: float) -> float:
    """Return the value that is exceeded upward with probability ``rate``, in robust standard deviations.

    Args:
        shape: one over the degrees of freedom.
        rate: probability, far in the tail.

    Returns:
        3.9 for normal noise and a rate of 5e-5.
    """
    freedom = 1 / max(shape, 1e-4)
    return float(-stdtrit(freedom, rate) / stdtrit(freedom, 0.75) / MAD_TO_SD)
