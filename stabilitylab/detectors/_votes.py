"""The answers of the same images at many measurements, and what sampling explains of a fall between two groups."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stabilitylab.stats.proportion import mcnemar_z, two_proportion_z

__all__ = ["Votes", "fall_z"]

INDEPENDENT = 4
"""Measurements of one group count as new images at most so often, where it is not known whether they are the same."""


class Votes:
    """The answers of the same images, at the measurements for which they are known."""

    def __init__(self, votes: pd.DataFrame, steps: pd.Index) -> None:
        self._rows = votes.index.get_indexer(steps)
        self._votes = votes.to_numpy()
        self.known = (self._rows >= 0) & (self._votes.shape[1] > 0)

    def share(self, measurements: np.ndarray) -> np.ndarray:
        """Return how often each image was right over some measurements."""
        return self._votes[self._rows[measurements]].mean(axis=0)


def fall_z(
    values: np.ndarray, before: np.ndarray, after: np.ndarray, votes: Votes | None, samples: int | None
) -> float:
    """Return how far an accuracy fell between two groups of measurements, in standard errors of the sampling of images.

    Args:
        values: accuracies, shape (T,).
        before: indices of the measurements of the first group.
        after: those of the second one.
        votes: of the same images, if they are known.
        samples: number of images, if it is known; without both, the result is infinite.
    """
    if votes is not None and votes.known[before].all() and votes.known[after].all():
        return float(mcnemar_z(votes.share(before), votes.share(after)))
    if not samples:
        return float("inf")
    number = samples * min(len(before), len(after), INDEPENDENT)
    return float(two_proportion_z(values[before].mean(), values[after].mean(), number))
