"""Does one layer come sooner than most of the others, whatever the number of spikes of each?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import poisson_binom

__all__ = ["Precedence", "precedence"]

DRAWS = 400
"""Orders that are drawn of an episode in which a layer is hit more than once."""


class Precedence(NamedTuple):
    """In how many episodes layer 0 comes sooner than most others, in how many later, and the chance of either."""

    sooner: int
    later: int
    p_sooner: float
    """Chance of at least so many sooner ones, if every order of the hits of an episode is as likely."""
    p_later: float


def precedence(
    layers: Sequence[np.ndarray], onsets: Sequence[np.ndarray], times: Sequence[np.ndarray], rng: np.random.Generator
) -> Precedence:
    """Return how often layer 0 comes first or last, of each layer its first hit, and the one-sided p of both.

    A layer with many hits comes early in any order, which the chance allows for. Where each has one hit, it is the sign
    test.

    Args:
        layers: the number of the layer of each hit, one array for each episode, 0 to L - 1, each number present.
        onsets: when each hit begins, which decides which one is the first of its layer.
        times: what is compared between the layers, such as the onset or the peak of each hit.
        rng: for the orders that are drawn.

    Returns:
        Episodes in which layer 0 has as many others before as after it count for neither.
    """
    sooner, chances = [], []
    for layer, onset, time in zip(layers, onsets, times, strict=True):
        order = np.argsort(onset, kind="stable")
        layer, time = layer[order], time[order]
        way = _ways(layer[None, :], time)[0]
        if way != 0:
            sooner.append(way > 0)
            chances.append(_chance(layer, time, rng))
    number, first = len(sooner), int(sum(sooner))
    if number == 0:
        return Precedence(0, 0, 1.0, 1.0)
    by_chance = poisson_binom(chances)
    return Precedence(first, number - first, float(by_chance.sf(first - 1)), float(by_chance.cdf(first)))


def _chance(layer: np.ndarray, time: np.ndarray, rng: np.random.Generator) -> float:
    """Return the chance that layer 0 comes sooner, of those that it comes sooner or later."""
    if len(np.unique(layer)) == len(layer):
        return 0.5
    ways = _ways(rng.permuted(np.tile(layer, (DRAWS, 1)), axis=1), time)
    sooner, later = int((ways > 0).sum()), int((ways < 0).sum())
    return (sooner + 1) / (sooner + later + 2)


def _ways(layers: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Return 1 where layer 0 comes before more of the others than after, -1 where after more, else 0, shape (D,).

    Args:
        layers: of the hits in the order of their onsets, shape (D, H).
        time: shape (H,).
    """
    firsts = np.stack([time[(layers == each).argmax(axis=1)] for each in range(int(layers.max()) + 1)], axis=1)
    return np.asarray(np.sign(np.sign(firsts[:, 1:] - firsts[:, :1]).sum(axis=1)).astype(int))
