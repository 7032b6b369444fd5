"""Events moved at random within their neighborhood: how many would be near those of another series by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Association", "association", "jitter", "shift_blocks"]


class Association(NamedTuple):
    """How many events have one of each other series nearby, and how many would by chance; each of shape (L,)."""

    together: np.ndarray
    expected: np.ndarray
    """Mean over the surrogates."""
    p: np.ndarray
    p_adjusted: np.ndarray
    """Corrected for the largest excess over the series, on the same surrogates."""


def association(times: np.ndarray, others: Sequence[np.ndarray], surrogates: np.ndarray, window: float) -> Association:
    """Return how many events have one of each other series within a window, against surrogates of the events.

    The same surrogates meet all other series, which stay where they are, so that what these have in common is kept.

    Args:
        times: in steps, shape (A,).
        others: times of the other series, L arrays.
        surrogates: the events under no association, shape (S, A).
        window: on both sides, in whole steps; half a step more counts, because moved times are no whole steps.
    """
    if len(others) == 0:
        return Association(*np.empty((4, 0)))
    rows = np.concatenate([times[None, :], surrogates])
    counts = np.stack([_near(rows, np.sort(each), window + 0.5) for each in others])
    chance = counts[:, 1:].mean(axis=1) if len(surrogates) else np.zeros(len(others))
    excess = (counts - counts.mean(axis=1)[:, None]) / np.maximum(counts.std(axis=1), 0.5)[:, None]
    largest = excess.max(axis=0)
    p = (counts >= counts[:, :1]).mean(axis=1)
    adjusted = (largest >= excess[:, :1] - 1e-9).mean(axis=1)
    return Association(counts[:, 0], chance, p, np.maximum(adjusted, p))


def _near(rows: np.ndarray, others: np.ndarray, window: float) -> np.ndarray:
    """Return for each row how many of its times have one of the others, sorted, within the window."""
    if len(others) == 0:
        return np.zeros(len(rows), dtype=int)
    apart = np.flatnonzero(np.diff(others) > 2 * window)  # stretches around the others that do not touch
    begins = others[np.append(0, apart + 1)] - window
    ends = others[np.append(apart, len(others) - 1)] + window
    edges = np.stack([begins, ends], axis=1).ravel()
    return (np.searchsorted(edges, rows) % 2 == 1).sum(axis=1)


def jitter(
    times: np.ndarray, width: float, draws: int, rng: np.random.Generator, clusters: np.ndarray | None = None
) -> np.ndarray:
    """Return surrogates in which the events are moved uniformly within a width on both sides, shape (draws, N).

    Args:
        times: shape (N,).
        width: in the unit of the times.
        draws: number of surrogates.
        rng: for the moves.
        clusters: number of the cluster of each event, shape (N,): a cluster moves as a whole; each event by itself if
            not given.
    """
    if clusters is None:
        return times + rng.uniform(-width, width, size=(draws, len(times)))
    names, member = np.unique(clusters, return_inverse=True)
    return times + rng.uniform(-width, width, size=(draws, len(names)))[:, member]


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
