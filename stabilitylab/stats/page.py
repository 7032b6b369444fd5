"""Page's test: do times increase over an order, here the onsets of an episode over the depth of the layers?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from stabilitylab.stats.lag import mean_ranks, mirrors

__all__ = ["Trend", "page_trend"]


class Trend(NamedTuple):
    """How the ranks within rows go with the order of the columns."""

    rows: int
    """Rows that say something: three values or more, not all equal."""
    values: int
    """Values in them."""
    ties: int
    """How many fewer there would be if equal ones of a row counted once."""
    correlation: float
    """Mean rank correlation with the order, from -1 to 1; NaN without a row."""
    z: float
    """Page's statistic, standardized: positive where values increase."""
    p: float
    """Two-sided; under no trend all orders within a row are as likely."""
    p_mirror: float
    """Two-sided; under no trend a row is as likely as its mirror image, whatever its columns have in common."""
    p_smallest: float
    """Smallest ``p_mirror`` that so many rows can reach."""


def page_trend(values: np.ndarray, rng: np.random.Generator) -> Trend:
    """Return whether values increase over the columns, from their ranks within rows.

    Equal values share their mean rank, which lessens the variance accordingly; a missing one is left out of its row,
    whose others are ranked among themselves against the order of their columns. Complete rows without ties make
    Page's L, standardized by its mean and variance.

    Args:
        values: NaN where missing, shape (R, C), columns in their order.
        rng: for random mirror images, needed with more than 12 rows.

    References:
        Page, 1963, Ordered hypotheses for multiple treatments: a significance test for linear ranks. JASA 58.
    """
    known = ~np.isnan(values)
    ranks = _centered(mean_ranks(values))
    order = _centered(mean_ranks(np.where(known, np.arange(values.shape[1], dtype=float), np.nan)))
    number = known.sum(axis=1)
    spread, width = (ranks**2).sum(axis=1), (order**2).sum(axis=1)
    used = (number >= 3) & (spread > 0)
    if not used.any():
        return Trend(0, 0, 0, float("nan"), 0.0, 1.0, 1.0, 1.0)
    products = (ranks * order).sum(axis=1)[used]
    size = (spread * width)[used]
    z = float(products.sum() / np.sqrt((size / (number[used] - 1)).sum()))
    standard = products / np.sqrt(size / (number[used] - 1))
    mirrored = np.abs(mirrors(len(standard), rng) @ standard)
    distinct = sum(len(np.unique(row[here])) for row, here in zip(values[used], known[used], strict=True))
    return Trend(
        rows=int(used.sum()),
        values=int(number[used].sum()),
        ties=int(number[used].sum()) - distinct,
        correlation=float((products / np.sqrt(size)).mean()),
        z=z,
        p=min(1.0, 2 * float(ndtr(-abs(z)))),
        p_mirror=float((mirrored >= abs(standard.sum()) - 1e-9).mean()),
        p_smallest=min(1.0, 2.0 ** (1 - int((products != 0).sum()))),
    )


def _centered(ranks: np.ndarray) -> np.ndarray:
    """Return ranks less the mean of their row, 0 where there is none."""
    number = np.maximum((~np.isnan(ranks)).sum(axis=1, keepdims=True), 1)
    return np.nan_to_num(ranks - np.nansum(ranks, axis=1, keepdims=True) / number)
